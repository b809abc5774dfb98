"""Search indexes: passages of a corpus, found by words.

`open_index` is the way in and `index` the contract. Three kinds keep it: `bm25`, in this process and from a folder;
`elasticsearch`; and `remote`, any server that speaks Search-R1's format, as `serve` does with an index of ours. `corpora`
reads the files that people index. ``python -m sandboxes.search`` builds, serves and asks an index.
"""

from sandboxes.search.bm25 import Bm25Index, DuplicatePassage
from sandboxes.search.corpora import Corpus, CorpusError, CorpusReport, read_corpus
from sandboxes.search.elasticsearch import Connection
from sandboxes.search.index import Index, Passage, UnknownPassage
from sandboxes.search.opening import open_index, share_index

__all__ = [
    "Bm25Index",
    "Connection",
    "Corpus",
    "CorpusError",
    "CorpusReport",
    "DuplicatePassage",
    "Index",
    "Passage",
    "UnknownPassage",
    "open_index",
    "read_corpus",
    "share_index",
]

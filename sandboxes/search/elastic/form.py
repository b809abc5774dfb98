"""The form of an index of passages, and what a query looks like in it.

A document is a passage: ``_id`` and ``id`` are its id, ``title`` and ``text`` what it says. What is searched is
``contents``, both of them together, as one field beats two equal ones (on HotpotQA, nDCG@10 of 0.633 against 0.603 [1]); a
match in the title counts a little more. It is analysed as English and scored by BM25 with k1 0.9 and b 0.4, the values of
Anserini's and DPR's baselines. All is in one shard, so that the statistics of a word are those of the whole index.

``_meta`` says which version of this form it is, and whether its loading came to an end.

[1] Anserini, BEIR regressions, flat and multifield: https://github.com/castorini/anserini
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sandboxes.faults import SandboxFault
from sandboxes.search.elastic.connection import Address
from sandboxes.search.index import Passage

K1, B = 0.9, 0.4
LARGEST_K = 10_000
"""The server's own limit of hits (``index.max_result_window``)."""
_LONGEST_ID = 512  # bytes
_VERSION = 1
_META = "passages"
_SIMILARITY = "passages"
# Documents and frequencies are all that BM25 needs; positions would double the index.
_SEARCHED = {"type": "text", "analyzer": "english", "similarity": _SIMILARITY, "index_options": "freqs"}
_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "id": {"type": "keyword"},
    "title": {**_SEARCHED, "copy_to": ["contents"]},
    "text": {"type": "text", "index": False, "copy_to": ["contents"]},
    "contents": _SEARCHED,
}
# Every server takes 1,024 clauses in a query, one for each word and field; each of these is one word at most.
_WORD = re.compile(r"[0-9A-Za-z]{1,255}|[^\x00-\x7f]")
_MOST_WORDS = 500
_MOST_CHARACTERS = 10_000
_SURROGATE = re.compile("[\ud800-\udfff]")


def creation() -> dict[str, Any]:
    """What a new index is created with, in the state that it is loaded in: not refreshed, and without copies."""
    return {
        "settings": {
            "index": {
                "number_of_shards": 1,
                "number_of_replicas": 0,
                "refresh_interval": "-1",
                "translog": {"durability": "request"},  # what was acknowledged is on disk
                "similarity": {_SIMILARITY: {"type": "BM25", "k1": K1, "b": B}},
            }
        },
        "mappings": {"dynamic": "strict", "_meta": meta(complete=False), "properties": _FIELDS},
    }


def meta(complete: bool) -> dict[str, Any]:
    """The ``_meta`` of an index."""
    return {_META: {"version": _VERSION, "complete": complete}}


def check(found: Mapping[str, Any], address: Address) -> bool:
    """Whether an index has this form.

    Args:
        found: The server's description of it (``GET /INDEX``).
        address: Where it is, for messages.

    Returns:
        Whether its loading came to an end.

    Raises:
        SandboxFault: It is none of ours; the message names the first difference.
    """
    completed = [_check_one(index, address) for index in found.values()]  # several, where the name is an alias
    return all(completed)


def _check_one(index: Mapping[str, Any], address: Address) -> bool:
    mappings, settings = index["mappings"], index["settings"]["index"]
    told = mappings.get("_meta", {}).get(_META, {})
    similarity = settings.get("similarity", {}).get(_SIMILARITY, {})
    fields = mappings.get("properties", {})
    compared = [
        *((f"field {name}", _FIELDS.get(name), fields.get(name)) for name in sorted({*_FIELDS, *fields})),
        ("similarity", {"type": "BM25", "k1": K1, "b": B}, {name: _number(value) for name, value in similarity.items()}),
        ("version of _meta", _VERSION, told.get("version")),
    ]
    for what, wanted, has in compared:
        if has != wanted:
            raise SandboxFault(
                f"index {address.index!r} at {address.url} has another mapping than passages need ({what}: expected "
                f"{wanted!r}, found {has!r}): load the passages under another name with python -m sandboxes.search index"
            )
    return bool(told.get("complete"))


def query(text: str, k: int, title_boost: float) -> dict[str, Any]:
    """The search for a text: the ``k`` best, equal scores by id.

    Args:
        text: Any; what goes beyond 500 words (a character that is not ASCII counts as one) or 10,000 characters is left out.
        k: At least 1.
        title_boost: What a match in the title counts beside one in the contents; 0 for not at all.
    """
    text = cut(text)
    match: dict[str, Any] = {"match": {"contents": text}}
    if title_boost > 0:
        match = {"bool": {"should": [match, {"match": {"title": {"query": text, "boost": title_boost}}}]}}
    return {
        "query": match,
        "size": min(k, LARGEST_K),
        "sort": [{"_score": "desc"}, {"id": "asc"}],
        "track_total_hits": False,
    }


def cut(text: str) -> str:
    """The beginning of a text, with no more words than a query may have."""
    text = clean(text[:_MOST_CHARACTERS])
    for count, word in enumerate(_WORD.finditer(text)):
        if count == _MOST_WORDS:
            return text[: word.start()]
    return text


def clean(text: str) -> str:
    """The text with a replacement character for each lone surrogate, which UTF-8 cannot say."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def unsendable(id: str) -> str:
    """Why the server would refuse a whole request for such an id of a passage; "" if it would not."""
    try:
        size = len(id.encode())
    except UnicodeEncodeError:
        return "its id has a lone surrogate, which UTF-8 cannot say"
    return "" if 0 < size <= _LONGEST_ID else f"expected an id of 1 to {_LONGEST_ID} bytes, found {size}"


def document(passage: Passage) -> dict[str, str]:
    """A passage as a document."""
    return {"id": passage.id, "title": clean(passage.title), "text": clean(passage.text)}


def passage_of(document: Mapping[str, str], score: float = 0.0) -> Passage:
    """The passage that a document is."""
    return Passage(document["id"], document["title"], document["text"], score)


def _number(value: Any) -> Any:
    """A setting's value, which the server gives back as a string."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value

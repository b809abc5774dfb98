"""The files of a bank, and how they change: whole or not at all.

A bank is a folder:

    manifest.json            what the bank is: versions, embedder, dimension, and every file with its rows, size and checksum
    steps-NNNNNN.parquet     shards: the steps in order, with their vectors
    index-NNNNNN.faiss       the index of the first so many rows, where there is one
    lock                     held by whoever is writing

Files never change once the manifest names them; a change writes new files, puts them safely on the disk and then replaces
the manifest, which is the one moment at which it happens. Whatever the manifest does not name is left over from somebody who
was killed, and the next writer removes it. Readers need no lock: they open all that a manifest names, and if a writer was
faster they read the new one.

This room knows nothing of embedders, of searching or of what an index file holds.

    manifest.py     what a bank is, as `manifest.json` says it
    layout.py       steps as Arrow tables, cut into row groups
    writing.py      new files, safe on the disk; the lock; left-overs
    shard.py        one shard, open for reading
    snapshot.py     a committed state, for readers
    change.py       a change, for writers
    check.py        everything that is wrong with the files
    folder.py       `Store`: the folder, through which all of these are reached
"""

from tracebank.store.change import Change
from tracebank.store.check import Problem
from tracebank.store.folder import Store
from tracebank.store.manifest import MANIFEST_VERSION, File, IndexKind, Manifest
from tracebank.store.snapshot import Columns, Snapshot

__all__ = ["MANIFEST_VERSION", "Change", "Columns", "File", "IndexKind", "Manifest", "Problem", "Snapshot", "Store"]

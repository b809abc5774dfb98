"""The folder of a bank, through which its files are read and changed."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tracebank.faults import BankError
from tracebank.store.change import Change, versions
from tracebank.store.check import Problem, problems
from tracebank.store.manifest import MANIFEST_NAME, File, Manifest, read_manifest
from tracebank.store.shard import MEND, Shard
from tracebank.store.snapshot import GroupCache, IndexFile, Snapshot
from tracebank.store.writing import LOCK_NAME, NEW_MANIFEST, locked, sweep, sync_folder, write_manifest, writing


class Store:
    """A bank's folder. Safe from many threads.

    Args:
        path: The folder.

    Raises:
        BankError: There is no bank, or its manifest is of a later version or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        read_manifest(self.path)
        self._cache = GroupCache()
        self._shards: weakref.WeakValueDictionary[File, Shard] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> Store:
        """Makes an empty bank.

        Args:
            path: A folder that is empty, or not there.
            manifest: What it is to be, without any files.

        Raises:
            BankError: The folder exists and is not empty, or cannot be written.
            ValueError: A manifest that names files, or that could not be read again.
        """
        path = Path(path)
        if manifest.files or manifest.generation:
            raise ValueError("manifest: expected that of an empty bank, found files or a generation")
        manifest = dataclasses.replace(manifest, written_by=versions())
        try:
            Manifest.from_json(manifest.to_json())
        except BankError as error:
            raise ValueError(f"manifest: {error}") from None
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            _check_empty(path, beside=set())
        with locked(path):  # two may come at once
            with writing(path):
                _check_empty(path, beside={LOCK_NAME, NEW_MANIFEST})
            write_manifest(path, manifest)
            with writing(path.parent):
                sync_folder(path.parent)
        return cls(path)

    def snapshot(self) -> Snapshot:
        """The newest committed state.

        Raises:
            BankError: A shard is missing, of another size than the manifest says, or not readable as Parquet.
        """
        while True:
            manifest = read_manifest(self.path)
            gone = ""
            shards = []
            for file in manifest.shards:
                try:
                    shards.append(self._shard(file, manifest.dimension))
                except FileNotFoundError:
                    gone = file.name
                    break
            index = None if manifest.index is None else IndexFile(self.path, manifest.index)
            if not gone and (index is None or not index.missing):
                return Snapshot(manifest, shards, index, self._cache)
            if read_manifest(self.path) != manifest:
                continue  # a writer has replaced the file meanwhile
            if not gone:
                return Snapshot(manifest, shards, index, self._cache)
            raise BankError(f"{self.path / gone}: damaged: expected a shard of this name, found no file; {MEND}")

    @contextmanager
    def change(self) -> Iterator[Change]:
        """Holds the bank for writing, waiting for another writer; commits at the end, or leaves it as it was.

        One thread must not hold two changes at once: the second would wait for the first for ever.

        Raises:
            BankError: The disk is full, or a file cannot be written: the bank is as it was before.
        """
        with locked(self.path):
            sweep(self.path, read_manifest(self.path))
            change = Change(self.path, self.snapshot(), self._shard)
            try:
                yield change
                change.commit()
            finally:
                change.end()
                # Whether the change was made is what the manifest says, however this came to its end.
                sweep(self.path, read_manifest(self.path))

    def problems(self) -> list[Problem]:
        """Everything that is wrong with the files, by reading all of them; writers wait meanwhile.

        Raises:
            BankError: The lock cannot be opened.
        """
        with locked(self.path, shared=True):
            return list(problems(self.path))

    def _shard(self, file: File, dimension: int) -> Shard:
        with self._lock:
            shard = self._shards.get(file)
            if shard is None:
                shard = self._shards[file] = Shard(self.path, file, dimension)
            return shard


def _check_empty(path: Path, beside: set[str]) -> None:
    names = {entry.name for entry in path.iterdir()} - beside
    if MANIFEST_NAME in names:
        raise BankError(f"{path}: expected an empty folder, found a bank: open it, or choose another folder")
    if names:
        raise BankError(f"{path}: expected an empty folder, found {sorted(names)[0]} in it: choose another folder")

"""A change of a bank, for writers: prepared in new files, made by replacing the manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from itertools import chain
from pathlib import Path

import numpy as np

from tracebank.embed.embedder import Vectors
from tracebank.faults import BankError
from tracebank.step import StepTrace
from tracebank.store.layout import row_groups, schema, tables
from tracebank.store.manifest import INDEX_KINDS, File, Manifest
from tracebank.store.shard import Shard
from tracebank.store.snapshot import Snapshot
from tracebank.store.writing import is_full, settle_file, write_manifest, write_shards, writing


class Change:
    """What a writer does, all of it at once when the context of `Store.change` ends without an error.

    What one method refuses leaves the change as it was before that call.

    Attributes:
        snapshot: The state that the change starts from; it closes with the change.
    """

    snapshot: Snapshot

    def __init__(self, folder: Path, snapshot: Snapshot, open_shard: Callable[[File, int], Shard]) -> None:
        self.snapshot = snapshot
        self._folder = folder
        self._open_shard = open_shard
        self._manifest = snapshot.manifest
        self._next_file = snapshot.manifest.next_file
        self._over = False

    @property
    def manifest(self) -> Manifest:
        """What the bank will be, so far."""
        return self._manifest

    def append(self, steps: Sequence[StepTrace], vectors: Vectors) -> None:
        """Adds rows. Small shards are merged on the way, so that their number grows with the logarithm of the rows.

        Args:
            steps: Any number.
            vectors: Of their keys, [n, dimension].

        Raises:
            ValueError: Vectors of another number or dimension, or not finite; a text that is too long.
            BankError: The disk is full, or a file cannot be written; or a shard that is to be merged is damaged.
        """
        self._check_open()
        expected = (len(steps), self._manifest.dimension)
        if vectors.shape != expected or vectors.dtype != np.float32:
            raise ValueError(f"vectors: expected {expected} float32, found {vectors.shape} {vectors.dtype}")
        if not np.isfinite(vectors).all():
            raise ValueError("vectors: expected finite numbers, found others")
        if not steps:
            return
        kept = list(self._manifest.shards)
        absorbed: list[File] = []
        rows = len(steps)
        while kept and kept[-1].rows <= rows and not is_full(kept[-1].rows, kept[-1].bytes):
            absorbed.insert(0, kept.pop())
            rows += absorbed[0].rows
        written = self._write(absorbed, steps, vectors)
        self._set(
            shards=(*kept, *written),
            environments=_with(self._manifest.environments, {step.environment for step in steps}),
            formats=_with(self._manifest.formats, {step.format for step in steps}),
        )

    def merge(self) -> None:
        """Rewrites the shards into as few as there need be.

        Raises:
            BankError: The disk is full, or a file cannot be written; or a shard is damaged.
        """
        self._check_open()
        shards = self._manifest.shards
        full = 0
        while full < len(shards) and is_full(shards[full].rows, shards[full].bytes):
            full += 1
        if len(shards) - full > 1:
            none = np.empty((0, self._manifest.dimension), np.float32)
            self._set(shards=(*shards[:full], *self._write(shards[full:], (), none)))

    def set_index(self, kind: str, rows: int, save: Callable[[Path], None]) -> None:
        """Puts an index of the first ``rows`` rows in place of the present one.

        Args:
            kind: The index asked for, which `Manifest.index_kind` remembers; "auto" where it was chosen by size.
            rows: How many rows it holds, of those that the bank has with this change.
            save: Writes it to the path that it is given.

        Raises:
            ValueError: Another kind, or another number of rows.
            BankError: It cannot be written.
        """
        self._check_open()
        _check_kind(kind)
        if not 1 <= rows <= self._manifest.rows:
            raise ValueError(f"rows: expected 1 to {self._manifest.rows}, found {rows}")
        path = self._folder / f"index-{self._take(1):06d}.faiss"
        with writing(path):
            save(path)
        self._set(index=settle_file(path, rows), index_kind=kind)

    def drop_index(self, kind: str | None = None) -> None:
        """Takes the index away.

        Args:
            kind: The index asked for from now on; None leaves that as it was.

        Raises:
            ValueError: Another kind.
        """
        self._check_open()
        if kind is not None:
            _check_kind(kind)
        if self._manifest.index is not None or kind not in (None, self._manifest.index_kind):
            self._set(index=None, index_kind=kind or self._manifest.index_kind)

    def commit(self) -> None:
        """Makes the change, which is over then. `Store.change` calls it."""
        self._check_open()
        self._over = True
        before = self.snapshot.manifest
        if self._manifest != before:
            self._set(generation=before.generation + 1, next_file=self._next_file, written_by=versions())
            write_manifest(self._folder, self._manifest)

    def end(self) -> None:
        """Refuses whatever comes after. `Store.change` calls it."""
        self._over = True
        self.snapshot.close()

    def _write(self, absorbed: Sequence[File], steps: Sequence[StepTrace], vectors: Vectors) -> list[File]:
        dimension = self._manifest.dimension
        old = chain.from_iterable(self._open_shard(file, dimension).tables() for file in absorbed)
        files = write_shards(
            self._folder, self._next_file, row_groups(chain(old, tables(steps, vectors))), schema(dimension)
        )
        self._take(len(files))
        return files

    def _take(self, count: int) -> int:
        number = self._next_file
        self._next_file += count
        return number

    def _set(self, **fields: object) -> None:
        self._manifest = dataclasses.replace(self._manifest, **fields)  # type: ignore[arg-type]

    def _check_open(self) -> None:
        if self._over:
            raise BankError("this change is over: make another")


def versions() -> Mapping[str, str]:
    """Versions of what writes a bank, as far as they are installed."""
    found = {}
    for name in ("agent-envs", "faiss-cpu", "pyarrow"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _with(names: Sequence[str], more: set[str]) -> tuple[str, ...]:
    return tuple(sorted({*names, *more} - {""}))


def _check_kind(kind: str) -> None:
    if kind not in INDEX_KINDS:
        raise ValueError(f"kind: expected one of {', '.join(INDEX_KINDS)}, found {kind!r}")

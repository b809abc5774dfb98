"""A committed state of a bank, for readers."""

from __future__ import annotations

import bisect
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tracebank.embed.embedder import Vectors
from tracebank.faults import BankError
from tracebank.step import StepTrace
from tracebank.store.layout import NORMALISED, STEP_FIELDS, VECTOR, vectors_of
from tracebank.store.manifest import File, Manifest
from tracebank.store.shard import Shard

CACHE_BYTES = 2**28
"""Memory for row groups that were read lately."""

_VECTOR_GROUPS = 64
"""Row groups whose vectors are read together."""


@dataclass(frozen=True)
class Columns:
    """What filters look at, one entry a row: all of it in memory.

    Texts are numbers into a tuple of the distinct ones, which stand in the order in which they first come up, so that a
    number stays what it is as rows are added. That of ``questions`` holds normalised questions ("" where there is none).
    """

    task: npt.NDArray[np.int32]
    question: npt.NDArray[np.int32]
    source: npt.NDArray[np.int32]
    step: npt.NDArray[np.int32]
    reward: npt.NDArray[np.float64]
    final: npt.NDArray[np.bool_]
    tasks: tuple[str, ...]
    questions: tuple[str, ...]
    sources: tuple[str, ...]


class GroupCache:
    """Row groups that were read lately, the latest last. Safe from many threads.

    Args:
        budget: Bytes that they may take together.
    """

    def __init__(self, budget: int = CACHE_BYTES) -> None:
        self._budget = budget
        self._held: OrderedDict[tuple[File, int], pa.Table] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: tuple[File, int], read: Callable[[], pa.Table]) -> pa.Table:
        """The row group of this shard and number, read if it is not there."""
        with self._lock:
            table = self._held.get(key)
            if table is not None:
                self._held.move_to_end(key)
                return table
        table = read()
        with self._lock:
            if key not in self._held:
                self._held[key] = table
                self._bytes += table.nbytes
            while self._bytes > self._budget:
                self._bytes -= self._held.popitem(last=False)[1].nbytes
        return table


class IndexFile:
    """A bank's index file, held open so that it stays readable after it is removed from the folder.

    A file that is missing or of another size is no obstacle to reading the rest of the bank: only asking for it raises.
    """

    def __init__(self, folder: Path, file: File) -> None:
        self._path = folder / file.name
        self._expected = file.bytes
        self._fault = ""
        self.missing = False
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self.missing = True
            self._fault = "no file"
            return
        except OSError as error:
            self._fault = f"one that cannot be read ({error.strerror})"
            return
        weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        if (size := os.fstat(descriptor).st_size) != file.bytes:
            self._fault = f"{size}"

    def path(self) -> Path:
        """Where it can be read now."""
        if self._fault:
            raise BankError(
                f"{self._path}: damaged: expected {self._expected} bytes, found {self._fault}; "
                "`python -m tracebank compact` rebuilds it"
            )
        held = Path(f"/proc/self/fd/{self._descriptor}")
        return held if held.exists() else self._path


class Snapshot:
    """A bank's committed state as it was at one moment; it stays readable whatever writers do. Safe from many threads.

    `Store.snapshot` makes them. What was read is shared with the other snapshots of that `Store`.

    Attributes:
        manifest: Of that moment.
    """

    manifest: Manifest

    def __init__(self, manifest: Manifest, shards: Sequence[Shard], index: IndexFile | None, cache: GroupCache) -> None:
        self.manifest = manifest
        self._shards: tuple[Shard, ...] | None = tuple(shards)
        self._starts = [0, *np.cumsum([shard.file.rows for shard in shards], dtype=np.int64).tolist()]
        self._index = index
        self._cache = cache
        self._columns: Columns | None = None
        self._lock = threading.Lock()

    def columns(self) -> Columns:
        """What filters look at. Read at the first call, and kept."""
        shards = self._open()
        with self._lock:
            if self._columns is None:
                self._columns = _columns([shard.columns() for shard in shards])
            return self._columns

    def steps(self, rows: Sequence[int]) -> list[StepTrace]:
        """The steps of these rows, in the order asked. Row groups that were read lately are kept in memory.

        Raises:
            IndexError: No such row.
            BankError: A row group is damaged.
        """
        shards = self._open()
        wanted: dict[tuple[int, int], list[tuple[int, int]]] = {}  # by group: place in the answer, row in the group
        for place, row in enumerate(rows):
            if not 0 <= row < self._starts[-1]:
                raise IndexError(f"expected one of the {self._starts[-1]} rows, found {row}")
            number = bisect.bisect_right(self._starts, row) - 1
            within = int(row) - self._starts[number]
            starts = shards[number].starts
            group = bisect.bisect_right(starts, within) - 1
            wanted.setdefault((number, group), []).append((place, within - starts[group]))
        found: dict[int, StepTrace] = {}
        for (number, group), places in wanted.items():
            shard = shards[number]
            table = self._cache.get((shard.file, group), partial(shard.read, [group], STEP_FIELDS))
            columns = {name: table.column(name) for name in STEP_FIELDS}
            for place, at in places:
                found[place] = StepTrace(**{name: column[at].as_py() for name, column in columns.items()})
        return [found[place] for place in range(len(found))]

    def vectors(self, start: int = 0, stop: int | None = None) -> Vectors:
        """The vectors of rows ``start`` to ``stop``, [n, dimension].

        Raises:
            IndexError: No such rows.
            BankError: A row group is damaged.
        """
        shards = self._open()
        stop = self._starts[-1] if stop is None else stop
        if not 0 <= start <= stop <= self._starts[-1]:
            raise IndexError(f"expected rows between 0 and {self._starts[-1]}, found {start} to {stop}")
        vectors = np.empty((stop - start, self.manifest.dimension), np.float32)
        for shard, first in zip(shards, self._starts, strict=False):
            if first >= stop or first + shard.file.rows <= start:
                continue
            last = bisect.bisect_left(shard.starts, stop - first, hi=len(shard.starts) - 1)
            groups = range(bisect.bisect_right(shard.starts, max(start - first, 0)) - 1, last)
            for at in range(0, len(groups), _VECTOR_GROUPS):
                some = groups[at : at + _VECTOR_GROUPS]
                part = vectors_of(shard.read(some, [VECTOR])[VECTOR], self.manifest.dimension)
                begin = first + shard.starts[some[0]]
                low, high = max(start, begin), min(stop, begin + len(part))
                vectors[low - start : high - start] = part[low - begin : high - begin]
        return vectors

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All steps in order, as Arrow record batches with the fields of `StepTrace` and ``vector``.

        There is one batch in memory at a time.
        """
        for shard in self._open():
            for table in shard.tables():
                yield from table.select([*STEP_FIELDS, VECTOR]).combine_chunks().to_batches()

    def index_path(self) -> Path | None:
        """Where the index file can be read, as long as this snapshot is open; None where there is none.

        On Linux it is a path of the open file itself, so that it can be read whatever writers do meanwhile; its name is
        ``manifest.index.name``.

        Raises:
            BankError: The file is missing, or of another size than the manifest says.
        """
        self._open()
        return None if self._index is None else self._index.path()

    def close(self) -> None:
        """Lets go of the files. Closing twice is fine."""
        self._shards = None
        self._index = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _open(self) -> tuple[Shard, ...]:
        if self._shards is None:
            raise BankError("this snapshot is closed: take a new one")
        return self._shards


def _columns(tables: Sequence[pa.Table]) -> Columns:
    task, tasks = _numbered(tables, "task_id")
    question, questions = _numbered(tables, NORMALISED)
    source, sources = _numbered(tables, "source")
    return Columns(
        task=task,
        question=question,
        source=source,
        step=_joined(tables, "step", np.int32),
        reward=_joined(tables, "reward", np.float64),
        final=_joined(tables, "final", np.bool_),
        tasks=tasks,
        questions=questions,
        sources=sources,
    )


def _numbered(tables: Sequence[pa.Table], name: str) -> tuple[npt.NDArray[np.int32], tuple[str, ...]]:
    """A column of texts as numbers into the distinct ones."""
    numbers: dict[str, int] = {}
    parts = [np.empty(0, np.int32)]
    for table in tables:
        for chunk in table[name].chunks:
            here = [numbers.setdefault(text, len(numbers)) for text in chunk.dictionary.to_pylist()]
            parts.append(np.asarray(here, np.int32)[chunk.indices.to_numpy(zero_copy_only=False)])
    return np.concatenate(parts), tuple(numbers)


def _joined(tables: Sequence[pa.Table], name: str, kind: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, kind), *(table[name].to_numpy() for table in tables)])

"""The bank: steps that can be asked for by what led to them.

    bank = TraceBank.create("bank/", embedder="hashing")
    bank.add([StepTrace(...), ...])
    (hits,) = TraceBank.open("bank/").query([history], k=3, exclude_task=[task_id])

Two guards against leaks are there. Steps that ended a trajectory, which may hold an answer, stay out unless they are asked
for. And given the task that is being played, no step of that task comes back, whether the bank knows it by the same id or by
the same question.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

import numpy as np

from tracebank import report
from tracebank.embed import open_embedder
from tracebank.embed.embedder import Embedder, Vectors
from tracebank.faults import BankError
from tracebank.index import FLAT_ROWS, Kind, VectorIndex, kind_for
from tracebank.nearest import DEFAULT, Filters, Found, Task, Tasks, nearest, permitted
from tracebank.sharing import SharedLock
from tracebank.step import Hit, StepTrace, follows
from tracebank.store import Change, IndexKind, Manifest, Problem, Snapshot, Store

logger = logging.getLogger(__name__)

_TOGETHER = 1024
"""Steps that are read together."""

_CHECKED = 1 << 16
"""Vectors that are compared together."""


class Hits(tuple[Hit, ...]):
    """What one query found: best first, equal scores in order of their ids.

    Attributes:
        removed: How many better steps than the last hit each filter has taken out, by the filter's name: "task", "final",
            "reward", "source", "step", as far as they were asked for; a step may count for several. Where the bank has
            fewer than k hits, all that a filter takes out is counted.
    """

    removed: Mapping[str, int]

    def __new__(cls, hits: Iterable[Hit], removed: Mapping[str, int]) -> Self:
        self = super().__new__(cls, hits)
        self.removed = removed
        return self


class TraceBank:
    """A folder of steps; made by `create`, opened by `open`.

    It shows the state of the moment when it was opened, and what it has added itself. Asking it is safe from many threads;
    a process that adds or compacts disturbs nobody who reads. Use it as a context, or `close` it.

    Example:
        >>> import tempfile
        >>> with TraceBank.create(tempfile.mkdtemp(), embedder="hashing") as bank:
        ...     _ = bank.add([StepTrace("1+1", 0, "What is 1+1?", "<python>print(1+1)</python>", 1.0, False, "me")])
        ...     [hit.value for hit in bank.query(["What is 1+2?"])[0]]
        ['<python>print(1+1)</python>']
    """

    def __init__(self, store: Store, embedder: Embedder | None, *, use_index: bool, deterministic: bool) -> None:
        self._store, self._given = store, embedder
        self._use_index, self._deterministic = use_index and not deterministic, deterministic
        self._lock = SharedLock()
        self._show(store.snapshot())

    @classmethod
    def create(
        cls,
        path: str | PathLike[str],
        *,
        embedder: str | Embedder = "hashing",
        index: IndexKind = "auto",
        deterministic: bool = False,
    ) -> Self:
        """Makes an empty bank.

        Args:
            path: A folder that is new or empty.
            embedder: What turns keys and queries into vectors (`tracebank.embed`); it belongs to the bank for good.
            index: How steps are found: "auto" chooses by their number (`tracebank.index.kind_for`).
            deterministic: As for `open`.

        Raises:
            BankError: The folder holds something already, or cannot be made.
            ValueError: No such embedder or index.
        """
        if index not in get_args(IndexKind):
            raise ValueError(f"index: expected one of {', '.join(get_args(IndexKind))}, found {index!r}")
        opened = open_embedder(embedder) if isinstance(embedder, str) else embedder
        manifest = Manifest(embedder=opened.name, embedder_spec=opened.spec, dimension=opened.dimension, index_kind=index)
        return cls(Store.create(Path(path), manifest), opened, use_index=True, deterministic=deterministic)

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        *,
        embedder: str | Embedder | None = None,
        use_index: bool = True,
        deterministic: bool = False,
    ) -> Self:
        """Opens a bank.

        Args:
            path: Its folder.
            embedder: The bank's own, where it cannot be loaded from where it was; default: what the manifest says, loaded
                with the first query.
            use_index: Without it all steps are searched flat and the index is not even read; so a bank whose index is broken
                can be opened, and `compact` makes a new one.
            deterministic: Search flat, and build an index with one thread, so that the same steps give the same answers
                wherever and however they were added.

        Raises:
            BankError: There is no bank, it is damaged or of a later version, or ``embedder`` is not the bank's.
            ValueError: No such embedder.
        """
        store = Store(Path(path))
        opened = open_embedder(embedder) if isinstance(embedder, str) else embedder
        return cls(store, opened, use_index=use_index, deterministic=deterministic)

    def __len__(self) -> int:
        return self._snapshot.manifest.rows

    @property
    def path(self) -> Path:
        """The folder."""
        return self._store.path

    @property
    def manifest(self) -> Manifest:
        """What the bank is: embedder, dimension, files, environments, formats, versions."""
        return self._snapshot.manifest

    @property
    def snapshot(self) -> Snapshot:
        """The state that is shown, for whoever wants to read all of it."""
        return self._snapshot

    @property
    def kind(self) -> Kind:
        """How steps are found at the moment."""
        return self._index.kind

    @cached_property
    def embedder(self) -> Embedder:
        """The bank's embedder.

        Raises:
            BankError: It cannot be loaded, or is not the one that the bank was made with.
        """
        manifest = self.manifest
        if self._given is not None:
            return self._given
        try:
            embedder = open_embedder(manifest.embedder_spec)
        except (ValueError, OSError, BankError) as problem:
            raise BankError(
                f"{self.path}: its embedder {manifest.embedder} cannot be loaded from {manifest.embedder_spec!r}: {problem}"
            ) from None
        self._check_embedder(embedder, manifest)
        return embedder

    def add(self, steps: Iterable[StepTrace], *, index: bool = True) -> range:
        """Adds steps; when it returns, they are safely on the disk.

        Args:
            steps: Any number, also ones that the bank has already.
            index: Whether they may be brought into the index now; else they are searched flat until somebody does it.

        Returns:
            Their ids, in order.

        Raises:
            BankError: The disk is full or the folder cannot be written; nothing was added.
        """
        steps = list(steps)
        vectors = self.embedder.embed([step.key for step in steps])
        with self._lock.alone():
            if steps:
                with self._change() as change:
                    change.append(steps, vectors)
                self._index.append(vectors)
                self._renew()
            ids = range(len(self) - len(steps), len(self))
            tail = self._index.rows - self._index.indexed
            if index and self._use_index and tail > max(FLAT_ROWS, self._index.indexed // 8):
                try:
                    self._bring_in(self.manifest.index_kind)
                except BankError as problem:  # the steps are there, and are found without it
                    logger.warning("the index was not brought up to date: %s", problem)
        return ids

    def query(
        self,
        queries: Sequence[str],
        k: int = 3,
        *,
        exclude_task: Sequence[Task] | None = None,
        exclude_final: bool = True,
        min_reward: float | None = None,
        source: str | Collection[str] | None = None,
        steps: range | None = None,
    ) -> list[Hits]:
        """The k steps whose keys are most like each query.

        Args:
            queries: Histories as `tracebank.step.render_history` writes them, or any text.
            k: Steps a query.
            exclude_task: The running task of each query, none of whose steps may come back: its id, its question, or several
                of either; None where there is none. An id stands for every question that the bank knows it by, and a
                question for its ids.
            exclude_final: Leave out steps that ended their trajectory, which may hold an answer.
            min_reward: Only steps of trajectories with a higher return.
            source: Only steps of this source, or of these.
            steps: Only steps of these numbers, such as ``range(1, 5)``.

        Returns:
            The hits of each query; fewer than k only where the bank has no more.

        Raises:
            ValueError: ``exclude_task`` has not one entry a query, or k is below 1.
            BankError: The bank's embedder cannot be loaded.
        """
        if isinstance(queries, str):
            raise TypeError(f"queries: expected a list of texts, such as [{queries[:40]!r}], found the text itself")
        sources = {source} if isinstance(source, str) else source
        filters = Filters(exclude_task, exclude_final, min_reward, sources, steps)
        return self.search(self.embedder.embed(list(queries)), k, filters)

    def search(self, vectors: Vectors, k: int = 3, filters: Filters = DEFAULT) -> list[Hits]:
        """As `query`, for vectors that the bank's embedder has made, [B, dimension]."""
        found = self.nearest(vectors, k, filters)
        texts = iter(self._snapshot.steps([row for one in found for row in one.rows]))
        return [
            Hits(
                (Hit(**vars(next(texts)), id=row, score=score) for row, score in zip(one.rows, one.scores, strict=True)),
                one.removed,
            )
            for one in found
        ]

    def nearest(self, vectors: Vectors, k: int = 3, filters: Filters = DEFAULT) -> list[Found]:
        """As `search`, without reading any text: ids and scores."""
        with self._lock.shared():
            return nearest(self._index, self._snapshot.columns(), self._tasks, vectors, k, filters)

    def draw(self, numbers: Sequence[float], filters: Filters = DEFAULT) -> list[int | None]:
        """A random step for each number: a control for whoever wants to know what likeness is worth.

        Args:
            numbers: Uniform in [0, 1), drawn by the caller; the same ones give the same steps.
            filters: What may come back; every step that they let through is equally likely.

        Returns:
            Their ids; None where the filters let nothing through.

        Raises:
            ValueError: ``filters.exclude_task`` has not one entry a number.
        """
        with self._lock.shared():
            rows = permitted(self._snapshot.columns(), self._tasks, len(numbers), filters)
        return [int(own[int(number * len(own))]) if len(own) else None for own, number in zip(rows, numbers, strict=True)]

    def onward(self, id: int) -> list[StepTrace]:
        """A step and those that come after it in its trajectory, as far as they were added behind it in their order.

        What follows is known by its key: the history before it is the one before the step, and then the step.

        Raises:
            IndexError: No such step.
            BankError: A part of the bank is damaged.
        """
        steps = self._snapshot.steps([id])
        while id + len(steps) < len(self):
            (next_one,) = self._snapshot.steps([id + len(steps)])
            if not follows(next_one, steps[-1]):
                break
            steps.append(next_one)
        return steps

    def compact(self, *, index: IndexKind | None = None, rebuild: bool = False) -> None:
        """Merges shards, brings every step into the index, and removes what killed processes left. Ids stay as they are.

        Args:
            index: Another kind of index than the bank was made with, from now on.
            rebuild: Make the index anew even if it is whole.

        Raises:
            BankError: The disk is full, or a shard is damaged; the bank is as it was.
        """
        with self._lock.alone():
            with self._change() as change:
                change.merge()
            self._renew()
            # What is in memory may be what is wrong: the shards are not. Where there is no index there is none to be wrong.
            if rebuild or (self.manifest.index is not None and self.check()):
                self._index = VectorIndex(self.manifest.dimension)
                self._index.append(self._snapshot.vectors())
            self._bring_in(index or self.manifest.index_kind)

    def check(self) -> list[Problem]:
        """Everything that is wrong with the bank, found by reading all of it; [] where nothing is."""
        problems = self._store.problems()
        index = self.manifest.index
        if problems or index is None:
            return problems
        try:
            with self._store.snapshot() as snapshot:
                _check_index(snapshot)
        except BankError as problem:
            return [Problem(index.name, str(problem), mendable=True)]
        return []

    def __iter__(self) -> Iterator[StepTrace]:
        """All steps in order, a few at a time in memory."""
        for start in range(0, len(self), _TOGETHER):
            yield from self._snapshot.steps(range(start, min(start + _TOGETHER, len(self))))

    def stats(self) -> dict[str, Any]:
        """Counts and distributions, for people (`tracebank.report.stats`)."""
        return report.stats(self._snapshot, self.kind, self.nearest)

    def close(self) -> None:
        """Closes the files. Calling it twice is fine."""
        self._snapshot.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _change(self) -> Iterator[Change]:
        """A change of the files, from the newest state on."""
        with self._store.change() as change:
            if change.snapshot.manifest.generation != self.manifest.generation:
                self._show(self._store.snapshot())
            yield change

    def _renew(self) -> None:
        """Shows the state after a change of this bank's own, whose rows its index has already."""
        snapshot = self._store.snapshot()
        manifest = snapshot.manifest
        if manifest.generation <= self.manifest.generation + 1 and manifest.rows == self._index.rows:
            self._snapshot, self._tasks = snapshot, Tasks(snapshot.columns())
        else:  # somebody else has written meanwhile
            self._show(snapshot)

    def _show(self, snapshot: Snapshot) -> None:
        """Shows a state, with its index and the tail after it."""
        if self._given is not None:
            self._check_embedder(self._given, snapshot.manifest)
        self._index = _index_of(snapshot) if self._use_index else VectorIndex(snapshot.manifest.dimension)
        self._index.append(snapshot.vectors(self._index.indexed))
        self._snapshot, self._tasks = snapshot, Tasks(snapshot.columns())

    def _bring_in(self, kind: IndexKind) -> None:
        """Brings every row into an index of this kind, and writes it."""
        with self._change() as change:
            rows = self._index.rows
            wanted = kind_for(rows) if kind == "auto" else kind
            if wanted == "flat" or not rows:
                change.drop_index(kind)
                self._index.absorb("flat")
            else:
                index = self._index
                if not self._use_index:  # what is asked stays flat
                    index = VectorIndex(self.manifest.dimension)
                    index.append(self._snapshot.vectors())
                index.absorb(wanted, deterministic=self._deterministic)
                change.set_index(kind, index.indexed, index.save)
        self._renew()

    def _check_embedder(self, embedder: Embedder, manifest: Manifest) -> None:
        if embedder.name != manifest.embedder:
            raise BankError(
                f"{self.path}: the bank was made with the embedder {manifest.embedder}, this is {embedder.name}: vectors of "
                "one mean nothing to the other; open it with its own, or build a new bank"
            )


def _index_of(snapshot: Snapshot) -> VectorIndex:
    """The index that a state has, or an empty one."""
    path, file, dimension = snapshot.index_path(), snapshot.manifest.index, snapshot.manifest.dimension
    if path is None or file is None:
        return VectorIndex(dimension)
    try:
        index = VectorIndex.load(path, dimension)
        if index.indexed != file.rows:
            raise BankError(f"expected an index of {file.rows} steps, found one of {index.indexed}")
    except BankError as problem:
        what = str(problem).removeprefix(f"{path}: ")
        raise BankError(f"{file.name}: {what}; `python -m tracebank compact` makes a new one") from None
    return index


def _check_index(snapshot: Snapshot) -> None:
    """Raises where the index holds other vectors than the shards."""
    index = _index_of(snapshot)
    for start in range(0, index.indexed, _CHECKED):
        stop = min(start + _CHECKED, index.indexed)
        different = (index.vectors(start, stop) != snapshot.vectors(start, stop)).any(axis=1)
        if different.any():
            row = start + int(np.flatnonzero(different)[0])
            raise BankError(f"expected the vector of step {row} as its shard holds it, found another")

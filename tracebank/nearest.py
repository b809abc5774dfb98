"""The nearest steps that the filters let through: more is fetched until there are k of them or the bank is exhausted."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tracebank.embed.embedder import Vectors
from tracebank.index import Candidates, VectorIndex
from tracebank.step import normalise_question
from tracebank.store import Columns

Task = str | Collection[str] | None
"""A running task: its id, its question, or several of either; None where there is none."""

_FETCH = 32
"""Candidates of the first search: five trajectories of the running task, their final steps, and some to choose from."""

_ENOUGH = 16
"""Where more than one row in so many is wanted, all are looked at: no index is quicker then."""

_GROWTH = 8
"""How many times more are fetched when the filters left too few."""


@dataclass(frozen=True)
class Filters:
    """What a query may bring back.

    Args:
        exclude_task: The running task of each query, or None for no query at all.
        exclude_final: Leave out steps that ended their trajectory.
        min_reward: Only steps of trajectories with a higher return.
        sources: Only steps of these sources.
        steps: Only steps of these numbers.

    Raises:
        TypeError: A filter of another type.
        ValueError: A range that leaves numbers out, or a bound that is no number.
    """

    exclude_task: Sequence[Task] | None = None
    exclude_final: bool = True
    min_reward: float | None = None
    sources: Collection[str] | None = None
    steps: range | None = None

    def __post_init__(self) -> None:
        if isinstance(self.exclude_task, str):
            raise TypeError(
                f"exclude_task: expected one entry a query, such as [{self.exclude_task!r}], found the text itself"
            )
        if self.min_reward is not None and self.min_reward != self.min_reward:
            raise ValueError("min_reward: expected a number, found NaN")
        if self.steps is not None and not isinstance(self.steps, range):
            raise TypeError(f"steps: expected a range such as range(1, 5), found {self.steps!r}")
        if self.steps is not None and self.steps.step != 1:
            raise ValueError(f"steps: expected a range without gaps, found {self.steps}")


DEFAULT = Filters()
"""Final steps stay out; nothing else does."""


@dataclass(frozen=True)
class Found:
    """What one query found.

    Args:
        rows: Best first.
        scores: Of each row.
        removed: How many better rows each filter took out.
    """

    rows: list[int]
    scores: list[float]
    removed: dict[str, int]


class Tasks:
    """Which rows belong to a task, however it is called.

    Args:
        columns: Of the bank.
    """

    def __init__(self, columns: Columns) -> None:
        self._columns = columns

    @cached_property
    def _numbers(self) -> tuple[dict[str, int], dict[str, int]]:
        """Numbers of task ids and of normalised questions; what has no name is nobody's."""
        tasks = {name: number for number, name in enumerate(self._columns.tasks) if name}
        questions = {name: number for number, name in enumerate(self._columns.questions) if name}
        return tasks, questions

    @cached_property
    def _partners(self) -> tuple[dict[int, set[int]], dict[int, set[int]]]:
        """The questions of each task id, and the ids of each question."""
        columns, wide = self._columns, len(self._columns.questions)
        questions: dict[int, set[int]] = {}
        tasks: dict[int, set[int]] = {}
        for pair in np.unique(columns.task.astype(np.int64) * wide + columns.question).tolist():
            task, question = divmod(pair, wide)
            if columns.tasks[task] and columns.questions[question]:
                questions.setdefault(task, set()).add(question)
                tasks.setdefault(question, set()).add(task)
        return questions, tasks

    def of(self, task: Task) -> tuple[list[int], list[int]]:
        """The numbers of the task ids and of the questions that are this task.

        An id stands for its questions too, and a question for every id that it is known by.
        """
        if task is None:
            return [], []
        names = [task] if isinstance(task, str) else list(task)
        if wrong := [name for name in names if not isinstance(name, str)]:
            raise TypeError(f"exclude_task: expected a task id or a question as text, found {wrong[0]!r}")
        tasks, questions = self._numbers
        questions_of, tasks_of = self._partners
        known = {tasks[name] for name in names if name in tasks}
        asked = {questions[text] for text in map(normalise_question, names) if text in questions}
        asked.update(*(questions_of.get(number, ()) for number in known))
        known.update(*(tasks_of.get(number, ()) for number in asked))
        return sorted(known), sorted(asked)


def nearest(index: VectorIndex, columns: Columns, tasks: Tasks, vectors: Vectors, k: int, filters: Filters) -> list[Found]:
    """The k best rows of each query that the filters let through.

    Args:
        index: Of all rows.
        columns: What the filters look at.
        tasks: Of these columns.
        vectors: The queries, [B, dimension].
        k: Rows a query, from 1; fewer come back where the bank has no more.
        filters: What may come back.

    Returns:
        What each query found.

    Raises:
        ValueError: ``exclude_task`` has not one entry a query, or k is below 1.
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1, found {k}")
    sieve = _sieve(columns, tasks, len(vectors), filters)
    found: list[Found | None] = [None] * len(vectors)
    pending, fetch = np.arange(len(vectors)), max(_FETCH, 4 * k)
    while len(pending) and fetch < max(index.rows // _ENOUGH, _FETCH * _GROWTH):
        candidates = index.search(vectors[pending], fetch)
        answers = sieve.best(candidates, pending, k)
        for number, answer in zip(pending.tolist(), answers, strict=True):
            found[number] = answer
        pending = pending[[answer is None for answer in answers]]
        fetch *= _GROWTH
    for number in pending.tolist():  # the filters leave so little that looking at everything is cheaper
        found[number] = sieve.best(_everything(index.scores(vectors[number])), np.array([number]), k)[0]
    return [answer for answer in found if answer is not None]


def permitted(columns: Columns, tasks: Tasks, queries: int, filters: Filters) -> list[npt.NDArray[np.int64]]:
    """All rows that the filters let through for each query, in order.

    Args:
        columns: What the filters look at.
        tasks: Of these columns.
        queries: How many.
        filters: What may come back.

    Raises:
        ValueError: ``exclude_task`` has not one entry a query.
    """
    rows = np.arange(len(columns.final))
    sieve = _sieve(columns, tasks, queries, filters)
    return [rows[sieve.lets_through(rows, np.full(len(rows), query))] for query in range(queries)]


def _sieve(columns: Columns, tasks: Tasks, queries: int, filters: Filters) -> _Sieve:
    running = filters.exclude_task
    if running is not None and len(running) != queries:
        raise ValueError(f"exclude_task: expected one entry for each of the {queries} queries, found {len(running)}")
    return _Sieve(columns, filters, [tasks.of(task) for task in running] if running is not None else None)


class _Sieve:
    """The filters, ready for rows."""

    def __init__(self, columns: Columns, filters: Filters, running: Sequence[tuple[list[int], list[int]]] | None) -> None:
        self._columns, self._filters = columns, filters
        if filters.sources is not None:
            self._sources = np.array([source in filters.sources for source in columns.sources], dtype=bool)
        if running is not None:
            self._tasks = _pairs([known for known, _ in running], len(columns.tasks))
            self._questions = _pairs([asked for _, asked in running], len(columns.questions))

    def best(self, candidates: Candidates, queries: npt.NDArray[np.int64], k: int) -> list[Found | None]:
        """The k best candidates of each query; None where there may be better ones among the rows that were not fetched."""
        rows, begins = candidates.rows, candidates.offsets[:-1]
        owner = np.repeat(np.arange(len(queries)), np.diff(candidates.offsets))
        refused = self._refused(rows, queries[owner])
        kept = _none_of(refused, len(rows))
        counted = np.concatenate([[0], np.cumsum(kept)])  # how many were kept before a position
        before = counted[begins][owner]
        is_hit = kept & (counted[1:] - before <= k)
        enough = counted[candidates.offsets[1:]] - counted[begins] >= k
        # what stands before the k-th hit, or everything where there is none
        passed = (counted[:-1] - before < k) | ~enough[owner]
        removed = {
            name: np.bincount(owner[mask & passed], minlength=len(queries)).tolist() for name, mask in refused.items()
        }
        hits = np.flatnonzero(is_hit)
        ends = np.searchsorted(hits, candidates.offsets)
        hit_rows, hit_scores = rows[hits].tolist(), candidates.scores[hits].tolist()
        return [
            Found(
                rows=hit_rows[ends[query] : ends[query + 1]],
                scores=hit_scores[ends[query] : ends[query + 1]],
                removed={name: counts[query] for name, counts in removed.items()},
            )
            if enough[query] or candidates.complete[query]
            else None
            for query in range(len(queries))
        ]

    def lets_through(self, rows: npt.NDArray[np.int64], queries: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which rows may come back, each for the query beside it."""
        return _none_of(self._refused(rows, queries), len(rows))

    def _refused(self, rows: npt.NDArray[np.int64], queries: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.bool_]]:
        """What each filter that was asked for takes out, by its name."""
        columns, filters = self._columns, self._filters
        refused = {}
        if filters.exclude_task is not None:
            refused["task"] = _among(self._tasks, queries * len(columns.tasks) + columns.task[rows])
            refused["task"] |= _among(self._questions, queries * len(columns.questions) + columns.question[rows])
        if filters.exclude_final:
            refused["final"] = columns.final[rows]
        if filters.min_reward is not None:
            refused["reward"] = columns.reward[rows] <= filters.min_reward
        if filters.sources is not None:
            refused["source"] = ~self._sources[columns.source[rows]]
        if filters.steps is not None:
            step = columns.step[rows]
            refused["step"] = (step < filters.steps.start) | (step >= filters.steps.stop)
        return refused


def _none_of(masks: dict[str, npt.NDArray[np.bool_]], count: int) -> npt.NDArray[np.bool_]:
    """Where none of the masks is set."""
    kept = np.ones(count, dtype=bool)
    for mask in masks.values():
        kept &= ~mask
    return kept


def _pairs(numbers: Sequence[Sequence[int]], wide: int) -> npt.NDArray[np.int64]:
    """Each query with each of its numbers, as one sorted number."""
    return np.array([query * wide + number for query, several in enumerate(numbers) for number in several], dtype=np.int64)


def _among(ordered: npt.NDArray[np.int64], values: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which values are in a sorted array."""
    if not len(ordered):
        return np.zeros(len(values), dtype=bool)
    places = np.searchsorted(ordered, values)
    among: npt.NDArray[np.bool_] = ordered[np.minimum(places, len(ordered) - 1)] == values
    return among


def _everything(scores: npt.NDArray[np.float32]) -> Candidates:
    """All rows as the candidates of one query."""
    order = np.argsort(-scores, kind="stable")
    return Candidates(
        offsets=np.array([0, len(scores)], dtype=np.int64),
        rows=order.astype(np.int64),
        scores=scores[order],
        complete=np.array([True]),
    )

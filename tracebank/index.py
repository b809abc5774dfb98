"""Nearest rows by inner product.

Rows are vectors in the order in which they were added; a row's number is its name. The first ``indexed`` rows are found
through a FAISS index (`tracebank.entries`), the rest (the *tail*) by flat search (`tracebank.flat`), so that rows can be
added without touching the index. A row scores the same, bit for bit, wherever it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from tracebank.embed.embedder import Vectors
from tracebank.entries import Entries, absorbed, threads
from tracebank.flat import Numbers, Pairs, all_scores, checked, joined, search_flat

Kind = Literal["flat", "hnsw", "ivf"]

FLAT_ROWS = 20_000
"""Up to so many rows flat search is as fast as an index, and exact."""

HNSW_ROWS = 500_000
"""Up to so many rows a graph is built in minutes."""

_PAIRS = 1 << 20
"""Candidates that are looked at together; more queries are searched in turn."""


@dataclass(frozen=True)
class Candidates:
    """What a search brought, for B queries together.

    Attributes:
        offsets: Where each query's candidates begin and end, [B + 1] int64.
        rows: Row numbers, best first; rows with equal scores in order, [n] int64. No row twice within a query.
        scores: Inner products, [n] float32; a function of the two vectors alone, so that equal vectors have equal scores
            wherever they stand and whatever else is asked.
        complete: Whether a query's candidates are all rows there are, [B] bool. Where not, every row that is not among them
            comes after the last of them: it scores less, or as much with a higher number. Flat search is exact in this; an
            index says so as far as it can tell.
    """

    offsets: Numbers
    rows: Numbers
    scores: npt.NDArray[np.float32]
    complete: npt.NDArray[np.bool_]


class VectorIndex:
    """Rows of vectors, and the nearest of them.

    Searching is safe from many threads at once; adding is not.

    Args:
        dimension: Numbers in a vector.

    Raises:
        ValueError: A dimension below 1.

    Example:
        >>> index = VectorIndex(2)
        >>> index.append(np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32))
        >>> index.search(np.array([[1, 0]], dtype=np.float32), fetch=2).rows
        array([0, 2])
    """

    def __init__(self, dimension: int) -> None:
        if dimension < 1:
            raise ValueError(f"dimension: expected at least 1, found {dimension}")
        self._dimension = dimension
        self._longest = 0.0  # length of the longest row
        self._indexed: Entries | None = None
        self._tail_memory: Vectors = np.empty((0, dimension), dtype=np.float32)
        self._tail_rows = 0

    @property
    def kind(self) -> Kind:
        """What the indexed rows are found through; "flat" where all rows are searched."""
        return "flat" if self._indexed is None else self._indexed.kind

    @property
    def rows(self) -> int:
        """Rows in all."""
        return self.indexed + self._tail_rows

    @property
    def indexed(self) -> int:
        """Rows that are found through the index; 0 for "flat"."""
        return 0 if self._indexed is None else len(self._indexed.entry)

    @property
    def _tail(self) -> Vectors:
        return self._tail_memory[: self._tail_rows]

    def vectors(self, start: int = 0, stop: int | None = None) -> Vectors:
        """Copies of the vectors of rows ``start`` to ``stop``, [n, dimension]."""
        start, stop, _ = slice(start, stop).indices(self.rows)
        tail = self._tail[max(0, start - self.indexed) : max(0, stop - self.indexed)]
        if self._indexed is None:
            return tail.copy()
        return np.concatenate([self._indexed.vectors[self._indexed.entry[start:stop]], tail])

    def append(self, vectors: Vectors) -> None:
        """Adds rows to the tail.

        Args:
            vectors: [n, dimension] float32, finite. They are copied.

        Raises:
            ValueError: Something else.
        """
        squares = checked(vectors, self._dimension, "vectors")
        needed = self._tail_rows + len(vectors)
        if needed > len(self._tail_memory):
            grown = np.empty((max(needed, len(self._tail_memory) * 3 // 2), self._dimension), dtype=np.float32)
            grown[: self._tail_rows] = self._tail
            self._tail_memory = grown
        np.add(vectors, 0.0, out=self._tail_memory[self._tail_rows : needed])  # -0 becomes 0: equal vectors have equal bytes
        self._tail_rows = needed
        self._longest = max(self._longest, float(np.sqrt(squares.max(initial=0.0))))

    def absorb(self, kind: Kind, *, deterministic: bool = False) -> None:
        """Brings all rows into an index of this kind: builds it, or extends one that is of this kind already.

        The clusters of an IVF index stay as they are until there are four times as many entries as they were made for; then
        all are clustered anew.

        Args:
            kind: "flat" takes the index away: all rows are tail.
            deterministic: Build with one thread, so that the same rows always give the same index.

        Raises:
            ValueError: No such kind.
        """
        if kind not in ("flat", "hnsw", "ivf"):
            raise ValueError(f"kind: expected flat, hnsw or ivf, found {kind!r}")
        if kind == "flat":
            self._release()
            return
        old = self._indexed
        if not self._tail_rows and (old is None or old.kind == kind):
            return
        with threads(1 if deterministic else None):
            try:
                self._indexed = absorbed(kind, self._tail, old)
            except BaseException:  # the index may hold half of it
                self._release()
                raise
        self._tail_memory, self._tail_rows = np.empty((0, self._dimension), dtype=np.float32), 0

    def _release(self) -> None:
        """Makes all rows tail."""
        if self._indexed is not None:
            rows = np.concatenate([self._indexed.vectors[self._indexed.entry], self._tail])
            self._indexed, self._tail_memory, self._tail_rows = None, rows, len(rows)

    def search(self, queries: Vectors, fetch: int) -> Candidates:
        """The ``fetch`` best rows of each query (all rows where there are fewer).

        Args:
            queries: [B, dimension] float32, finite.
            fetch: Rows a query, from 1.

        Raises:
            ValueError: Something else.
        """
        checked(queries, self._dimension, "queries")
        if fetch < 1:
            raise ValueError(f"fetch: expected at least 1, found {fetch}")
        queries = np.ascontiguousarray(queries)
        count = min(fetch, self.rows)
        together = max(1, _PAIRS // max(1, count))
        # For one query it takes longer to wake the other threads than to search.
        with threads(1 if len(queries) == 1 else None):
            starts = range(0, max(1, len(queries)), together)
            pairs = joined([self._search(queries[start : start + together], count) for start in starts])
        return Candidates(
            offsets=np.arange(len(queries) + 1, dtype=np.int64) * count,
            rows=pairs.place,
            scores=pairs.score,
            complete=np.full(len(queries), count == self.rows),
        )

    def _search(self, queries: Vectors, count: int) -> Pairs:
        """The ``count`` best rows of each query, in order."""
        blank = ~queries.any(axis=1)
        parts = []
        if blank.any():  # to a vector of zeros all rows are equal, which no index can tell
            numbers, asking = np.flatnonzero(blank), np.flatnonzero(~blank)
            zeros = np.zeros(len(numbers) * count, dtype=np.float32)
            parts.append(Pairs(numbers.repeat(count), np.tile(np.arange(count), len(numbers)), zeros))
            if len(asking):
                found = self._search(queries[asking], count)
                parts.append(found._replace(query=asking[found.query]))
        elif count and len(queries):
            if self._indexed is not None:
                parts.append(self._indexed.search(queries, count, self._longest))
            if self._tail_rows:
                found = search_flat(self._tail, self._longest, queries, count)
                parts.append(found._replace(place=found.place + self.indexed))
        else:
            nothing = np.empty(0, dtype=np.int64)
            return Pairs(nothing, nothing, np.empty(0, dtype=np.float32))
        pairs = joined(parts)
        order = np.lexsort((pairs.place, -pairs.score, pairs.query))
        found_each = np.bincount(pairs.query, minlength=len(queries))
        rank = np.arange(len(order)) - np.repeat(np.cumsum(found_each) - found_each, found_each)
        best = order[rank < count]
        return Pairs(pairs.query[best], pairs.place[best], pairs.score[best])

    def scores(self, query: Vectors) -> npt.NDArray[np.float32]:
        """The score of every row for one query, as in `Candidates`: the exact way, which looks at everything.

        Args:
            query: [dimension] float32, finite.

        Returns:
            [rows].

        Raises:
            ValueError: Something else.
        """
        if not isinstance(query, np.ndarray) or query.shape != (self._dimension,):
            found = f"{query.dtype} of shape {list(query.shape)}" if isinstance(query, np.ndarray) else type(query).__name__
            raise ValueError(f"query: expected an array of float32 of shape [{self._dimension}], found {found}")
        checked(query[None], self._dimension, "query")
        scores = all_scores(self._tail, query)
        if self._indexed is None:
            return scores
        entries = all_scores(self._indexed.vectors, query)
        return np.concatenate([entries[self._indexed.entry], scores])

    def save(self, path: Path) -> None:
        """Writes the index, with the vectors of the rows in it, but not the tail. Only where ``indexed`` is above 0.

        Raises:
            OSError: It cannot be written.
            ValueError: There is no index.
        """
        if self._indexed is None:
            raise ValueError("expected an index to save, found only a tail: absorb it first")
        self._indexed.save(path, self._longest)

    @classmethod
    def load(cls, path: Path, dimension: int) -> VectorIndex:
        """Reads what `save` wrote; the tail is empty.

        Raises:
            BankError: Not such a file, or of another dimension.
        """
        loaded = cls(dimension)
        loaded._indexed, loaded._longest = Entries.load(path, dimension)
        return loaded


def kind_for(rows: int) -> Kind:
    """What "auto" means: flat for small banks, HNSW for large ones, IVF where a graph would cost too much to build.

    With 128 dimensions on two cores: flat search of 20,000 rows takes about as long as a graph of the paper's 169,489, half
    a millisecond. That graph takes one to two minutes to build, growing a little faster than the rows, and finds the best
    row practically always. An IVF index is built ten times as fast, but misses more of what comes after the best.
    """
    if rows <= FLAT_ROWS:
        return "flat"
    return "hnsw" if rows <= HNSW_ROWS else "ivf"

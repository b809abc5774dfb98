"""From the words of a query to the best passages: a sum over their posting lists, and the highest of the sums.

Two ways with one result: compiled by numba for what is large, numpy for what is small or asks for a great many passages, so
that a small index answers at once where numba would compile first. numba's result is kept on disk, where that can be
written: a process compiles only if none did before.

Sums are of 64 bits, the summands of 32: they are exact in any order, so passages that fit a query equally well have equal
scores to the last bit and the one with the lower number comes first.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

COMPILE_FROM = 500_000
"""Entries of the matrix from which on compiled code is used."""

COMPILED_BEST = 1_000
"""How many passages at most the compiled code picks: its time grows with them, numpy's hardly."""

LANES = 16
"""How many threads work at once at most, whatever the number of cores: each needs 8 bytes for every passage."""


@dataclass(frozen=True)
class Impacts:
    """What a word adds to the score of a passage: a sparse matrix, column by column.

    Args:
        values: The summands. Shape (entries,).
        passages: The passage of each; ascending within a column. Shape (entries,).
        starts: Where the column of each word begins, and where the last one ends. Shape (words + 1,).
        count: How many passages there are.
    """

    values: NDArray[np.float32]
    passages: NDArray[np.int32]
    starts: NDArray[np.int64]
    count: int

    def __post_init__(self) -> None:
        for part in (self.values, self.passages, self.starts):
            part.flags.writeable = False  # as mapped ones are: numba compiles for each kind anew


class Scorer:
    """Finds the best passages. Safe for threads; as many as there are cores, up to `LANES`, work at once.

    Args:
        impacts: The matrix.
    """

    def __init__(self, impacts: Impacts) -> None:
        self._impacts = impacts
        self._lanes = threading.Semaphore(min(os.cpu_count() or 1, LANES))
        self._blank: list[NDArray[np.float64]] = []  # sums of earlier queries, set back to zero

    def best(self, words: list[int], weights: list[int], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The passages with the highest scores above 0.

        Args:
            words: Columns of the matrix, each once.
            weights: How often the query has each.
            k: How many passages at most.

        Returns:
            Their numbers and scores: highest first, equal scores by number. Shapes (found,).
        """
        impacts, k = self._impacts, min(k, self._impacts.count)
        if not words or k == 0:
            return np.empty(0, np.int64), np.empty(0, np.float64)
        if len(impacts.values) < COMPILE_FROM or k > COMPILED_BEST:
            return _best_by_numpy(impacts, words, weights, k)
        with self._lanes:
            try:
                sums = self._blank.pop()
            except IndexError:
                sums = np.zeros(impacts.count, np.float64)
            passages, scores = _best_compiled(
                impacts.values, impacts.passages, impacts.starts, np.array(words), np.array(weights, np.float64), sums, k
            )
            self._blank.append(sums)
        return passages, scores


def _best_by_numpy(
    impacts: Impacts, words: list[int], weights: list[int], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    sums = np.zeros(impacts.count, np.float64)
    for word, weight in zip(words, weights, strict=True):
        column = slice(impacts.starts[word], impacts.starts[word + 1])
        sums[impacts.passages[column]] += impacts.values[column] * np.float64(weight)
    found = np.flatnonzero(sums)
    if len(found) > k:
        found = found[sums[found] >= np.partition(sums[found], -k)[-k]]
    best = found[np.lexsort((found, -sums[found]))[:k]]
    return best, sums[best]


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    try:
        compiled: Callable[..., Any] = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # there is no place to keep the result
        compiled = numba.njit(nogil=True)(function)
    return compiled


@_compiled
def _best_compiled(values, passages, starts, words, weights, sums, k):  # type: ignore[no-untyped-def]
    """As `_best_by_numpy`; ``sums`` are zeros, and are again afterwards. Looks at the passages of its words alone."""
    for i in range(len(words)):
        for entry in range(starts[words[i]], starts[words[i] + 1]):
            sums[passages[entry]] += values[entry] * weights[i]
    best = np.zeros(k, np.int64)
    scores = np.zeros(k, np.float64)
    found, lowest = 0, 5e-324  # the smallest number above 0: a passage that was looked at before has 0 and stays out
    for i in range(len(words)):
        for entry in range(starts[words[i]], starts[words[i] + 1]):
            passage = passages[entry]
            score = sums[passage]
            sums[passage] = 0.0
            if score >= lowest:
                if found < k:
                    found += 1
                elif score == scores[k - 1] and passage > best[k - 1]:
                    continue
                place = found - 1
                while place > 0 and (
                    scores[place - 1] < score or (scores[place - 1] == score and best[place - 1] > passage)
                ):
                    scores[place], best[place] = scores[place - 1], best[place - 1]
                    place -= 1
                scores[place], best[place] = score, passage
                if found == k:
                    lowest = scores[k - 1]
    return best[:found], scores[:found]

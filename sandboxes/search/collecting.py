"""From the texts of passages to the matrix that searches sum over: the first half of building an index."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import bm25s
import numpy as np
from numpy.typing import NDArray

from sandboxes.search.analyzer import Analyzer
from sandboxes.search.scoring import Impacts
from sandboxes.search.table import Table

COMPILE_FROM = 10_000_000
"""Tokens from which on bm25s sorts the matrix by compiled code: a second to compile, then many times as fast, and half the
memory."""


class TokenCollector:
    """The tokens of all passages, collected while these are read.

    Args:
        analyzer: What cuts up the passages.
    """

    def __init__(self, analyzer: Analyzer) -> None:
        self._analyzer = analyzer
        self._numbers: dict[str, int] = {}  # token -> its number, by first occurrence
        self._of_word: dict[str, int] = {}  # word -> the number of its token, so that each word is stemmed once
        self._flat, self._ends = array("i"), array("q", [0])

    def add(self, text: str) -> None:
        """Takes the tokens of the next passage."""
        words = self._analyzer.words(text)
        unseen = [word for word in words if word not in self._of_word]
        for word, token in zip(unseen, self._analyzer.stems(unseen), strict=True):
            self._of_word[word] = self._numbers.setdefault(token, len(self._numbers))
        self._flat.extend([self._of_word[word] for word in words])
        self._ends.append(len(self._flat))

    def impacts(self, order: NDArray[np.int64], k1: float, b: float) -> tuple[Table, Impacts]:
        """The vocabulary, and what each word adds to the score of each passage.

        Args:
            order: For each passage of the index the position at which it was added.
            k1, b: Parameters of the formula.
        """
        words, first_numbers = Table.of(((token,) for token in self._numbers), fields=1)
        if not len(words):
            nothing = (np.empty(0, np.float32), np.empty(0, np.int32), np.zeros(1, np.int64))
            return words, Impacts(*nothing, len(order))
        rank = np.empty(len(words), np.int32)
        rank[first_numbers] = np.arange(len(words), dtype=np.int32)
        documents = _Documents(rank[np.frombuffer(self._flat, np.int32)], np.frombuffer(self._ends, np.int64), order)
        builder = bm25s.BM25(k1=k1, b=b, method="lucene")
        if len(self._flat) >= COMPILE_FROM:
            builder.activate_numba_csc()
        matrix = builder.build_index_from_ids(range(len(words)), documents, show_progress=False)
        return words, Impacts(matrix["data"], matrix["indices"], matrix["indptr"], len(order))


class _Documents(Sequence[list[int]]):
    """The tokens of each passage in the order of the index, made into a list only while they are looked at."""

    def __init__(self, flat: NDArray[np.int32], ends: NDArray[np.int64], order: NDArray[np.int64]) -> None:
        self._flat, self._ends, self._order = flat, ends, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, number: Any) -> Any:
        position = self._order[number]
        tokens: list[int] = self._flat[self._ends[position] : self._ends[position + 1]].tolist()
        return tokens

"""Inner products and the search that looks at every vector: exact, and the measure of every index.

A score is a function of two vectors and of nothing else, bit for bit: not of the batch, of neighbours in memory, of threads
or of the processor. So equal vectors have equal scores, and ties can be told from near ties.
"""

from __future__ import annotations

from typing import NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

from tracebank.embed.embedder import Vectors

Numbers = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]

LONGEST = 1e18
"""Length below which vectors must stay, so that no inner product is beyond a 32-bit float."""

_BLOCK = 512
"""Vectors that are multiplied at once: their products stay in the processor's cache."""


class Pairs(NamedTuple):
    """Queries with what was found for them: number of the query, place of the vector, score; [n] each, in any order."""

    query: Numbers
    place: Numbers
    score: Scores


def checked(vectors: Vectors, dimension: int, name: str) -> npt.NDArray[np.float64]:
    """The squared lengths of vectors that can be searched, [n].

    Raises:
        ValueError: Not 32-bit floats of shape [n, dimension], a number that is not finite, or a vector that is too long.
    """
    if not isinstance(vectors, np.ndarray) or vectors.dtype != np.float32 or vectors.shape[1:] != (dimension,):
        found = (
            f"{vectors.dtype} of shape {list(vectors.shape)}" if isinstance(vectors, np.ndarray) else type(vectors).__name__
        )
        raise ValueError(f"{name}: expected an array of float32 of shape [n, {dimension}], found {found}")
    squares: npt.NDArray[np.float64] = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    wrong = np.flatnonzero(~(squares < LONGEST**2))
    if len(wrong):
        row, length = wrong[0], np.sqrt(squares[wrong[0]])
        raise ValueError(
            f"{name}: expected finite vectors shorter than {LONGEST:g}, found one of length {length:g} in row {row}"
        )
    return squares


def inner_products(left: Vectors, right: Vectors) -> Scores:
    """The scores of pairs of vectors: inner products in double precision, rounded once.

    The products are exact, and are added in halves in an order that depends on the dimension alone.

    Args:
        left: [n, dimension].
        right: [n, dimension], or [1, dimension] for all.

    Returns:
        [n].
    """
    products = np.multiply(left.T, right.T, dtype=np.float64, order="C")
    width = len(products)
    while width > 1:
        half = width // 2
        products[:half] += products[width - half : width]
        width -= half
    scores: Scores = (products[0] + 0.0).astype(np.float32)  # no negative zeros
    return scores


def pair_scores(vectors: Vectors, place: Numbers, queries: Vectors, query: Numbers) -> Scores:
    """The scores of vectors, by their places, and queries, by their numbers: [n] each."""
    scores = np.empty(len(place), dtype=np.float32)
    for start in range(0, len(place), _BLOCK):
        block = slice(start, start + _BLOCK)
        scores[block] = inner_products(vectors[place[block]], queries[query[block]])
    return scores


def all_scores(vectors: Vectors, query: Vectors) -> Scores:
    """The scores of all vectors for one query, [dimension]."""
    scores = np.empty(len(vectors), dtype=np.float32)
    for start in range(0, len(vectors), _BLOCK):
        block = slice(start, start + _BLOCK)
        scores[block] = inner_products(vectors[block], query[None])
    return scores


def search_flat(vectors: Vectors, longest: float, queries: Vectors, fetch: int) -> Pairs:
    """At least the ``fetch`` best vectors of each query in the order of (-score, place), or all where there are fewer.

    FAISS finds them in single precision, whose rounding may differ from one pair to the next. So more are fetched, and where
    even the last of them may be a rival of those wanted, everything within the rounding error is looked at.

    Args:
        vectors: [n, dimension].
        longest: Length that none of them exceeds.
        queries: [B, dimension].
        fetch: From 1.
    """
    count, dimension = vectors.shape
    asked = fetch + fetch // 4 + 16
    if asked >= count:
        query = np.repeat(np.arange(len(queries)), count)
        place = np.tile(np.arange(count), len(queries))
        return Pairs(query, place, pair_scores(vectors, place, queries, query))
    near, found = faiss.knn(queries, vectors, asked, metric=faiss.METRIC_INNER_PRODUCT)
    query = np.repeat(np.arange(len(queries)), asked)
    scores = pair_scores(vectors, found.ravel(), queries, query).reshape(found.shape)
    wanted = np.partition(scores, asked - fetch, axis=1)[:, asked - fetch].astype(np.float64)
    # Twice what sums of so many rounded products can be off, and what is lost where products are too small for a float.
    lengths = np.sqrt(np.einsum("ij,ij->i", queries, queries, dtype=np.float64))
    error = (dimension + 4) * (lengths * longest * 2.0**-23 + 2.0**-125)
    settled = wanted > near[:, -1] + error
    parts = [Pairs(query, found.ravel(), scores.ravel())]
    if not settled.all():
        kept = np.repeat(settled, asked)
        parts = [Pairs(*(values[kept] for values in parts[0]))]
    for number in np.flatnonzero(~settled).tolist():
        place = np.flatnonzero(vectors @ queries[number] >= wanted[number] - error[number])
        score = pair_scores(vectors, place, queries, np.full(len(place), number))
        best = np.argsort(-score, kind="stable")[:fetch]
        parts.append(Pairs(np.full(len(best), number), place[best], score[best]))
    return joined(parts)


def joined(parts: list[Pairs]) -> Pairs:
    """All pairs together."""
    return parts[0] if len(parts) == 1 else Pairs(*(np.concatenate(values) for values in zip(*parts, strict=True)))

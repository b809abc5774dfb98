"""Texts as sketches of what they are made of: no model, no download, the same bits on every machine.

A text is a bag of features. Each stands in two places of a small vector, with signs, that its hash tells; the cosine of two
such vectors estimates that of the bags themselves (feature hashing, Weinberger et al. 2009, arXiv 0902.2206).

The features are words, pairs of neighbouring words, and runs of four characters inside a word and its two ends, which
typing errors and inflections leave mostly as they are. Without a corpus nobody knows which words are rare, so their shape
must tell: a long word says more than a short one, and a number more than any word, since two problems often differ in
nothing but their numbers. What is repeated counts less each time.

All sums are of integers, and only their last division is not, so that no order of summation can show. Unicode is what can
differ: characters that were assigned after the Unicode version of an older Python have no capital and small letters there.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from tracebank.embed.embedder import Vectors

VERSION = "v1"
"""Of the features, their weights and their hashes: a change of any of them is another version, and other vectors."""

DIMENSION = 128
"""Numbers in a vector where nobody says otherwise."""

_LARGEST_DIMENSION = 1 << 16
_CHARACTERS = 1 << 22  # in one call of the compiled code, unless one text alone has more
_DISTINCT = 1 << 19  # features of one text that are counted together; where there are more, counting begins anew
_UNBROKEN = re.compile(r"\S{256}")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # of the polynomials that hash a run of characters
_BLANK, _SYMBOL, _LETTER, _DIGIT, _IDEOGRAPH = range(5)


class HashingEmbedder:
    """Words and runs of characters, hashed. Safe from many threads.

    Args:
        dimension: Numbers in a vector, from 2 to 65,536; an estimate of a cosine is off by about 1/sqrt(dimension).

    Raises:
        ValueError: Another dimension.

    Example:
        >>> HashingEmbedder().name
        'hashing:v1?dimension=128'
        >>> question, same, other = HashingEmbedder().embed(["What is 12*7?", "Compute 12*7.", "Who wrote it?"])
        >>> bool(question @ same > question @ other)
        True
    """

    def __init__(self, dimension: int = DIMENSION) -> None:
        if not 2 <= dimension <= _LARGEST_DIMENSION:
            raise ValueError(f"dimension: expected a number from 2 to {_LARGEST_DIMENSION}, found {dimension}")
        self._dimension = dimension

    @property
    def name(self) -> str:
        """Version and dimension."""
        return f"hashing:{VERSION}?dimension={self._dimension}"

    @property
    def spec(self) -> str:
        """As the name."""
        return self.name

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        return self._dimension

    def embed(self, texts: Sequence[str]) -> Vectors:
        """The vectors of texts, [n, dimension], each of length one; zero for a text that is blank.

        Time grows with the number of characters; memory with that of the longest text.
        """
        vectors = np.zeros((len(texts), self._dimension), np.float32)
        row = 0
        for codes, ends in _batches(texts):
            _sketch(codes, ends, vectors[row : row + len(ends)])
            row += len(ends)
        return vectors


def _batches(texts: Sequence[str]) -> Iterator[tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]]:
    """Texts as code points, many at once: all of them in a row, and where each ends."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        folded = _fold(text)
        if batch and characters + len(folded) > _CHARACTERS:
            yield _code_points(batch)
            batch, characters = [], 0
        batch.append(folded)
        characters += len(folded)
    if batch:
        yield _code_points(batch)


def _code_points(texts: list[str]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint32)
    return codes, np.cumsum([len(text) for text in texts], dtype=np.int64)


def _fold(text: str) -> str:
    """A text in which case and width of characters make no difference."""
    if text.isascii():
        return text.lower()
    # Time to normalise grows with the square of the accents in a row; a blank here and there keeps that short.
    return unicodedata.normalize("NFKC", _UNBROKEN.sub(r"\g<0> ", text)).casefold()


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    try:
        compiled: Callable[..., Any] = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # there is no place to keep the result
        compiled = numba.njit(nogil=True)(function)
    return compiled


@_compiled
def _kind(code):  # type: ignore[no-untyped-def]
    """What a character is. Ranges of Unicode blocks, not its database, so that it is the same in all versions."""
    if code < 0x80:
        if code <= 0x20 or code == 0x7F:
            return _BLANK
        if 0x30 <= code <= 0x39:
            return _DIGIT
        return _LETTER if 0x61 <= code <= 0x7A else _SYMBOL
    if code < 0x2000:
        if code <= 0xA0:
            return _BLANK
        return _SYMBOL if code < 0xC0 or code == 0xD7 or code == 0xF7 else _LETTER
    if code < 0x2E80:
        if code <= 0x200F or 0x2028 <= code <= 0x202F or 0x205F <= code <= 0x206F:
            return _BLANK
        return _SYMBOL if code < 0x2C00 else _LETTER  # punctuation, currencies, arrows, mathematics, drawings
    if code < 0x3040:
        return _IDEOGRAPH if code < 0x3000 or 0x3005 <= code <= 0x3007 else _SYMBOL
    if code < 0xA000 or 0xF900 <= code < 0xFB00 or 0x20000 <= code < 0x40000:
        return _IDEOGRAPH  # Chinese and Japanese: no blanks, so that each character stands for a word
    if code == 0xFEFF or 0xFE00 <= code <= 0xFE0F:
        return _BLANK
    return _SYMBOL if 0x1F000 <= code < 0x20000 else _LETTER


@_compiled
def _mix(value):  # type: ignore[no-untyped-def]
    """Spreads what differs over all 64 bits (the finaliser of SplitMix64)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@_compiled
def _spread(keys, counts, weights, used, found, sums):  # type: ignore[no-untyped-def]
    """Adds the features of the table to the sums, and empties it.

    A feature that was found c times has its mean weight times 16 (1 + log2 c), the logarithm drawn with straight lines
    between powers of two. One of its places is in either half of the vector, so that they cannot cancel out.
    """
    dimension = np.uint64(len(sums))
    half = dimension >> np.uint64(1)
    for i in range(found):
        place = used[i]
        key, count = keys[place], counts[place]
        power = 0
        while count >> (power + 1):
            power += 1
        often = 16 * (1 + power) + ((count - (1 << power)) * 16 >> power)
        value = weights[place] * often // count
        low, high = key & np.uint64(0x7FFFFFFF), (key >> np.uint64(32)) & np.uint64(0x7FFFFFFF)
        first = (low * half) >> np.uint64(31)
        second = half + ((high * (dimension - half)) >> np.uint64(31))
        sums[first] += value if key & np.uint64(0x80000000) else -value
        sums[second] += value if key >> np.uint64(63) else -value
        keys[place] = 0
        counts[place] = 0
        weights[place] = 0


@_compiled
def _count(feature, weight, keys, counts, weights, used, found, sums):  # type: ignore[no-untyped-def]
    """Counts a feature in the table and returns how many are there; a full one is emptied into the sums."""
    key = max(_mix(feature), np.uint64(1))  # 0 is an empty place
    last = len(keys) - 1
    place = np.int64(key >> np.uint64(24)) & last
    while keys[place] != np.uint64(0) and keys[place] != key:
        place = (place + 1) & last
    if keys[place] == np.uint64(0):
        keys[place] = key
        used[found] = place
        found += 1
    counts[place] += 1
    weights[place] += weight
    if found == _DISTINCT:
        _spread(keys, counts, weights, used, found, sums)
        found = 0
    return found


@_compiled
def _sketch(codes, ends, vectors):  # type: ignore[no-untyped-def]
    """Fills in the vectors of texts, which are given in a row as code points."""
    longest, start = 0, 0
    for end in ends:
        longest = max(longest, end - start)
        start = end
    places = 1 << 10
    while places < min(4 * longest, 2 * _DISTINCT):  # a character brings two features at most
        places *= 2
    keys = np.zeros(places, np.uint64)
    counts = np.zeros(places, np.int64)
    weights = np.zeros(places, np.int64)
    used = np.empty(places, np.int64)
    sums = np.zeros(vectors.shape[1], np.int64)
    at = 0
    for row, end in enumerate(ends):
        sums[:] = 0
        found = 0
        before, weight_before = np.uint64(0), 0  # the word before
        while at < end:
            kind = _kind(codes[at])
            if kind == _BLANK:
                at += 1
                continue
            start, at = at, at + 1
            has_runs = kind in (_LETTER, _DIGIT)
            has_digit = kind == _DIGIT
            while has_runs and at < end:
                kind = _kind(codes[at])
                if kind not in (_LETTER, _DIGIT):
                    break
                has_digit = has_digit or kind == _DIGIT
                at += 1
            weight = 3 if kind == _SYMBOL else 6
            if has_runs:
                weight = min(at - start, 8) + (12 if has_digit and at - start <= 16 else 0)
            word = np.uint64(1)
            for i in range(start, at):
                word = word * _FACTOR + np.uint64(codes[i])
            found = _count(word, 2 * weight, keys, counts, weights, used, found, sums)
            if weight_before > 0:
                pair = _mix(before) * _FACTOR + word
                found = _count(pair, weight_before + weight, keys, counts, weights, used, found, sums)
            if has_runs:
                for first in range(start - 1, at - 2):  # with a blank at either end of the word
                    run = np.uint64(2)
                    for i in range(first, first + 4):
                        run = run * _FACTOR + (np.uint64(codes[i]) if start <= i < at else np.uint64(0x20))
                    found = _count(run, weight, keys, counts, weights, used, found, sums)
            before, weight_before = word, weight
        _spread(keys, counts, weights, used, found, sums)
        square = 0.0
        for i in range(len(sums)):
            square += np.float64(sums[i]) * np.float64(sums[i])
        if square > 0.0:
            for i in range(len(sums)):
                vectors[row, i] = np.float64(sums[i]) / np.sqrt(square)

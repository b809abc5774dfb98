"""Rows of strings in two flat arrays, so that millions of them can be mapped from a file and opened in no time.

Both the passages of an index (id, title, text) and its vocabulary are such a table. Rows are sorted by their first field,
which names them, and a row's number is its rank among the names. Names are compared by code points, as Python compares
strings and as UTF-8 sorts bytes. A row is found by bisection, for many names at once by the first eight bytes of each, then
among those few rows whose names begin alike.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


class DuplicateName(ValueError):
    """Two rows have the same name.

    Args:
        name: That name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"two rows are named {name!r}")
        self.name = name


class Table:
    """Rows of strings, sorted by the first of their fields.

    Args:
        text: The UTF-8 bytes of all fields, those of a row one after the other. Shape (bytes,).
        bounds: Where each field of a row begins in ``text``, and where the last one ends. Shape (rows, fields + 1).
        heads: The first eight bytes of each name as a number, so that they sort as the names do. Shape (rows,).
    """

    def __init__(self, text: NDArray[np.uint8], bounds: NDArray[np.int64], heads: NDArray[np.uint64]) -> None:
        self.text = text
        self.bounds = bounds
        self.heads = heads

    @classmethod
    def of(cls, rows: Iterable[tuple[str, ...]], fields: int) -> tuple[Table, NDArray[np.int64]]:
        """Makes a table.

        Args:
            rows: In any order. Lone surrogates are kept.
            fields: How many strings a row has.

        Returns:
            The table, and for each of its rows the position that it had in ``rows``.

        Raises:
            DuplicateName: Two rows have the same first field.
        """
        text, flat, names = bytearray(), array("q"), list[bytes]()
        for row in rows:
            encoded = [_encode(field) for field in row]
            names.append(encoded[0])
            for field in encoded:
                flat.append(len(text))
                text += field
            flat.append(len(text))
        order = sorted(range(len(names)), key=names.__getitem__)
        for one, next_one in pairwise(order):
            if names[one] == names[next_one]:
                raise DuplicateName(_decode(names[one]))
        positions = np.array(order, dtype=np.int64)
        bounds = np.frombuffer(flat, dtype=np.int64).reshape(-1, fields + 1)[positions]
        heads = np.fromiter(map(_head, names), np.uint64, len(names))[positions]
        return cls(np.frombuffer(text, dtype=np.uint8), bounds, heads), positions

    def __len__(self) -> int:
        return len(self.bounds)

    def row(self, number: int) -> list[str]:
        """The fields of a row."""
        first, *ends = self.bounds[number].tolist()
        stored = self.text[first : ends[-1]].tobytes()
        fields = []
        begin = first
        for end in ends:
            fields.append(_decode(stored[begin - first : end - first]))
            begin = end
        return fields

    def find(self, name: str) -> int | None:
        """The number of the row of that name, or None."""
        return self.find_all([name])[0]

    def find_all(self, names: Sequence[str]) -> list[int | None]:
        """`find` for many names."""
        wanted = [_encode(name) for name in names]
        heads = np.fromiter(map(_head, wanted), np.uint64, len(wanted))
        begins, ends = (np.searchsorted(self.heads, heads, side).tolist() for side in ("left", "right"))
        return [self._find_among(*each) for each in zip(wanted, begins, ends, strict=True)]

    def _find_among(self, wanted: bytes, begin: int, end: int) -> int | None:
        number = bisect_left(range(len(self)), wanted, begin, end, key=self._name)
        return number if number < end and self._name(number) == wanted else None

    def _name(self, number: int) -> bytes:
        bounds = self.bounds[number]
        return self.text[bounds[0] : bounds[1]].tobytes()


def _head(name: bytes) -> int:
    return int.from_bytes(name[:8].ljust(8, b"\0"), "big")


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogatepass")

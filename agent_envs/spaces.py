"""The string space: every text that an agent may read or write, up to a length.

Gymnasium's ``Text`` holds a fixed alphabet and is slow where it is shared between processes. ``String`` holds every Python
string without lone surrogates (those cannot be encoded, so no file, pipe or tokenizer takes them). It is registered here
with Gymnasium's vector machinery, so that ``AsyncVectorEnv`` works with its default settings, shared memory included.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, overload

import numpy as np
from gymnasium.spaces import Space, Tuple
from gymnasium.vector.utils import (
    batch_differing_spaces,
    concatenate,
    create_empty_array,
    create_shared_memory,
    read_from_shared_memory,
    write_to_shared_memory,
)

_SURROGATE = re.compile("[\ud800-\udfff]")

# What ``sample`` draws from: first and last code point of a range. White space and ASCII come up often, since that is where
# parsers break; then two-, three- and four-byte characters, the last code point included.
_RANGES = (
    (0x09, 0x0D),
    (0x00, 0x1F),
    (0x20, 0x7E),
    (0x20, 0x7E),
    (0x80, 0x7FF),
    (0x2000, 0x206F),
    (0x4E00, 0x9FFF),
    (0x1F300, 0x1FAFF),
    (0xE000, 0x10FFFF),
)

# A text in shared memory: how many bytes, whether they are UTF-16 or ASCII, and the bytes. Python reads and writes UTF-16
# several times faster than UTF-8.
_HEADER = struct.Struct("<Q?")
_NARROW, _WIDE = "ascii", "utf-16-le"
_BYTES_PER_CHARACTER = 4  # UTF-16 at its longest


def replace_surrogates(text: str) -> str:
    """The text with every lone surrogate replaced by U+FFFD; positions stay what they were."""
    return text if _encodable(text) else _SURROGATE.sub("\ufffd", text)


def _encodable(text: str) -> bool:
    """Whether there is no lone surrogate in the text; ten times faster than to search for one."""
    if text.isascii():
        return True
    try:
        text.encode(_WIDE)
    except UnicodeEncodeError:
        return False
    return True


class String(Space[str]):
    """Every Python string without lone surrogates, from the empty one up to ``max_length`` characters.

    Args:
        max_length: The longest string that is in the space, in characters.
        seed: Seeds ``sample``.

    Raises:
        ValueError: ``max_length`` is no positive integer.

    Example:
        >>> space = String(5)
        >>> "héllo" in space, "too long" in space, "\\ud800" in space
        (True, False, False)
    """

    def __init__(self, max_length: int, seed: int | np.random.Generator | None = None) -> None:
        if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1:
            raise ValueError(f"a string space needs a max_length of at least 1 character, found {max_length!r}")
        self.max_length = max_length
        super().__init__(shape=None, dtype=None, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        """False: a string has no fixed number of numbers."""
        return False

    def sample(self, mask: None = None, probability: None = None) -> str:
        """Draws a string: a length that is short as often as long, characters from all over Unicode.

        Raises:
            ValueError: A mask or probability was given; a string space has neither.
        """
        if mask is not None or probability is not None:
            raise ValueError("a string space takes neither a mask nor a probability; leave both out")
        rng = self.np_random
        length = int((self.max_length + 1) ** rng.random()) - 1 + int(rng.integers(0, 2))
        ranges = np.asarray(_RANGES)[rng.integers(0, len(_RANGES), size=min(length, self.max_length))]
        codes = rng.integers(ranges[:, 0], ranges[:, 1] + 1)
        return codes.astype("<u4").tobytes().decode("utf-32-le")

    def contains(self, x: Any) -> bool:
        """Whether ``x`` is a string of the space."""
        return isinstance(x, str) and len(x) <= self.max_length and _encodable(x)

    def __repr__(self) -> str:
        return f"String({self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, String) and self.max_length == other.max_length

    def __hash__(self) -> int:
        return hash((String, self.max_length))


class SharedStrings(Sequence[str]):
    """The strings that worker processes write into one shared buffer, decoded when they are read.

    Gymnasium reads the shared buffer once, when the vector environment is made, and hands out ``deepcopy``s of what it got.
    For arrays that works, since they are views; a tuple of strings would show the first observation for ever. So this is a
    view, and its ``deepcopy`` is the tuple of strings that the buffer holds at that moment.
    """

    def __init__(self, buffer: Any, slots: int, slot_bytes: int) -> None:
        self._bytes = memoryview(buffer.get_obj()).cast("B")
        self._slots = slots
        self._slot_bytes = slot_bytes

    def __len__(self) -> int:
        return self._slots

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(self._slots)))
        if not -self._slots <= index < self._slots:
            raise IndexError(f"index {index} is out of range for {self._slots} strings")
        start = index % self._slots * self._slot_bytes
        size, wide = _HEADER.unpack_from(self._bytes, start)
        first = start + _HEADER.size
        return str(self._bytes[first : first + size], _WIDE if wide else _NARROW)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and not isinstance(other, str) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        raise TypeError("a view of shared memory changes and has no hash; take tuple(view)")

    def __repr__(self) -> str:
        return f"SharedStrings{tuple(self)!r}"

    def __deepcopy__(self, memo: dict[int, Any]) -> tuple[str, ...]:
        return tuple(self)


def _slot_bytes(space: String) -> int:
    return _HEADER.size + space.max_length * _BYTES_PER_CHARACTER


# Gymnasium's own ``batch_space`` (a ``Tuple`` of the spaces) is right for strings, and so is having no ``iterate``: with
# one, a batch of strings would be taken for a tuple of batches and iterated character by character.
def _batch_differing(spaces: Sequence[String]) -> Tuple[Any]:
    return Tuple([String(space.max_length, seed=index) for index, space in enumerate(spaces)])


batch_differing_spaces.register(String, _batch_differing)


@concatenate.register(String)
def _concatenate(space: String, items: Iterable[str], out: Any) -> tuple[str, ...]:
    return tuple(items)


@create_empty_array.register(String)
def _create_empty(space: String, n: int = 1, fn: Callable[..., Any] = np.zeros) -> tuple[str, ...]:
    return ("",) * n


@create_shared_memory.register(String)
def _create_shared(space: String, n: int = 1, ctx: ModuleType = multiprocessing) -> Any:
    return ctx.Array(ctypes.c_uint8, n * _slot_bytes(space))


@read_from_shared_memory.register(String)
def _read_shared(space: String, shared_memory: Any, n: int = 1) -> SharedStrings:
    return SharedStrings(shared_memory, n, _slot_bytes(space))


@write_to_shared_memory.register(String)
def _write_shared(space: String, index: int, value: str, shared_memory: Any) -> None:
    if len(value) > space.max_length:
        raise ValueError(f"the observation has {len(value)} characters, more than the {space.max_length} of its space")
    wide = not value.isascii()
    data = value.encode(_WIDE if wide else _NARROW)
    start = index * _slot_bytes(space)
    first = start + _HEADER.size
    view = memoryview(shared_memory.get_obj()).cast("B")
    _HEADER.pack_into(view, start, len(data), wide)
    view[first : first + len(data)] = data

"""What a foreign format is to the importers, and what a reader of one record is given.

A `Form` says what records of a format look like and turns one into what we keep. A record that cannot be used is `Dropped`
with a reason of few words, by which it is counted; what is odd about this very record goes beside it.
"""

from __future__ import annotations

import hashlib
import math
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from tracebank.step import normalise_question

T = TypeVar("T")

_NOTHING = object()
_BACKSPACE = re.compile("\x08(?=oxed\\{)")
_SURROGATE = re.compile("[\ud800-\udfff]")


class FormatError(ValueError):
    """A file that is not what it was said to be, or is damaged beyond its single records."""


class Dropped(Exception):
    """A record that cannot be used.

    Args:
        reason: Why, in words that are the same for all such records.
        found: What was found in this one.
    """

    def __init__(self, reason: str, found: object = _NOTHING) -> None:
        super().__init__(reason if found is _NOTHING else f"{reason}; found {reprlib.repr(found)}")
        self.reason = reason


@dataclass(frozen=True)
class Context:
    """What the reader of a record knows besides the record.

    Args:
        source: Who made it.
        environment: Id of the environment it belongs to, or "".
        reward: Reward of a record, where ``reward_field`` names none.
        reward_field: The field of a record that holds its reward, or None.
        repaired: What was repaired in this record.
    """

    source: str
    environment: str = ""
    reward: float = 1.0
    reward_field: str | None = None
    repaired: Counter[str] = field(default_factory=Counter)

    def text(self, value: object, name: str) -> str:
        """A text of the record, `mended`.

        Raises:
            Dropped: It is none.
        """
        if not isinstance(value, str):
            raise Dropped(f"{name} is no text", value)
        return self.mended(value)

    def mended(self, text: str) -> str:
        r"""The text without two kinds of damage.

        A program that took ``"\boxed"`` for a string with an escape in it left a backspace and ``oxed``, as in the prompts
        that were released with ARPO; and half of a surrogate pair is no character.
        """
        if _BACKSPACE.search(text):
            text = _BACKSPACE.sub(r"\\b", text)
            self.repaired["a backspace in place of the start of \\boxed"] += 1
        if _SURROGATE.search(text):
            text = _SURROGATE.sub("\ufffd", text)
            self.repaired["half of a surrogate pair, replaced by U+FFFD"] += 1
        return text

    def reward_of(self, record: Mapping[str, Any]) -> float:
        """The record's reward.

        Raises:
            Dropped: The field holds no finite number.
        """
        return self.reward if self.reward_field is None else finite(record, self.reward_field)


@dataclass(frozen=True)
class Form(Generic[T]):
    """A format.

    Args:
        name: What it is called.
        expected: What a record looks like, for people whose file holds other ones.
        fits: Whether something looks like a record of the format at all.
        read: What a record that fits holds; raises `Dropped`.
        ignored: Columns of Parquet files that are not even looked at.
    """

    name: str
    expected: str
    fits: Callable[[Any], bool]
    read: Callable[[Any, Context], list[T]]
    ignored: frozenset[str] = frozenset()


def finite(record: Mapping[str, Any], name: str) -> float:
    """A number of a record; a truth value counts 1 or 0.

    Raises:
        Dropped: It is missing, no number, or not finite.
    """
    value = record.get(name)
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:  # a whole number beyond all floats
        number = math.inf
    if not math.isfinite(number):
        raise Dropped(f"no finite number in {name!r}", value)
    return number


def name_of(question: str, form: str) -> str:
    """A task id for a task that has none: equal for questions that are one (`tracebank.step.normalise_question`)."""
    digest = hashlib.blake2b(normalise_question(question).encode(), digest_size=8).hexdigest()
    return f"{form}:{digest}"

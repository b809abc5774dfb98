"""Settings that a tool passes on to its sandbox, given as plain values: read once, and refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, cast

Limits = TypeVar("Limits")


def read_limits(kind: type[Limits], limits: Limits | Mapping[str, Any] | None) -> Limits:
    """Limits out of a mapping of some of their fields.

    Args:
        kind: The dataclass of the limits.
        limits: Some of its fields, or such limits already; None for the usual ones.

    Raises:
        ValueError: There is no such field, or a value is out of range.
    """
    if isinstance(limits, kind):
        return limits
    given = dict(cast("Mapping[str, Any]", limits or {}))
    try:
        return kind(**given)
    except TypeError as problem:
        package = kind.__module__.rpartition(".")[0]
        raise ValueError(f"limits takes the fields of {package}.{kind.__name__}, found {given!r}: {problem}") from problem


def read_options(function: Callable[..., Any], options: Mapping[str, Any] | None, *, own: Collection[str]) -> dict[str, Any]:
    """``options`` as a dict, if they are arguments of a function.

    Args:
        function: What they are passed on to.
        options: The arguments; None for none.
        own: Its arguments that the tool sets itself.

    Raises:
        ValueError: The function does not take them all, or the tool sets them itself.
    """
    taken = dict(options or {})
    known = set(inspect.signature(function).parameters) - set(own)
    unknown = sorted(set(taken) - known)
    if unknown:
        raise ValueError(f"options may be {sorted(known)}, found {unknown}")
    return taken

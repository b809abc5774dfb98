"""Texts as Python source, short even where the text is long, so that a line to reproduce a case can be pasted."""

from __future__ import annotations

import re

LONGEST_PERIOD = 64
"""Characters of the longest piece whose repetition is written with ``*``."""

_LONG = 400  # characters; a shorter text is written out
_WORTH = 60  # characters of a repetition that is worth a ``*``
_REPETITION = re.compile(rf"(.{{1,{LONGEST_PERIOD}}}?)\1{{7,}}", re.DOTALL)


def literal(text: str) -> str:
    """An expression that is exactly this text; in a long one repetitions are written with ``*``.

    Example:
        >>> literal("ab" * 50_000 + "!")
        "'ab' * 50000 + '!'"
    """
    if len(text) <= _LONG:
        return repr(text)
    terms: list[str] = []
    written = 0
    for match in _REPETITION.finditer(text):
        if len(match[0]) < _WORTH:
            continue
        if match.start() > written:
            terms.append(repr(text[written : match.start()]))
        terms.append(f"{match[1]!r} * {len(match[0]) // len(match[1])}")
        written = match.end()
    if written < len(text):
        terms.append(repr(text[written:]))
    return " + ".join(terms)


def excerpt(text: str) -> str:
    """The same for a reader: a text that stays long is cut in the middle, and its length is named."""
    source = literal(text)
    return source if len(source) <= _LONG else f"{source[:300]}...{source[-97:]} ({len(text)} characters)"


def printable(text: str) -> str:
    """The text with everything that a terminal would act on or could not show (but line breaks) as an escape."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)

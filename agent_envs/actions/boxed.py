"""The answer in ``\\boxed{}``, as mathematics is answered."""

from __future__ import annotations

import re

_BOXED_TOKEN = re.compile(r"\\boxed\s{0,8}\{|\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""The content of the balanced ``\boxed{}`` that is closed last, or None if there is none; ``\{`` is no brace."""
    opened: list[int] = []  # where the content of each open brace starts; -1 for one that is no box
    found: tuple[int, int] | None = None
    for match in _BOXED_TOKEN.finditer(text):
        token = match[0]
        if token == "{":
            opened.append(-1)
        elif token.startswith(r"\boxed"):
            opened.append(match.end())
        elif token == "}" and opened:
            start = opened.pop()
            if start >= 0:
                found = start, match.start()
    return text[slice(*found)] if found else None

"""A retrieved step as the policy reads it: the one way in which a step of somebody else is written into a sequence."""

from __future__ import annotations

import re

from agent_envs.actions import Piece
from learners.rollout.episode import Dialect

HINT = "Somebody else did the following in a situation like this one: use it where it helps.\n"
"""What may stand before each block (released code; the wording is ours)."""


def step_pieces(trace: str, dialect: Dialect) -> list[Piece]:
    """A step's text as pieces: only the format's own tags in it may become control tokens."""
    spelled = "".join(dialect.format.stop(dialect.tools)) + dialect.format.observe("").text
    names = "|".join(map(re.escape, {"think", "result", *re.findall(r"</([^<>/]+)>", spelled)}))
    parts = re.split(rf"(</?(?:{names})>)", trace.replace("</retrieve>", "</ retrieve>"))
    return [Piece(part, trusted=number % 2 == 1) for number, part in enumerate(parts) if part]


def retrieved_block(trace: str, dialect: Dialect, *, hint: bool = False) -> list[Piece]:
    """A retrieved step as the policy reads it: in its tags, and after a sentence that says what it is if one is wanted."""
    before = [Piece(HINT, trusted=False)] if hint else []
    inner = step_pieces(trace, dialect)
    return [*before, Piece("<retrieve>\n", trusted=True), *inner, Piece("\n</retrieve>\n", trusted=True)]

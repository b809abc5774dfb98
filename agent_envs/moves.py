"""Moves: what an action comes to once a format has read it, a tool call or the final answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """A tool call."""

    tool: str
    arguments: Mapping[str, Any]
    thought: str = ""


@dataclass(frozen=True)
class Answer:
    """The final answer, as the verifier reads it."""

    text: str
    thought: str = ""


Move = Call | Answer

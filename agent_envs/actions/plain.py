"""``PlainFormat``: for anybody's text environment, one message an action, no tools, no parsing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent_envs.actions.format import Message, Parsed, Piece
from agent_envs.moves import Answer, Move
from agent_envs.tool import Tool


@dataclass(frozen=True)
class PlainFormat:
    """One message an action: any text is the answer, and observations are the user's messages. No tools, no parsing."""

    @property
    def name(self) -> str:
        """Always ``"plain"``."""
        return "plain"

    def opening(self, question: str, system_prompt: str, tools: Sequence[Tool]) -> tuple[Message, ...]:
        """The system prompt, if there is one, and the question."""
        system = (Message("system", (Piece(system_prompt, True),)),) if system_prompt else ()
        return (*system, Message("user", (Piece(question),)))

    def stop(self, tools: Sequence[Tool]) -> tuple[str, ...]:
        """None: an action ends where the turn ends."""
        return ()

    def unfinished(self, text: str, tools: Sequence[Tool]) -> bool:
        """Never."""
        return False

    def parse(self, text: str, tools: Sequence[Tool]) -> Parsed:
        """The whole text is the answer."""
        return Parsed(Answer(text), len(text), True)

    def observe(self, text: str) -> Message:
        """The observation as the user's next message."""
        return Message("user", (Piece(text),))

    def write(self, move: Move, tools: Sequence[Tool]) -> str:
        """The answer's text."""
        if move != Answer(move.text if isinstance(move, Answer) else ""):
            raise ValueError(f"the plain format has only answers without thought, found {move!r}")
        return move.text

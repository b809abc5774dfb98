"""The contract of a format: everything between the text that a policy writes and the moves that it makes.

A ``Format`` says how the conversation opens (system prompt and tool schemas are joined there, once), where an action stops,
what it means (`parse`), and how an observation is put back (`observe`). It yields roles and pieces, never token ids: trusted
pieces are the format's own wrapper text, untrusted pieces are content, which must never become a control token. History is
append-only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from agent_envs.moves import Move
from agent_envs.tool import Tool

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Piece:
    """A run of text. ``trusted`` text is the format's own and may hold control tokens; content may not."""

    text: str
    trusted: bool = False


@dataclass(frozen=True)
class Message:
    """Pieces with a role. Role ``"assistant"`` for an observation means: it goes on inside the assistant's open turn."""

    role: Role
    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True)
class Parsed:
    """What an action means.

    Args:
        move: The call or answer, or None where there is none (then ``fault`` says why).
        end: Characters of the action that count; what follows is cut off.
        well_formed: Whether the action keeps every rule of the format (ARPO's format reward asks this).
        fault: "" or a kind of `agent_envs.faults.POLICY_FAULTS`.
        message: What the policy is told about the fault.
        begin: Where the move begins; what stands before it is thought. 0 where there is no move.
    """

    move: Move | None
    end: int
    well_formed: bool
    fault: str = ""
    message: str = ""
    begin: int = 0


class Format(Protocol):
    """The contract of a format; formats are frozen values without state."""

    @property
    def name(self) -> str:
        """Short name, written into trajectories and trace banks."""

    def opening(self, question: str, system_prompt: str, tools: Sequence[Tool]) -> tuple[Message, ...]:
        """The messages that open the conversation: instructions with tool schemas, then the question as content."""

    def stop(self, tools: Sequence[Tool]) -> tuple[str, ...]:
        """Strings that end an action when the policy writes them; () where only the end of the turn does.

        Raises:
            ValueError: The format cannot tell these tools apart.
        """

    def unfinished(self, text: str, tools: Sequence[Tool]) -> bool:
        """Whether a stop string at the end of ``text`` does not count (inside ``<think>``), so that decoding goes on."""

    def parse(self, text: str, tools: Sequence[Tool]) -> Parsed:
        """What an action means. Never raises, whatever the text."""

    def observe(self, text: str) -> Message:
        """An observation as the policy reads it."""

    def write(self, move: Move, tools: Sequence[Tool]) -> str:
        """The canonical action for a move; ``parse(write(move)).move == move``.

        Raises:
            ValueError: The format has no action that means this move.
        """

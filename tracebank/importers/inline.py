"""Transcripts in which everything stands inline, in tags: thoughts, tool calls, what came back, the answer.

The rule is that of the tag format of the environments: between an opening tag and its closing tag everything is content, so
tags within a thought, a call or a result mean nothing. Since this is somebody else's text and nobody can be asked to write
it again, damage is borne: a tag that is never closed is text (a result that is never closed goes on to the end), and a
``</think>`` that closes nothing ends a thought that began with the text, as where the chat template had written the opening.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tracebank.trajectory import Turn

THINK, ANSWER, JSON_CALL = "think", "answer", "tool_call"
TOOLS = ("python", "search", "browse", JSON_CALL)
"""Tags of calls. Any other name is taken for a call where its closing tag stands right before a result."""
RESULTS = ("result", "tool_response", "information")
"""Tags around what came back: the papers', that of the chat templates for JSON calls, and Search-R1's."""

_TAG = re.compile(f"<(/?)({'|'.join((THINK, ANSWER, *TOOLS, *RESULTS))})>")
_LAST_CLOSING = re.compile(r"</([A-Za-z_]\w{0,63})>\Z")


@dataclass(frozen=True)
class Parts:
    """What a text holds.

    Args:
        turns: Its turns. A turn ends where something came back; the last one may have no observation.
        calls: Number of tool calls.
        results: Number of results.
        tags: Tags of calls, results and answers that stand in it.
        answered: Whether the last word is an answer: nothing came back after it, and it answers or at least calls nothing.
    """

    turns: tuple[Turn, ...]
    calls: int
    results: int
    tags: frozenset[str]
    answered: bool


def split(text: str) -> Parts:
    """Cuts a text into turns, each with what came back; time is linear in the text.

    Example:
        >>> split("<think>six</think><python>6*7</python><result>\\n42\\n</result><answer>42</answer>").turns[0]
        Turn(thought='<think>six</think>', action='<python>6*7</python>', observation='42')
    """
    closed = {match[2]: match.start() for match in _TAG.finditer(text) if match[1]}  # where each name is closed last
    turns: list[Turn] = []
    seen: set[str] = set()
    calls = results = 0
    piece = _Piece(0)
    tag, opened, body = "", 0, 0
    for match in _TAG.finditer(text):
        closing, name = match[1] == "/", match[2]
        if tag:
            if not closing or name != tag:
                continue
            if tag in RESULTS:
                observation = text[body : match.start()].removeprefix("\n").removesuffix("\n")
                turns.append(piece.turn(text, opened, observation))
                calls, results = calls + piece.calls, results + 1
                piece = _Piece(match.end())
            elif tag == THINK:
                piece.thought = match.end()
            tag = ""
        elif closing:
            if name == THINK:
                piece = _Piece(piece.start, thought=match.end())
        elif closed.get(name, -1) >= match.end():
            tag, opened, body = name, match.start(), match.end()
            if name != THINK:
                seen.add(name)
            if name != THINK and name not in RESULTS:
                piece.note(name, opened)
        elif name in RESULTS:
            turns.append(piece.turn(text, match.start(), text[match.end() :].removeprefix("\n")))
            calls, results = calls + piece.calls, results + 1
            seen.add(name)
            piece = _Piece(len(text))
            break
    answered = False
    if text[piece.start :].strip():
        turns.append(piece.turn(text, len(text)))
        calls += piece.calls
        answered = piece.answers or not piece.calls
    return Parts(tuple(turns), calls, results, frozenset(seen), answered)


def unwrap(text: str) -> str:
    """What came back, without the tags around it; a text that holds anything outside of such tags is left as it is."""
    parts = split(text)
    if not parts.results or any(turn.thought or turn.action for turn in parts.turns):
        return text
    return "\n".join(turn.observation for turn in parts.turns)


class _Piece:
    """The text of one turn: where it starts, where its latest thought ends, and its first call or answer."""

    def __init__(self, start: int, thought: int | None = None) -> None:
        self.start = start
        self.thought = start if thought is None else thought
        self.begin: int | None = None
        self.calls = 0
        self.answers = False

    def note(self, tag: str, opened: int) -> None:
        self.begin = opened if self.begin is None else self.begin
        self.calls += tag != ANSWER
        self.answers = self.answers or tag == ANSWER

    def turn(self, text: str, end: int, observation: str | None = None) -> Turn:
        """The turn, whose text ends at ``end``; None where nothing came back."""
        written = text[self.start : end].rstrip()
        begin = None if self.begin is None else self.begin - self.start
        if begin is None and observation is not None:
            begin = self._unknown_call(written)
        if begin is None:  # neither call nor answer: what follows the thoughts is what was said
            begin = self.thought - self.start
            begin += len(written[begin:]) - len(written[begin:].lstrip())
        return Turn(written[:begin].lstrip(), written[begin:], observation or "")

    def _unknown_call(self, written: str) -> int | None:
        """Where the call of a tool begins whose name is not known, but which ends the text."""
        name = _LAST_CLOSING.search(written)
        at = written.rfind(f"<{name[1]}>") if name else -1
        if at < self.thought - self.start:
            return None
        self.calls += 1
        return at

"""Formats: everything between the text that a policy writes and the moves that it makes.

An *action* is the text of one assistant turn. A ``Format`` says how the conversation opens (system prompt and tool schemas
are joined here, once), where an action stops, what it means (`parse`), and how an observation is put back (`observe`). It
yields roles and pieces, never token ids: trusted pieces are the format's own wrapper text, untrusted pieces are content,
which must never become a control token. History is append-only.

``TagFormat`` is the papers': ``<think> <python> <search> <browse> <result> <answer>``, everything in one assistant turn.
``PlainFormat`` is for anybody's text environment: one message an action, no tools, no parsing.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from agent_envs.moves import Answer, Call, Move
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


@dataclass(frozen=True)
class TagFormat:
    r"""The papers' format: thoughts, calls, results and the answer stand in tags, all inside one assistant turn.

    A tool named ``python`` is called by ``<python>...</python>``. The body goes to the tool's sole parameter as it is, or is
    read as JSON where the tool has several (or the sole one is no string). The answer is ``<answer>...\boxed{72}</answer>``.

    Between an opening tag and its closing tag everything is content, other tags included: so tags in ``<think>`` mean
    nothing, and the first other tag that is closed again makes the move. What follows it is cut off. A closing tag that
    closes nothing ends the action as well. `unfinished` and `parse` go by this same rule, so an action that was decoded up
    to its stop string means what the whole text would have meant.

    Well formed is an action that makes a move, in which every ``<think>`` is closed and was opened, that writes no result of
    its own, and whose answer holds something in a balanced ``\boxed{}``.

    Args:
        think: Tag of thoughts.
        answer: Tag of the answer.
        result: Tag around observations.
        boxed: Whether the answer stands in ``\boxed{}``; then that is what the verifier reads.
        instructions: Whether the conversation opens with how to write calls and answers. A policy that was trained on
            the format can do without.

    Example:
        >>> TagFormat().parse(r"<think>easy</think><answer>It is \boxed{72}.</answer> Bye.", ()).move
        Answer(text='72', thought='easy')
    """

    think: str = "think"
    answer: str = "answer"
    result: str = "result"
    boxed: bool = True
    instructions: bool = True

    def __post_init__(self) -> None:
        tags = (self.think, self.answer, self.result)
        if len(set(tags)) < len(tags) or not all(re.fullmatch(r"[A-Za-z_]\w*", tag, re.ASCII) for tag in tags):
            raise ValueError(f"the tags of a format must be three different names of letters and digits, found {tags}")

    @property
    def name(self) -> str:
        """Always ``"tag"``."""
        return "tag"

    def opening(self, question: str, system_prompt: str, tools: Sequence[Tool]) -> tuple[Message, ...]:
        """A system message (prompt, tools, how to answer) and the question; without any of those, only the question."""
        parts = [system_prompt] if system_prompt else []
        if self.instructions:
            parts.append(f"Think between <{self.think}> and </{self.think}>.")
            if tools:
                lines = [f"You can call tools; the result comes back between <{self.result}> and </{self.result}>."]
                lines += [f"- <{tool.name}>{_body_hint(tool)}</{tool.name}>: {tool.description}" for tool in tools]
                parts[-1] += " " + "\n".join(lines)
            answer = r"\boxed{your answer}" if self.boxed else "your answer"
            parts.append(f"End with <{self.answer}>{answer}</{self.answer}>.")
        asked = Message("user", (Piece(_escape(question)),))
        return (Message("system", (Piece("\n\n".join(parts), trusted=True),)), asked) if parts else (asked,)

    def stop(self, tools: Sequence[Tool]) -> tuple[str, ...]:
        """The closing tags of the tools and of the answer."""
        names = [*(tool.name for tool in tools), self.answer]
        clashes = {name for name in names if names.count(name) > 1} | {self.think, self.result}.intersection(names)
        if clashes:
            raise ValueError(f"tools need names of their own that are no tag of the format, found {sorted(clashes)} twice")
        return tuple(f"</{name}>" for name in names)

    def unfinished(self, text: str, tools: Sequence[Tool]) -> bool:
        """Whether the text ends inside an open tag, so that the stop string at its end is content."""
        scan = self._scan(text, tools)
        return not scan.complete and scan.tag != ""

    def parse(self, text: str, tools: Sequence[Tool]) -> Parsed:
        """The first complete tool call or answer outside of thoughts; time is linear in the text."""
        scan = self._scan(text, tools)
        if not scan.complete:
            return self._no_move(scan, text, tools)
        if scan.tag == self.answer:
            inner = last_boxed(scan.body) if self.boxed else scan.body
            answer = Answer(scan.body if inner is None else inner, scan.thought)
            filled = inner is not None and inner.strip() != ""
            return Parsed(answer, scan.end, scan.clean and filled, begin=scan.begin)
        called = next(tool for tool in tools if tool.name == scan.tag)
        try:
            arguments = _read_body(called, scan.body)
        except ValueError as error:
            return Parsed(None, scan.end, False, "bad_arguments", f"{called.name}: {error}")
        return Parsed(Call(called.name, arguments, scan.thought), scan.end, scan.clean, begin=scan.begin)

    def observe(self, text: str) -> Message:
        """The observation between result tags, inside the assistant's turn."""
        pieces = (Piece(f" <{self.result}>\n", True), Piece(_escape(text)), Piece(f"\n</{self.result}>", True))
        return Message("assistant", pieces)

    def write(self, move: Move, tools: Sequence[Tool]) -> str:
        """Thought in its tag, then the call or the boxed answer."""
        if isinstance(move, Answer):
            tag, body = self.answer, rf"\boxed{{{move.text}}}" if self.boxed else move.text
        else:
            called = next((tool for tool in tools if tool.name == move.tool), None)
            if called is None:
                raise ValueError(f"cannot write a call of {move.tool!r}: the tools here are {[tool.name for tool in tools]}")
            tag, body = called.name, _write_body(called, move.arguments)
        thought = f"<{self.think}>{move.thought}</{self.think}>" if move.thought else ""
        action = f"{thought}<{tag}>{body}</{tag}>"
        if self.parse(action, tools).move != move:
            raise ValueError(f"no action of this format means {move!r}: it would be read as {action!r}")
        return action

    def _scan(self, text: str, tools: Sequence[Tool]) -> _Scan:
        thoughts: list[str] = []
        clean, tag, start, opened = True, "", 0, 0
        for match in _tags((self.think, self.result, self.answer, *(tool.name for tool in tools))).finditer(text):
            closing, name = match[1] == "/", match[2]
            if tag:
                if not closing or name != tag:
                    continue
                if tag != self.think:
                    thought = "\n".join(thoughts) if thoughts else text[:opened].strip()
                    return _Scan(tag, True, text[start : match.start()], thought, match.end(), clean, opened)
                thoughts.append(text[start : match.start()])
                tag = ""
            elif name == self.result or (name == self.think and closing):
                clean = False
            elif closing:
                return _Scan("", False, "", "", match.end(), False)
            else:
                tag, opened, start = name, match.start(), match.end()
        return _Scan(tag, False, "", "", len(text), False)

    def _no_move(self, scan: _Scan, text: str, tools: Sequence[Tool]) -> Parsed:
        names = ", ".join(tool.name for tool in tools) or "none"
        expected = f"write a tool call (tools: {names}) or <{self.answer}>"
        if scan.tag == self.think:
            return Parsed(
                None, scan.end, False, "unclosed_think", f"<{self.think}> was never closed: close it, then {expected}"
            )
        if scan.tag:
            return Parsed(None, scan.end, False, "no_action", f"<{scan.tag}> was never closed: {expected}")
        unknown = _unknown_tag(text[: scan.end])
        if unknown:
            return Parsed(None, scan.end, False, "unknown_tool", f"there is no tool {unknown!r}: {expected}")
        return Parsed(None, scan.end, False, "no_action", f"no tool call and no answer: {expected}")


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


@dataclass(frozen=True)
class _Scan:
    """How far the tags of an action lead: ``tag`` is the one that is complete, or still open at the end ("" for none)."""

    tag: str
    complete: bool
    body: str
    thought: str
    end: int
    clean: bool
    begin: int = 0


@functools.lru_cache(maxsize=64)
def _tags(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(f"<(/?)({'|'.join(map(re.escape, names))})>")


_CLOSING_TAG = re.compile(r"</(?=[A-Za-z_]\w{0,63}>)")
_ANY_TAG = re.compile(r"<(/?)([A-Za-z_]\w{0,63})>")
_BOXED_TOKEN = re.compile(r"\\boxed\s{0,8}\{|\\.|[{}]", re.DOTALL)


def _escape(text: str) -> str:
    """Content in which no tag is closed: ``</result>`` becomes ``<\\/result>``."""
    return _CLOSING_TAG.sub(r"<\/", text)


def _unknown_tag(text: str) -> str:
    """The first tag of any name that is opened and then closed, or ""."""
    opened: set[str] = set()
    for match in _ANY_TAG.finditer(text):
        if not match[1]:
            opened.add(match[2])
        elif match[2] in opened:
            return match[2]
    return ""


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


def _sole_parameter(tool: Tool) -> tuple[str, Mapping[str, Any]] | None:
    properties: Mapping[str, Any] = tool.parameters.get("properties", {})
    return next(iter(properties.items())) if len(properties) == 1 else None


def _body_hint(tool: Tool) -> str:
    sole = _sole_parameter(tool)
    return sole[0] if sole else json.dumps(dict.fromkeys(tool.parameters.get("properties", {}), "..."))


def _read_body(tool: Tool, body: str) -> Mapping[str, Any]:
    sole = _sole_parameter(tool)
    if sole and sole[1].get("type") == "string":
        return {sole[0]: body}
    try:
        value = json.loads(body, parse_constant=_refuse_constant) if body.strip() or sole else {}
    except (ValueError, RecursionError) as error:
        expected = f"a JSON value for {sole[0]!r}" if sole else f"a JSON object such as {_body_hint(tool)}"
        raise ValueError(f"expected {expected}; {error}") from error
    if sole:
        return {sole[0]: value}
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object such as {_body_hint(tool)}, found {type(value).__name__}")
    return value


def _write_body(tool: Tool, arguments: Mapping[str, Any]) -> str:
    sole = _sole_parameter(tool)
    if sole and sole[1].get("type") == "string":
        return str(arguments.get(sole[0]))
    value = arguments.get(sole[0]) if sole else dict(arguments)
    return json.dumps(value, ensure_ascii=False).replace("</", r"<\/")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")

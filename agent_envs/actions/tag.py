"""``TagFormat``: the papers' format; thoughts, calls, results and the answer stand in tags of one assistant turn."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from agent_envs.actions.body import body_hint, read_body, write_body
from agent_envs.actions.boxed import last_boxed
from agent_envs.actions.format import Message, Parsed, Piece
from agent_envs.moves import Answer, Call, Move
from agent_envs.tool import Tool


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
                lines += [f"- <{tool.name}>{body_hint(tool)}</{tool.name}>: {tool.description}" for tool in tools]
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
            arguments = read_body(called, scan.body)
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
            tag, body = called.name, write_body(called, move.arguments)
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


class _Scan(NamedTuple):
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

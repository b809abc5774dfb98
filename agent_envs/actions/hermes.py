"""``HermesFormat``: tool calls as JSON, as the chat models of the Hermes and Qwen families were trained to write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from agent_envs.actions.body import read_json, write_json
from agent_envs.actions.boxed import last_boxed
from agent_envs.actions.format import Message, Parsed, Piece
from agent_envs.moves import Answer, Call, Move
from agent_envs.tool import Tool

# The words that these models know from their training: those of the chat templates of Qwen2.5 and Qwen3.
_TOOLS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{schemas}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""

_SHAPE = '{"name": ..., "arguments": {...}}'


@dataclass(frozen=True)
class HermesFormat:
    r"""Tool calls as JSON in ``<tool_call>`` tags, results as messages of their own, and the answer as plain text.

    An action is a turn of the assistant: a thought, if it has one, then a call. The thought stands in ``<think>`` tags or,
    for models that have none, as plain text before the call. A turn without a call is the answer: its text outside of
    thoughts. So a call ends at its closing tag, and an answer where the policy ends its turn.

    The conversation is what the chat templates of Qwen2.5 and Qwen3 make of the same messages, token for token, though the
    template is never handed the tools: the schemas are in the system message already. Two differences remain. Closing tags
    of this format are escaped inside of questions and results. And Qwen3's template drops the thoughts of earlier turns when
    the user asks something new, while history here is append-only; within an episode the user asks once.

    Between an opening tag and its closing tag everything is content, other tags included; what follows the first complete
    call is cut off. A ``</tool_call>`` that closes nothing ends the action as well, and what stands before a ``</think>``
    that closes nothing counts as thought. `unfinished` and `parse` go by this same rule, so an action that was decoded up to
    its stop string means what the whole text would have meant.

    Arguments that are a string which holds a JSON object are read, since some models write them so. Well formed is an action
    that makes a move, in which every ``<think>`` is closed and was opened, that writes no result of its own, whose arguments
    are an object, and whose answer holds something in a balanced ``\boxed{}``.

    Args:
        boxed: Whether the answer stands in ``\boxed{}``; then that is what the verifier reads. Else it is the whole text.
        instructions: Whether the conversation opens with the tools and how to answer. A policy that was trained on the
            environment can do without.

    Example:
        >>> HermesFormat().parse(r"<think>easy</think> It is \boxed{72}.", ()).move
        Answer(text='72', thought='easy')
    """

    boxed: bool = True
    instructions: bool = True

    @property
    def name(self) -> str:
        """Always ``"hermes"``."""
        return "hermes"

    def opening(self, question: str, system_prompt: str, tools: Sequence[Tool]) -> tuple[Message, ...]:
        """A system message (prompt, how to answer, tools) and the question; without any of those, only the question."""
        parts = [system_prompt] if system_prompt else []
        if self.instructions and self.boxed:
            parts.append(r"When you know the answer, write it in \boxed{}.")
        if self.instructions and tools:
            parts.append(_TOOLS.format(schemas="\n".join(map(_schema, tools))))
        asked = Message("user", (Piece(_escape(question)),))
        return (Message("system", (Piece("\n\n".join(parts), trusted=True),)), asked) if parts else (asked,)

    def stop(self, tools: Sequence[Tool]) -> tuple[str, ...]:
        """The closing tag of calls; an answer ends with the turn."""
        names = [tool.name for tool in tools]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"tools need names of their own, found {twice} twice")
        return ("</tool_call>",)

    def unfinished(self, text: str, tools: Sequence[Tool]) -> bool:
        """Whether the text ends inside of a thought, so that the stop string at its end is content."""
        scan = _scan(text)
        return not scan.ended and scan.tag != ""

    def parse(self, text: str, tools: Sequence[Tool]) -> Parsed:
        """The first complete call outside of thoughts, or the answer; time is linear in the text."""
        scan = _scan(text)
        if scan.body is not None:
            return _read_call(scan.body, scan, tools)
        if scan.tag or scan.ended or not scan.plain.strip():
            return self._no_move(scan, tools)
        inner = last_boxed(scan.plain) if self.boxed else None
        answer = Answer(scan.plain.strip() if inner is None else inner, scan.thought)
        filled = not self.boxed or (inner is not None and inner.strip() != "")
        return Parsed(answer, len(text), scan.clean and filled, begin=scan.begin)

    def observe(self, text: str) -> Message:
        """The observation between response tags, as a message of the user: so Qwen's templates render a tool's."""
        pieces = (Piece("<tool_response>\n", True), Piece(_escape(text)), Piece("\n</tool_response>", True))
        return Message("user", pieces)

    def write(self, move: Move, tools: Sequence[Tool]) -> str:
        """Thought in its tags, then the call or the answer, laid out as Qwen3 lays them out."""
        if isinstance(move, Answer):
            body = rf"\boxed{{{move.text}}}" if self.boxed else move.text
        else:
            if move.tool not in [tool.name for tool in tools]:
                raise ValueError(f"cannot write a call of {move.tool!r}: the tools here are {[tool.name for tool in tools]}")
            called = f'{{"name": {write_json(move.tool)}, "arguments": {write_json(dict(move.arguments))}}}'
            escaped = called.replace("</tool_call>", r"<\/tool_call>")
            body = f"<tool_call>\n{escaped}\n</tool_call>"
        thought = f"<think>\n{move.thought}\n</think>\n\n" if move.thought else ""
        action = thought + body
        if self.parse(action, tools).move != move:
            raise ValueError(f"no action of this format means {move!r}: it would be read as {action!r}")
        return action

    def _no_move(self, scan: _Scan, tools: Sequence[Tool]) -> Parsed:
        answer = r"the answer in \boxed{}" if self.boxed else "the answer as plain text"
        expected = f"write a tool call (tools: {_names(tools)}) or {answer}"
        if scan.tag == "think":
            return Parsed(None, scan.end, False, "unclosed_think", f"<think> was never closed: close it, then {expected}")
        if scan.tag:
            found = "<tool_call> was never closed"
        else:
            found = "a call was closed that was never opened" if scan.ended else "no tool call and no answer"
        return Parsed(None, scan.end, False, "no_action", f"{found}: {expected}")


@dataclass(frozen=True)
class _Scan:
    """How far the tags of an action lead.

    Args:
        tag: The one that is still open at the end; "" for none.
        body: What stands in the call, if there is a complete one.
        ended: Whether a ``</tool_call>`` ended the action.
        thought: What stands in thoughts.
        plain: What stands outside of thoughts, up to the call.
        begin: Where the call begins or, without one, the plain text.
        end: Characters of the action that count.
        clean: Whether no thought was closed that was not opened, and no result was written.
    """

    tag: str
    body: str | None
    ended: bool
    thought: str
    plain: str
    begin: int
    end: int
    clean: bool


_TAGS = re.compile(r"<(/?)(think|tool_call)>")
_RESULT_TAG = re.compile(r"</?tool_response>")
_CLOSING_TAG = re.compile(r"</(?=(?:think|tool_call|tool_response|tools)>)")


def _scan(text: str) -> _Scan:
    thoughts: list[str] = []
    plain: list[tuple[int, str]] = []  # runs of plain text, and where they begin
    tag, start, opened = "", 0, 0  # the open tag, where what follows the latest tag begins, where the open tag does
    body: str | None = None
    end, ended, clean = len(text), False, True
    for match in _TAGS.finditer(text):
        closing, name = match[1] == "/", match[2]
        if tag and not (closing and name == tag):
            continue
        run = text[start : match.start()]
        if tag == "think":
            thoughts.append(run.removeprefix("\n").removesuffix("\n"))
        elif tag == "tool_call":
            body = run
        else:
            plain.append((start, run))
            if closing and name == "think":
                thoughts.append(_join(plain).strip())
                plain, clean = [], False
        start = match.end()
        tag, opened = ("", opened) if closing else (name, match.start())
        if closing and name == "tool_call":
            end, ended = match.end(), True
            break
    if not tag and not ended:
        plain.append((start, text[start:]))
    if body is None:
        opened = next((at + len(run) - len(run.lstrip()) for at, run in plain if run.strip()), 0)
    outside = _join(plain)
    clean = clean and not _RESULT_TAG.search(outside)
    return _Scan(tag, body, ended, "\n".join(filter(None, thoughts)), outside, opened, end, clean)


def _join(runs: Sequence[tuple[int, str]]) -> str:
    return "".join(run for _, run in runs)


def _read_call(body: str, scan: _Scan, tools: Sequence[Tool]) -> Parsed:
    """The call that stands in the tags."""

    def fault(kind: str, message: str) -> Parsed:
        return Parsed(None, scan.end, False, kind, message)

    try:
        called = read_json(body)
    except ValueError as error:
        return fault("bad_arguments", f"expected a call as JSON, {_SHAPE}; {error}")
    name = called.get("name") if isinstance(called, dict) else None
    if not isinstance(name, str):
        found = "no name that is a string" if isinstance(called, dict) else type(called).__name__
        return fault("bad_arguments", f"expected a call as JSON, {_SHAPE}; found {found}")
    if name not in [tool.name for tool in tools]:
        return fault("unknown_tool", f"there is no tool {name[:64]!r} (tools: {_names(tools)})")
    arguments = called.get("arguments")
    spelled = isinstance(arguments, str)
    if spelled:
        try:
            arguments = read_json(arguments)
        except ValueError as error:
            return fault("bad_arguments", f"{name}: expected 'arguments' to be a JSON object; {error}")
    if not isinstance(arguments, dict):
        found = type(arguments).__name__ if "arguments" in called else "none"
        return fault("bad_arguments", f"{name}: expected 'arguments' to be a JSON object; found {found}")
    call = Call(name, arguments, scan.thought or scan.plain.strip())
    return Parsed(call, scan.end, scan.clean and not spelled, begin=scan.begin)


def _schema(tool: Tool) -> str:
    """A tool as one line of JSON."""
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return write_json({"type": "function", "function": function})


def _names(tools: Sequence[Tool]) -> str:
    return ", ".join(tool.name for tool in tools) or "none"


def _escape(text: str) -> str:
    """Content in which no tag of the format is closed: ``</tool_response>`` becomes ``<\\/tool_response>``."""
    return _CLOSING_TAG.sub(r"<\/", text)

"""ShareGPT: conversations as lists of ``{"from": ..., "value": ...}``, with the role names of LLaMA-Factory and of others.

Calls and results are messages of their own (``function_call`` and ``observation``, or ``tool``), or stand as tags in the
assistant's text; both may be mixed. A ``function`` message is a call where it reads like one and else a result, since both
uses are about.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tracebank.importers.form import Context, Dropped, Form
from tracebank.importers.transcript import Call, Message, Role, call_of, trajectory_of
from tracebank.trajectory import Trajectory

_CONVERSATION = ("conversations", "conversation")

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
_CALLS = ("function_call", "tool_call")

_THOUGHT_FIRST = re.compile(r"\s*(?:<think>(.*?)</think>)?(.*)", re.DOTALL)


def fits(record: Any) -> bool:
    """Whether it is an object with a list of messages in one of the usual fields."""
    return isinstance(record, dict) and any(isinstance(record.get(name), list) for name in _CONVERSATION)


def conversation(record: Mapping[str, Any], context: Context) -> list[Message]:
    """The messages of a record.

    Raises:
        Dropped: One of them is not what a message is.
    """
    if record.get("images") or record.get("videos") or record.get("audios"):
        raise Dropped("it holds what is no text (images, videos or audios)")
    return [_message(item, context) for item in next(record[name] for name in _CONVERSATION if name in record)]


def has_tools(record: Mapping[str, Any]) -> bool:
    """Whether tools were described to the assistant: as a list, or as a text that holds one."""
    tools = record.get("tools")
    return bool(tools.strip(" \n[]{}") if isinstance(tools, str) else tools)


def _read(record: Any, context: Context) -> list[Trajectory]:
    return [trajectory_of(conversation(record, context), record, context, "sharegpt", tools=has_tools(record))]


def _message(item: object, context: Context) -> Message:
    if not isinstance(item, Mapping):
        raise Dropped("a message that is no object", item)
    name = item.get("from", item.get("role"))
    speaker = name.lower() if isinstance(name, str) else ""
    role = _ROLES.get(speaker)
    if role is None:
        raise Dropped("a message of an unknown role", name)
    text = context.text(item.get("value", item.get("content")), "the value of a message")
    if speaker in _CALLS or speaker == "function":
        thought, calls = _calls(text, context)
        if calls:
            return Message("assistant", "", thought, calls)
        if speaker in _CALLS and "<tool_call>" not in text:
            return Message("assistant", "", calls=(Call(text.strip()),))
    return Message(role, text)


def _calls(text: str, context: Context) -> tuple[str, tuple[Call, ...]]:
    """The thought and the calls of a message that is JSON behind an optional thought; no calls where it is not."""
    match = _THOUGHT_FIRST.fullmatch(text)
    try:
        found = json.loads(match[2]) if match else None
        calls = tuple(call_of(item, context) for item in (found if isinstance(found, list) else [found]))
    except (ValueError, Dropped):
        return "", ()
    return ((match[1] or "") if match else "").strip("\n"), calls


FORM = Form(
    "sharegpt",
    'objects such as {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
    fits,
    _read,
)

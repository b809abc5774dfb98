"""OpenAI messages: ``{"messages": [{"role": ..., "content": ...}, ...]}`` with tool calls, as chat APIs have them.

An assistant message may call several tools at once; the tool messages that follow it are one observation, in the order of
the calls that they reply to. The older ``function_call`` and the role ``function`` are read as well, and reasoning that is
kept apart from the content (``reasoning_content`` or ``reasoning``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracebank.importers.form import Context, Dropped, Form
from tracebank.importers.sharegpt import has_tools
from tracebank.importers.transcript import Message, Role, call_of, trajectory_of
from tracebank.trajectory import Trajectory

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


def _fits(record: Any) -> bool:
    return isinstance(record, dict) and isinstance(record.get("messages"), list)


def _read(record: Any, context: Context) -> list[Trajectory]:
    messages = [_message(item, context) for item in record["messages"]]
    tools = has_tools(record) or bool(record.get("functions"))
    return [trajectory_of(messages, record, context, "openai", tools=tools)]


def _message(item: object, context: Context) -> Message:
    if not isinstance(item, Mapping):
        raise Dropped("a message that is no object", item)
    name = item.get("role")
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise Dropped("a message of an unknown role", name)
    text = _content(item.get("content"), context)
    if role != "assistant":
        id = item.get("tool_call_id")
        return Message(role, text, replies_to=id if isinstance(id, str) else "")
    reasoning = item.get("reasoning_content") or item.get("reasoning") or ""
    thought = context.text(reasoning, "the reasoning of a message").strip("\n")
    called = item.get("tool_calls") or []
    if not isinstance(called, list):
        raise Dropped("tool calls that are no list", called)
    calls = [call_of(_function(call), context, _id(call)) for call in called]
    if item.get("function_call"):
        calls.append(call_of(item["function_call"], context))
    if not text and item.get("refusal"):
        text = context.text(item["refusal"], "the refusal of a message")
    return Message(role, text, thought, tuple(calls))


def _function(call: object) -> object:
    return call.get("function", call) if isinstance(call, Mapping) else call


def _id(call: object) -> str:
    id = call.get("id") if isinstance(call, Mapping) else None
    return id if isinstance(id, str) else ""


def _content(content: object, context: Context) -> str:
    """The text of a message: a text, none, or a list of parts."""
    if content is None:
        return ""
    if not isinstance(content, list):
        return context.text(content, "the content of a message")
    texts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if not isinstance(part, Mapping) or kind not in ("text", "refusal"):
            raise Dropped("it holds what is no text (such as images)", kind)
        texts.append(context.text(part.get(str(kind)), "a part of a message"))
    return "\n".join(texts)


FORM = Form(
    "openai",
    'objects such as {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "...",'
    ' "tool_calls": [...]}]}',
    _fits,
    _read,
)

"""From the messages of a conversation to a trajectory.

The first thing that the user says is the question. What the assistant says up to the next word of somebody else is one turn,
and what comes back, from tools or from the user, is its observation: in a chat of several rounds the user's later messages
are observations, since they are what the assistant got to see. System messages are left out: they say what the environment
and its format are, not what happened.

A call that is not written out in the text becomes text as the chat templates of the Hermes and Qwen families write it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tracebank.importers.form import Context, Dropped, name_of
from tracebank.importers.inline import JSON_CALL, Parts, split, unwrap
from tracebank.trajectory import Trajectory, Turn

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Call:
    """A tool call as text, and the id by which its result is known ("" for none)."""

    text: str
    id: str = ""


@dataclass(frozen=True)
class Message:
    """A message: who speaks, what, and what stands beside the text.

    Args:
        role: Who speaks.
        text: What is said.
        thought: Reasoning of the assistant that is kept apart from the text.
        calls: Tool calls of the assistant that are kept apart from the text.
        replies_to: Id of the call whose result this is, or "".
    """

    role: Role
    text: str
    thought: str = ""
    calls: tuple[Call, ...] = ()
    replies_to: str = ""


def call_of(function: object, context: Context, id: str = "") -> Call:
    """The call of an object with a ``name`` and ``arguments`` (an object, or a string that holds one).

    Raises:
        Dropped: It is no such object.
    """
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str):
        raise Dropped("a tool call without a name", function)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):  # what is no JSON stays the string that the assistant wrote
            arguments = json.loads(arguments)
    called = json.dumps({"name": name, "arguments": {} if arguments is None else arguments}, ensure_ascii=False)
    return Call(context.mended(called), id)


def trajectory_of(
    messages: Sequence[Message], record: Mapping[str, Any], context: Context, form: str, *, tools: bool = False
) -> Trajectory:
    """The trajectory that a conversation is.

    Args:
        messages: In order.
        record: Where the task's id and the reward are looked for.
        context: See `Context`.
        form: Name of the foreign format, for tasks that have no id.
        tools: Whether the assistant was given tools as JSON schemas.

    Raises:
        Dropped: It does not begin with the user, or the assistant says nothing.
    """
    spoken = [message for message in messages if message.role != "system"]
    opening = next((number for number, message in enumerate(spoken) if message.role != "user"), len(spoken))
    question = "\n".join(message.text for message in spoken[:opening])
    if not question.strip():
        raise Dropped("it does not begin with a question of the user", [message.role for message in spoken[:2]])
    if opening < len(spoken) and spoken[opening].role == "tool":
        raise Dropped("something came back before anything was done")
    turns: list[Turn] = []
    calls, answered, tags = 0, False, set[str]()
    for said, came_back in _rounds(spoken[opening:]):
        parts = _parts(said)
        turns += parts.turns or [Turn("", "", "")]
        calls += parts.calls
        tags |= parts.tags
        answered = parts.answered and not came_back
        if came_back:
            observations = [turns[-1].observation] * (turns[-1].observation != "")
            turns[-1] = replace(turns[-1], observation="\n".join(observations + _in_order(said, came_back)))
    if not any(turn.thought or turn.action for turn in turns):
        raise Dropped("the assistant says nothing")
    reward = context.reward_of(record)
    return Trajectory(
        environment=context.environment,
        format="hermes" if tools or JSON_CALL in tags else "tag" if tags else "plain",
        task_id=_task_id(record, question, context, form),
        question=question,
        split="",
        turns=tuple(turns),
        segments=(),
        reward=reward,
        score={"reward": reward},
        success=reward > 0,
        fault="",
        stop="terminated" if answered else "truncated",
        tool_calls=calls,
        policy_version=0,
        step=0,
        path=(),
        source=context.source,
    )


def _rounds(messages: Sequence[Message]) -> Iterator[tuple[list[Message], list[Message]]]:
    """What the assistant says in a row, and what comes back then."""
    said: list[Message] = []
    came_back: list[Message] = []
    for message in messages:
        if message.role != "assistant":
            came_back.append(message)
            continue
        if came_back:
            yield said, came_back
            said, came_back = [], []
        said.append(message)
    if said:
        yield said, came_back


def _parts(said: Sequence[Message]) -> Parts:
    if not any(message.calls for message in said):
        return split("\n".join(filter(None, map(_written, said))))
    thoughts: list[str] = []
    actions: list[str] = []
    for message in said:
        (actions if actions else thoughts).append(_written(message))
        actions += [f"<{JSON_CALL}>\n{call.text}\n</{JSON_CALL}>" for call in message.calls]
    thought = "\n".join(filter(None, thoughts))
    if thought and not thought.endswith("\n"):
        thought += "\n"
    calls = sum(len(message.calls) for message in said)
    turn = Turn(thought, "\n".join(filter(None, actions)), "")
    return Parts((turn,), calls, 0, frozenset([JSON_CALL]), answered=False)


def _written(message: Message) -> str:
    thought = f"<think>\n{message.thought}\n</think>\n\n" if message.thought.strip() else ""
    return thought + message.text


def _in_order(said: Sequence[Message], came_back: Sequence[Message]) -> list[str]:
    """What came back, results in the order of their calls, and then whatever answers no call."""
    ids = [call.id for message in said for call in message.calls if call.id]
    placed = sorted(came_back, key=lambda message: ids.index(message.replies_to) if message.replies_to in ids else len(ids))
    return [unwrap(message.text) for message in placed]


def _task_id(record: Mapping[str, Any], question: str, context: Context, form: str) -> str:
    """What the record calls its task. A row's own ``id`` is told apart from those of other files by the source."""
    for name, prefix in (("task_id", ""), ("id", f"{context.source}:")):
        value = record.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return prefix + context.mended(str(value))
    return name_of(question, form)

"""What a check puts in the place of an environment's parts, and what it says to them.

A stand-in is the part itself with one method exchanged, so that a check decides what a tool returns or raises without
running an engine. Only fresh environments get one, before their first reset; no shared object is changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import gymnasium as gym

from agent_envs.env import ToolEnv
from agent_envs.moves import Answer, Call, Move
from agent_envs.testing.episode import Action, Episode, Moment, Trace, play
from agent_envs.testing.promise import NotAsked
from agent_envs.tool import Tool, ToolResult

Part = TypeVar("Part")

NONSENSE = "zzgarbage"
"""An answer that is right nowhere."""


def only_tool_env(env: gym.Env[Any, Any]) -> ToolEnv:
    """The ``ToolEnv`` under an environment's wrappers. Raises ``NotAsked`` where there is none."""
    inner = env.unwrapped
    if not isinstance(inner, ToolEnv):
        raise NotAsked(f"{type(inner).__name__} is no ToolEnv")
    return inner


def tools_of(inner: ToolEnv) -> Sequence[Tool]:
    """The tools. Raises ``NotAsked`` where there are none."""
    if not inner.tools:
        raise NotAsked("it has no tools")
    return inner.tools


def exchanged(part: Part, **attributes: Any) -> Part:
    """An object of the same class in the same state, but for some attributes; the part itself stays as it is."""
    twin = object.__new__(type(part))  # no copy.copy: a part may say there what else a copy is
    twin.__dict__.update(part.__dict__, **attributes)
    return twin


def with_method(part: Part, name: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Part:
    """The same, but for one method, which is what ``change`` makes of it."""
    twin = exchanged(part)
    twin.__dict__[name] = change(getattr(twin, name))
    return twin


def let_tools_run(inner: ToolEnv, run: Callable[..., ToolResult | str]) -> None:
    """Exchanges the ``run`` of every tool of a fresh environment by one that takes the tool, then its arguments by name."""

    def stand_in(tool: Tool) -> Tool:
        return exchanged(tool, run=lambda **arguments: run(tool, **arguments))

    inner.tools = tuple(map(stand_in, inner.tools))


def arguments_for(tool: Tool, text: str = "a") -> Mapping[str, Any]:
    """Arguments that fit a tool's schema, each required string being ``text``; for stand-ins, since nobody said that a real
    tool may be called like that."""
    properties: Mapping[str, Any] = tool.parameters.get("properties", {})
    return {name: _value(properties.get(name, {}), text) for name in tool.parameters.get("required", ())}


def written(inner: ToolEnv, move: Move) -> str | None:
    """The action of a move, or None where the environment's format has none."""
    try:
        return inner.format.write(move, inner.tools)
    except ValueError:
        return None


def call_of(inner: ToolEnv, tool: Tool, text: str = "a") -> str | None:
    """The action of a call of a stand-in, its strings being ``text``; None where the format has none."""
    return written(inner, Call(tool.name, arguments_for(tool, text)))


def has_syntax(inner: ToolEnv) -> bool:
    """Whether an answer takes more than a text."""
    return not isinstance(inner.format.parse(NONSENSE, inner.tools).move, Answer)


def texts_of(actions: Sequence[Action]) -> list[str]:
    """The actions that were drawn as texts."""
    return [action for action in actions if isinstance(action, str)]


def play_if_it_plays(env: gym.Env[Any, Any], episode: Episode) -> Trace | None:
    """What an episode gives, or None where something raises: that is found by promises about it, and not by all others."""
    try:
        return play(env, episode)
    except Exception:
        return None


def play_out(env: gym.Env[Any, Any], seed: int, actions: Sequence[str]) -> Trace:
    """An episode from its reset to its end; where the actions are used up, empty ones follow."""
    inner = only_tool_env(env)
    observation, info = env.reset(seed=seed)
    trace = [Moment(None, observation, 0.0, False, False, info)]
    for turn in range(inner.max_turns):
        action = actions[turn] if turn < len(actions) else ""
        trace.append(Moment(action, *env.step(action)))
        if trace[-1].over:
            break
    return tuple(trace)


def words(text: str) -> set[str]:
    """The words of a text, without regard to case."""
    return set(re.findall(r"\w+", text.casefold()))


def occurs(text: str, within: str) -> bool:
    """Whether a text stands somewhere as a whole, not as a part of longer words."""
    return re.search(rf"(?<!\w){re.escape(text.casefold())}(?!\w)", within.casefold()) is not None


def short(value: Any) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:150]}...{text[-47:]}"


def _value(schema: Any, text: str) -> Any:
    """A value that fits a schema."""
    if not isinstance(schema, Mapping):
        return text
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return _value(schema["anyOf"][0], text)
    kind = schema.get("type", "string")
    if kind == "object":
        return {name: _value(schema.get("properties", {}).get(name), text) for name in schema.get("required", ())}
    plain: Mapping[str, Any] = {"integer": 1, "number": 1.5, "boolean": True, "array": [], "null": None}
    return plain.get(kind if isinstance(kind, str) else kind[0], text)

"""Promises about tools: they say truly what they take, and take no more than that."""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

from agent_envs.moves import Call
from agent_envs.spaces import replace_surrogates
from agent_envs.testing.episode import Episode, Moment
from agent_envs.testing.promise import Broken, Promise
from agent_envs.testing.stand_ins import (
    arguments_for,
    let_tools_run,
    only_tool_env,
    short,
    texts_of,
    tools_of,
    with_method,
    written,
)
from agent_envs.testing.subject import Subject
from agent_envs.tool import Fidelity, Tool, ToolResult, check_arguments

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_TYPES = ("string", "integer", "number", "boolean", "array", "object", "null")
_WRONG_VALUES: tuple[Any, ...] = (None, True, 1, 1.5, "text", [], {"key": []})


def _says_what_it_takes(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        tools = tools_of(only_tool_env(env))
        names = [tool.name for tool in tools]
        for tool in tools:
            for expected, found in _wrong_in(tool):
                raise Broken(f"{expected} of tool {tool.name!r}", found)
        if len(set(names)) < len(names):
            raise Broken("tools with names of their own", f"{names}")


def _wrong_in(tool: Tool) -> Iterator[tuple[str, str]]:
    """What was expected, and what was found."""
    if not isinstance(tool.name, str) or not _NAME.fullmatch(tool.name):
        yield "letters, digits and underscores as the name", repr(tool.name)
    description = tool.description
    if not isinstance(description, str) or not description.strip() or replace_surrogates(description) != description:
        yield "a text for the policy as the description", repr(description)
    if tool.fidelity not in get_args(Fidelity):
        yield f"one of {get_args(Fidelity)} as the fidelity", repr(tool.fidelity)
    if tool.fidelity == "replay" and type(tool).fresh is Tool.fresh:
        yield "a method fresh(), which a fidelity of 'replay' needs,", "none"
    if tool.timeout is not None and not (isinstance(tool.timeout, int | float) and tool.timeout > 0):
        yield "a positive number of seconds, or None, as the timeout", repr(tool.timeout)
    yield from _wrong_in_schema(tool.parameters)
    yield from _wrong_in_signature(tool)
    for kind, arguments in (*(("examples", example) for example in tool.examples), ("endless", tool.endless)):
        problem = "" if arguments is None else check_arguments(tool, arguments)
        if problem:
            yield f"{kind} that fit the schema", f"{short(arguments)}: {problem}"


def _wrong_in_schema(parameters: Any) -> Iterator[tuple[str, str]]:
    try:
        plain = json.loads(json.dumps(parameters, allow_nan=False))
    except (TypeError, ValueError) as error:
        yield "parameters that are JSON", f"{short(parameters)}: {error}"
        return
    if plain != parameters:
        yield "parameters of dicts with names, lists, texts and numbers alone", short(parameters)
    if plain.get("type") != "object" or not isinstance(plain.get("properties"), dict):
        yield "parameters that read {'type': 'object', 'properties': {...}}", short(parameters)
        return
    unknown = [name for name in plain.get("required", []) if name not in plain["properties"]]
    if unknown:
        yield "required parameters that are among the properties", f"{unknown} are not"
    for name, schema in plain["properties"].items():
        kinds = schema.get("type", []) if isinstance(schema, dict) else [schema]
        for kind in [kinds] if isinstance(kinds, str) else kinds:
            if kind not in _TYPES:
                yield f"a type of JSON schema for {name!r}", repr(kind)


def _wrong_in_signature(tool: Tool) -> Iterator[tuple[str, str]]:
    takes = inspect.signature(tool.run)
    properties = dict.fromkeys(tool.parameters.get("properties", {}))
    needed = dict.fromkeys(tool.parameters.get("required", ()))
    for what, arguments in (("all the parameters of its schema", properties), ("only the required parameters", needed)):
        try:
            takes.bind(**arguments)
        except TypeError as error:
            yield f"a method run that takes {what}, {list(arguments)},", f"run{takes}: {error}"


def _examples_run(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        inner = only_tool_env(env)
        calls = [(position, example) for position, tool in enumerate(tools_of(inner)) for example in tool.examples]
        changed: list[str] = []
        inner.tools = tuple(_watched(tool, changed) for tool in inner.tools)
        trace: list[Moment] = []
        for position, arguments in calls:
            name = inner.tools[position].name
            action = written(inner, Call(name, arguments))
            if action is None:
                continue
            if not trace or trace[-1].over:
                observation, info = env.reset(seed=episode.seed)
                trace = [Moment(None, observation, 0.0, False, False, info)]
            try:
                trace.append(Moment(action, *env.step(action)))
            except Exception as error:
                found = f"{type(error).__name__}: {error}"
                raise Broken(f"that the example {short(arguments)} of {name} can be called", found, tuple(trace)) from error
            if changed:
                raise Broken(f"that {name} leaves its arguments as they were", changed[0], tuple(trace))


def _watched(tool: Tool, changed: list[str]) -> Tool:
    """The tool, noting where a call changes its own arguments."""

    def watch(run: Callable[..., Any]) -> Callable[..., Any]:
        def watched(**arguments: Any) -> Any:
            before = copy.deepcopy(arguments)
            result = run(**arguments)
            if arguments != before:
                changed.append(f"{short(before)} became {short(arguments)}")
            return result

        return watched

    return with_method(tool, "run", watch)


def _wrong_arguments_are_told(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        inner = only_tool_env(env)
        count = len(tools_of(inner))
        reached: list[str] = []

        def run(tool: Tool, /, **arguments: Any) -> ToolResult:
            reached.append(f"{tool.name} was run with {short(arguments)}")
            return ToolResult("fine")

        let_tools_run(inner, run)
        for position in range(count):
            tool = inner.tools[position]
            for arguments in _wrong_arguments(tool, texts_of(episode.actions)):
                action = written(inner, Call(tool.name, arguments))
                if action is not None and len(action) <= inner.max_action:
                    _expect_telling(env, episode.seed, tool, action, arguments, reached)


def _wrong_arguments(tool: Tool, names: list[str]) -> Iterator[Mapping[str, Any]]:
    """Arguments that don't fit the schema: one is missing, unknown or of another type."""
    right = dict(arguments_for(tool))
    for name in right:
        yield {key: value for key, value in right.items() if key != name}
    for name in ("zz_unknown", *names):
        if name not in tool.parameters.get("properties", {}):
            yield {**right, name: "a"}
    for name in tool.parameters.get("properties", {}):
        for value in _WRONG_VALUES:
            if check_arguments(tool, {**right, name: value}):
                yield {**right, name: value}


def _expect_telling(env: Any, seed: int, tool: Tool, action: str, arguments: Any, reached: list[str]) -> None:
    observation, info = env.reset(seed=seed)
    trace = [Moment(None, observation, 0.0, False, False, info)]
    where = f"for a call of {tool.name} with {short(dict(arguments))}"
    try:
        trace.append(Moment(action, *env.step(action)))
    except Exception as error:
        raise Broken(f"an observation {where}", f"{type(error).__name__}: {error}", tuple(trace)) from error
    info = trace[-1].info
    if reached:
        raise Broken(f"that the call does not reach the tool {where}", reached[0], tuple(trace))
    if info["policy_fault"] != "bad_arguments" or info["tool_calls"]:
        found = f"{info['policy_fault']!r}, tool_calls {info['tool_calls']}"
        raise Broken(f"policy_fault 'bad_arguments' and no call counted {where}", found, tuple(trace))
    if not trace[-1].over and not str(trace[-1].observation).strip():
        raise Broken(f"a line that says what was wrong {where}", "an empty observation", tuple(trace))


PROMISES = (
    Promise(
        "tools", "A tool says truly what it takes: name, description, schema, examples.", _says_what_it_takes, once=True
    ),
    Promise("examples", "The calls that a tool gives as examples can be made.", _examples_run, once=True),
    Promise(
        "arguments",
        "Arguments that don't fit are told to the policy and never reach the tool.",
        _wrong_arguments_are_told,
    ),
)

"""Promises about whose doing a failure is: what breaks is raised and pays nothing, what the agent did wrong is read by it.

The tools and the verifier are stand-ins that raise, so no engine runs.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
from gymnasium.error import ResetNeeded

from agent_envs.env import ToolEnv
from agent_envs.faults import EnvironmentFault
from agent_envs.moves import Answer
from agent_envs.testing.episode import Episode, Moment
from agent_envs.testing.promise import Broken, Promise
from agent_envs.testing.stand_ins import (
    NONSENSE,
    call_of,
    exchanged,
    let_tools_run,
    only_tool_env,
    short,
    tools_of,
    with_method,
    written,
)
from agent_envs.testing.subject import Subject
from agent_envs.tool import Tool, ToolError, ToolResult
from sandboxes.faults import SandboxFault

_MESSAGE = "the stand-in broke"
_WORKED = "the stand-in worked"


def _errors() -> Iterator[Exception]:
    """What a part may break with. New ones each time, since an exception keeps what it went through."""
    yield RuntimeError(_MESSAGE)
    yield SandboxFault(_MESSAGE, retryable=True)
    yield OSError(28, _MESSAGE)
    yield TimeoutError(_MESSAGE)
    yield ConnectionRefusedError(_MESSAGE)
    yield MemoryError(_MESSAGE)
    yield KeyError(_MESSAGE)
    yield AssertionError()
    yield StopIteration(_MESSAGE)
    yield RecursionError(_MESSAGE)
    yield EnvironmentFault(_MESSAGE, retryable=True)


def _faults_are_raised(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        tools = only_tool_env(env).tools
    for number, _ in enumerate(_errors()):
        for position, tool in enumerate(tools):
            for method in ("run", "reset"):
                error = _error(number)
                if not isinstance(error, (ToolError, *tool.policy_errors)):
                    _check_tool(subject, episode.seed, position, method, error)
        _check_verifier(subject, episode.seed, _error(number))


def _error(number: int) -> Exception:
    return next(itertools.islice(_errors(), number, None))


def _check_tool(subject: Subject, seed: int, position: int, method: str, error: Exception) -> None:
    with subject.env() as env:
        inner = only_tool_env(env)
        action = call_of(inner, inner.tools[position])
        if action is None:
            return  # the format has no calls
        tool = exchanged(inner.tools[position], run=_work)
        broken = with_method(tool, method, lambda usual: _raise_once(error, usual))
        inner.tools = (*inner.tools[:position], broken, *inner.tools[position + 1 :])
        _expect_fault(env, seed, action, tool.name, method, error)


def _check_verifier(subject: Subject, seed: int, error: Exception) -> None:
    with subject.env() as env:
        inner = only_tool_env(env)
        action = written(inner, Answer(NONSENSE))
        if action is None:
            return
        raising = _raise_once(error, inner.verifier.verify_episode)
        inner.verifier = exchanged(inner.verifier, verify_episode=raising, verify=raising)
        _expect_fault(env, seed, action, "verifier", "verify_episode", error)


def _raise_once(error: Exception, otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """A function that raises at its first call and from then on calls another."""
    left = [error]

    def raise_or(*args: Any, **arguments: Any) -> Any:
        if left:
            raise left.pop()
        return otherwise(*args, **arguments)

    return raise_or


def _work(**arguments: Any) -> ToolResult:
    return ToolResult(_WORKED)


def _expect_fault(env: gym.Env[Any, Any], seed: int, action: str, component: str, where: str, error: Exception) -> None:
    place = f"{where} of {component} raises {type(error).__name__}"
    expected = f"an EnvironmentFault where {place}"
    trace: list[Moment] = []
    try:
        observation, info = env.reset(seed=seed)
        trace.append(Moment(None, observation, 0.0, False, False, info))
        trace.append(Moment(action, *env.step(action)))
    except EnvironmentFault as raised:
        fault = raised
    except Exception as other:
        raise Broken(expected, f"{type(other).__name__}: {other}", tuple(trace)) from other
    else:
        last = trace[-1]
        paid = f"a reward of {last.reward}" + (f" and score {last.info['score']}" if "score" in last.info else "")
        found = f"{paid}, with the observation {short(last.observation)}, as if nothing had broken"
        raise Broken(expected, found, tuple(trace))
    played = tuple(trace)
    if fault.component != component:
        raise Broken(f"{expected}, with component {component!r}", f"component {fault.component!r}", played)
    if fault is not error and fault.__cause__ is not error:
        raise Broken(f"{expected}, with that exception as its cause", f"the cause {fault.__cause__!r}", played)
    if getattr(error, "retryable", False) and not fault.retryable:
        raise Broken(f"{expected} that says that it is retryable, as the error does", "retryable False", played)
    again = pickle.loads(pickle.dumps(fault))
    before, after = ((str(f), f.component, f.retryable) for f in (fault, again))
    if before != after or type(again) is not type(fault):
        raise Broken(f"{expected} that pickles", f"{before} became {after}", played)
    _expect_end(env, seed, action, place, played)


def _expect_end(env: gym.Env[Any, Any], seed: int, action: str, place: str, played: tuple[Moment, ...]) -> None:
    """After a fault only reset and close are legal, and reset works."""
    try:
        outcome = env.step(action)
    except ResetNeeded:
        pass
    except Exception as other:
        raise Broken(f"ResetNeeded at a step after {place}", f"{type(other).__name__}: {other}", played) from other
    else:
        raise Broken(f"ResetNeeded at a step after {place}", f"the episode went on: {short(outcome)}", played)
    try:
        env.reset(seed=seed)
        env.step(action)
    except Exception as other:
        found = f"{type(other).__name__}: {other}"
        raise Broken(f"that reset begins a new episode after {place}", found, played) from other


def _tool_errors_are_read(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        kinds = [(tool, kind) for tool in tools_of(only_tool_env(env)) for kind in (ToolError, *tool.policy_errors, None)]
    for failing, kind in kinds:
        with subject.env() as env:
            inner = only_tool_env(env)
            actions = [call_of(inner, tool) for tool in inner.tools]
            if None in actions:
                return  # the format has no calls
            try:
                error = kind(_MESSAGE) if kind else None
            except Exception:  # it is made of more than a message
                continue
            let_tools_run(inner, _failing_run(failing.name, error))
            how = f"raises {kind.__name__}" if kind else "returns a fault of kind 'error'"
            _expect_reading(env, inner, episode.seed, failing.name, how, [action or "" for action in actions])


def _failing_run(failing: str, error: Exception | None) -> Any:
    def run(tool: Tool, /, **arguments: Any) -> ToolResult:
        if tool.name != failing:
            return ToolResult(_WORKED)
        if error is None:
            return ToolResult(_MESSAGE, "error")
        raise error

    return run


def _expect_reading(env: gym.Env[Any, Any], inner: ToolEnv, seed: int, failing: str, how: str, actions: list[str]) -> None:
    """Calls the failing tool, then the others: the policy reads the one's message and the others' results."""
    names = [tool.name for tool in inner.tools]
    order = sorted(range(len(names)), key=lambda position: names[position] != failing)
    observation, info = env.reset(seed=seed)
    trace = [Moment(None, observation, 0.0, False, False, info)]
    where = f"where {failing} {how}"
    for turn, position in enumerate(order[: inner.max_turns], 1):
        try:
            trace.append(Moment(actions[position], *env.step(actions[position])))
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
            raise Broken(f"an observation that the policy reads, {where}", found, tuple(trace)) from error
        last = trace[-1]
        failed = names[position] == failing
        fault, text = ("error", _MESSAGE) if failed else ("", _WORKED)
        if last.truncated:
            return  # a wrapper's time limit
        if last.terminated and turn < inner.max_turns:
            found = f"it ended at action {turn} of {inner.max_turns}, without an answer"
            raise Broken(f"that the episode goes on {where}", found, tuple(trace))
        if last.info["policy_fault"] != fault:
            expected = f"policy_fault {fault!r} for the call of {names[position]}, {where}"
            raise Broken(expected, f"{last.info['policy_fault']!r}", tuple(trace))
        if text not in str(last.observation):
            expected = f"that the policy reads {text!r} from {names[position]}, {where}"
            raise Broken(expected, short(last.observation), tuple(trace))
    bonus = trace[-1].info["score"]["tool_bonus"] if trace[-1].terminated else 0.0
    if bonus:
        raise Broken(f"no tool bonus {where}", f"{bonus:g}", tuple(trace))


PROMISES = (
    Promise(
        "faults",
        "A tool or verifier that breaks is raised as an EnvironmentFault and pays nothing.",
        _faults_are_raised,
        once=True,
    ),
    Promise(
        "tool errors",
        "A call that fails by the agent's doing is an observation, and the episode goes on.",
        _tool_errors_are_read,
        once=True,
    ),
)

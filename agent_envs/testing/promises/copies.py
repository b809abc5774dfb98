"""Promises about copies of a live episode: a copy goes on as the original would have, and the two have nothing in common.

Asked of any environment that ``copy.deepcopy`` takes.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import gymnasium as gym

from agent_envs.env import ToolEnv
from agent_envs.faults import ForkError
from agent_envs.moves import Call
from agent_envs.testing.episode import Episode, Moment, Trace, act, difference, play, start
from agent_envs.testing.promise import Broken, NotAsked, Promise
from agent_envs.testing.stand_ins import play_if_it_plays, short, written
from agent_envs.testing.subject import Subject
from agent_envs.tool import Tool

_CALLS_BEFORE = (1, 1, 0, 2)  # of the two calls that are added to an episode, those before the copy, by its seed


def _goes_on(subject: Subject, episode: Episode) -> None:
    with subject.env() as env, subject.env() as plain:
        episode = _with_calls(plain, episode)
        expected = play_if_it_plays(plain, episode)
        if expected is None:
            return
        _expect_early_copy(env, episode, expected[0])
        begun, rest = _begin(env, episode, expected)
        if difference(expected[: len(begun)], begun):
            return  # not the same without a copy either, which is another promise
        twin = _copy_or_refusal(env)
        if twin is None:
            return
        with contextlib.closing(twin):
            if _kinds(twin) != _kinds(env):
                raise Broken(f"a copy with the same wrappers, {' of '.join(_kinds(env))}", " of ".join(_kinds(twin)), begun)
            changed = difference(expected, _go_on(twin, begun, rest))
            where = f"a copy made after action {len(begun) - 1} to go on as the original would have"
            if changed:
                raise Broken(where, changed, expected)
            for number in (1, 2):
                first, second = _next(plain), _next(twin)
                if repr(first) != repr(second):
                    raise Broken(
                        f"{where}, so that reset() without a seed draws the same tasks",
                        f"reset number {number} after the episode gave {short(first)} in the original, "
                        f"{short(second)} in the copy",
                        expected,
                    )


def _expect_early_copy(env: gym.Env[Any, Any], episode: Episode, expected: Moment) -> None:
    """Copies an environment before its first reset."""
    try:
        early = _copy_or_refusal(env)
    except Broken as broken:
        raise Broken(f"{broken.expected}, before the first reset", broken.found) from broken
    if early is not None:
        with contextlib.closing(early):
            try:
                changed = difference((expected,), (start(early, episode),))
            except Exception as error:
                changed = f"{type(error).__name__}: {error}"
        if changed:
            raise Broken("a copy made before the first reset to begin as the original does", changed)


def _are_apart(subject: Subject, episode: Episode) -> None:
    with subject.env() as env, subject.env() as plain, contextlib.ExitStack() as copies:
        episode = _with_calls(plain, episode)
        expected = play_if_it_plays(plain, episode)
        if expected is None:
            return
        begun, rest = _begin(env, episode, expected)
        if difference(expected[: len(begun)], begun):
            return
        refusal, twins = "", []
        try:
            for _ in range(2):
                twins.append(copy.deepcopy(env))
                copies.callback(twins[-1].close)
        except Exception as error:
            refusal = f"{type(error).__name__}: {error}"
        if refusal:
            changed = difference(expected, _go_on(env, begun, rest))
            if changed:
                raise Broken(f"an episode that goes on after a copy was refused ({refusal})", changed, expected)
            if not isinstance(env.unwrapped, ToolEnv):
                raise NotAsked(f"copy.deepcopy raises {refusal}")
            return
        first, second = twins
        alone = _go_on(first, begun, rest)
        _use_up(first, episode)
        at = len(begun) - 1
        changed = difference(expected, _go_on(env, begun, rest))
        if changed:
            raise Broken(
                f"that what is done to a copy made after action {at} does not touch the original",
                f"after the copy was played, reset and closed, the original went on differently: {changed}",
                expected,
            )
        _use_up(env, episode)
        changed = difference(alone, _go_on(second, begun, rest))
        if changed:
            raise Broken(
                f"that what is done to the original and to one copy does not touch another copy made after action {at}",
                f"after those two were played, reset and closed, the other copy went on differently: {changed}",
                expected,
            )


def _with_calls(env: gym.Env[Any, Any], episode: Episode) -> Episode:
    """The episode with two more calls of a tool, mostly one on each side of the copy, so that there is something to copy."""
    inner = env.unwrapped
    if not isinstance(inner, ToolEnv) or not inner.tools or inner.max_turns == 1:
        return episode
    tools = [tool for tool in inner.tools if _says_it_has_state(tool)] or inner.tools
    tool = tools[(episode.seed + episode.at) % len(tools)]
    calls = [written(inner, Call(tool.name, example)) for example in tool.examples]
    call = calls[episode.seed // len(tools) % len(calls)] if calls else None
    if call is None:
        return episode
    at = min(episode.at, len(episode.actions), inner.max_turns - 2)
    actions = (*episode.actions[:at], call, call, *episode.actions[at:])
    return Episode(episode.seed, actions, at + _CALLS_BEFORE[episode.seed % len(_CALLS_BEFORE)])


def _says_it_has_state(tool: Tool) -> bool:
    return type(tool).reset is not Tool.reset or type(tool).fork is not Tool.fork or tool.fidelity != "exact"


def _begin(env: gym.Env[Any, Any], episode: Episode, expected: Trace) -> tuple[Trace, Trace]:
    """Plays up to where the copy is made; what was played, and what is left of the expected."""
    at = min(episode.at, len(expected) - 1)
    return _go_on(env, (start(env, episode),), expected[1 : at + 1]), expected[at + 1 :]


def _go_on(env: gym.Env[Any, Any], begun: Trace, rest: Trace) -> Trace:
    """What was played, and what the remaining actions lead to; an exception stands where the observation would."""
    trace = list(begun)
    for moment in rest:
        assert moment.action is not None
        try:
            trace.append(act(env, moment.action, trace[-1]))
        except Exception as error:
            trace.append(Moment(moment.action, f"raised {type(error).__name__}: {error}", 0.0, True, False, {}))
            break
    return tuple(trace)


def _next(env: gym.Env[Any, Any]) -> Any:
    try:
        return env.reset()
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"


def _use_up(env: gym.Env[Any, Any], episode: Episode) -> None:
    """Does with an environment what a user may still do with it."""
    env.close()
    with contextlib.suppress(Exception):  # whether that works is asked elsewhere
        play(env, Episode(episode.seed + 1, episode.actions))
    env.close()


def _copy_or_refusal(env: gym.Env[Any, Any]) -> gym.Env[Any, Any] | None:
    """A copy, or None where the live state has one that is refused, as a tool may."""
    try:
        return copy.deepcopy(env)
    except Exception as error:
        inner, why = env.unwrapped, f"{type(error).__name__}: {error}"
        if not isinstance(inner, ToolEnv):
            raise NotAsked(f"copy.deepcopy raises {why}") from None
        if isinstance(error, ForkError):
            if any(tool.fidelity == "none" for tool in inner.tools):
                raise NotAsked(f"it says that it cannot be copied: {error}") from None
            if any(_refuses(tool) for tool in inner.tools if tool.fidelity == "exact"):
                return None
        raise Broken("a copy, or a ForkError of a tool that cannot be copied as it is", why) from error


def _refuses(tool: Tool) -> bool:
    try:
        twin = tool.fork()
    except ForkError:
        return True
    if twin is not tool:
        twin.close()
    return False


def _kinds(env: gym.Env[Any, Any]) -> list[str]:
    names = [type(env).__name__]
    while isinstance(env, gym.Wrapper):
        env = env.env
        names.append(type(env).__name__)
    return names


PROMISES = (
    Promise("fork", "A copy of a live episode goes on as the original would have.", _goes_on),
    Promise("fork apart", "What is done to a copy does not touch the original, nor the other way round.", _are_apart),
)

"""Promises about what a reset and a step give: types that everybody can rely on, and data that is its receiver's own."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from agent_envs.testing.episode import Episode, Trace, copied
from agent_envs.testing.promise import Broken, Promise
from agent_envs.testing.promises.inputs import drawn_or_hard
from agent_envs.testing.record import Misshapen, Recorder, deviation, place, short, told
from agent_envs.testing.subject import Subject


def _types(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        run = Recorder(env)
        run.reset(episode.seed)
        if run.record.raised is not None:
            raise Broken(f"(observation, info) from reset(seed={episode.seed})", _given(run.record.raised))
        kinds: dict[str, type] = {}
        _check_types(run.record.trace, kinds)
        for action in episode.actions:
            if run.record.over:
                break
            if isinstance(run.step(action).raised, Misshapen):
                found = f"{run.record.raised} after action {len(run.record.trace)}"
                raise Broken("(observation, reward, terminated, truncated, info) from a step", found)
            if run.record.raised is None:
                _check_types(run.record.trace, kinds)


def _given(raised: Exception) -> str:
    return str(raised) if isinstance(raised, Misshapen) else told(raised)


def well_typed(trace: Trace) -> bool:
    """Whether the last moment of a trace is made of what it should be; other promises do not ask where it is not."""
    try:
        _check_types(trace, {})
    except Broken:
        return False
    return True


def _check_types(trace: Trace, kinds: dict[str, type]) -> None:
    moment, when = trace[-1], place(trace)
    if not isinstance(moment.observation, str):
        raise Broken("an observation that is a str", f"{_of(moment.observation)} after {when}", trace)
    number = isinstance(moment.reward, int | float | np.integer | np.floating) and not isinstance(moment.reward, bool)
    if not number or not math.isfinite(moment.reward):
        raise Broken("a reward that is a finite number", f"{_of(moment.reward)} after {when}", trace)
    for name, flag in (("terminated", moment.terminated), ("truncated", moment.truncated)):
        if not isinstance(flag, bool):
            raise Broken(f"{name} to be a bool", f"{_of(flag)} after {when}", trace)
    if not isinstance(moment.info, dict):
        raise Broken("an info that is a dict", f"{_of(moment.info)} after {when}", trace)
    for path, value in _entries(moment.info, "info"):
        if kinds.setdefault(path, type(value)) is not type(value):
            raise Broken(
                f"{path} to keep one Python type over an episode, as vector environments need",
                f"{_of(value)} after {when}, and {kinds[path].__name__} before",
                trace,
            )
    try:
        json.dumps(moment.info)
    except (TypeError, ValueError):
        path, value = next(_unwritable(moment.info, "info"), ("info", moment.info))
        raise Broken("an info of JSON values", f"{path} is {_of(value)} after {when}", trace) from None


def _entries(info: dict[Any, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, value in info.items():
        yield f"{path}[{key!r}]", value
        if isinstance(value, dict):
            yield from _entries(value, f"{path}[{key!r}]")


def _unwritable(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The innermost parts of a value that are no JSON."""
    parts: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        parts = [(f"{path}[{key!r}]", part) for key, part in value.items()]
        yield from ((f"a key of {path}", key) for key in value if not isinstance(key, str))
    elif isinstance(value, list | tuple):
        parts = [(f"{path}[{number}]", part) for number, part in enumerate(value)]
    for inner, part in parts:
        yield from _unwritable(part, inner)
    if not parts:
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            yield path, value


def _space(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        run = Recorder(env)
        run.reset(episode.seed)
        for action in drawn_or_hard(episode):
            if run.record.over:
                run.reset(episode.seed)
            _check_space(env.observation_space, run.record.trace)
            run.step(action)
        _check_space(env.observation_space, run.record.trace)


def _check_space(space: gym.Space[Any], trace: Trace) -> None:
    if not trace or not isinstance(trace[-1].observation, str) or trace[-1].observation in space:
        return
    text = trace[-1].observation
    limit = getattr(space, "max_length", None)
    if isinstance(limit, int) and len(text) > limit:
        why = f"{len(text)} characters"
    else:
        strange = sorted({character for character in text if character not in getattr(space, "character_set", ())})
        lone = [character for character in strange if "\ud800" <= character <= "\udfff"]
        why = f"lone surrogates {lone[:3]!r}" if lone else f"{short(text)} (characters such as {strange[:5]!r})"
    raise Broken(f"an observation in {space!r}", f"{why} after {place(trace)}", trace)


def _own_info(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        spy = _Spy(env)
        expected = Recorder(spy).play(episode)
    when = [place(expected.trace[: number + 1]) for number in range(len(expected.trace))]
    handed_out = list(zip(spy.infos, spy.before, when, strict=False))
    for number, (info, _, now) in enumerate(handed_out):
        for earlier, _, then in handed_out[:number]:
            if earlier is info:
                raise Broken("a new info dict at each call", f"the dict of {then} again after {now}", expected.trace)
    for info, before, then in handed_out:
        if repr(info) != repr(before):
            found = f"that of {then} was {short(before)} and is {short(info)} at the end"
            raise Broken("an info that stays as it was handed out", found, expected.trace)
    with subject.env() as env:
        changed = deviation(subject, episode.seed, expected, Recorder(_Spy(env, spoils=True)).play(episode))
        if changed:
            raise Broken("an episode that does not change with an info that was handed out", changed, expected.trace)


class _Spy(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps infos as they were handed out, and copies of them; ``spoils`` empties them, as a careless receiver might."""

    def __init__(self, env: gym.Env[Any, Any], spoils: bool = False) -> None:
        super().__init__(env)
        self.spoils = spoils
        self.infos: list[Any] = []
        self.before: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._keep(info)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self.spoils:
            _empty(self.infos[-1])
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._keep(info)
        return observation, reward, terminated, truncated, info

    def _keep(self, info: Any) -> None:
        self.infos.append(info)
        self.before.append(copied(info))


def _empty(value: Any) -> None:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            _empty(part)
        value.clear()


def _of(value: Any) -> str:
    return f"{short(value)} of type {type(value).__name__}"


PROMISES = (
    Promise(
        "types",
        "An observation is a str, a reward a finite number, a flag a bool; an info holds JSON values, one type a key.",
        _types,
    ),
    Promise("space", "Every observation is in the observation space, whatever the action was.", _space),
    Promise("info", "An info is a new dict at each call, and its receiver's own.", _own_info),
)

"""An episode as data: what is done to an environment, and what it did.

An ``Episode`` can be drawn, shrunk, printed and played again. ``EXPERT`` stands in it for whatever the environment's oracle
does next, so that episodes reach places that random texts never would.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import gymnasium as gym

from agent_envs.task import NoOracle
from agent_envs.testing.literal import literal


class Expert(Enum):
    """Stands for the action of the environment's oracle."""

    EXPERT = "the oracle's action"

    def __repr__(self) -> str:
        return self.name


EXPERT = Expert.EXPERT

Action = str | Expert


def source(action: Action) -> str:
    """The action as a Python expression, short even where the action is long."""
    return literal(action) if isinstance(action, str) else repr(action)


@dataclass(frozen=True)
class Episode:
    """What is done.

    Args:
        seed: Of the reset.
        actions: The actions, one after the other; those after the end of the episode are left out.
        at: The number of actions before that which a promise is about, such as a fork.
    """

    seed: int = 0
    actions: Sequence[Action] = ()
    at: int = 0

    def __repr__(self) -> str:
        at = f", at={self.at}" if self.at else ""
        actions = ", ".join(map(source, self.actions))
        return f"Episode(seed={self.seed}, actions=[{actions}]{at})"


@dataclass(frozen=True)
class Moment:
    """What a reset (action None) or a step gave."""

    action: str | None
    observation: Any
    reward: Any
    terminated: Any
    truncated: Any
    info: Any

    @property
    def over(self) -> bool:
        """Whether the episode ended here."""
        return bool(self.terminated or self.truncated)


Trace = tuple[Moment, ...]


def start(env: gym.Env[Any, Any], episode: Episode) -> Moment:
    """Resets to the episode's task."""
    observation, info = env.reset(seed=episode.seed)
    return Moment(None, observation, 0.0, False, False, copied(info))


def act(env: gym.Env[Any, Any], action: Action, last: Moment, oracle: Any = None) -> Moment:
    """Takes one action; ``EXPERT`` becomes what the oracle does after the last observation.

    An oracle that does not know how to go on after actions that were not its own does nothing, by an empty action; so does
    one that a task does not have. Whether it solves the tasks by its own actions is a promise of its own.
    """
    text = expert_action(env, last, oracle) if isinstance(action, Expert) else action
    observation, reward, terminated, truncated, info = env.step(text)
    return Moment(text, observation, reward, terminated, truncated, copied(info))


def oracle_of(env: gym.Env[Any, Any]) -> Any:
    """The scripted expert of the running episode, or None where its task has none."""
    try:
        return env.unwrapped.oracle()  # type: ignore[attr-defined]  # whoever has none has no EXPERT in its episodes
    except NoOracle:
        return None


def expert_action(env: gym.Env[Any, Any], last: Moment, oracle: Any = None) -> str:
    """What ``EXPERT`` becomes; see `act`."""
    try:
        return str((oracle or oracle_of(env))(last.observation))
    except Exception:
        return ""


def copied(value: Any) -> Any:
    """A deep copy, or the value itself where it cannot be copied: what was handed out, whatever is done to it later."""
    try:
        return copy.deepcopy(value)
    except Exception:  # a lock, a connection: the promise about types reports it
        return value


def play(env: gym.Env[Any, Any], episode: Episode) -> Trace:
    """Plays an episode from its reset until it or its actions end."""
    trace = [start(env, episode)]
    oracle = oracle_of(env) if EXPERT in episode.actions else None
    for action in episode.actions:
        if trace[-1].over:
            break
        trace.append(act(env, action, trace[-1], oracle))
    return tuple(trace)


def difference(expected: Trace, found: Trace) -> str:
    """Where two traces first differ, in words; "" if they don't. A NaN equals itself."""
    for turn, (first, second) in enumerate(zip(expected, found, strict=False)):
        for name in ("action", "observation", "reward", "terminated", "truncated", "info"):
            a, b = getattr(first, name), getattr(second, name)
            if repr(a) != repr(b):
                place = "the reset" if turn == 0 else f"action {turn}"
                name, a, b = _innermost(name, a, b)
                return f"{name} after {place}: {_apart(a, b)}"
    if len(expected) != len(found):
        return f"first {len(expected) - 1} actions until the end, then {len(found) - 1}"
    return ""


def _innermost(name: str, first: Any, second: Any) -> tuple[str, Any, Any]:
    """The entry of two mappings that differs, however deep: ``info['score']['accuracy']`` says more than the whole info."""
    while isinstance(first, dict) and isinstance(second, dict) and list(first) == list(second):
        key = next(key for key in first if repr(first[key]) != repr(second[key]))
        name, first, second = f"{name}[{key!r}]", first[key], second[key]
    return name, first, second


def _apart(first: Any, second: Any) -> str:
    """Two values that differ; of long ones, the place where they do."""
    a, b = repr(first), repr(second)
    at = next((i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), min(len(a), len(b)))
    begin = 0 if max(len(a), len(b)) <= 300 else max(0, at - 80)
    return f"first {_around(a, begin)}, then {_around(b, begin)}"


def _around(text: str, begin: int) -> str:
    end = begin + 300
    return ("..." if begin else "") + text[begin:end] + ("..." if len(text) > end else "")

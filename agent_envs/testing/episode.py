"""An episode as data: what is done to an environment, and what it did.

An ``Episode`` can be drawn, shrunk, printed and played again. ``EXPERT`` stands in it for whatever the environment's oracle
does next, so that episodes reach places that random texts never would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import gymnasium as gym


class Expert(Enum):
    """Stands for the action of the environment's oracle."""

    EXPERT = "the oracle's action"

    def __repr__(self) -> str:
        return self.name


EXPERT = Expert.EXPERT

Action = str | Expert


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
        return f"Episode(seed={self.seed}, actions={list(self.actions)!r}{at})"


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
    return Moment(None, observation, 0.0, False, False, info)


def act(env: gym.Env[Any, Any], action: Action, last: Moment, oracle: Any = None) -> Moment:
    """Takes one action; ``EXPERT`` becomes what the oracle does after the last observation."""
    if isinstance(action, Expert):
        action = (oracle or env.unwrapped.oracle())(last.observation)  # type: ignore[attr-defined]
    return Moment(action, *env.step(action))


def play(env: gym.Env[Any, Any], episode: Episode) -> Trace:
    """Plays an episode from its reset until it or its actions end."""
    trace = [start(env, episode)]
    oracle = env.unwrapped.oracle() if EXPERT in episode.actions else None  # type: ignore[attr-defined]
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
                return f"{name} after {place}: first {_short(a)}, then {_short(b)}"
    if len(expected) != len(found):
        return f"first {len(expected) - 1} actions until the end, then {len(found) - 1}"
    return ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:200]}...{text[-97:]}"

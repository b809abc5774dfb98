"""A very small sound environment, and the same with one thing wrong each: what the tests of the kit itself play."""

from __future__ import annotations

import random
import time
from typing import Any

import gymnasium as gym
from gymnasium.error import ResetNeeded

from agent_envs.spaces import String
from agent_envs.testing import Broken, Episode, NotAsked, Promise, Subject, play


class Parrot(gym.Env[str, str]):
    """Says after the agent how long its words were, and how many it has heard in this episode; three turns."""

    def __init__(self) -> None:
        self.observation_space = String(200)
        self.action_space = String(100_100)
        self.heard: list[int] = []
        self.over = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.heard = []
        self.over = False
        return f"say something ({self.draw()})", {"turn": 0}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if not isinstance(action, str):
            raise TypeError(f"an action is a str, found {type(action).__name__}")
        if self.over:
            raise ResetNeeded("call reset() first")
        self.heard.append(len(action))
        self.over = len(self.heard) == 3
        return f"{self.heard} ({self.draw()})", 0.0, self.over, False, {"turn": len(self.heard)}

    def draw(self) -> int:
        return int(self.np_random.integers(1_000_000))


class Unseeded(Parrot):
    """Draws from Python's global generator."""

    def draw(self) -> int:
        return random.randrange(1_000_000)


class Mindful(Parrot):
    """Remembers in an episode what it heard in the one before."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        before = self.heard
        given = super().reset(seed=seed)
        self.heard = before[:2]
        return given


class Siamese(Parrot):
    """Shares with its copies what it has heard."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Siamese:
        twin = type(self)()
        twin.heard, twin.over = self.heard, self.over
        twin.np_random = type(self.np_random)(type(self.np_random.bit_generator)())
        twin.np_random.bit_generator.state = self.np_random.bit_generator.state
        return twin


class Slow(Parrot):
    """Takes a tenth of a second for every action."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        time.sleep(0.1)
        return super().step(action)


class Raising(Parrot):
    """Raises what it is told to, at the first action or already where it is made."""

    error: BaseException = RuntimeError("the parrot is dead")
    closed = 0

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        raise self.error

    def close(self) -> None:
        type(self).closed += 1


class Unmade(Parrot):
    """Cannot be made."""

    def __init__(self) -> None:
        raise OSError("no parrot in this shop")


def _short(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        trace = play(env, episode)
        long = [len(moment.action) for moment in trace[1:] if moment.action is not None and len(moment.action) > 20_000]
        if long:
            raise Broken("actions of 20,000 characters at most", f"one of {long[0]}", trace)


def _twice(subject: Subject, episode: Episode) -> None:
    if len(episode.actions) < 2:
        raise NotAsked("an episode of one action has no second one")
    with subject.env() as env:
        play(env, episode)


def _careless(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        play(env, episode)
        {}["nothing"]  # type: ignore[index]


def _never(subject: Subject, episode: Episode) -> None:
    raise NotAsked("parrots have no tools")


def _plays(subject: Subject, episode: Episode) -> None:
    with subject.env() as env:
        play(env, episode)


SHORT = Promise("short", "Nobody says more than 20,000 characters at once.", _short)
"""Broken by long actions alone."""

TWICE = Promise("twice", "There is a second action.", _twice)
"""Says nothing about some episodes."""

NEVER = Promise("never", "Tools work.", _never)
"""Says nothing about any."""

CARELESS = Promise("careless", "All is well.", _careless)
"""Its check has an error of its own."""

PLAYS = Promise("plays", "An episode can be played.", _plays)
"""Broken by whatever an environment raises."""

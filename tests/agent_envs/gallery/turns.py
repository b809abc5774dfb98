"""Broken environments: the order of calls and the end of episodes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gallery.words import Outcome, Words
from parts import Riddles, SameString

from agent_envs.env import ToolEnv


class PaysAfterTheEnd(Words):
    """A step after the end is taken and paid once more."""

    def step(self, action: str) -> Outcome:
        self.over = False
        return super().step(action)


class ResetsItself(Words):
    """A step after the end begins the next episode by itself, and the last observation of the old one is lost."""

    def step(self, action: str) -> Outcome:
        if self.words and self.over:
            question, info = self.reset()
            return question, 0.0, False, False, info
        return super().step(action)


class EndSpoilsTheNext(Words):
    """A step after the end raises, as it should, but the next episode begins with a guess in it."""

    late = 0

    def step(self, action: str) -> Outcome:
        self.late += self.over
        return super().step(action)

    def info(self) -> dict[str, Any]:
        return super().info() | {"late": max(0, self.late - 1)}


class ResetOnlyAtTheEnd(Words):
    """A reset in the middle of an episode is ignored."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        if not self.over:
            return " ".join(self.words), self.info()
        return super().reset(seed=seed, options=options)


def never_ends() -> gym.Env[Any, Any]:
    """An environment of tools whose last turn is one like the others."""

    class NeverEnds(ToolEnv):
        def step(self, action: str) -> Outcome:
            observation, reward, terminated, truncated, info = super().step(action)
            if terminated and not info["success"]:
                assert self._episode is not None
                self._episode.over, self._episode.turn = False, 0
                terminated = False
            return observation, reward, terminated, truncated, info

    return NeverEnds(tasks=Riddles(), verifier=SameString())


def truncates() -> gym.Env[Any, Any]:
    """An environment of tools that calls the end of its turns a truncation, so that a learner leaves the episode out."""

    class Truncates(ToolEnv):
        def step(self, action: str) -> Outcome:
            observation, reward, terminated, _, info = super().step(action)
            out_of_turns = info["turn"] == self.max_turns
            return observation, reward, terminated and not out_of_turns, out_of_turns, info

    return Truncates(tasks=Riddles(), verifier=SameString())

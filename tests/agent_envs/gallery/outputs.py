"""Broken environments: what a reset and a step give."""

from __future__ import annotations

import threading
import time
from typing import Any

from gallery.words import Outcome, Words

from agent_envs.spaces import replace_surrogates


class RewardNone(Words):
    """The reward is None until the episode ends: rewards that changed their shape from version to version."""

    def step(self, action: str) -> Outcome:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward if terminated else None, terminated, truncated, info  # type: ignore[return-value]


class RewardList(Words):
    """The reward is a list with one number for each token or turn."""

    def step(self, action: str) -> Outcome:
        observation, reward, *rest = super().step(action)
        return observation, [reward], *rest  # type: ignore[return-value]


class OneFlag(Words):
    """Four values a step: ``done`` instead of terminated and truncated."""

    def step(self, action: str) -> Outcome:
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, info  # type: ignore[return-value]


class ObservationOfMessages(Words):
    """The observation is a chat message, though its space is one of strings."""

    def reset(self, **arguments: Any) -> tuple[str, dict[str, Any]]:
        question, info = super().reset(**arguments)
        return {"role": "user", "content": question}, info  # type: ignore[return-value]


class TypesThatChange(Words):
    """A key of the info is None first and a number later, which vector environments turn into nonsense."""

    def info(self) -> dict[str, Any]:
        return super().info() | {"score": float(len(self.guesses)) if self.guesses else None}


class InfoNoJson(Words):
    """The info holds an object of the environment's."""

    def info(self) -> dict[str, Any]:
        return super().info() | {"tools": {"lock": threading.Lock()}}


class InfoReused(Words):
    """One dict is filled anew at each call, so that what was kept of earlier calls changes."""

    def __init__(self) -> None:
        super().__init__()
        self.shared: dict[str, Any] = {}

    def info(self) -> dict[str, Any]:
        self.shared.update(super().info())
        return self.shared


class InfoGrows(Words):
    """The info is new but a list in it is the environment's own, which grows."""

    def info(self) -> dict[str, Any]:
        return super().info() | {"guesses": self.guesses}


class ObservationTooLong(Words):
    """The observation repeats the whole action, however long it is."""

    def read(self, action: str) -> str:
        return replace_surrogates(action)


class ObservationWithSurrogates(Words):
    """A lone surrogate in an action comes back in the observation, which no tokenizer or pipe takes."""

    def read(self, action: str) -> str:
        return action[:100]


class WallClock(Words):
    """The info says how late it is."""

    def info(self) -> dict[str, Any]:
        return super().info() | {"elapsed_time": time.perf_counter()}

"""What an action means to an environment whose episode may be over: Gymnasium's autoreset modes, in one place."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from agent_envs.spaces import String
from agent_envs.vector.worker import Reset, Result, Step


class _Episode(enum.Enum):
    NONE_YET = enum.auto()
    RUNNING = enum.auto()
    OVER = enum.auto()


class Episodes:
    """How every environment's episode stands, as far as its results have been received.

    Args:
        count: Of environments.
        mode: What becomes of an episode that is over.
        action_space: Of a single environment.

    Attributes:
        observations: The latest of each environment; None before there is one.
    """

    def __init__(self, count: int, mode: AutoresetMode, action_space: gym.Space[Any]) -> None:
        self.observations: list[Any] = [None] * count
        self._episodes = [_Episode.NONE_YET] * count
        self._mode = mode
        self._texts = isinstance(action_space, String)

    def note(self, results: Iterable[Result]) -> None:
        """Takes down what was received."""
        for result in results:
            self._episodes[result.number] = _Episode.OVER if result.over else _Episode.RUNNING
            self.observations[result.number] = result.observation

    def works(self, numbers: Sequence[int], actions: Sequence[Any]) -> list[Step | Reset]:
        """What there is to do for these environments when they are sent these actions.

        Raises:
            ResetNeeded: One was never reset, or its episode is over in mode DISABLED.
            TypeError: An action is no str where actions are texts.
            ValueError: There are not as many actions as environments.
        """
        require_length("actions", actions, len(numbers))
        return [self._work(number, action) for number, action in zip(numbers, actions, strict=True)]

    def require_begun(self, numbers: Iterable[int], why: str) -> None:
        """Raises ``ResetNeeded`` if one of these environments was never reset."""
        for number in numbers:
            if self._episodes[number] is _Episode.NONE_YET:
                raise ResetNeeded(f"environment {number} was never reset: {why}")

    def _work(self, number: int, action: Any) -> Step | Reset:
        if self._episodes[number] is _Episode.RUNNING:
            if self._texts and not isinstance(action, str):
                raise TypeError(f"an action is a str; found {type(action).__name__} for environment {number}")
            return Step(action)
        self.require_begun([number], f"call reset() or send_reset([{number}]) first")
        if self._mode is AutoresetMode.DISABLED:
            raise ResetNeeded(
                f"the episode of environment {number} is over, and autoreset is disabled: call send_reset([{number}]), "
                'or reset(options={"reset_mask": ...})'
            )
        return Reset()


def require_length(name: str, values: Sequence[Any], expected: int) -> None:
    """Raises ``ValueError`` if there are not as many values as environments."""
    if len(values) != expected:
        raise ValueError(f"expected {expected} {name}, one for each environment; found {len(values)}")

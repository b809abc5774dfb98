"""A small sound environment in plain Gymnasium; the broken ones of this gallery differ from it in one place each.

The agent hears three words and has three turns to say the last one. After a wrong guess it is told a letter of it, drawn
from the environment's own generator, and which guesses it has made.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.error import ResetNeeded

from agent_envs.spaces import String, replace_surrogates

WORDS = ("red", "blue", "green", "black", "white", "brown", "yellow", "purple")
TURNS = 3

Outcome = tuple[str, float, bool, bool, dict[str, Any]]


class Words(gym.Env[str, str]):
    """Keeps every promise."""

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(self) -> None:
        self.observation_space = String(500)
        self.action_space = String(200)
        self.words: tuple[str, ...] = ()
        self.guesses: list[str] = []
        self.over = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.words = self.draw()
        self.guesses = []
        self.over = False
        return " ".join(self.words), self.info()

    def step(self, action: str) -> Outcome:
        if not isinstance(action, str):
            raise TypeError(f"an action is a str, found {type(action).__name__}")
        if self.over:
            raise ResetNeeded("no episode is running: call reset() first")
        guess = self.read(action)
        self.guesses.append(guess)
        right = guess == self.words[-1]
        self.over = right or len(self.guesses) == TURNS
        return self.answer(right), float(right), self.over, False, self.info()

    def close(self) -> None:
        self.over = True

    def draw(self) -> tuple[str, ...]:
        """The words of a new episode."""
        return tuple(str(word) for word in self.np_random.choice(WORDS, size=3, replace=False))

    def read(self, action: str) -> str:
        """The guess in an action: what stands behind its last ``<answer>``, cut to what an observation has room for."""
        return replace_surrogates(action.rpartition("<answer>")[2].partition("</answer>")[0])[:100]

    def answer(self, right: bool) -> str:
        """The observation after a guess."""
        if right:
            return "yes"
        letter = str(self.np_random.choice(list(self.words[-1])))
        return f"no, it has the letter {letter}; you have said {', '.join(self.guesses)}"

    def info(self) -> dict[str, Any]:
        """The info of a reset or a step."""
        return {"task_id": "-".join(self.words), "turn": len(self.guesses), "guesses": list(self.guesses)}

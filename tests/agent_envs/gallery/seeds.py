"""Broken environments: seeds, and what episodes and environments share."""

from __future__ import annotations

import random
import zlib
from typing import Any

import numpy as np
from gallery.words import WORDS, Words


class SeedDropped(Words):
    """The seed is in the signature and goes nowhere."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        return super().reset(seed=None, options=options)


class SeedOfTheQuestionAlone(Words):
    """The question comes from the seed; what happens later is drawn from a generator that nobody seeds."""

    def answer(self, right: bool) -> str:
        return super().answer(right) + " " + str(np.random.default_rng().integers(1000))


class NextEpisodeForgets(Words):
    """With a seed all is well; a reset without one begins from whatever the clock says."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        return super().reset(seed=random.SystemRandom().randrange(2**31) if seed is None else seed, options=options)


class AlwaysTheSameTask(Words):
    """The generator is made anew with a constant at each reset."""

    def draw(self) -> tuple[str, ...]:
        return tuple(str(word) for word in np.random.default_rng(42).choice(WORDS, size=3, replace=False))


class ReseedsTheGlobals(Words):
    """The seed becomes that of the whole process."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)
        return super().reset(seed=seed, options=options)

    def draw(self) -> tuple[str, ...]:
        return tuple(random.sample(WORDS, 3))


class ReadsTheGlobals(Words):
    """A hint is drawn from the process's generator."""

    def answer(self, right: bool) -> str:
        return super().answer(right) + " " + str(np.random.choice(list(self.words[-1])))


class HashOrder(Words):
    """The task depends on the order of a set, which is another one in every process."""

    def draw(self) -> tuple[str, ...]:
        words = list(set(WORDS))
        return tuple(words[int(index)] for index in self.np_random.choice(len(words), size=3, replace=False))


class HashOfAText(Words):
    """The task is picked by ``hash``, which is another number in every process."""

    def draw(self) -> tuple[str, ...]:
        first = super().draw()[0]
        return (first, WORDS[hash(first) % len(WORDS)], WORDS[zlib.crc32(first.encode()) % len(WORDS)])


class HistoryStays(Words):
    """What was said in the last episode is still there in the next: a store behind it that no reset clears."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        earlier = list(self.guesses)
        question, info = super().reset(seed=seed, options=options)
        self.guesses = earlier[:1]
        return question, info | {"guesses": list(self.guesses)}


class SharedHistory(Words):
    """The guesses are in a default argument, which all environments of the process share."""

    def __init__(self, guesses: list[str] = []) -> None:  # noqa: B006 - that is the bug
        super().__init__()
        self.board = guesses

    def read(self, action: str) -> str:
        self.board.append(super().read(action))
        return self.board[-1]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.board.clear()
        return super().reset(seed=seed, options=options)

    def info(self) -> dict[str, Any]:
        return super().info() | {"board": list(self.board)}


class NoGenerator(Words):
    """The reset throws its generator away."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        question, info = super().reset(seed=seed, options=options)
        self.rng = self.np_random
        self._np_random = None
        return question, info

    def answer(self, right: bool) -> str:
        return "yes" if right else f"no, it has the letter {self.rng.choice(list(self.words[-1]))}"

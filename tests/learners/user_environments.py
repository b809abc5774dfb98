"""Text environments as a user would write them: plain Gymnasium, nothing of ours but one exception."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from agent_envs.faults import EnvironmentFault

WORDS = ("red", "blue", "green", "black", "white", "brown")


class LastWord(gym.Env[str, str]):
    """Pays 1 for the last word of the question."""

    observation_space = gym.spaces.Text(200)
    action_space = gym.spaces.Text(200)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        words = self.np_random.choice(WORDS, size=3, replace=False)
        self.last = str(words[-1])
        return " ".join(words), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "", float(action == self.last), True, False, {}


class Rounds(gym.Env[str, str]):
    """Three turns, each of which takes a moment; counts how many run at once."""

    observation_space = gym.spaces.Text(200)
    action_space = gym.spaces.Text(200)
    lock = threading.Lock()
    running = 0
    most = 0

    def __init__(self, wait: float = 0.0, fails: float = 0.0) -> None:
        self.wait, self.fails = wait, fails

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.turn = 0
        self.own = np.random.default_rng()  # its faults are nobody's seed
        return f"question {self.np_random.integers(1000)}", {"task_id": f"task-{seed}"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        with Rounds.lock:
            Rounds.running += 1
            Rounds.most = max(Rounds.most, Rounds.running)
        time.sleep(self.wait)
        with Rounds.lock:
            Rounds.running -= 1
        if self.own.random() < self.fails:
            raise EnvironmentFault("the engine is gone", component="engine", retryable=True)
        self.turn += 1
        done = self.turn == 3
        return f"observation {self.turn}", 0.25, done, False, {"success": done} if done else {}


class Forgetful(LastWord):
    """Its task is no function of its seed."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        return super().reset(seed=None, options=options)


class Outage(LastWord):
    """Its engine is gone for questions that begin as the file ``switch`` says, as long as there is that file."""

    def __init__(self, switch: str) -> None:
        self.switch = Path(switch)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.question, info = super().reset(seed=seed, options=options)
        return self.question, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.switch.exists() and self.question.startswith(self.switch.read_text()):
            raise EnvironmentFault("the engine is gone", component="engine", retryable=True)
        return super().step(action)


gym.register("tests/LastWord-v0", LastWord)
gym.register("tests/Outage-v0", Outage)

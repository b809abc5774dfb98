"""Environments that do as they are told, for tests of vector environments."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from agent_envs.faults import EnvironmentFault
from agent_envs.spaces import String
from agent_envs.vector import make_threads


class Obedient(gym.Env[str, str]):
    """Its actions are JSON that say what the step is to give: observation, reward, terminated, truncated, info, raise."""

    def __init__(self) -> None:
        self.observation_space = String(200)
        self.action_space = String(2_000)
        self.episodes = 0
        self.threads = {threading.get_ident()}
        self.closed = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.threads.add(threading.get_ident())
        self.episodes += 1
        if options and "raise" in options:
            raise_(options["raise"])
        return f"episode {self.episodes}", {"drawn": int(self.np_random.integers(1_000)), "options": repr(options)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.threads.add(threading.get_ident())
        told = json.loads(action)
        if "raise" in told:
            raise_(told["raise"])
        info = {name: np.array(value) if isinstance(value, list) else value for name, value in told.get("info", {}).items()}
        ends = (told.get("terminated", False), told.get("truncated", False))
        return told.get("observation", ""), told.get("reward", 0.0), *ends, info

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.closed = True


def raise_(kind: str) -> None:
    """What can go wrong inside an environment."""
    if kind == "fault":
        raise EnvironmentFault("the engine is gone", component="engine", retryable=True)
    if kind == "bug":
        raise ZeroDivisionError("a bug")
    raise SystemExit(kind)


def told(**outcome: Any) -> str:
    """The action that has ``Obedient`` do this."""
    return json.dumps(outcome)


class Gated(gym.Env[str, str]):
    """Each step waits until its gate is opened; then it gives its action back."""

    def __init__(self) -> None:
        self.observation_space = String(200)
        self.action_space = String(200)
        self.gate = threading.Semaphore(0)
        self.waiting = threading.Event()
        self.closed = threading.Event()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        return "begin", {"seed": -1 if seed is None else seed, **(options or {})}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.waiting.set()
        self.gate.acquire()
        return action, 1.0, action == "end", False, {"said": action}

    def close(self) -> None:
        self.closed.set()


REGISTERED = "vector_tests/Obedient-v0"
registered_threads = functools.partial(make_threads, REGISTERED)
"""A string that leads here can stand in a registration; a callable there would keep the spec from becoming JSON."""


def kept(kind: type[gym.Env[Any, Any]], count: int) -> tuple[list[Any], list[Callable[[], Any]]]:
    """So many environments of a class, which the test can reach into, and functions for a vector environment that give them.

    They are made in the test's own thread.
    """
    envs = [kind() for _ in range(count)]
    return envs, [lambda env=env: env for env in envs]

"""A vector environment by its id: what ``gym.make_vec`` calls."""

from __future__ import annotations

import functools
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

from agent_envs.vector.threads import ThreadVectorEnv


def make_threads(
    id: str | EnvSpec,
    num_envs: int = 1,
    *,
    max_episode_steps: int | None = None,
    autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    close_timeout: float = 10.0,
    **kwargs: Any,
) -> ThreadVectorEnv:
    """Environments of a registered id, a thread each; with the id filled in, a ``vector_entry_point`` of ``gym.register``.

    Args:
        id: As ``gym.make`` takes it.
        num_envs: How many.
        max_episode_steps: Truncates longer episodes; -1 never does, None leaves it to the id's registration.
        autoreset_mode: As for `ThreadVectorEnv`.
        close_timeout: As for `ThreadVectorEnv`.
        kwargs: Of each environment.

    Raises:
        ValueError: ``num_envs`` or ``max_episode_steps`` is out of range.
        Exception: What ``gym.make`` raises.

    Example:
        >>> envs = make_threads("CartPole-v1", num_envs=2, max_episode_steps=10)
        >>> envs
        ThreadVectorEnv(num_envs=2)
        >>> envs.close()
    """
    if num_envs < 1:
        raise ValueError(f"num_envs is at least 1, found {num_envs}")
    if max_episode_steps is not None and max_episode_steps != -1 and max_episode_steps < 1:
        raise ValueError(f"max_episode_steps is a positive number, None or -1, found {max_episode_steps}")
    make = functools.partial(gym.make, id, max_episode_steps=max_episode_steps, **kwargs)
    return ThreadVectorEnv([make] * num_envs, autoreset_mode=autoreset_mode, close_timeout=close_timeout)

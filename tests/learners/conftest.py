"""The policies that tests of several files train: each is made once in a run of the tests."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import pytest

from learners.run.tiny import Recipe, tiny_policy

pytest.register_assert_rewrite("sampler_contract")

QUICK = Recipe(clean_episodes=192, clean_steps=50, mixed_episodes=32, mixed_steps=10, batch_size=32)


@pytest.fixture(scope="session")
def quick() -> Recipe:
    """A warm start of some seconds."""
    return QUICK


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that has been taught for some seconds: it calls the tool at times, and is seldom right."""
    folder = tmp_path_factory.mktemp("policy")
    make_env = lambda: gym.make("agent_envs/MathTool-v0", disable_env_checker=True, difficulty=2)  # noqa: E731
    model, tokenizer = tiny_policy(make_env, recipe=QUICK, cache=folder / "cache")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"

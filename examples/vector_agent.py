"""A scripted agent in many environments at once, by Gymnasium's vector API. From the repository's root:

    python -m examples.vector_agent                                     # processes: Gymnasium's AsyncVectorEnv
    python -m examples.vector_agent --mode vector_entry_point           # threads: what environments that wait for tools need

The environments live in other processes or threads, and an agent sees what they return and nothing else; so this one goes
by observations: a question has letters in it, and what the interpreter printed has none. A policy would stand in for `act`.
"""

from __future__ import annotations

import argparse
import re
from typing import Any

import gymnasium as gym
import numpy as np

import agent_envs  # noqa: F401 - registers the ids


def act(observation: str) -> str:
    """Has the expression of a question calculated, and answers with what was printed."""
    expression = re.search(r"[0-9(][0-9+*()-]*", observation)
    if expression and re.search("[A-Za-z]", observation):
        return f"<python>print({expression[0]})</python>"
    return rf"<answer>\boxed{{{observation.strip()}}}</answer>"


def success_rate(envs: gym.vector.VectorEnv[Any, Any, Any], episodes: int, seed: int = 0) -> float:
    """Plays until that many episodes are over, and gives back the share of them that succeeded.

    After its last step an environment starts a new episode with the next one, whose action it ignores (Gymnasium's autoreset
    mode NEXT_STEP); so every observation is simply answered.
    """
    observations, _ = envs.reset(seed=seed)
    outcomes: list[bool] = []
    while len(outcomes) < episodes:
        actions = tuple(act(observation) for observation in observations)
        observations, _, terminations, truncations, infos = envs.step(actions)
        over = terminations | truncations
        outcomes += [bool(success) for success in infos.get("success", np.zeros_like(over))[over]]
    return sum(outcomes) / len(outcomes)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mode", default="async", choices=["sync", "async", "vector_entry_point"])
    parser.add_argument("--num-envs", type=int, default=4)
    parser.add_argument("--episodes", type=int, default=40)
    options = parser.parse_args(arguments)

    envs = gym.make_vec("agent_envs/MathTool-v0", num_envs=options.num_envs, vectorization_mode=options.mode, split="test")
    try:
        print(f"{options.num_envs} environments: success {success_rate(envs, options.episodes):.2f}")  # noqa: T201
    finally:
        envs.close()


if __name__ == "__main__":
    main()

"""How fast a live episode of MathTool-v0 branches.

Method: an episode has run a call that leaves numpy, an array and a file behind; then it is copied so many times, by
``copy.deepcopy`` of the environment with all its wrappers and by ``ToolEnv.fork`` of the bare one. "together" is the
wall-clock time of all copies of a round (`time.perf_counter`), "and each one's next step" includes a step in every copy,
whose observation is checked. Machine load is printed before and after.

    python benchmarks/branching.py [--backend local docker] [--image NAME] [--copies 8] [--rounds 20] [--megabytes 1]
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from timing import show, show_load

import agent_envs  # noqa: F401 - registers the environment
from sandboxes import shared

LIVE = "<python>import numpy\ndata = numpy.arange({size})\nopen('note', 'w').write('kept')\nlen(data)</python>"
NEXT = "<python>data[-1] += 1\nprint(data[-1], open('note').read())</python>"


Way = Callable[[gym.Env[str, str]], Any]


def branch(env: gym.Env[str, str], way: Way, copies: int, expected: str) -> tuple[float, float]:
    """Seconds that the copies took together, and with a step of each."""
    env.step("<python>1</python>")  # waits for the end of what an earlier round has closed
    started = time.perf_counter()
    twins = [way(env) for _ in range(copies)]
    forked = time.perf_counter() - started
    try:
        for twin in twins:
            observation = twin.step(NEXT)[0]
            assert expected in observation, observation
        return forked, time.perf_counter() - started
    finally:
        for twin in twins:
            twin.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Times copies of a live MathTool-v0 episode.")
    parser.add_argument("--backend", nargs="+", choices=("local", "docker"), default=["local"])
    parser.add_argument("--image", help="the docker backend's image")
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--megabytes", type=int, default=1, help="size of the array in the live interpreter")
    arguments = parser.parse_args()
    size = arguments.megabytes * 1_000_000 // 8
    for backend in arguments.backend:
        options = {"image": arguments.image} if backend == "docker" and arguments.image else {}
        env = gym.make("agent_envs/MathTool-v0", max_turns=10_000, backend=backend, python={"options": options})
        print(f"{backend}, {arguments.copies} copies of an episode with {arguments.megabytes} MB")
        show_load("before")
        try:
            env.reset(seed=0)
            observation = env.step(LIVE.format(size=size))[0]
            assert str(size) in observation, observation
            ways: dict[str, Way] = {"deepcopy": copy.deepcopy, "fork": lambda env: env.unwrapped.fork()}
            for name, way in ways.items():
                branch(env, way, arguments.copies, f"{size} kept")
                rounds = [branch(env, way, arguments.copies, f"{size} kept") for _ in range(arguments.rounds)]
                show(f"{name}, together", [forked for forked, _ in rounds])
                show("and each one's next step", [stepped for _, stepped in rounds])
        finally:
            env.close()
        show_load("after")
        shared.close_idle()


if __name__ == "__main__":
    main()

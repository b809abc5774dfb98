"""How many steps a second vector environments take, with tools that keep one waiting and with long observations.

Method. Real ``ToolEnv``s; their tools sleep, or give back so many characters, and do nothing else. So a step is what it is
in any environment here: the action is read, the arguments are checked, the tool runs, the call is recorded. Rates are
results received by wall-clock time (`time.perf_counter`) in windows of some seconds; the ways take turns, and the median of
the rounds is shown with the lowest and the highest. Machine load is printed, since two cores are soon shared.

- tools: so many environments with a tool of 20 ms. ``send``/``recv`` sends an environment its next action as soon as its
  result is received. ``step`` waits for all of them, and so does a thread pool's ``map`` over the environments, which is how
  others do it; it is measured bare, without batches or autoreset. First in episodes of 200 turns, where resets hardly
  matter, then in episodes of 8, where every ninth result is a reset's.
- straggler: the same with one environment whose tool takes 2 s.
- text: observations of 32,768 characters, ASCII and not, with no waiting, in fewer environments. ``sync`` and ``async`` are
  Gymnasium's own vector environments, async with shared memory, which is its default. ``bare`` are environments that give
  such a text and do nothing else, so that what is left is the vector environment's and the string space's own.
- life: opening, resetting, stepping and closing, and what is left afterwards.

Threads take turns at the interpreter's lock, so a second core gives them nothing but dearer changes from one to the next:
with ``taskset -c 1`` in front ``send``/``recv`` takes two thirds of the processor time a step, and other programs disturb it
less. A tool's processes would inherit that one core, so it is a choice for tools that wait.

    python benchmarks/vector.py [--envs 256] [--text-envs 16] [--seconds 3] [--rounds 5] [--only tools straggler text life]
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from timing import show_load

from agent_envs.env import ToolEnv
from agent_envs.spaces import String
from agent_envs.tasks.arithmetic import Arithmetic
from agent_envs.tool import tool
from agent_envs.vector import ThreadVectorEnv
from agent_envs.verifiers.math import MathVerifier

PARTS = ("tools", "straggler", "text", "life")
DELAY, STRAGGLER = 0.02, 2.0
CHARACTERS = 32_768
TEXTS = {"ASCII": "x", "any Unicode": "\u6f22"}
LONG, SHORT = 200, 8  # turns of an episode

Way = Callable[[float], float]
"""Measures for so many seconds: steps a second."""


@tool
def wait(seconds: float) -> str:
    """Waits.

    Args:
        seconds: How long.
    """
    time.sleep(seconds)
    return "done"


@tool
def write(text: str) -> str:
    """Writes a long text.

    Args:
        text: What to repeat.
    """
    return text * CHARACTERS


def make(turns: int) -> ToolEnv:
    return ToolEnv(
        tasks=Arithmetic(), tools=[wait, write], verifier=MathVerifier(), max_turns=turns, max_observation=CHARACTERS
    )


class Bare(gym.Env[str, str]):
    """Gives the same long text at every step."""

    def __init__(self, character: str) -> None:
        self.observation_space = self.action_space = String(CHARACTERS)
        self._text = character * CHARACTERS

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        return self._text, {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return self._text, 0.0, False, False, {}


def send_recv(envs: ThreadVectorEnv, actions: Sequence[str], seconds: float) -> float:
    """``actions`` has one for each environment, which it is sent time and again."""
    envs.reset(seed=0)
    envs.send(range(envs.num_envs), actions)
    taken, started = 0, time.perf_counter()
    while (now := time.perf_counter()) < started + seconds:
        env_ids = envs.recv()[0].tolist()
        taken += len(env_ids)
        envs.send(env_ids, [actions[number] for number in env_ids])
    owed = envs.num_envs
    while owed:
        owed -= len(envs.recv()[0])
    return taken / (now - started)


def step(envs: VectorEnv[Any, Any, Any], actions: Sequence[str], seconds: float) -> float:
    envs.reset(seed=0)
    taken, started = 0, time.perf_counter()
    while (now := time.perf_counter()) < started + seconds:
        envs.step(actions)
        taken += envs.num_envs
    return taken / (now - started)


def pool_map(envs: Sequence[ToolEnv], pool: ThreadPoolExecutor, actions: Sequence[str], seconds: float) -> float:
    for number, env in enumerate(envs):
        env.reset(seed=number)
    taken, started = 0, time.perf_counter()
    while (now := time.perf_counter()) < started + seconds:
        results = list(pool.map(lambda env, action: env.step(action), envs, actions))
        taken += len(results)
        if results[0][2]:  # all have as many turns
            list(pool.map(ToolEnv.reset, envs))
            taken += len(envs)
    return taken / (now - started)


def compare(ways: dict[str, Way], seconds: float, rounds: int) -> dict[str, float]:
    """Shows each way's steps a second; the median of the rounds."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            rates[name].append(way(seconds))
    for name, measured in rates.items():
        print(
            f"  {name:<34} {statistics.median(measured):9,.0f} steps/s   "
            f"({min(measured):,.0f} to {max(measured):,.0f}, {rounds} rounds)",
            flush=True,
        )
    return {name: statistics.median(measured) for name, measured in rates.items()}


def tools(count: int, seconds: float, rounds: int) -> None:
    actions = [f"<wait>{DELAY}</wait>"] * count
    for turns in (LONG, SHORT):
        most = count / DELAY
        print(f"tools: {count} environments, a tool of {DELAY * 1e3:.0f} ms, {turns} turns; at most {most:,.0f} steps/s")
        envs = ThreadVectorEnv([partial(make, turns)] * count)
        ways: dict[str, Way] = {"send/recv": partial(send_recv, envs, actions), "step": partial(step, envs, actions)}
        with ThreadPoolExecutor(count) as pool:
            ways["a thread pool's map"] = partial(pool_map, [make(turns) for _ in range(count)], pool, actions)
            compare(ways, seconds, rounds)
        envs.close()


def straggler(count: int, seconds: float, rounds: int) -> None:
    print(f"straggler: {count} environments, a tool of {DELAY * 1e3:.0f} ms, in one of them of {STRAGGLER:.0f} s")
    envs = ThreadVectorEnv([partial(make, LONG)] * count)
    usual = [f"<wait>{DELAY}</wait>"] * count
    slow = [f"<wait>{STRAGGLER}</wait>", *usual[1:]]
    rates = compare(
        {
            "send/recv": partial(send_recv, envs, usual),
            "send/recv with the straggler": partial(send_recv, envs, slow),
            "step with the straggler": partial(step, envs, slow),
        },
        seconds,
        rounds,
    )
    print(f"  send/recv loses {1 - rates['send/recv with the straggler'] / rates['send/recv']:.1%} by it")
    envs.close()


def text(count: int, seconds: float, rounds: int) -> None:
    for name, character in TEXTS.items():
        print(f"text: {count} environments, observations of {CHARACTERS:,} characters, {name}")
        actions = [f"<write>{character}</write>"] * count
        makers = [partial(make, LONG)] * count
        envs, sync, processes = ThreadVectorEnv(makers), SyncVectorEnv(makers), AsyncVectorEnv(makers)
        bares = [partial(Bare, character)] * count
        bare, bare_processes = ThreadVectorEnv(bares), AsyncVectorEnv(bares)
        compare(
            {
                "send/recv": partial(send_recv, envs, actions),
                "step": partial(step, envs, actions),
                "sync": partial(step, sync, actions),
                "async": partial(step, processes, actions),
                "send/recv, bare": partial(send_recv, bare, actions),
                "async, bare": partial(step, bare_processes, actions),
            },
            seconds,
            rounds,
        )
        for vector in (envs, sync, processes, bare, bare_processes):
            vector.close()


def left() -> Iterator[str]:
    """What may be left: counts of threads, of open files, of child processes."""
    yield f"{threading.active_count() - 1} threads"
    yield f"{len(os.listdir('/proc/self/fd')) - 4} files beside the first three"  # and the listing's own
    yield f"{len(Path(f'/proc/self/task/{os.getpid()}/children').read_text().split())} processes"


def life(times: int) -> None:
    print(f"life: {times:,} times two environments made, reset, stepped and closed")
    gc.collect()
    print(f"  before: {', '.join(left())}")
    started = time.perf_counter()
    for _ in range(times):
        envs = ThreadVectorEnv([partial(make, LONG)] * 2)
        envs.reset(seed=0)
        envs.step(["<wait>0</wait>"] * 2)
        envs.close()
    seconds = time.perf_counter() - started
    gc.collect()
    print(f"  {seconds / times * 1e3:.2f} ms each; after: {', '.join(left())}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures vector environments.")
    parser.add_argument("--envs", type=int, default=256, help="environments with a tool that sleeps")
    parser.add_argument("--text-envs", type=int, default=16, help="environments with long observations")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", type=int, default=1_000, help="opens and closes")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    print(f"Python {sys.version.split()[0]}, threads change over after {sys.getswitchinterval() * 1e3:.0f} ms at most")
    show_load("before")
    if "tools" in arguments.only:
        tools(arguments.envs, arguments.seconds, arguments.rounds)
    if "straggler" in arguments.only:
        straggler(arguments.envs, arguments.seconds, arguments.rounds)
    if "text" in arguments.only:
        text(arguments.text_envs, arguments.seconds, arguments.rounds)
    if "life" in arguments.only:
        life(arguments.times)
    show_load("after")


if __name__ == "__main__":
    main()

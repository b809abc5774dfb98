"""Wandering environments, a policy that writes what it is told, and groups of them: what the tests of branching share."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from policies import TOKENIZER, random_policy

from agent_envs import Tool, ToolEnv
from agent_envs.tasks.arithmetic import Arithmetic
from agent_envs.verifiers.math import MathVerifier
from learners.arpo import ARPO, ARPOConfig
from learners.rollout.engine import Engine
from learners.rollout.episode import Limits
from learners.rollout.rendering import Renderer
from learners.rollout.tree import Leaf, RolloutTree
from learners.sampling.sampler import Continuation
from learners.sampling.transformers import TransformersSampler

RENDERER = Renderer(TOKENIZER)
END = TOKENIZER.eos_token_id
ENDS = (END, *range(0, 256, 6))  # an untaught policy would hardly ever end its turn by the one right token
FIRST = (0, 1)  # names the batch; a group's place is this and its index
VOCABULARY = 16


# An environment whose every observation depends on all that was done before it


def digest(history: list[str]) -> bytes:
    return hashlib.blake2b("|".join(history).encode()).digest()


def is_over(history: list[str]) -> bool:
    """Whether an episode ends with these, its question and its actions so far: between one turn and five."""
    return digest(history)[0] % 3 == 0 or len(history) == 6


class Wander(gym.Env[str, str]):
    """Observations are digests of the whole history, and so is where it ends."""

    observation_space = gym.spaces.Text(200)
    action_space = gym.spaces.Text(200)

    def __init__(self, wait: float = 0.0) -> None:
        self.wait = wait

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.history = [f"question {seed}"]
        return self.history[0], {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.wait:
            time.sleep(np.random.default_rng().random() * self.wait)  # nobody's seed
        self.history.append(action)
        found = digest(self.history)
        return found[:4].hex(), found[1] / 256, is_over(self.history), False, {"tool_calls": len(self.history) - 1}


class Locked(Wander):
    """Holds what Python has no copy of."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Stubborn(Tool):
    """Adds up what it is given."""

    fidelity = "none"

    def reset(self, task, rng):
        self.total = 0

    def run(self, amount: int) -> str:
        self.total += amount
        return str(self.total)


def stubborn() -> ToolEnv:
    return ToolEnv(tasks=Arithmetic(), tools=[Stubborn()], verifier=MathVerifier(), max_turns=4)


gym.register("tests/Wander-v0", Wander)
gym.register("tests/Locked-v0", Locked)
gym.register("tests/Stubborn-v0", stubborn)
WANDER = "branching_parts:tests/Wander-v0"


# A policy that is a function of a path and a turn, behind the contract of a sampler


@dataclass(frozen=True)
class Written:
    """What the policy writes in one turn."""

    text: str
    entropies: tuple[float, ...]


def drawn(path: tuple[int, ...], turn: int) -> Written:
    """One to six letters, each as unsure as chance will have it; the end of the turn is sure."""
    rng = np.random.default_rng([*path, 0, turn])
    length = int(rng.integers(1, 7))
    return Written("".join(rng.choice(list("abcd"), length)), (*rng.uniform(0, 3, length).tolist(), 0.0))


class Scripted:
    """A sampler that writes what a function of path and turn says, and takes its time."""

    entropy = "full"
    version = 0
    vocabulary = VOCABULARY

    def __init__(self, script=drawn, patience: int = 3) -> None:
        self.script, self.patience = script, patience
        self.rng = np.random.default_rng()  # of arrival, which must not matter
        self.live: set[tuple[int, ...]] = set()
        self.most = 0
        self.deserted = 0  # times that the loop went on with no stream
        self.alone = False

    def start(self, path):
        return ScriptedStream(self, path)

    def load_weights(self, parameters, version): ...

    def release_memory(self): ...


class ScriptedStream:
    def __init__(self, sampler: Scripted, path: tuple[int, ...]) -> None:
        self.path, self.ids, self.turn, self.began = path, [], 0, 0
        self.sampler = sampler
        self.action: Continuation
        assert path not in sampler.live
        sampler.live.add(path)
        sampler.alone = False
        sampler.most = max(sampler.most, len(sampler.live))

    def append(self, ids):
        self.ids.extend(ids)

    def decode(self, decoding):
        written = self.sampler.script(self.path, self.turn)
        stopped = any(written.text.endswith(stop) for stop in decoding.stop)
        ids = [*TOKENIZER.encode(written.text, add_special_tokens=False), *([] if stopped else [END])]
        entropies = (*written.entropies, *[0.0] * len(ids))[: len(ids)]
        self.action = Continuation(tuple(ids), (-1.0,) * len(ids), entropies, written.text, "stop" if stopped else "eos")
        self.began = len(self.ids)
        self.ids.extend(ids)
        self.turn += 1

    async def first(self, k):
        await self.pause()
        action = self.action
        return Continuation(action.ids[:k], action.logprobs[:k], action.entropies[:k], "", None)

    async def rest(self):
        await self.pause()
        return self.action

    async def pause(self):
        for _ in range(int(self.sampler.rng.integers(1 + self.sampler.patience))):
            await asyncio.sleep(0)

    def fork(self, path, at=None):
        twin = ScriptedStream(self.sampler, path)
        twin.ids = self.ids[:at]
        twin.turn = self.turn if at is None or at > self.began else self.turn - 1
        return twin

    def park(self): ...

    def unpark(self): ...

    def cancel(self):
        if self.path in self.sampler.live:
            self.sampler.live.discard(self.path)
            asyncio.get_running_loop().call_soon(self.look_around)

    def look_around(self):
        alone = not self.sampler.live
        self.sampler.deserted += alone and not self.sampler.alone
        self.sampler.alone = alone


ROOMY = Limits(turn_tokens=300, total_tokens=6000)


def explored(
    config: ARPOConfig, make_env=Wander, sampler=None, *, learner=ARPO, groups=1, limits=ROOMY, deterministic=False
):
    """The trees of some groups."""

    async def everything():
        own = Scripted() if sampler is None else sampler
        engine = Engine(
            make_env, own, RENDERER, limits=limits, concurrency=2 * config.group_size, deterministic=deterministic
        )
        try:
            play = engine.rollout(
                list(range(groups)), learner(config).explore, path=FIRST, group_size=config.group_size, temperature=1.0
            )
            return await asyncio.wait_for(play, 120)
        finally:
            engine.close()

    return asyncio.run(everything())


def actions_of(leaf: Leaf) -> list[str]:
    return [turn.thought + turn.action for turn in leaf.turns]


def branches_of(tree: RolloutTree) -> list[Leaf]:
    return [leaf for leaf in tree.leaves if len(leaf.path) > 1]


def always(**options) -> ARPOConfig:
    """Branches wherever it may."""
    return ARPOConfig(**{"env": WANDER, "group_size": 6, "initial_rollouts": 2, "alpha": 1.0, "beta": 0.0} | options)


def sampled(config, *, deterministic, wait=0.0, groups=4, learner=ARPO):
    """The trees of some groups that a random policy plays."""
    sampler = TransformersSampler(random_policy(), TOKENIZER, seed=config.seed, eos=ENDS, deterministic=deterministic)
    limits = Limits(turn_tokens=12, total_tokens=600)
    return explored(
        config,
        lambda: Wander(wait),
        sampler,
        learner=learner,
        groups=groups,
        limits=limits,
        deterministic=deterministic,
    )

"""A talkative environment, small banks, and policies that write what they are told: what the tests of retrieval share."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
from policies import TOKENIZER, random_policy

from learners.rapo import RAPO, RAPOConfig
from learners.rollout.engine import Engine
from learners.rollout.episode import Limits
from learners.rollout.rendering import Renderer
from learners.sampling.sampler import Continuation
from learners.sampling.transformers import TransformersSampler
from tracebank import StepTrace, TraceBank, Turn, render_history, render_step

RENDERER = Renderer(TOKENIZER)
ENDS = (TOKENIZER.eos_token_id, *range(0, 256, 6))
"""An untaught policy would hardly ever end its turn by the one right token."""
CONTROLS = {token.content: index for index, token in TOKENIZER.added_tokens_decoder.items()}
ROOMY = Limits(turn_tokens=60, total_tokens=2000)


class Talk(gym.Env[str, str]):
    """Six turns, each paid by how long it is; an action that says "stop" ends them."""

    observation_space = gym.spaces.Text(200)
    action_space = gym.spaces.Text(200)

    def __init__(self, wait: float = 0.0) -> None:
        self.wait = wait

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.turn = 0
        return f"What is number {seed}?", {"task_id": f"talk-{seed}"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        time.sleep(self.wait * (len(action) % 5))
        self.turn += 1
        return f"heard {len(action)}", 0.02 * len(action), self.turn == 6 or "stop" in action, False, {}


gym.register("tests/Talk-v0", Talk)


def step(key, value, *, reward=1.0, task="elsewhere", number=1, final=False, format="plain", question=""):
    return StepTrace(task, number, key, value, reward, final, "test", question=question, format=format)


def bank_of(folder: Path, *steps: StepTrace) -> Path:
    with TraceBank.create(folder / "bank") as bank:
        bank.add(steps)
    return folder / "bank"


def some_steps():
    return [step(f"What is number {n}?\nword {n}heard {n % 9}", f"thought {n}, <think>not sure</think>") for n in range(40)]


def attempts(count: int = 12, tail: int = 3) -> list[list[StepTrace]]:
    """Steps of whole trajectories, each on a task of its own; the last one of each ended it."""
    found = []
    for number in range(count):
        question = f"What is number {100 + number}?"
        turns = [Turn(f"thought {number}, ", f"move {turn}", f"saw {number} {turn}") for turn in range(tail)]
        steps = [
            step(
                render_history(question, turns[:turn]),
                render_step(turns[turn]),
                task=f"task {number}",
                number=turn,
                final=turn == tail - 1,
                question=question,
            )
            for turn in range(tail)
        ]
        found.append(steps)
    return found


def learner_of(bank: Path | None, learner=RAPO, config=RAPOConfig, **options):
    if bank is not None:
        options["bank"] = str(bank)
    return learner(config(**{"env": "tests/Talk-v0", "group_size": 6, "deterministic": True, **options}))


def play(explore, *, make_env=Talk, sampler=None, groups=2, group_size=6, limits=ROOMY, tokenizer=TOKENIZER):
    async def everything():
        own = sampler or TransformersSampler(random_policy(), TOKENIZER, seed=0, eos=ENDS, deterministic=True)
        engine = Engine(make_env, own, Renderer(tokenizer), limits=limits, concurrency=64, deterministic=True)
        try:
            return await engine.rollout(list(range(groups)), explore, path=(0, 1), group_size=group_size, temperature=1.0)
        finally:
            engine.close()

    return asyncio.run(everything())


class Script:
    """A sampler whose policy writes the same actions in every episode, one a turn."""

    entropy, version, vocabulary = "full", 0, len(TOKENIZER)

    def __init__(self, *actions: str, tokenizer=TOKENIZER) -> None:
        self.actions, self.tokenizer = actions, tokenizer

    def start(self, path):
        return _Line(self.actions, self.tokenizer)


class _Line:
    def __init__(self, actions, tokenizer):
        self.ids, self._actions, self._tokenizer = [], iter(actions), tokenizer

    def append(self, ids):
        self.ids.extend(ids)

    def decode(self, decoding):
        self._text = next(self._actions)

    async def rest(self):
        ids = self._tokenizer.encode(self._text, add_special_tokens=False)
        self.ids.extend(ids)
        zeros = (0.0,) * len(ids)
        return Continuation(tuple(ids), zeros, zeros, self._text, "stop")

    def cancel(self):
        pass


def text_of(ids) -> str:
    return TOKENIZER.decode(list(ids), skip_special_tokens=False)


def authors(tree, leaf) -> str:
    """A path in letters: p(rompt), w(ritten by the policy), t(ool), r(etrieved)."""
    letters = {"prompt": "p", "policy": "w", "tool": "t", "retrieved": "r"}
    return "".join(letters[segment.author] for segment, _ in tree.path(leaf))


def inserted(tree, leaf) -> list[str]:
    """The steps that were put into a trajectory, without their tags."""
    texts = [text_of(segment.ids) for segment, _ in tree.path(leaf) if segment.author == "retrieved"]
    assert all(text.startswith("<retrieve>\n") and text.endswith("\n</retrieve>\n") for text in texts)
    return [text.removeprefix("<retrieve>\n").removesuffix("\n</retrieve>\n") for text in texts]

"""The policy that every arm of the lab begins with: it can talk, copy and read a retrieved step, and half knows the rule.

It is taught in two parts. First it copies: rows of random rooms that come twice, so that arms differ in what they do and not
in whether copying has formed. Then it imitates an expert who is sure where there is nothing to decide. At a sign the expert
takes the right door in `RIGHT` of cases, and at half of the signs one certain wrong door more often than that; a locked door
it unlocks in `RARE` of cases. Half of the episodes hold steps of others, put in as RAPO puts them in: half of these answer
the situation, and then the expert mostly does as they do; the others answer any.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from agent_envs import Call
from agent_envs.actions import Piece
from agent_envs.moves import Move
from lab.task import COLOURS, ROOMS, RULE, SIGNS, environment, move_for
from learners.rollout.episode import Dialect
from learners.rollout.rendering import Renderer
from learners.rollout.retrieved import retrieved_block
from learners.run.tiny import Recipe, optimizers, tiny_tokenizer, untaught
from learners.update.supervised import Example, fit
from tracebank import render_step
from tracebank.trajectory import Turn

TAGS = ("think", "go", "unlock", "result", "answer", "retrieve")
RECIPE = Recipe(hidden=64, layers=2, heads=4, key_value_heads=4, head_size=32, feed_forward=128, seed=0)

RIGHT = (0.55, 0.25)
"""How often the expert takes the right door, at the signs that it knows and at those that it does not."""
MISTAKEN = 0.4
"""How often it takes one certain wrong door at signs that it does not know."""
RARE = 0.06
FOLLOWS = 0.7
"""How often it does as a step does that fits the situation."""

COPY_STEPS, STEPS, BATCH, EPISODES = 120, 400, 32, 4096


@dataclass(frozen=True)
class _Expert:
    """Acts as the warm start's expert does.

    Args:
        rng: Decides.
    """

    rng: np.random.Generator

    def move(self, observation: str, *, helped: bool) -> Move:
        """A move after a room's text; ``helped`` by a step that fits the situation."""
        right = move_for(observation)
        sign = f" {observation.split()[0]}"
        if helped and self.rng.random() < FOLLOWS:
            return right
        if sign == " locked" and isinstance(right, Call):
            return right if self.rng.random() < RARE else Call("go", right.arguments)
        if sign not in RULE:
            return right
        known = SIGNS.index(sign) % 2 == 0
        chances = np.zeros(len(COLOURS))
        place = COLOURS.index(RULE[sign])
        chances[place] = RIGHT[0] if known else RIGHT[1]
        if not known:
            chances[(place + 1) % len(COLOURS)] = MISTAKEN
        free = chances == 0
        chances[free] = (1 - chances.sum()) / free.sum()
        door = 2 * int(self.rng.choice(len(COLOURS), p=chances)) + 1
        return Call("go", {"door": "".join(f" {word}" for word in observation.split()[door : door + 2])})


def situation(observation: str) -> str:
    """What a room's text asks for: a sign, "on", "locked" or "end"."""
    return observation.split()[0]


class _Episodes:
    """Plays the expert's episodes and turns them into examples."""

    def __init__(self, renderer: Renderer, seed: int) -> None:
        self._renderer, self._seed = renderer, seed
        self._env = environment()
        self._dialect = Dialect.of(self._env)

    def steps_of_others(self, count: int) -> Mapping[str, Sequence[str]]:
        """Right steps, by the situation that they answer."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for index in range(count):
            seen, _ = self._env.reset(seed=index)
            ended = False
            while not ended:
                move = move_for(seen)
                action = self._dialect.format.write(move, self._dialect.tools)
                observation, _, terminated, truncated, _ = self._env.step(action)
                ended = terminated or truncated
                if not ended:
                    found[situation(seen)].append(render_step(Turn("", action, observation)))
                seen = observation
        return found

    def play(self, index: int, others: Mapping[str, Sequence[str]]) -> Example:
        """One episode as token ids, of which the expert's own count."""
        dialect, rng = self._dialect, np.random.default_rng([self._seed, index])
        expert, retrieves = _Expert(rng), rng.random() < 0.5
        seen, _ = self._env.reset(seed=int(rng.integers(2**31)))
        ids = self._renderer.opening(dialect.format.opening(seen, dialect.system_prompt, dialect.tools))
        own = [False] * len(ids)
        ended, first = False, True
        while not ended:
            helped = False
            if retrieves and not first and rng.random() < 0.5:
                helped = situation(seen) in others and bool(rng.random() < 0.5)
                kind = situation(seen) if helped else str(rng.choice([*others]))
                step = others[kind][int(rng.integers(len(others[kind])))]
                block = self._renderer.encode(retrieved_block(step, dialect))
                ids += block
                own += [False] * len(block)
            action = dialect.format.write(expert.move(seen, helped=helped), dialect.tools)
            written = self._renderer.encode([Piece(action, trusted=True)])
            seen, _, terminated, truncated, _ = self._env.step(action)
            ended, first = terminated or truncated, False
            read = [] if ended else self._renderer.observation(dialect.format.observe(seen), turn_ended=False)
            ids += written + read
            own += [True] * len(written) + [False] * len(read)
        return Example(ids, [float(mine) for mine in own])


def _copies(tokenizer_ids: Sequence[int], rng: np.random.Generator) -> Example:
    """A row of random rooms that comes twice; the second time counts."""
    row = rng.choice(tokenizer_ids, size=int(rng.integers(8, 25))).tolist()
    return Example([*row, *row], [0.0] * len(row) + [1.0] * len(row))


def save_policy(folder: Path, *, seed: int = 0) -> None:
    """Teaches the policy and saves it, with its tokenizer, where ``--model`` finds it."""
    torch.set_num_threads(1)  # part of what makes two policies equal
    tokenizer = tiny_tokenizer(environment().tasks.vocabulary, TAGS)
    renderer = Renderer(tokenizer)
    model = untaught(RECIPE, tokenizer)
    model.train()
    rng = np.random.default_rng(seed)
    rooms = [tokenizer.encode(room, add_special_tokens=False)[0] for room in ROOMS]
    copies = [_copies(rooms, rng) for _ in range(EPISODES)]
    episodes = _Episodes(renderer, seed)
    others = episodes.steps_of_others(200)
    imitated = [episodes.play(index, others) for index in range(EPISODES)]
    for examples, steps in ((copies, COPY_STEPS), (imitated, STEPS)):
        fit(model, examples, optimizers=optimizers(model, RECIPE, 0.5), steps=steps, batch_size=BATCH, rng=rng)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    model.eval().save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)

"""The teacher of the tiny policy: episodes of an environment's oracle, with and without mistakes, as token ids.

Some of them meet a step of another episode on their way and go on as they would have: a policy that has never seen a
``<retrieve>`` block takes what stands in it for its own result. Where the environment has no oracle the teacher teaches
something general instead, and says so.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from agent_envs.actions import Piece
from agent_envs.env import ToolEnv
from agent_envs.moves import Answer, Call
from agent_envs.task import NoOracle
from learners.rollout.episode import Dialect
from learners.rollout.rendering import Renderer
from learners.rollout.retrieved import retrieved_block
from learners.update.supervised import Example
from tracebank import Turn, render_step
from tracebank.trajectory import Author

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Played:
    """An episode that was played.

    Args:
        opening: Token ids of its opening.
        turns: What the expert wrote in each turn, and what was read then, as token ids.
        steps: The steps that it went on from, as a bank writes them.
        dialect: How its environment is talked to.
    """

    opening: list[int]
    turns: list[tuple[list[int], list[int]]]
    steps: list[str]
    dialect: Dialect


class Teacher:
    """Plays episodes worth imitating, some of them with mistakes, and turns them into examples.

    Args:
        make_env: Makes the environment.
        renderer: Turns its texts into tokens.
        seed: Of the episodes.
        copied_weight: Weight of the tokens that the policy does not write but could copy, since they followed the same token
            earlier on.
        context_weight: Weight of the other tokens that it does not write.
    """

    def __init__(
        self,
        make_env: Callable[[], gym.Env[Any, Any]],
        renderer: Renderer,
        *,
        seed: int,
        copied_weight: float,
        context_weight: float,
    ) -> None:
        self._make_env, self._renderer, self._seed = make_env, renderer, seed
        self._copied_weight, self._context_weight = copied_weight, context_weight
        probe = make_env()
        self.general = not isinstance(probe.unwrapped, ToolEnv)
        if isinstance(probe.unwrapped, ToolEnv):
            try:
                probe.reset(seed=0)
                probe.unwrapped.oracle()
            except NoOracle as none:
                logger.warning("%s: the tiny policy is taught on MathTool-v0's own tasks instead", none)
                dialect = Dialect.of(probe)
                calls = dialect.format.stop(dialect.tools)  # a format without stop strings has none to teach
                settings: dict[str, Any] = {"format": dialect.format} if calls else {}
                self._make_env = lambda: gym.make("agent_envs/MathTool-v0", disable_env_checker=True, **settings)
        else:
            logger.warning("%s has no oracle: the tiny policy is taught to repeat words of what it reads", probe)
        probe.close()

    def episodes(self, count: int, *, spoilt_share: float, stage: str, retrieved_share: float = 0.0) -> list[Example]:
        """Examples of episodes.

        Args:
            count: How many.
            spoilt_share: Share of them that hold a mistake (`spoiled`).
            stage: Two stages have different episodes.
            retrieved_share: Share of the steps after which a step of another episode is read. Half of those stood where the
                episode itself goes on, the other half anywhere; nothing is learned of the block itself.
        """
        workers = 16
        environments = [self._make_env() for _ in range(min(workers, count))]

        def play_share(first: int) -> list[tuple[int, _Played]]:
            environment = environments[first]
            played = []
            for index in range(first, count, len(environments)):
                rng = np.random.default_rng([self._seed, *stage.encode(), index])
                played.append((index, self._play(environment, rng, spoilt=rng.random() < spoilt_share)))
            environment.close()
            return played

        with ThreadPoolExecutor(len(environments)) as pool:
            shares = list(pool.map(play_share, range(len(environments))))
        played = [one for _, one in sorted((pair for share in shares for pair in share), key=lambda pair: pair[0])]
        rng = np.random.default_rng([self._seed, *stage.encode(), count])
        return [self._example(index, played, retrieved_share, rng) for index in range(count)]

    def _play(self, environment: gym.Env[Any, Any], rng: np.random.Generator, *, spoilt: bool) -> _Played:
        dialect = Dialect.of(environment)
        observation, _ = environment.reset(seed=int(rng.integers(2**31)))
        question = observation
        act = self._repeat(rng) if self.general else environment.unwrapped.oracle()  # type: ignore[attr-defined]
        opening = self._renderer.opening(dialect.format.opening(question, dialect.system_prompt, dialect.tools))
        played = _Played(opening, [], [], dialect)
        stops = dialect.format.stop(dialect.tools)
        mistake_at = int(rng.random() < 0.3) if spoilt else -1  # mostly at once
        seen = question  # what the expert acts on: after a mistake of form it makes its move again
        turn, ended = 0, False
        while not ended and turn < 8:
            action = act(seen)
            if turn == mistake_at:
                action = spoiled(action, question, dialect, rng)
            # An answer that no stop string ends can only end with the turn.
            parsed = dialect.format.parse(action, dialect.tools)
            turn_end = [self._renderer.end_id] if isinstance(parsed.move, Answer) and not action.endswith(stops) else []
            written, read = self._renderer.encode([Piece(action, trusted=True)]) + turn_end, []
            observation, _, terminated, truncated, info = environment.step(action)
            seen = seen if info.get("policy_fault") else observation
            ended = terminated or truncated
            if not ended:
                read = self._renderer.observation(dialect.format.observe(observation), turn_ended=bool(turn_end))
                done = Turn(action[: parsed.begin], action[parsed.begin : parsed.end], observation)
                played.steps.append(render_step(done))
            played.turns.append((written, read))
            turn += 1
        return played

    def _example(self, index: int, played: Sequence[_Played], share: float, rng: np.random.Generator) -> Example:
        """The episode of this number, with steps of others in it."""
        own = played[index]
        parts: list[tuple[Author, list[int]]] = [("prompt", own.opening)]
        for number, (written, read) in enumerate(own.turns):
            parts += [("policy", written), ("tool", read)]
            if number < len(own.steps) and rng.random() < share:
                others = [other.steps for place, other in enumerate(played) if place != index]
                alike = [steps[number + 1] for steps in others if len(steps) > number + 1]
                pool = alike if alike and rng.random() < 0.5 else [step for steps in others for step in steps]
                if pool:
                    block = retrieved_block(pool[rng.integers(len(pool))], own.dialect)
                    parts.append(("retrieved", self._renderer.encode(block)))
        return Example([token for _, ids in parts for token in ids], self._weights(parts))

    def _weights(self, parts: Sequence[tuple[Author, Sequence[int]]]) -> list[float]:
        """What each token counts."""
        weights, seen, before = [], set(), -1
        for author, ids in parts:
            for token in ids:
                copied = self._copied_weight if (before, token) in seen else self._context_weight
                weights.append({"policy": 1.0, "retrieved": 0.0}.get(author, copied))
                seen.add((before, token))
                before = token
        return weights

    @staticmethod
    def _repeat(rng: np.random.Generator) -> Callable[[str], str]:
        """What is taught without an oracle: to answer with one word or number of what was just read."""

        def act(observation: str) -> str:
            words = re.findall(r"\w+", observation) or ["yes", "no"]
            return str(rng.choice(words))

        return act


def spoiled(action: str, question: str, dialect: Dialect, rng: np.random.Generator) -> str:
    """The action with one mistake of behaviour: it answers with what should be looked into, or guesses, or breaks the form.

    Behaviour is what reinforcement learning mends; a policy that was taught to copy badly would stay bad.
    """
    move = dialect.format.parse(action, dialect.tools).move
    if move is None or rng.random() < 0.25:
        return re.sub(r"</?\w+>", lambda tag: tag[0] if rng.random() < 0.5 else "", action) or "?"
    known = " ".join(map(str, move.arguments.values())) if isinstance(move, Call) else question
    words = re.findall(r"\d+", known) or re.findall(r"\w+", known) or ["0"]
    return dialect.format.write(Answer(str(rng.choice(words))), dialect.tools)

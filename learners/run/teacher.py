"""The teacher of the tiny policy: episodes of an environment's oracle, with and without mistakes, as token ids.

Where the environment has no oracle it teaches something general instead, and says so.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium as gym
import numpy as np

from agent_envs.actions import Piece
from agent_envs.env import ToolEnv
from agent_envs.moves import Answer, Call
from agent_envs.task import NoOracle
from learners.rollout.episode import Dialect
from learners.rollout.rendering import Renderer
from learners.update.supervised import Example

logger = logging.getLogger(__name__)


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

    def episodes(self, count: int, *, spoilt_share: float, stage: str) -> list[Example]:
        """Examples of episodes.

        Args:
            count: How many.
            spoilt_share: Share of them that hold a mistake (`spoiled`).
            stage: Two stages have different episodes.
        """
        workers = 16
        environments = [self._make_env() for _ in range(min(workers, count))]

        def play_share(first: int) -> list[tuple[int, Example]]:
            environment = environments[first]
            played = []
            for index in range(first, count, len(environments)):
                rng = np.random.default_rng([self._seed, *stage.encode(), index])
                played.append((index, self._episode(environment, rng, spoilt=rng.random() < spoilt_share)))
            environment.close()
            return played

        with ThreadPoolExecutor(len(environments)) as pool:
            shares = list(pool.map(play_share, range(len(environments))))
        return [example for _, example in sorted((pair for share in shares for pair in share), key=lambda pair: pair[0])]

    def _episode(self, environment: gym.Env[Any, Any], rng: np.random.Generator, *, spoilt: bool) -> Example:
        dialect = Dialect.of(environment)
        observation, _ = environment.reset(seed=int(rng.integers(2**31)))
        question = observation
        act = self._repeat(rng) if self.general else environment.unwrapped.oracle()  # type: ignore[attr-defined]
        ids = self._renderer.opening(dialect.format.opening(question, dialect.system_prompt, dialect.tools))
        own = [False] * len(ids)
        stops = dialect.format.stop(dialect.tools)
        mistake_at = int(rng.random() < 0.3) if spoilt else -1  # mostly at once
        seen = question  # what the expert acts on: after a mistake of form it makes its move again
        turn, ended = 0, False
        while not ended and turn < 8:
            action = act(seen)
            if turn == mistake_at:
                action = spoiled(action, question, dialect, rng)
            # An answer that no stop string ends can only end with the turn.
            answers = isinstance(dialect.format.parse(action, dialect.tools).move, Answer)
            turn_end = [self._renderer.end_id] if answers and not action.endswith(stops) else []
            written = self._renderer.encode([Piece(action, trusted=True)]) + turn_end
            ids += written
            own += [True] * len(written)
            observation, _, terminated, truncated, info = environment.step(action)
            seen = seen if info.get("policy_fault") else observation
            ended = terminated or truncated
            if not ended:
                read = self._renderer.observation(dialect.format.observe(observation), turn_ended=bool(turn_end))
                ids += read
                own += [False] * len(read)
            turn += 1
        return Example(ids, self._weights(ids, own))

    def _weights(self, ids: Sequence[int], own: Sequence[bool]) -> list[float]:
        """What each token counts."""
        weights, seen = [], set()
        for pair, is_own in zip(zip([-1, *ids], ids, strict=False), own, strict=True):
            copied = self._copied_weight if pair in seen else self._context_weight
            weights.append(1.0 if is_own else copied)
            seen.add(pair)
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

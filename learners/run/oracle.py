"""An environment's oracle as a player: it plays groups as an engine does for a policy, but writes text and no tokens.

It can be made to err: each of its actions is spoilt with the same probability, by the rule that the tiny policy is taught
with (`learners.run.teacher.spoiled`). Whether and how is a function of (seed, task, attempt, turn) alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import gymnasium as gym
import numpy as np

from agent_envs.env import ToolEnv
from agent_envs.faults import EnvironmentFault
from learners.rollout.engine import Start, as_they_finish
from learners.rollout.episode import Dialect, note_fault, note_step
from learners.rollout.tree import Leaf, RolloutTree
from learners.run.teacher import spoiled


class OraclePlayer:
    """Plays groups of episodes as the environment's oracle would.

    Args:
        make_env: Makes one ``ToolEnv`` whose tasks have an oracle; called as often as episodes are live at once.
        seed: Of the mistakes.
        error_rate: Probability that an action is spoilt, 0 to 1.
        concurrency: Episodes that may be live at once. Each has a thread, since environments are synchronous.
    """

    def __init__(self, make_env: Callable[[], gym.Env[Any, Any]], *, seed: int, error_rate: float, concurrency: int) -> None:
        self._make_env, self._seed, self._error_rate, self._concurrency = make_env, seed, error_rate, concurrency
        self._threads = ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="oracle")
        self._idle: list[gym.Env[Any, Any]] = []

    async def stream(self, starts: Sequence[Start], count: int) -> AsyncGenerator[tuple[int, RolloutTree], None]:
        """Plays ``count`` episodes a start and yields each group as soon as it is finished.

        Yields:
            The index of a start, and its tree, which has leaves but no segments.
        """
        loop = asyncio.get_running_loop()
        slots = asyncio.Semaphore(max(1, -(-self._concurrency // count)))  # enough groups to keep every thread busy

        async def play(index: int) -> tuple[int, RolloutTree]:
            tree = RolloutTree(task_id="", question="", seed=starts[index].seed, version=0)
            async with slots:
                episodes = [(starts[index], tree, attempt) for attempt in range(count)]
                calls = [loop.run_in_executor(self._threads, self._episode, *episode) for episode in episodes]
                tree.leaves += await asyncio.gather(*calls)
            return index, tree

        async with aclosing(as_they_finish(play(index) for index in range(len(starts)))) as finished:
            async for played in finished:
                yield played

    def close(self) -> None:
        """Waits for the episodes that are still being played and closes every environment."""
        self._threads.shutdown(cancel_futures=True)
        for environment in self._idle:
            environment.close()
        self._idle.clear()

    def _episode(self, start: Start, tree: RolloutTree, attempt: int) -> Leaf:
        environment = self._idle.pop() if self._idle else self._make_env()
        leaf = Leaf(path=(attempt,), segment=0)
        try:
            self._play(environment, start, tree, leaf)
        except EnvironmentFault as fault:
            note_fault(leaf, fault)
        finally:
            self._idle.append(environment)
        return leaf

    def _play(self, environment: gym.Env[Any, Any], start: Start, tree: RolloutTree, leaf: Leaf) -> None:
        inner = environment.unwrapped
        assert isinstance(inner, ToolEnv)
        dialect = Dialect.of(environment)
        options = None if start.task_id is None else {"task_id": start.task_id}
        question, info = environment.reset(seed=start.seed, options=options)
        tree.question, tree.task_id = question, info["task_id"]  # the same for every episode of the group
        oracle = inner.oracle()
        intended = oracle(question)
        while not leaf.stop:
            rng = np.random.default_rng([self._seed, leaf.path[0], len(leaf.turns), *tree.task_id.encode()])
            spoilt = rng.random() < self._error_rate
            action = spoiled(intended, question, dialect, rng) if spoilt else intended
            stepped = environment.step(action)
            leaf.stop = note_step(leaf, dialect, action, stepped)
            # A mistake of form brings nothing but a complaint: the move that was meant is still to be made.
            if not leaf.stop and not (spoilt and stepped[4]["policy_fault"]):
                intended = oracle(stepped[0])

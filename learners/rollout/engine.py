"""The rollout engine: many groups of episodes at once.

A *group* is the trajectories of one task. The engine makes the groups and their environments; a learner's ``explore`` says
which episodes a group plays. Nothing waits for the slowest tool of the batch: every episode runs by itself.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium as gym

from learners.rollout.episode import Dialect, Episode, Limits
from learners.rollout.rendering import Renderer
from learners.rollout.tree import Leaf, RolloutTree
from learners.sampling.sampler import Sampler


class Group:
    """One task's trajectories while they are being played; what a learner's ``explore`` is handed.

    Attributes:
        tree: The rollout tree that the episodes write to.
    """

    def __init__(self, engine: Engine, seed: int, path: tuple[int, ...], temperature: float) -> None:
        self.tree = RolloutTree(task_id="", question="", seed=seed, version=engine.sampler.version)
        self._engine, self._path, self._temperature = engine, path, temperature

    async def play(self, count: int) -> list[Leaf]:
        """Plays ``count`` independent episodes from the question on, all at once."""
        begun = len(self.tree.leaves)
        episodes = [self._episode(begun + index) for index in range(count)]
        try:
            return list(await asyncio.gather(*(episode.play() for episode in episodes)))
        finally:
            self._engine.idle.extend(episode.environment for episode in episodes)

    def _episode(self, index: int) -> Episode:
        engine = self._engine
        return Episode(
            engine.idle.pop() if engine.idle else engine.make_env(),
            engine.sampler.start((*self._path, index)),
            self.tree,
            (index,),
            renderer=engine.renderer,
            limits=engine.limits,
            temperature=self._temperature,
            threads=engine.threads,
        )


Explore = Callable[[Group], Awaitable[RolloutTree]]
"""What a learner does with a group: plays its episodes and returns its tree."""


class Engine:
    """Plays groups of episodes.

    Args:
        make_env: Makes one environment; called as often as episodes are live at once, and never more.
        sampler: Continues token sequences.
        renderer: Turns messages into token ids.
        limits: Token limits of a trajectory.
        concurrency: Trajectories that may be live at once.
        deterministic: Starts groups in whole waves, so that which ones are live together does not depend on time.
    """

    def __init__(
        self,
        make_env: Callable[[], gym.Env[Any, Any]],
        sampler: Sampler,
        renderer: Renderer,
        *,
        limits: Limits,
        concurrency: int,
        deterministic: bool,
    ) -> None:
        self.make_env, self.sampler, self.renderer, self.limits = make_env, sampler, renderer, limits
        self.idle: list[gym.Env[Any, Any]] = []
        self.threads = ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="episode")
        self._concurrency, self._deterministic = concurrency, deterministic
        self.idle.append(make_env())
        self.dialect = Dialect.of(self.idle[0])

    async def rollout(
        self, seeds: Sequence[int], explore: Explore, *, path: tuple[int, ...], group_size: int, temperature: float
    ) -> list[RolloutTree]:
        """Plays one group a seed.

        Args:
            seeds: The seed of each group's task, [B].
            explore: What is done with a group.
            path: Names this batch among all of the run, such as (phase, step); seeds the noise of sampling.
            group_size: The most trajectories that ``explore`` has live at once.
            temperature: Of decoding.

        Returns:
            The trees, in the order of the seeds.
        """
        groups = [Group(self, seed, (*path, index), temperature) for index, seed in enumerate(seeds)]
        at_once = max(1, self._concurrency // group_size)
        if self._deterministic:
            trees: list[RolloutTree] = []
            for start in range(0, len(groups), at_once):
                trees += await asyncio.gather(*(explore(group) for group in groups[start : start + at_once]))
        else:
            slots = asyncio.Semaphore(at_once)

            async def in_turn(group: Group) -> RolloutTree:
                async with slots:
                    return await explore(group)

            trees = list(await asyncio.gather(*(in_turn(group) for group in groups)))
        for tree in trees:
            tree.put_in_order()
        return trees

    def close(self) -> None:
        """Closes every environment and ends the threads."""
        list(self.threads.map(lambda environment: environment.close(), self.idle))
        self.idle.clear()
        self.threads.shutdown()


async def independent(group: Group, count: int) -> RolloutTree:
    """The plain way to explore: ``count`` independent episodes."""
    await group.play(count)
    return group.tree


def fault_share(trees: Sequence[RolloutTree]) -> float:
    """The share of trajectories that an environment fault ended."""
    leaves = [leaf for tree in trees for leaf in tree.leaves]
    return sum(bool(leaf.fault) for leaf in leaves) / len(leaves) if leaves else math.nan

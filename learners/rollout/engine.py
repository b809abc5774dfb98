"""The rollout engine: many groups of episodes at once.

A *group* is the trajectories of one task. The engine makes the groups and their environments; a learner's ``explore`` says
which episodes a group plays. Nothing waits for the slowest tool of the batch: every episode runs by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import gymnasium as gym

from learners.rollout.episode import Dialect, Episode, Limits
from learners.rollout.rendering import Renderer
from learners.rollout.tree import Leaf, RolloutTree
from learners.sampling.sampler import Sampler

T = TypeVar("T")


@dataclass(frozen=True)
class Start:
    """What a group begins with.

    Args:
        seed: Every episode of the group is reset with it.
        path: Names the group among all of the run, such as (phase, step, index); seeds the noise of sampling.
        task_id: The task, for an environment that takes ``reset(options={"task_id": ...})``; None for the one that the seed
            draws.
    """

    seed: int
    path: tuple[int, ...]
    task_id: str | None = None


class Group:
    """One task's trajectories while they are being played; what a learner's ``explore`` is handed.

    Attributes:
        tree: The rollout tree that the episodes write to.
    """

    def __init__(self, engine: Engine, start: Start, temperature: float) -> None:
        self.tree = RolloutTree(task_id="", question="", seed=start.seed, version=engine.sampler.version)
        self._engine, self._start, self._temperature = engine, start, temperature
        self._episodes: list[Episode] = []
        self._lent: list[gym.Env[Any, Any]] = []  # the engine's environments; any other is a copy of one

    @property
    def place(self) -> tuple[int, ...]:
        """Names the group among all of the run: what a learner's own random draws depend on."""
        return self._start.path

    async def play(self, count: int) -> list[Leaf]:
        """Plays ``count`` independent episodes from the question on, all at once."""
        begun = len(self.tree.leaves)
        return list(await asyncio.gather(*(self.episode(begun + index).play() for index in range(count))))

    def episode(self, index: int) -> Episode:
        """An episode from the question on, not yet reset.

        Args:
            index: Its place in the group; each is taken once.
        """
        engine = self._engine
        episode = Episode(
            self.spare(),
            engine.sampler.start((*self._start.path, index)),
            self.tree,
            (index,),
            task_id=self._start.task_id,
            renderer=engine.renderer,
            limits=engine.limits,
            temperature=self._temperature,
            threads=engine.threads,
            top_p=engine.top_p,
            top_k=engine.top_k,
        )
        self._episodes.append(episode)
        return episode

    def fork(self, episode: Episode, branch: tuple[int, ...]) -> Episode:
        """A branch of an episode of this group, from before the action that it has begun (`Episode.fork`).

        Args:
            episode: The parent.
            branch: Tells it from the parent's other branches; its place is the parent's with this behind it.
        """
        path = (*episode.leaf.path, *branch)
        twin = episode.fork(path, (*self._start.path, *path))
        self._episodes.append(twin)
        return twin

    def spare(self) -> gym.Env[Any, Any]:
        """An environment that nobody uses."""
        self._lent.append(self._engine.idle.pop() if self._engine.idle else self._engine.make_env())
        return self._lent[-1]

    @property
    def renderer(self) -> Renderer:
        """Turns texts into the policy's tokens."""
        return self._engine.renderer

    @property
    def dialect(self) -> Dialect:
        """How the environment is talked to."""
        return self._engine.dialect

    @property
    def vocabulary(self) -> int:
        """Number of tokens that the policy chooses from."""
        return self._engine.sampler.vocabulary

    async def close(self) -> None:
        """Ends what is still live, gives the environments back and closes their copies. The engine calls it."""
        for episode in self._episodes:
            episode.stream.cancel()
        environments = {id(episode.environment): episode.environment for episode in self._episodes}
        for lent in self._lent:
            environments.pop(id(lent), None)
        loop, threads = asyncio.get_running_loop(), self._engine.threads
        try:  # before anybody else gets the originals: a copy may share engines with its own
            await asyncio.gather(*(loop.run_in_executor(threads, copy.close) for copy in environments.values()))
        finally:
            self._engine.idle.extend(self._lent)
            self._episodes.clear()
            self._lent.clear()


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
        top_p, top_k: Of decoding; see `learners.sampling.sampler.Decoding`.
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
        top_p: float = 1.0,
        top_k: int = 0,
    ) -> None:
        self.top_p, self.top_k = top_p, top_k
        self.make_env, self.sampler, self.renderer, self.limits = make_env, sampler, renderer, limits
        self.idle: list[gym.Env[Any, Any]] = []
        self.threads = ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="episode")
        self._concurrency, self._deterministic = concurrency, deterministic
        self.idle.append(make_env())
        self.dialect = Dialect.of(self.idle[0])

    async def rollout(
        self,
        seeds: Sequence[int],
        explore: Explore,
        *,
        path: tuple[int, ...],
        group_size: int,
        temperature: float,
        only: Sequence[int] | None = None,
    ) -> list[RolloutTree]:
        """Plays one group a seed.

        Args:
            seeds: The seed of each group's task, [B].
            explore: What is done with a group.
            path: Names this batch among all of the run, such as (phase, step); seeds the noise of sampling.
            group_size: The most trajectories that ``explore`` has live at once.
            temperature: Of decoding.
            only: Which of the groups to play, where others play the rest; default: all. It is a group's index among all
                seeds that its noise depends on.

        Returns:
            The trees, in the order of the seeds (of ``only``).
        """
        indices = range(len(seeds)) if only is None else only
        starts = [Start(seeds[index], (*path, index)) for index in indices]
        trees: dict[int, RolloutTree] = {}
        async with aclosing(self.stream(starts, explore, group_size=group_size, temperature=temperature)) as finished:
            async for index, tree in finished:
                trees[index] = tree
        return [trees[index] for index in range(len(starts))]

    async def stream(
        self, starts: Sequence[Start], explore: Explore, *, group_size: int, temperature: float
    ) -> AsyncGenerator[tuple[int, RolloutTree], None]:
        """Plays one group a start and yields each tree as soon as it is finished, so that nobody has to hold them all.

        Args:
            starts: What each group begins with, [B]. When the engine is deterministic, they are played in waves of
                ``at_once(group_size)``, and which of them share a wave is part of what makes two runs equal.
            explore, group_size, temperature: As for `rollout`.

        Yields:
            The index of a start, and its tree.
        """
        at_once = self.at_once(group_size)
        slots = asyncio.Semaphore(at_once)

        async def play(index: int) -> tuple[int, RolloutTree]:
            async with slots:
                group = Group(self, starts[index], temperature)
                try:
                    tree = await explore(group)
                finally:
                    await group.close()
            tree.put_in_order()
            return index, tree

        width = at_once if self._deterministic else max(1, len(starts))
        for first in range(0, len(starts), width):
            wave = range(first, min(first + width, len(starts)))
            async with aclosing(as_they_finish(play(index) for index in wave)) as finished:
                async for played in finished:
                    yield played

    def at_once(self, group_size: int) -> int:
        """How many groups are live at once."""
        return max(1, self._concurrency // group_size)

    def close(self) -> None:
        """Closes every environment and ends the threads."""
        self.threads.shutdown(cancel_futures=True)  # waits for calls whose episodes were cancelled
        with ThreadPoolExecutor(max_workers=max(1, len(self.idle))) as closing:
            list(closing.map(lambda environment: environment.close(), self.idle))
        self.idle.clear()


async def as_they_finish(jobs: Iterable[Coroutine[Any, Any, T]]) -> AsyncGenerator[T, None]:
    """Runs coroutines side by side and yields each result as soon as it is there; whoever leaves early ends the rest.

    Close it (`contextlib.aclosing`), or what is left goes on until it is collected.
    """
    waiting = {asyncio.ensure_future(job) for job in jobs}

    def ended(task: asyncio.Future[T]) -> None:
        waiting.discard(task)  # its result lives no longer than its reader needs it
        if not task.cancelled():
            task.exception()  # the first that fails is raised; asyncio need not complain that nobody asked for the others

    finished = asyncio.as_completed(list(waiting))
    for task in list(waiting):
        task.add_done_callback(ended)
    try:
        for done in finished:
            yield await done
    finally:
        rest = list(waiting)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)


async def independent(group: Group, count: int) -> RolloutTree:
    """The plain way to explore: ``count`` independent episodes."""
    await group.play(count)
    return group.tree

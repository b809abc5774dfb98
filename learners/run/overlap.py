"""Where the trainer gets its batches from: played in turn, or one ahead, while the batch before is learned from.

In turn, a batch is sampled from the very weights that learn from it, and the trainer waits for the slowest tool of each
batch. One ahead (``--async-steps 1``), with version v the weights after v batches:

    trainer    waits             learns from batch 1      learns from batch 2      learns from batch 3
    sampler    batch 1 from v0   batch 2 from v0          batch 3 from v1          batch 4 from v2

A batch is of one version throughout: new weights are loaded between two batches, when both halves have ended and no stream
is live. So every batch but the first is one step stale, never more; what the trainer's ratios are to, and how the step
between is corrected for, is said in `learners.update.step`.

Everything here is one task and one thread beside the event loop, and both end with the run, however it ends.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import torch

from learners.rollout.tree import RolloutTree
from learners.sampling.sampler import Sampler

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Played:
    """A batch that was played.

    Args:
        trees: The groups to learn from.
        everything: Those, and the ones that were refused.
        seconds: How long playing it took.
    """

    trees: list[RolloutTree]
    everything: list[RolloutTree]
    seconds: float


class Ended(RuntimeError):
    """Raised in the middle of learning when the run has ended meanwhile."""


class Batches:
    """The batches of a run, in order; an asynchronous context manager, which ends what is in flight.

    Args:
        play: Plays the batch of a step: the groups to learn from, and all that were played. Steps count from 0.
        sampler: What they are sampled by; where batches are played ahead, over weights of its own.
        parameters: The weights in training.
        steps: How many batches there are.
        ahead: Whether to play each while the one before it is learned from.
        saves_after: Whether a checkpoint is going to be saved after so many batches, so that what the batch in flight is
            sampled from then has to be kept.
        keeps: Whether this process keeps it. Where there are several, all get weights at once, and the first one saves them.
    """

    def __init__(
        self,
        play: Callable[[int], Awaitable[tuple[list[RolloutTree], list[RolloutTree]]]],
        sampler: Sampler,
        parameters: Callable[[], Iterable[tuple[str, torch.Tensor]]],
        *,
        steps: int,
        ahead: bool,
        saves_after: Callable[[int], bool],
        keeps: bool = True,
    ) -> None:
        self._play, self._sampler, self._parameters = play, sampler, parameters
        self._steps, self._ahead, self._saves_after, self._keeps = steps, ahead, saves_after, keeps
        self._flying: asyncio.Task[Played] | None = None
        self.in_flight: dict[str, torch.Tensor] | None = None
        """What the batch in flight is sampled from, where a checkpoint is due before it is learned from; on the CPU."""
        self.seconds_of_load = 0.0
        """How long the sampler took to get its newest weights."""

    async def __aenter__(self) -> Batches:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends the batch in flight. An error of its own that nobody has heard of is logged."""
        if self._flying is not None:
            self._flying.cancel()
            await asyncio.wait({self._flying})
            _tell_if_lost(self._flying, error, "playing the next batch")

    async def take(self, step: int) -> Played:
        """The batch of a step, as soon as it is played; where batches are played ahead, the next one is begun.

        The first one after a start or a resume is sampled from whatever the sampler holds.
        """
        played = await (self._flying or self._timed(step))
        if not self._ahead:
            return played
        self._flying, self.in_flight = None, None
        self.load(step)
        if step + 1 < self._steps:
            if self._saves_after(step + 1):
                self.in_flight = {}
                for name, tensor in self._parameters():  # to the end, also where nothing is kept: all help to gather them
                    if self._keeps:
                        self.in_flight[name] = tensor.detach().to("cpu", copy=True)
            self._flying = asyncio.create_task(self._timed(step + 1))
        return played

    async def learn(self, job: Callable[[Callable[[], None]], T]) -> T:
        """Does the learning: in a thread, where a batch is in flight.

        Args:
            job: Handed a function to be called every now and then, which raises `Ended` where the run has ended meanwhile.

        Raises:
            Exception: What either half ended by, once the other has ended too.
        """
        flying = self._flying
        if flying is None:
            return job(lambda: None)
        end = threading.Event()

        def go_on() -> None:
            if end.is_set():
                raise Ended("the run has ended")

        learning = asyncio.create_task(asyncio.to_thread(job, go_on))
        told: BaseException | None = None
        try:
            await asyncio.wait({learning, flying}, return_when=asyncio.FIRST_COMPLETED)
            if flying.done():
                flying.result()  # what ended the rollouts ends the learning
            await asyncio.wait({learning})
            return learning.result()
        except BaseException as problem:
            told = problem
            raise
        finally:
            end.set()
            await asyncio.wait({learning})  # a thread cannot be cancelled
            _tell_if_lost(learning, told, "learning from the batch")

    async def current(self, step: int) -> None:
        """Gives the sampler the weights of this step for something else than a batch; the batch in flight ends first."""
        if self._flying is not None:
            await self._flying
        self.load(step)

    def load(self, step: int) -> None:
        """Gives the sampler the weights in training. No stream may be live."""
        if self._sampler.version != step:
            begun = time.monotonic()
            self._sampler.load_weights(self._parameters(), step)
            self.seconds_of_load = time.monotonic() - begun

    async def _timed(self, step: int) -> Played:
        begun = time.monotonic()
        trees, everything = await self._play(step)
        if not self._ahead:
            self._sampler.release_memory()  # the update may need it
        return Played(trees, everything, time.monotonic() - begun)


def _tell_if_lost(task: asyncio.Task[T], told: BaseException | None, what: str) -> None:
    """Logs the error that a task ended by, where it is not the one that ended the run."""
    problem = None if task.cancelled() else task.exception()
    if problem is not None and problem is not told and not isinstance(problem, Ended):
        logger.error("%s has failed as well: %r", what, problem)

"""The workers of a vector environment, as their caller deals with them: who owes what, what comes back, how they end.

Nothing in here knows of batches, of the state of an episode or of the meaning of a result.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

from agent_envs.vector.worker import Apply, Env, Facts, Reset, Result, Step, Worker

logger = logging.getLogger(__name__)


class Crew:
    """A worker for each environment. One thread at a time may use it.

    Args:
        env_fns: Make the environments, all at the same time.
        same_step: As for `Worker`.
        close_timeout: Seconds that the others get to end in if one cannot be made.

    Attributes:
        facts: What each environment said about itself.
        owes: For each environment whether a result of its is still to be taken.
        pending: How many those are.

    Raises:
        Exception: What an ``env_fn`` raised; the other environments are closed again.
    """

    def __init__(self, env_fns: Sequence[Callable[[], Env]], same_step: bool, close_timeout: float) -> None:
        self.owes = [False] * len(env_fns)
        self.pending = 0
        self._results: SimpleQueue[Result] = SimpleQueue()
        self._workers: list[Worker] = []
        # A crew that is dropped without being closed ends as well. At exit it need not: daemons are stopped there anyway.
        weakref.finalize(self, _dismiss, self._workers).atexit = False
        made: list[Future[Facts]] = [Future() for _ in env_fns]
        try:
            for number, env_fn in enumerate(env_fns):
                self._workers.append(Worker(number, env_fn, made[number], self._results, same_step))
            self.facts = [_result_of(future, number, "it was made") for number, future in enumerate(made)]
        except BaseException:
            self.close(close_timeout)
            raise

    def put(self, number: int, work: Step | Reset) -> None:
        """Gives work to an environment that owes nothing."""
        self.owes[number] = True
        self.pending += 1
        self._workers[number].inbox.put(work)

    def take(self, most: int) -> list[Result]:
        """Waits for one result and takes up to ``most`` that are ready, in the order in which they got ready."""
        results = [self._results.get()]
        for _ in range(min(most - 1, self._results.qsize())):  # nobody else takes any out
            results.append(self._results.get_nowait())
        for result in results:
            self.owes[result.number] = False
        self.pending -= len(results)
        return results

    def take_all(self) -> list[Result]:
        """Waits for every result that is owed; in the order of the environments."""
        results: list[Result] = []
        while self.pending:
            results += self.take(self.pending)
        return sorted(results, key=lambda result: result.number)

    def apply(self, functions: Sequence[Callable[[Env], Any]], name: str) -> tuple[Any, ...]:
        """Hands every environment to its function, in its thread, and waits for all.

        Raises:
            Exception: What the first function raised of those that did, once all are done.
        """
        futures: list[Future[Any]] = [Future() for _ in functions]
        for worker, function, future in zip(self._workers, functions, futures, strict=True):
            worker.inbox.put(Apply(function, future, name))
        for future in futures:
            future.exception()
        return tuple(_result_of(future, number, f"it did {name}") for number, future in enumerate(futures))

    def close(self, timeout: float) -> None:
        """Closes every environment in its thread and waits for that.

        One that is still busy after ``timeout`` seconds is named in a logged warning. Its thread closes it when it is done,
        and ends with the process if it never is.
        """
        deadline = time.monotonic() + timeout
        _dismiss(self._workers)
        for worker in self._workers:
            worker.thread.join(max(0.0, deadline - time.monotonic()))
        left = [f"environment {worker.number} in {worker.doing}" for worker in self._workers if worker.thread.is_alive()]
        if left:
            logger.warning(
                "%d of %d environments did not end within %.3g s and are left to their threads: %s",
                len(left),
                len(self._workers),
                timeout,
                ", ".join(left),
            )


def _dismiss(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.inbox.put(None)


def _result_of(future: Future[Any], number: int, when: str) -> Any:
    error = future.exception()
    if error is not None:
        error.add_note(f"environment {number} raised this when {when}")
        raise error
    return future.result()

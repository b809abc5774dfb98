"""Whose turn it is: each side runs in a process of its own and waits, before every step, for a word from the parent.

So that both sides meet the same load, the parent lets them step by turns. A step's time is from the word to the next wait:
everything that a trainer does for a step is in it.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection


class Finished(Exception):
    """All steps are done: raised through the trainer, which knows no other way to end early."""


@dataclass(frozen=True)
class Work:
    """What a step consisted of.

    Args:
        generated: Tokens that the policy wrote.
        trained: Tokens that the loss was taken of.
        tokens: Tokens of all trajectories, prompts and tool results included.
        calls: Tool calls that took their time.
    """

    generated: int
    trained: int
    tokens: int
    calls: int


@dataclass(frozen=True)
class Step:
    """One step as it was measured.

    Args:
        seconds: Of the whole step.
        update: Of that, of learning from what was played.
        cpu: Seconds of the processor, over all threads.
        work: What was done in it.
        peak: How far the process had grown by then beyond what it was before the first step, in bytes.
    """

    seconds: float
    update: float
    cpu: float
    work: Work
    peak: int


class Pace:
    """A side's end of the connection.

    Args:
        connection: To the parent.
        steps: How many steps there are.

    Attributes:
        work: What the present step consisted of, once it is known.
    """

    def __init__(self, connection: Connection, steps: int) -> None:
        self.work: Work | None = None
        self._connection, self._left = connection, steps
        self._began = self._worked = 0.0
        self._before = 0

    def turn(self, update: Callable[[], float]) -> None:
        """Tells the parent of the step that has ended, if there was one, and waits for the next word.

        Args:
            update: Tells the seconds of that step's update.

        Raises:
            Finished: That was the last step.
        """
        seconds, cpu = time.perf_counter() - self._began, time.process_time() - self._worked
        if self.work is None:
            self._before = _resident()
            self._connection.send("ready")
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - self._before
            self._connection.send(Step(seconds, update(), cpu, self.work, peak))
            self._left -= 1
        if not self._left:
            raise Finished
        self._connection.recv()
        self._began, self._worked = time.perf_counter(), time.process_time()


def _resident() -> int:
    """Memory of this process now, in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def silent() -> Iterator[None]:
    """Throws away what a trainer prints; what goes wrong still reaches standard error."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield

"""Requests of many threads merged into few.

While one request is under way, what others want waits and goes into the next one together. Who comes when nothing is under
way goes at once, so merging never adds to the time of a lone caller.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic
from typing import Generic, TypeVar

from sandboxes.faults import SandboxFault

Question = TypeVar("Question")
Answer = TypeVar("Answer")


@dataclass
class _Asked(Generic[Question, Answer]):
    """A question that waits, and until when its asker does (by `time.monotonic`)."""

    question: Question
    end: float
    future: Future[Answer] = field(default_factory=Future)


class Merger(Generic[Question, Answer]):
    """Merges questions into requests. Safe for threads, of one process.

    Args:
        send: Makes one request of some questions, within some seconds. Gives an answer or a fault for each, in order; a
            fault that it raises is every question's.
        largest: Questions in a request at most.
        in_flight: Requests at the same time at most; each has a thread, started when first needed.
    """

    def __init__(
        self, send: Callable[[list[Question], float], Sequence[Answer | SandboxFault]], largest: int, in_flight: int
    ) -> None:
        self._send = send
        self._largest = largest
        self._in_flight = in_flight
        self._lock = threading.Lock()
        self._waiting: deque[_Asked[Question, Answer]] = deque()
        self._senders = 0
        self._closed = False
        self._threads = ThreadPoolExecutor(in_flight, thread_name_prefix="merged-requests")

    def ask(self, questions: Sequence[Question], end: float) -> list[Future[Answer]]:
        """Asks questions.

        Args:
            questions: Any number.
            end: When (by `time.monotonic`) the answers are of no more use. A future that is cancelled before its request has
                begun is not asked.

        Returns:
            A future each.

        Raises:
            SandboxFault: The merger is closed.
        """
        asked: list[_Asked[Question, Answer]] = [_Asked(question, end) for question in questions]
        with self._lock:
            if self._closed:
                raise SandboxFault("the index is closed: open it again")
            self._waiting.extend(asked)
            wanted = -(-len(self._waiting) // self._largest)  # all that waits is in no request yet
            for _ in range(min(wanted, self._in_flight - self._senders)):
                self._threads.submit(self._work)
                self._senders += 1
        return [one.future for one in asked]

    def close(self) -> None:
        """Refuses what waits, and waits for the end of what is under way. Calling it twice is fine."""
        with self._lock:
            self._closed = True
            refused = list(self._waiting)
            self._waiting.clear()
        for one in refused:
            if one.future.set_running_or_notify_cancel():
                one.future.set_exception(SandboxFault("the index was closed meanwhile: open it again"))
        self._threads.shutdown()

    def _work(self) -> None:
        while batch := self._next():
            try:
                answers = self._send([one.question for one in batch], max(one.end for one in batch) - monotonic())
                if len(answers) != len(batch):
                    raise SandboxFault(f"expected {len(batch)} answers to a merged request, found {len(answers)}")
            except SandboxFault as fault:
                answers = [fault] * len(batch)
            except BaseException as problem:  # a mistake in here must not leave callers waiting
                for one in batch:
                    one.future.set_exception(problem)
                continue
            for one, answer in zip(batch, answers, strict=True):
                if isinstance(answer, SandboxFault):
                    one.future.set_exception(copy.copy(answer))  # each raises its own, in a thread of its own
                else:
                    one.future.set_result(answer)

    def _next(self) -> list[_Asked[Question, Answer]]:
        """What goes into the next request; nothing ends this sender."""
        batch: list[_Asked[Question, Answer]] = []
        with self._lock:
            while self._waiting and len(batch) < self._largest:
                one = self._waiting.popleft()
                if one.future.set_running_or_notify_cancel():
                    batch.append(one)
            if not batch:
                self._senders -= 1
        return batch

"""Where the live paths of one group meet: once a turn all of them report, and what they hear depends on all reports.

The order in which paths get here makes no difference: reports are judged in the order of the paths, when the last path that
is still live has reported. Nothing else waits here: paths write on and their tools run while the others are on their way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from learners.rollout.episode import Episode

R = TypeVar("R")
A = TypeVar("A")


class Assembly(Generic[R, A]):
    """The meeting of a group's paths.

    Args:
        judge: Called with the reports of all live paths, in the order of their places; returns the answer to each. It must
            not wait for anything.

    Attributes:
        live: Paths that have joined and not left.
    """

    def __init__(self, judge: Callable[[Sequence[tuple[Episode, R]]], Sequence[A]]) -> None:
        self._judge = judge
        self.live = 0
        self._reports: list[tuple[Episode, R, asyncio.Future[A]]] = []

    def join(self, count: int = 1) -> None:
        """Says that so many more paths are live: each reports or leaves from now on."""
        self.live += count

    def leave(self) -> None:
        """Says that a path has ended."""
        self.live -= 1
        self._meet()

    def report(self, episode: Episode, report: R) -> Awaitable[A]:
        """Reports for a path, and waits until all have."""
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._reports.append((episode, report, answer))
        episode.stream.park()
        self._meet()
        return answer

    def _meet(self) -> None:
        if not self._reports or len(self._reports) < self.live:
            return
        present = sorted(self._reports, key=lambda entry: entry[0].leaf.path)
        self._reports = []
        for episode, _, _ in present:
            episode.stream.unpark()
        answers = self._judge([(episode, report) for episode, report, _ in present])
        for (_, _, future), answer in zip(present, answers, strict=True):
            if not future.done():
                future.set_result(answer)

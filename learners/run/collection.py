"""The file that a collection grows: trajectories group by group, whatever happens to the process that writes it.

A group is written at once, as whole lines, when it is finished. A kill leaves whole groups and at most one that was being
written; whoever goes on keeps the groups that are complete and drops the rest. At the end the groups are put into the order
of their numbers (a trajectory's ``step``), so that how fast each was makes no difference to the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from learners.run.config import UsageError
from learners.run.tally import Tally
from tracebank.trajectory import Trajectory, TrajectoryError, write_trajectories

_CHUNK = 1 << 20  # bytes that are copied at a time


class CollectionFile:
    """A file of groups.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._spans: dict[int, tuple[int, int]] = {}  # where the lines of a group begin and end, by its number

    @property
    def numbers(self) -> Collection[int]:
        """The groups that the file holds."""
        return self._spans.keys()

    def add(self, number: int, group: Sequence[Trajectory]) -> None:
        """Appends a group and flushes it."""
        begin = self.path.stat().st_size if self.path.exists() else 0
        write_trajectories(self.path, group)
        self._spans[number] = (begin, self.path.stat().st_size)

    def keep_complete(self, complete: Callable[[int, Sequence[Trajectory]], bool], tally: Tally) -> None:
        """Reads what another sitting wrote, and cuts away what is not complete.

        Args:
            complete: Whether a group is to be kept, given its number and its trajectories (without their tokens).
            tally: Counts what is kept.

        Raises:
            UsageError: A line, other than a last one that was never finished, is no trajectory.
        """
        group: list[Trajectory] = []
        number, begin, end = 0, 0, 0

        def close() -> None:
            if group and number not in self._spans and complete(number, group):
                self._spans[number] = (begin, end)
                tally.add(group)

        with open(self.path, "rb") as file:
            for place, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break  # a kill came first
                try:
                    trajectory = Trajectory.from_json(line.decode(), segments=False)
                except (TrajectoryError, UnicodeDecodeError) as problem:
                    raise UsageError(f"--resume: {self.path}, line {place}: {problem}") from None
                if not group or trajectory.step != number:
                    close()
                    group, number, begin = [], trajectory.step, end
                group.append(trajectory)
                end += len(line)
        close()
        if sum(to - start for start, to in self._spans.values()) < self.path.stat().st_size:
            self._rewrite(list(self._spans))

    def put_in_order(self) -> None:
        """Puts the groups into the order of their numbers."""
        if list(self._spans) != sorted(self._spans):
            self._rewrite(sorted(self._spans))

    def _rewrite(self, numbers: Sequence[int]) -> None:
        """Writes these groups, in this order, in place of the file, whole or not at all."""
        unfinished = self.path.with_name(f".{self.path.name}.unfinished")
        spans: dict[int, tuple[int, int]] = {}
        with open(self.path, "rb") as old, open(unfinished, "wb") as new:
            for number in numbers:
                begin, end = self._spans[number]
                spans[number] = (new.tell(), new.tell() + end - begin)
                old.seek(begin)
                while begin < end:
                    begin += new.write(old.read(min(_CHUNK, end - begin)))
            new.flush()
            os.fsync(new.fileno())
        os.replace(unfinished, self.path)
        self._spans = spans

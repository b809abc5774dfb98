"""The best trajectories of each task, out of more than memory holds.

What ranking needs (task, reward, a digest of the words) is some thirty bytes a trajectory and stays in memory; the texts
wait in a file until it is known which are wanted.
"""

from __future__ import annotations

import pickle
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from hashlib import blake2b
from typing import IO

from tracebank.step import normalise_question
from tracebank.trajectory import Trajectory


class Candidates:
    """Trajectories that may be kept.

    Args:
        file: Where their texts wait; an empty one.

    Example:
        >>> import tempfile
        >>> from tracebank import Turn
        >>> def attempt(answer, reward):
        ...     turns = (Turn("", answer, ""),)
        ...     return Trajectory("E", "tag", "1", "1+1?", "", turns, (), reward, {}, reward > 0, "", "answer", 0, 0, 0, ())
        >>> with tempfile.TemporaryFile() as file:
        ...     candidates = Candidates(file)
        ...     for answer, reward in [("3", 0.0), ("2", 1.0), ("4", 0.0)]:
        ...         candidates.add(attempt(answer, reward))
        ...     ((best, second),) = candidates.best(2, Counter())
        ...     candidates.read(best).turns[0].action, candidates.read(second).turns[0].action
        ('2', '3')
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._tasks = _Tasks()
        self._task, self._place, self._reward, self._words = array("q"), array("q"), array("d"), array("Q")

    def add(self, trajectory: Trajectory) -> None:
        """Sets a trajectory aside.

        Raises:
            OSError: The file cannot be written.
        """
        self._task.append(self._tasks.number(trajectory))
        self._place.append(self._file.tell())
        self._reward.append(trajectory.reward)
        words = repr(trajectory.turns).encode()
        self._words.append(int.from_bytes(blake2b(words, digest_size=8).digest(), "little"))
        pickle.dump(trajectory, self._file, protocol=pickle.HIGHEST_PROTOCOL)

    def best(self, keep: int, dropped: Counter[str]) -> list[list[int]]:
        """Numbers of the best trajectories of each task.

        Args:
            keep: How many a task; 0: all.
            dropped: Counts what is left out, by reason.

        Returns:
            A list for each task, in order of appearance: best reward first, ties in order of appearance.
        """
        tasks: defaultdict[int, list[int]] = defaultdict(list)
        for number, task in enumerate(self._task):
            tasks[self._tasks.root(task)].append(number)
        chosen = []
        for numbers in tasks.values():
            different: dict[int, int] = {}
            for number in sorted(numbers, key=self._reward.__getitem__, reverse=True):  # stable: ties stay in order
                different.setdefault(self._words[number], number)
            best = list(different.values())[: keep or None]
            chosen.append(best)
            if repeats := len(numbers) - len(different):
                dropped["word for word another of its task"] += repeats
            if beyond := len(different) - len(best):
                dropped[f"beyond the best {keep} of its task"] += beyond
        return chosen

    def read(self, number: int) -> Trajectory:
        """The trajectory that was added as this number, from 0."""
        self._file.seek(self._place[number])
        trajectory: Trajectory = pickle.load(self._file)  # nobody else has had the file
        return trajectory


class _Tasks:
    """Numbers for tasks. What shares an environment and id is one task, and what shares a question is."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._same = array("q")  # of each number, one that is the same task and came earlier, or itself

    def number(self, trajectory: Trajectory) -> int:
        """A number of the trajectory's task; `root` makes it the same for all of a task."""
        keys = [blake2b(name.encode(), digest_size=16).digest() for name in _names(trajectory)]
        known = [self.root(self._numbers[key]) for key in keys if key in self._numbers]
        number = min(known, default=len(self._same))
        if not known:
            self._same.append(number)
        for other in known:
            self._same[other] = number
        for key in keys:
            self._numbers[key] = number
        return number

    def root(self, number: int) -> int:
        """The first number of the same task, as far as is known by now."""
        while self._same[number] != number:
            self._same[number] = self._same[self._same[number]]
            number = self._same[number]
        return number


def _names(trajectory: Trajectory) -> Iterator[str]:
    """What names the task; an empty id or question names nothing."""
    if trajectory.task_id:
        yield f"id {len(trajectory.environment)} {trajectory.environment}{trajectory.task_id}"
    if question := normalise_question(trajectory.question):
        yield f"question {question}"

"""Tasks, what checks an answer to them, and where they come from.

A ``Task`` is one problem. A ``TaskSource`` turns a random generator and a split into a task, so that an environment's task
is a function of (seed, split) alone. Splits are disjoint by content: a generated task belongs to the split that a hash of
its normalised question names (`split_of`), a data set keeps its own.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agent_envs.moves import Move

Oracle = Callable[[str], Move]
"""A scripted expert of one episode: the latest observation -> the next move."""

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Task:
    """One problem.

    Args:
        id: Names the task within its source; ``TaskSource.get(id)`` makes the same task again.
        question: What the policy is shown at ``reset``.
        answers: The gold answers, any of which is right. Never shown to the policy.
        metadata: Whatever else the source knows, such as the difficulty. JSON values only.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


class NoOracle(LookupError):
    """This source has no scripted expert; whatever needs one is skipped, and says so."""


class UnknownTask(KeyError):
    """There is no task of that id, or none at all in that split."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the message in quotes


@dataclass(frozen=True)
class Verdict:
    """What a verifier found.

    Args:
        accuracy: How right the answer is, from 0 to 1.
        success: Whether the answer is accepted.

    Raises:
        ValueError: ``accuracy`` is not in 0 to 1.
    """

    accuracy: float
    success: bool

    def __post_init__(self) -> None:
        if not 0.0 <= self.accuracy <= 1.0:
            raise ValueError(f"an accuracy is a number from 0 to 1, found {self.accuracy!r}")


class Verifier(ABC):
    """The contract of a verifier."""

    @abstractmethod
    def verify(self, answer: str, task: Task) -> Verdict:
        """Judges an answer.

        Args:
            answer: The answer as the format read it from the policy's action; any text.
            task: The task, with its gold answers.

        Raises:
            EnvironmentFault: The verifier itself is broken.
        """

    def verify_episode(self, answer: str, task: Task, tools: Sequence[object]) -> Verdict:
        """Judges an episode by its answer, or by what it has changed in the world that its tools act on.

        What an environment calls at the end of an episode; most verifiers look at the answer alone. What tools have returned
        is not to be asked for: only what the policy wrote or did can earn anything.

        Args:
            answer: As for `verify`.
            task: The task, with its gold answers.
            tools: The tools of the episode (`agent_envs.tool.Tool`), as it has left them.

        Raises:
            EnvironmentFault: The verifier itself, or what it looks at, is broken.
        """
        return self.verify(answer, task)

    def close(self) -> None:  # noqa: B027 - most verifiers hold nothing
        """Lets go of processes. Calling it twice is fine; the next ``verify`` opens again."""


class UnknownTaskSource(ValueError):
    """A name of tasks that stands for nothing here."""


class TaskSource(ABC):
    """Where an environment's tasks come from.

    Attributes:
        name: Short name, used in task ids, run folders and messages.
        splits: The splits that this source has.
        vocabulary: Pieces that its texts are largely made of, each worth a token to a policy that is built for them.
    """

    name: str
    splits: tuple[str, ...] = SPLITS
    vocabulary: tuple[str, ...] = ()

    @abstractmethod
    def sample(self, rng: np.random.Generator, split: str) -> Task:
        """Draws a task of ``split``; the same generator state gives the same task.

        Raises:
            UnknownTask: The split holds no task.
        """

    @abstractmethod
    def get(self, task_id: str) -> Task:
        """The task of that id.

        Raises:
            UnknownTask: There is none.
        """

    def ids(self, split: str) -> Sequence[str] | None:
        """The ids of a split in order, or None where the source generates without end."""
        return None

    def oracle(self, task: Task) -> Oracle:
        """A scripted expert for ``task``. Raises ``NoOracle`` where the source has none."""
        raise NoOracle(f"task source {self.name!r} has no oracle")

    def verifier(self) -> Verifier | None:
        """The verifier that these tasks ask for, or None where the environment's usual one is right."""
        return None


def normalise_question(question: str) -> str:
    """Case-folded, with runs of white space as one blank: two questions that read alike are one."""
    return " ".join(question.casefold().split())


def split_of(question: str) -> str:
    """The split that a generated question belongs to: 80 % train, 10 % validation, 10 % test, by content alone."""
    bucket = hashlib.blake2b(normalise_question(question).encode(), digest_size=8).digest()[0] * 100 // 256
    return "train" if bucket < 80 else "validation" if bucket < 90 else "test"

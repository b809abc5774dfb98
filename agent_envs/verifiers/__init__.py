"""Verifiers: what decides whether an answer is right.

A verifier sees the text of the policy's answer and the task, and nothing else: no tool output and no earlier turn can earn
anything. It is safe to call from any thread, takes bounded time, and returns a verdict whatever the answer's text is; if it
cannot do its work at all, it raises an ``EnvironmentFault``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from agent_envs.task import Task

__all__ = ["Verdict", "Verifier"]


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

    def close(self) -> None:  # noqa: B027 - most verifiers hold nothing
        """Lets go of processes. Calling it twice is fine; the next ``verify`` opens again."""

"""A promise that an environment keeps or breaks.

A promise is a sentence and a function that looks for an episode in which the sentence is not true. The functions stand in
`agent_envs.testing.promises`; each takes the subject and one episode, and raises ``Broken`` with what was expected and what
was found, or ``NotAsked`` where the promise says nothing about such an environment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent_envs.testing.episode import Episode, Trace
from agent_envs.testing.subject import Subject


class Broken(AssertionError):
    """The promise is broken.

    Args:
        expected: What the promise says, of this very case.
        found: What was the case instead.
        trace: The episode as it was played, if that says more than the episode that was drawn.
    """

    def __init__(self, expected: str, found: str, trace: Trace = ()) -> None:
        super().__init__(f"expected {expected}; found {found}")
        self.expected = expected
        self.found = found
        self.trace = trace


class NotAsked(Exception):
    """The promise says nothing about this environment; the message says why, and the report shows it."""


@dataclass(frozen=True)
class Promise:
    """One promise.

    Args:
        name: One or two words, by which ``only`` selects it and a test names it.
        says: The promise in one sentence.
        check: Raises ``Broken`` or ``NotAsked``.
        once: Whether it is asked with one empty episode instead of many drawn ones: for what no action has a say in.
        share: What part of a profile's examples it is asked with; below 1 for what takes long.
    """

    name: str
    says: str
    check: Callable[[Subject, Episode], None]
    once: bool = False
    share: float = 1.0

"""An episode with what it raised: the end of the story where an environment breaks off.

A promise about something else than exceptions compares records: an action that always raises the same is a matter of the
promise that any text is taken, and no difference between two environments.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from agent_envs.testing.episode import Action, Episode, Moment, Trace, copied, difference, expert_action, oracle_of
from agent_envs.testing.subject import Subject

_TRIES = 3  # what is drawn from three letters is the same by chance once in 27 times
_STEP = ("observation", "reward", "terminated", "truncated", "info")


class Misshapen(Exception):
    """A reset gave no tuple of two values, or a step none of five; the message says what it gave."""


@dataclass(frozen=True)
class Record:
    """What an environment did.

    Args:
        trace: The moments, with a copy of each info as it was handed out.
        raised: What the reset or step after the last moment raised, if it did.
        action: The action that raised it; None for the reset.
    """

    trace: Trace
    raised: Exception | None = None
    action: str | None = None

    @property
    def over(self) -> bool:
        """Whether the episode ended or broke off."""
        return self.raised is not None or (bool(self.trace) and self.trace[-1].over)


class Recorder:
    """Plays an environment step by step and writes down what it does, exceptions included.

    Args:
        env: The environment.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.env = env
        self.record = Record(())
        self._oracle: Any = None

    def reset(self, seed: int | None) -> Record:
        """Begins an episode and a new record."""
        self._oracle = None
        try:
            observation, info = _values(self.env.reset(seed=seed), ("observation", "info"))
        except Exception as error:
            self.record = Record((), error)
        else:
            self.record = Record((Moment(None, observation, 0.0, False, False, copied(info)),))
        return self.record

    def step(self, action: Action) -> Record:
        """Takes one action; does nothing where the episode is over."""
        if self.record.over:
            return self.record
        trace = self.record.trace
        if isinstance(action, str):
            text = action
        else:
            self._oracle = self._oracle or oracle_of(self.env)
            text = expert_action(self.env, trace[-1], self._oracle)
        try:
            observation, reward, terminated, truncated, info = _values(self.env.step(text), _STEP)
        except Exception as error:
            self.record = Record(trace, error, text)
        else:
            moment = Moment(text, observation, reward, terminated, truncated, copied(info))
            self.record = Record((*trace, moment))
        return self.record

    def play(self, episode: Episode) -> Record:
        """Plays an episode from its reset until it or its actions end."""
        self.reset(episode.seed)
        for action in episode.actions:
            self.step(action)
        return self.record


def record(env: gym.Env[Any, Any], episode: Episode) -> Record:
    """Plays an episode from its reset until it or its actions end, or something is raised."""
    return Recorder(env).play(episode)


def departure(expected: Record, found: Record) -> str:
    """Where two records first differ, in words; "" if they don't. Of exceptions only the kind is compared."""
    first, second = expected.raised, found.raised
    if len(expected.trace) == len(found.trace):
        changed = difference(expected.trace, found.trace)
        if changed or type(first) is type(second):
            return changed
    else:
        shorter = min(len(expected.trace), len(found.trace))
        changed = difference(expected.trace[:shorter], found.trace[:shorter])
        if changed or (first is None and second is None):
            return changed or difference(expected.trace, found.trace)
    broken = min(len(record.trace) for record in (expected, found) if record.raised is not None)
    place = f"action {broken}" if broken else "the reset"
    return f"after {place}: first {_told(first)}, then {_told(second)}"


def deviation(subject: Subject, seed: int, expected: Record, found: Record, reused: bool = False) -> str:
    """Where an episode left the way that it takes in a new environment; "" if it did not, or if it takes no way twice.

    Promises about something else than seeds ask this, so that they say nothing about an environment that is never the same.

    Args:
        subject: Makes new environments.
        seed: Of the episode.
        expected: What the episode was in a new environment.
        found: What it was now.
        reused: Whether the environment had another episode before; "" too where that alone makes a difference.
    """
    changed = departure(expected, found)
    return changed if changed and repeats(subject, seed, expected, reused) else ""


def repeats(subject: Subject, seed: int, expected: Record, reused: bool = False) -> bool:
    """Whether a recorded episode is the same again and again in new environments, or in one that is ``reused``."""
    actions = [moment.action for moment in expected.trace[1:] if moment.action is not None]
    last = [] if expected.action is None else [expected.action]
    for _ in range(_TRIES):
        with subject.env() as env:
            for _ in range(1 + reused):
                if departure(expected, record(env, Episode(seed, (*actions, *last)))):
                    return False
    return True


def told(error: BaseException) -> str:
    """An exception in a line, with the function, file and line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f", in {frames[-1].name} ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def place(trace: Trace) -> str:
    """What the last moment of a trace came after: the reset, or an action by its number and text."""
    return "the reset" if len(trace) == 1 else f"action {len(trace) - 1}, {short(trace[-1].action)}"


def short(value: Any, most: int = 60) -> str:
    """The ``repr`` of a value, cut in the middle where it is long."""
    text = repr(value[:200] if isinstance(value, str) and len(value) > 200 else value)
    if isinstance(value, str) and len(value) > most:
        return f"{text[: most - 3]}... ({len(value)} characters)"
    return text if len(text) <= 5 * most else f"{text[: 4 * most]}...{text[-most:]}"


def _told(error: Exception | None) -> str:
    return "no exception" if error is None else told(error)


def _values(given: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    if not isinstance(given, tuple) or len(given) != len(names):
        size = f" of {len(given)}" if isinstance(given, tuple | list) else ""
        raise Misshapen(f"a {type(given).__name__}{size}, {short(given)}")
    return given

"""The search for the smallest episode in which a promise is broken."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, configuration, given, settings
from hypothesis.errors import Flaky

from agent_envs.testing.episode import Episode
from agent_envs.testing.profile import Profile
from agent_envs.testing.promise import Broken, NotAsked, Promise
from agent_envs.testing.strategies import episodes
from agent_envs.testing.subject import Subject

_ENOUGH_SKIPPED = 20  # episodes that a promise says nothing about, one after the other, before it is given up
_LONGEST_MESSAGE = 1_000  # characters of an exception's message in a finding


class _Enough(BaseException):
    """Ends Hypothesis's search; no Exception, so that it is not taken for a failure."""


@dataclass(frozen=True)
class Failure:
    """An episode that failed.

    Args:
        episode: The episode.
        error: What the check raised.
        own: Whether the kit itself is to blame.
    """

    episode: Episode
    error: BaseException
    own: bool


@dataclass
class Search:
    """Asks one promise with many episodes, and keeps the smallest in which it is broken.

    Args:
        promise: The promise.
        subject: The environment.
        profile: How thoroughly.

    Attributes:
        asked: Episodes that it was asked with.
        skipped: Episodes that it says nothing about.
        why_not: Why it says nothing about the latest of them.
        smallest: The smallest failing episode so far.
        flaky: Whether an episode failed once and not again.
    """

    promise: Promise
    subject: Subject
    profile: Profile
    asked: int = 0
    skipped: int = 0
    why_not: str = ""
    smallest: Failure | None = None
    flaky: bool = False
    deadline: float = float("inf")

    def examine(self, episode: Episode) -> None:
        """Asks with one episode.

        Raises:
            BaseException: What the check raised because the promise is broken, or because the check itself is.
        """
        if time.monotonic() > self.deadline:
            raise _Enough
        try:
            self.promise.check(self.subject, episode)
        except NotAsked as why:
            self.why_not = str(why)
            self.skipped += 1
            if not self.asked and self.skipped >= _ENOUGH_SKIPPED:
                raise _Enough from None
        except (Exception, SystemExit) as error:
            self.asked += 1
            if self.smallest is None:
                self.deadline = time.monotonic() + self.profile.shrink_seconds
            if self.smallest is None or _size(episode) <= _size(self.smallest.episode):
                self.smallest = Failure(episode, error, own_doing(error, self._module()))
            raise
        else:
            self.asked += 1

    def _module(self) -> str:
        """Where the check stands."""
        return str(getattr(self.promise.check, "__module__", ""))

    def run(self) -> None:
        """Draws episodes, and makes the first that fails smaller until there is no smaller one or no time left."""
        drawn = episodes(self.subject, self.profile.max_actions)

        @settings(
            max_examples=max(1, round(self.profile.examples * self.promise.share)),
            deadline=None,
            database=None,
            derandomize=True,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
            verbosity=Verbosity.quiet,
        )
        @given(drawn)
        def search(episode: Episode) -> None:
            self.examine(episode)

        with _nothing_on_disk():
            try:
                search()
            except _Enough:
                pass
            except (Exception, SystemExit) as error:
                if self.smallest is None:  # Hypothesis raises here what `examine` has raised before; this is something else
                    raise
                self.flaky = isinstance(error, Flaky)


@contextlib.contextmanager
def _nothing_on_disk() -> Iterator[None]:
    """Keeps Hypothesis from making a folder ``.hypothesis`` for its caches; where it cannot make one, it does without."""
    home: Any = configuration.storage_directory(intent_to_write=False)
    configuration.set_hypothesis_home_dir(os.devnull)
    try:
        yield
    finally:
        configuration.set_hypothesis_home_dir(getattr(home, "path", home))  # a path itself before Hypothesis 6.150


def own_doing(error: BaseException, module: str = "") -> bool:
    """Whether an exception comes from the kit itself rather than from the environment that it plays.

    It is the environment's if, on the way to where it was raised, any code ran that is neither the kit's nor Python's own.
    To be asked where the exception is caught, in the kit: what is called from there is what counts.

    Args:
        error: The exception.
        module: What counts as the kit beside its own modules: where the check stands.
    """
    if isinstance(error, Broken):
        return False
    names = [str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return all(
        name == module or f"{name}.".startswith("agent_envs.testing.") or name.partition(".")[0] in sys.stdlib_module_names
        for name in names
    )


def where(error: BaseException) -> str:
    """The three innermost places that an exception went through, the innermost first."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return ", called by ".join(
        f"{frame.name} ({frame.filename.rpartition('/')[2]}:{frame.lineno})" for frame in reversed(frames)
    )


def broken_by(error: BaseException) -> Broken:
    """What an exception says about a promise: what it says itself, or that there should have been none."""
    if isinstance(error, Broken):
        return error
    message = str(error)
    cut = message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]}... ({len(message)} characters)"
    return Broken("no exception", f"{type(error).__name__}: {cut}\nin {where(error)}")


def _size(episode: Episode) -> tuple[int, int, int, int]:
    texts = sum(len(action) for action in episode.actions if isinstance(action, str))
    return len(episode.actions), texts, episode.seed, episode.at

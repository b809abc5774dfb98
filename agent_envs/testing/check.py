"""``check_agent_env``: asks every promise of an environment, and reports."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st

from agent_envs.testing.episode import EXPERT, Episode
from agent_envs.testing.profile import PROFILES, Profile
from agent_envs.testing.promise import Broken, NotAsked, Promise
from agent_envs.testing.promises import PROMISES
from agent_envs.testing.report import Finding, Report
from agent_envs.testing.strategies import episodes
from agent_envs.testing.subject import Checkable, Subject


def check_agent_env(
    env_or_id: Checkable,
    *,
    profile: str = "quick",
    only: str | Sequence[str] = (),
    example: Episode | None = None,
    verbose: bool = True,
) -> Report:
    """Asks an environment whether it keeps its promises, by episodes that Hypothesis draws and makes smaller.

    Args:
        env_or_id: An id, an environment, or a function that makes one (`Subject`).
        profile: ``"quick"`` (seconds), ``"ci"`` or ``"thorough"`` (500 episodes a promise).
        only: Names of promises, to ask only these.
        example: One episode to ask with instead of drawn ones, as a report gives it.
        verbose: Whether the report is printed.

    Returns:
        What was found. Nothing is raised for a broken promise (`Report.raise_if_broken` does).

    Raises:
        ValueError: There is no such profile or promise.

    Example:
        >>> report = check_agent_env("agent_envs/MathTool-v0", only=["types", "turns"])  # doctest: +SKIP
        agent_envs/MathTool-v0: 2 kept, 0 broken, 0 not asked (profile quick, 0.3 s)
        KEPT      types
        KEPT      turns
    """
    if profile not in PROFILES:
        raise ValueError(f"a profile is one of {list(PROFILES)}, found {profile!r}")
    wanted = [only] if isinstance(only, str) else list(only)
    names = [promise.name for promise in PROMISES]
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ValueError(f"there are no promises {unknown}; there are {names}")
    subject = Subject(env_or_id)
    findings = [
        ask(promise, subject, PROFILES[profile], example) for promise in PROMISES if not wanted or promise.name in wanted
    ]
    report = Report(subject.name, profile, tuple(findings))
    if verbose:
        print(report, file=sys.stdout)  # noqa: T201 - printing is what it is called for
    return report


def ask(promise: Promise, subject: Subject, profile: Profile, example: Episode | None = None) -> Finding:
    """Asks one promise.

    Args:
        promise: The promise.
        subject: The environment.
        profile: How thoroughly.
        example: One episode to ask with instead of drawn ones.
    """
    search = _Search(promise, subject, profile)
    begin = time.monotonic()
    try:
        if example is not None or promise.once:
            search.examine(example or Episode())
        else:
            search.run()
    except NotAsked as why:
        return Finding(promise, "not asked", found=str(why), seconds=time.monotonic() - begin)
    except Broken:
        pass
    seconds = time.monotonic() - begin
    if search.smallest is None:
        return Finding(promise, "kept", examples=search.tried, seconds=seconds)
    episode, broken = search.smallest
    played = [moment.action for moment in broken.trace if moment.action is not None]
    actions = played or [action if isinstance(action, str) else repr(action) for action in episode.actions]
    again = "" if promise.once else f", example={episode!r}"
    reproduce = f"check_agent_env({subject.source}, only={promise.name!r}{again})"
    return Finding(promise, "broken", broken.expected, broken.found, episode, actions, reproduce, search.tried, seconds)


class _Enough(BaseException):
    """Ends Hypothesis's search; no Exception, so that it is not taken for a failure."""


@dataclass
class _Search:
    """Looks for the smallest episode in which a promise is broken."""

    promise: Promise
    subject: Subject
    profile: Profile
    smallest: tuple[Episode, Broken] | None = None
    tried: int = 0
    deadline: float = float("inf")

    def examine(self, episode: Episode) -> None:
        if time.monotonic() > self.deadline:
            raise _Enough
        self.tried += 1
        try:
            self.promise.check(self.subject, episode)
        except NotAsked:
            raise
        except Exception as error:
            broken = error if isinstance(error, Broken) else _unexpected(error)
            if self.smallest is None:
                self.deadline = time.monotonic() + self.profile.shrink_seconds
            if self.smallest is None or _size(episode) <= _size(self.smallest[0]):
                self.smallest = episode, broken
            raise broken from (None if broken is error else error)

    def run(self) -> None:
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
        @given(st.data())
        def search(data: st.DataObject) -> None:
            self.examine(data.draw(strategy))

        strategy = episodes(self.subject, self.profile.max_actions)
        with contextlib.suppress(_Enough):
            search()


def _unexpected(error: Exception) -> Broken:
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    where = " < ".join(f"{frame.name} ({frame.filename.rpartition('/')[2]}:{frame.lineno})" for frame in reversed(frames))
    return Broken("no exception", f"{type(error).__name__}: {error}, in {where}")


def _size(episode: Episode) -> tuple[int, int, int]:
    texts = sum(len(action) for action in episode.actions if action is not EXPERT and isinstance(action, str))
    return len(episode.actions), texts, episode.seed

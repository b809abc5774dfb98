"""``check_agent_env``: asks every promise of an environment, and reports."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace

import gymnasium as gym

from agent_envs.testing.episode import Episode
from agent_envs.testing.profile import PROFILES, Profile
from agent_envs.testing.promise import Promise
from agent_envs.testing.promises import PROMISES
from agent_envs.testing.report import Finding, Report
from agent_envs.testing.search import Failure, Search, broken_by, own_doing
from agent_envs.testing.subject import Checkable, Subject, spec_of

MADE = Promise("made", "It can be made, reset and closed.", lambda subject, episode: None, once=True)
"""Stands in the report on an environment for which this is not so; of the others it goes without saying."""


def check_agent_env(
    env_or_id: Checkable,
    *,
    profile: str = "quick",
    only: str | Sequence[str] = (),
    example: Episode | None = None,
    verbose: bool = True,
) -> Report:
    """Asks an environment whether it keeps its promises, by episodes that Hypothesis draws and makes smaller.

    Nothing is left behind: no file, no ``.hypothesis`` folder, no state of a global generator.

    Args:
        env_or_id: An id, an environment, or a function that makes one (`Subject`).
        profile: ``"quick"`` (seconds), ``"ci"`` or ``"thorough"`` (500 episodes a promise).
        only: Names of promises, to ask only these.
        example: One episode to ask with instead of drawn ones, as a report gives it.
        verbose: Whether the report is printed.

    Returns:
        What was found. Nothing is raised for a broken promise (`Report.raise_if_broken` does), nor for an environment that
        cannot even be made or reset: the report says so.

    Raises:
        ValueError: There is no such profile or promise.
        gym.error.Error: There is no such id.
        ModuleNotFoundError: There is no such module, of ``"module:id"``.
        TypeError: It is no environment, or one that takes or gives something other than text.

    Example:
        >>> report = check_agent_env("agent_envs/MathTool-v0", only=["seed", "fork"])  # doctest: +SKIP
        agent_envs/MathTool-v0: 2 kept, 0 not asked, 0 broken (profile quick, 0.3 s)
        KEPT      seed (8 episodes)
        KEPT      fork (8 episodes)
    """
    if profile not in PROFILES:
        raise ValueError(f"a profile is one of {list(PROFILES)}, found {profile!r}")
    promises = chosen(only)
    subject = prepare(env_or_id)
    if isinstance(subject, Finding):
        report = Report(_name(env_or_id), profile, (subject,))
    else:
        findings = [ask(promise, subject, PROFILES[profile], example) for promise in promises]
        report = Report(subject.name, profile, tuple(findings))
    if verbose:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        print(str(report).encode(encoding, "backslashreplace").decode(encoding))  # noqa: T201 - what it is called for
    return report


def prepare(env_or_id: Checkable) -> Subject | Finding:
    """What promises are asked of; for an environment that cannot be made or reset, the finding that says so.

    Raises:
        gym.error.Error: There is no such id.
        ModuleNotFoundError: There is no such module, of ``"module:id"``.
        TypeError: It is no environment, or one that takes or gives something other than text.
    """
    if isinstance(env_or_id, str):
        spec_of(env_or_id)  # raises here, where the id is wrong and not the environment
    try:
        return Subject(env_or_id)
    except Exception as error:
        if own_doing(error):  # the kit says that this is nothing to be checked
            raise
        found = broken_by(error).found
    source = repr(env_or_id) if isinstance(env_or_id, str) else "env" if isinstance(env_or_id, gym.Env) else "make_env"
    again = f"check_agent_env({source})"
    return Finding(MADE, "broken", "an environment that can be made and reset", found, reproduce=again, examples=1)


def chosen(only: str | Sequence[str] = ()) -> tuple[Promise, ...]:
    """The promises of those names, in the order of `PROMISES`; all of them for none.

    Raises:
        ValueError: There is no such promise.
    """
    wanted = [only] if isinstance(only, str) else list(only)
    names = [promise.name for promise in PROMISES]
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ValueError(f"there are no promises {unknown}; there are {names}")
    return tuple(promise for promise in PROMISES if not wanted or promise.name in wanted)


def ask(promise: Promise, subject: Subject, profile: Profile, example: Episode | None = None) -> Finding:
    """Asks one promise.

    Args:
        promise: The promise.
        subject: The environment.
        profile: How thoroughly.
        example: One episode to ask with instead of drawn ones.

    Returns:
        What was found. A check that fails by itself, rather than by what the environment does, is a finding as well, of
        status ``"failed"``.
    """
    search = Search(promise, subject, profile)
    begin = time.monotonic()
    try:
        if example is not None or promise.once:
            search.examine(example or Episode())
        else:
            search.run()
    except (Exception, SystemExit) as error:
        if search.smallest is None:  # raised before any check: the kit could not even draw an episode
            search.smallest = Failure(Episode(), error, own=True)
    seconds = time.monotonic() - begin
    failure = search.smallest
    if failure is None:
        if not search.asked:
            return Finding(promise, "not asked", found=search.why_not, seconds=seconds)
        return Finding(promise, "kept", examples=search.asked, seconds=seconds)
    again = "" if promise.once else f", example={failure.episode!r}"
    finding = Finding(
        promise,
        "failed" if failure.own else "broken",
        episode=failure.episode,
        actions=failure.episode.actions,
        reproduce=f"check_agent_env({subject.source}, only={promise.name!r}{again})",
        examples=search.asked,
        seconds=seconds,
    )
    if failure.own:
        return replace(finding, found="".join(traceback.format_exception(failure.error)).rstrip())
    broken = broken_by(failure.error)
    found = broken.found
    if search.flaky:
        found += "\n(once and not again: what it does depends on more than the seed and the actions)"
    played = [moment.action for moment in broken.trace if moment.action is not None]
    return replace(finding, expected=broken.expected, found=found, actions=played or finding.actions)


def _name(what: Checkable) -> str:
    return what if isinstance(what, str) else getattr(what, "__name__", type(what).__name__)

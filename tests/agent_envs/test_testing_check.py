"""``check_agent_env``: what it reports, how small the episode is, and that its line to reproduce does so."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import kit_parts
import parts
import pytest
from kit_parts import CARELESS, NEVER, PLAYS, SHORT, TWICE, Parrot, Raising, Slow, Unmade, Unseeded

from agent_envs.testing import (
    EXPERT,
    PROFILES,
    Episode,
    Finding,
    Promise,
    Report,
    Subject,
    ask,
    check_agent_env,
    play,
)

QUICK = PROFILES["quick"]


def asked(promise: Promise, make: Callable[[], gym.Env[Any, Any]] = Parrot, **changes: Any) -> Finding:
    """What is found about one promise, by 60 episodes unless it is told otherwise."""
    return ask(promise, Subject(make), replace(QUICK, **{"examples": 60, **changes}))


def raises(error: BaseException) -> type[Raising]:
    """A kind of environment that raises this at every action."""

    class Raises(Raising):
        closed: ClassVar[int] = 0

    Raises.error = error
    return Raises


# --- what is found


def test_a_kept_promise_is_reported_with_what_it_was_asked_with() -> None:
    finding = asked(PLAYS)
    assert (finding.status, finding.examples) == ("kept", 60)
    assert str(finding) == "KEPT      plays (60 episodes)"


def test_a_sound_environment_keeps_every_promise_that_is_asked() -> None:
    report = check_agent_env(Parrot, verbose=False)
    assert report.ok, str(report)
    assert {finding.status for finding in report.findings} == {"kept", "not asked"}


def test_a_broken_promise_is_shown_by_its_smallest_episode() -> None:
    finding = asked(SHORT, examples=400)
    assert finding.status == "broken"
    assert finding.expected == "actions of 20,000 characters at most"
    assert finding.episode is not None
    [action] = finding.actions
    assert isinstance(action, str)
    assert 20_000 < len(action) < 20_100
    assert (finding.episode.seed, finding.episode.at) == (0, 0)
    text = str(finding)
    assert text.startswith(
        "BROKEN    short: Nobody says more than 20,000 characters at once.\n  expected: actions of 20,000"
    )
    assert "episode:  reset(seed=0), then the action\n            1. '" in text
    assert len(text) < 800, "long texts are written short"


def test_the_line_to_reproduce_reproduces_when_it_is_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    report = check_agent_env(Unseeded, only="seed", verbose=False)
    [finding] = report.broken
    again = str(finding).partition("  again:    ")[2]
    assert again.count("\n") == 0
    names: dict[str, Any] = {"make_env": Unseeded}
    exec(again.replace("; check_agent_env", "; report = check_agent_env"), names)
    assert [found.promise.name for found in names["report"].broken] == ["seed"]
    assert "BROKEN    seed" in capsys.readouterr().out


def test_an_id_is_reproduced_by_its_id_in_another_process(tmp_path: Path) -> None:
    (tmp_path / "unseeded.py").write_text(
        "import gymnasium\n"
        "from kit_parts import Unseeded\n"
        "gymnasium.register('kit/Unseeded-v0', Unseeded, disable_env_checker=True)\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(Path(kit_parts.__file__).parent), *sys.path])

    def run(line: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", line],
            env={**os.environ, "PYTHONPATH": paths},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = run("from agent_envs.testing import check_agent_env; check_agent_env('unseeded:kit/Unseeded-v0', only='seed')")
    assert "BROKEN    seed" in first
    again = first.partition("again:    ")[2].strip()
    assert again.startswith(
        "from agent_envs.testing import EXPERT, Episode, check_agent_env; check_agent_env('unseeded:kit/"
    )
    assert "BROKEN    seed" in run(again)
    assert {path.name for path in tmp_path.iterdir()} <= {"unseeded.py", "__pycache__"}, "it leaves no folder behind"


def test_one_given_episode_is_asked_alone() -> None:
    subject = Subject(Parrot)
    assert ask(SHORT, subject, QUICK, Episode(actions=["short"])).status == "kept"
    finding = ask(SHORT, subject, QUICK, Episode(7, ["a" * 30_000, "b"]))
    assert finding.status == "broken"
    assert finding.examples == 1
    assert [str(action)[0] for action in finding.actions] == ["a", "b"]
    assert "seed=7, actions=['a' * 30000, 'b']" in finding.reproduce


def test_the_actions_of_an_oracle_are_shown_as_they_were_played() -> None:
    def check(subject: Subject, episode: Episode) -> None:
        with subject.env() as env:
            trace = play(env, episode)
        if any(moment.info.get("success") for moment in trace):
            raise kit_parts.Broken("no success", "a success", trace)

    make = parts.make
    finding = asked(Promise("hopeless", "Nobody wins.", check), lambda: make("MathTool-v0"), examples=600)
    assert finding.episode is not None
    assert list(finding.episode.actions) == [EXPERT, EXPERT]
    assert [str(action)[:8] for action in finding.actions] == ["<python>", "<answer>"]


def test_what_an_environment_raises_is_a_finding_with_its_place() -> None:
    finding = asked(PLAYS, raises(RuntimeError("the parrot is dead")))
    assert finding.status == "broken"
    assert finding.expected == "no exception"
    assert finding.found.startswith("RuntimeError: the parrot is dead\nin step (kit_parts.py:")
    assert list(finding.actions) == [""]


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyError("x"), RecursionError("deep"), AssertionError("odd"), StopIteration()]
)
def test_it_outlives_whatever_an_environment_raises(error: BaseException) -> None:
    finding = asked(PLAYS, raises(error))
    assert (finding.status, finding.found.partition(":")[0]) == ("broken", type(error).__name__)


def test_an_error_of_the_kit_is_not_said_to_be_the_environments() -> None:
    finding = asked(CARELESS)
    assert finding.status == "failed"
    assert "nothing is known about the environment" in str(finding)
    assert "in _careless" in finding.found
    assert "KeyError: 'nothing'" in finding.found
    report = Report("a parrot", "quick", (finding,))
    assert not report.ok
    assert not report.broken
    with pytest.raises(AssertionError, match="FAILED    careless"):
        report.raise_if_broken()


def test_a_promise_that_says_nothing_is_not_asked_and_one_that_sometimes_does_is() -> None:
    finding = asked(NEVER)
    assert (finding.status, finding.found) == ("not asked", "parrots have no tools")
    assert str(finding) == "NOT ASKED never: parrots have no tools"
    sometimes = asked(TWICE)
    assert sometimes.status == "kept"
    assert 10 < sometimes.examples < 60, "episodes that it says nothing about don't count"


def test_a_failure_that_does_not_come_again_is_reported_as_such() -> None:
    calls = 0

    def once(subject: Subject, episode: Episode) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise kit_parts.Broken("the same", "something else")

    finding = asked(Promise("fickle", "It is always the same.", once))
    assert finding.status == "broken"
    assert "once and not again" in finding.found


def test_making_smaller_takes_no_longer_than_the_profile_says() -> None:
    def check(subject: Subject, episode: Episode) -> None:
        with subject.env() as env:
            trace = play(env, episode)
        if any(len(moment.action or "") > 2 for moment in trace):
            raise kit_parts.Broken("short words", "a long one", trace)

    promise = Promise("words", "Words are short.", check)
    begin = time.monotonic()
    hurried = asked(promise, Slow, shrink_seconds=0.3)
    spent = time.monotonic() - begin
    patient = asked(promise, Slow, shrink_seconds=20.0)
    assert hurried.status == patient.status == "broken"
    assert hurried.examples < patient.examples / 2
    assert spent < 10, "where making smaller alone would take seconds"


def test_an_interrupt_goes_through_and_the_environment_is_closed() -> None:
    make = raises(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        asked(PLAYS, make)
    assert make.closed >= 2, "the subject's own and the one that was played"


def test_no_global_generator_moves() -> None:
    import random

    import numpy as np

    states = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    asked(SHORT)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states  # type: ignore[index, union-attr]


# --- what cannot be checked


def test_an_environment_that_cannot_be_made_is_a_finding(capsys: pytest.CaptureFixture[str]) -> None:
    report = check_agent_env(Unmade)
    [finding] = report.broken
    assert finding.promise.name == "made"
    assert finding.found.startswith("OSError: no parrot in this shop\nin __init__ (kit_parts.py:")
    assert "Unmade: 0 kept, 0 not asked, 1 broken" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="no parrot"):
        report.raise_if_broken()


def test_misuse_is_an_error_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"a profile is one of \['quick', 'ci', 'thorough'\], found 'fast'"):
        check_agent_env(Parrot, profile="fast")
    with pytest.raises(ValueError, match=r"there are no promises \['sead'\]; there are \["):
        check_agent_env(Parrot, only=["seed", "sead"])
    with pytest.raises(gym.error.Error, match="NoSuch"):
        check_agent_env("agent_envs/NoSuch-v0")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        check_agent_env("no_such_module:Mine-v0")
    with pytest.raises(TypeError, match="an id, an environment or a function"):
        check_agent_env(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="of strings"):
        check_agent_env("CartPole-v1")


# --- the report as text


def test_a_report_can_be_printed_anywhere(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    odd = kit_parts.Broken("nothing odd", "\ud800 \x1b[2J \u202e and\na second line")

    def check(subject: Subject, episode: Episode) -> None:
        raise odd

    finding = ask(Promise("odd", "It is not odd.", check, once=True), Subject(Parrot), QUICK)
    text = str(Report("a parrot", "quick", (finding,)))
    assert "found:    \\ud800 \\x1b[2J \\u202e and\n            a second line" in text
    assert text.encode().decode() == text
    code = (
        "from kit_parts import Parrot; from agent_envs.testing import check_agent_env; check_agent_env(Parrot, only='seed')"
    )
    paths = os.pathsep.join([str(Path(kit_parts.__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths, "PYTHONIOENCODING": "ascii"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.count("KEPT      seed")) == (0, 1), done.stderr


def test_broken_promises_come_last_where_a_terminal_shows_them() -> None:
    findings = tuple(asked(promise, examples=8) for promise in (CARELESS, NEVER, PLAYS))
    broken = Finding(SHORT, "broken", "little", "much", reproduce="check_agent_env(env)")
    text = str(Report("a parrot", "quick", (broken, *findings)))
    assert text.startswith("a parrot: 1 kept, 1 not asked, 1 failed, 1 broken (profile quick, ")
    lines = [line.split()[0] for line in text.splitlines() if line[0] != " "]
    assert lines[1:] == ["KEPT", "NOT", "FAILED", "BROKEN"]


# --- our own environments


@pytest.mark.parametrize("name", parts.SETTINGS)
def test_our_environments_keep_their_promises(name: str) -> None:
    check_agent_env(parts.make(name), profile="quick", verbose=False).raise_if_broken()


@pytest.mark.thorough
@pytest.mark.parametrize("name", parts.SETTINGS)
def test_our_environments_keep_their_promises_with_500_episodes(name: str) -> None:
    check_agent_env(parts.make(name), profile="thorough", verbose=False).raise_if_broken()

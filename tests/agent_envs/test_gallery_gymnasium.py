"""Environments with one planted bug each: the promise that is about it is broken, and what was found names the bug."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
from gallery import inputs, outputs, processes, seeds, turns
from gallery.words import Words

from agent_envs.testing import PROMISES, check_agent_env

PLANTED: dict[Callable[..., Any], tuple[str, str]] = {
    outputs.RewardNone: ("types", r"None of type NoneType after action 1"),
    outputs.RewardList: ("types", r"\[0\.0\] of type list after action 1"),
    outputs.OneFlag: ("types", r"a tuple of 4"),
    outputs.ObservationOfMessages: ("types", r"'role': 'user'.* of type dict after the reset"),
    outputs.TypesThatChange: ("types", r"1\.0 of type float after action 1.*NoneType before"),
    outputs.InfoNoJson: ("types", r"info\['tools'\]\['lock'\] is .*lock"),
    outputs.InfoReused: ("info", r"the dict of the reset again after action 1"),
    outputs.InfoGrows: ("info", r"that of the reset was .*'guesses': \[\]} and is .*'guesses': \['"),
    outputs.ObservationTooLong: ("space", r"\d{3,} characters after action"),
    outputs.ObservationWithSurrogates: ("space", r"lone surrogates \['\\ud800'\]"),
    outputs.WallClock: ("seed", r"info\['elapsed_time'\] after the reset: first [\d.]+, then"),
    inputs.HalfOpenTag: ("any text", r"ValueError: substring not found, in read .* at '<answer>'"),
    inputs.NoSurrogates: ("any text", r"UnicodeEncodeError.*in read .* at '\\ud800'"),
    inputs.FixedAlphabet: ("any text", r"ValueError: substring not found.* at '\\x00'"),
    inputs.QuadraticParser: ("any length", r"[\d.]+ s for '<<<'\.\.\., \d+ characters"),
    inputs.ExponentialParser: ("any length", r"[\d.]+ s for 'aaa'\.\.\., 2\d characters"),
    inputs.TakesAnything: ("only text", r"that it was taken"),
    inputs.CountsWhatItRefuses: (
        "only text",
        r"observation after action 1: first .*you have said ', then .*you have said , , ",
    ),
    inputs.WrongError: ("only text", r"AttributeError: 'int' object has no attribute 'strip'"),
    turns.PaysAfterTheEnd: ("order", r"that it gave \('no, it has .*'turn': 4"),
    turns.ResetsItself: ("order", r"that it gave .*'turn': 0"),
    turns.EndSpoilsTheNext: ("order", r"info\['late'\] after the reset: first 0, then 1"),
    turns.ResetOnlyAtTheEnd: ("episodes apart", r"observation after the reset"),
    turns.never_ends: ("end", r"it goes on after action 4"),
    turns.truncates: ("end", r"terminated=False, truncated=True after action 4"),
    seeds.SeedDropped: ("seed", r"observation after the reset"),
    seeds.SeedOfTheQuestionAlone: ("seed", r"observation after action 1"),
    seeds.NextEpisodeForgets: ("seed", r"observation after the reset"),
    seeds.AlwaysTheSameTask: ("tasks by seed", r"all of them begin with 'purple red brown'"),
    seeds.ReseedsTheGlobals: ("global generators", r"random and numpy\.random"),
    seeds.ReadsTheGlobals: ("global generators", r"numpy\.random"),
    seeds.HashOrder: ("other process", r"observation after the reset"),
    seeds.HashOfAText: ("other process", r"observation after the reset"),
    seeds.HistoryStays: ("episodes apart", r"info\['guesses'\] after the reset: first \[\], then \['"),
    seeds.SharedHistory: ("environments apart", r"info\['board'\]"),
    seeds.NoGenerator: ("gymnasium", r"random number generator"),
    processes.Prints: ("quiet", r"'empty action\\n'"),
    processes.PrintsPastPython: ("first use", r"'loading the model\\n"),
    processes.ConfiguresLogging: ("quiet", r"the root logger: now .*with .*<StreamHandler"),
    processes.Silences: ("first use", r"the warnings filters: now with 'ignore' for <class 'Warning'>"),
    processes.ChangesFolder: ("first use", r"the working directory: was "),
    processes.SetsVariable: ("first use", r"os\.environ: WORDS_MODE was None and is 'on'"),
    processes.AlarmInStep: ("first use", r"SIGALRM was .* and is '<built-in function default_int_handler>'"),
    processes.ThreadForEach: ("leftovers", r"6 threads more, such as 'heartbeat'"),
    processes.ProcessForEach: ("leftovers", r"6 child processes more, such as \d+ \(sleep 60\)"),
    processes.FolderForEach: ("leftovers", r"\d files more, such as .*words-"),
    processes.DescriptorForEach: ("leftovers", r"\d+ open descriptors more, such as /dev/null"),
    processes.CloseOnce: ("close", r"AssertionError: already closed"),
    processes.CloseNeedsReset: ("close", r"has no attribute 'board'"),
    processes.ClosedForGood: ("close", r"after the reset: first no exception, then AttributeError: 'NoneType' object"),
    processes.Unpicklable: ("pickle", r"cannot pickle '_thread\.lock' object"),
    processes.pickled_as_another: ("pickle", r"info\['greeting'\] after the reset: first 'good morning', then 'hello'"),
    processes.OwnProcesses: ("processes", r"daemonic processes are not allowed to have children"),
    processes.TextOfGymnasium: ("processes", r"shows its first text for ever: take agent_envs\.String"),
    processes.SometimesANumber: ("vector", r"easy|level"),
    processes.OnlyInTheFirstThread: ("threads", r"RuntimeError: signal only works in main thread"),
    processes.shouting: ("spec", r"Shout wrapper does not inherit from .*RecordConstructorArgs"),
    processes.with_a_set: ("spec", r"frozenset is not JSON serializable"),
}
"""Each broken environment with the promise that it breaks and what the report says."""

ALONE = (  # of each file some that break nothing else, so that an author looks in the right place at once
    outputs.TypesThatChange,
    outputs.InfoGrows,
    outputs.ObservationWithSurrogates,
    inputs.NoSurrogates,
    inputs.CountsWhatItRefuses,
    turns.PaysAfterTheEnd,
    seeds.AlwaysTheSameTask,
    processes.Unpicklable,
    processes.TextOfGymnasium,
)


@pytest.fixture(autouse=True)
def what_they_do_is_undone(tmp_path, monkeypatch):
    """They change the process that they are in."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(".")
    monkeypatch.setenv("WORDS_MODE", "off")
    monkeypatch.delenv("WORDS_MODE")


def test_the_sound_environment_keeps_every_promise():
    report = check_agent_env(Words, profile="ci", verbose=False)
    assert report.ok, str(report)
    assert sum(finding.status == "kept" for finding in report.findings) >= 20


@pytest.mark.parametrize("broken", PLANTED, ids=lambda broken: broken.__name__)
def test_the_bug_is_found_and_named(broken):
    name, names_it = PLANTED[broken]
    (finding,) = check_agent_env(broken, only=name, verbose=False).findings
    assert finding.status == "broken", str(finding)
    assert re.search(names_it, finding.found), finding.found


@pytest.mark.parametrize("broken", ALONE, ids=lambda broken: broken.__name__)
def test_no_other_promise_is_said_to_be_broken(broken):
    slow = ("first use", "other process", "leftovers")
    report = check_agent_env(broken, only=[p.name for p in PROMISES if p.name not in slow], verbose=False)
    assert [finding.promise.name for finding in report.broken] == [PLANTED[broken][0]], str(report)


@pytest.mark.parametrize("broken", [seeds.SeedDropped, seeds.HistoryStays, outputs.WallClock], ids=lambda b: b.__name__)
def test_what_breaks_many_things_is_named_first_by_its_cause(broken):
    report = check_agent_env(broken, verbose=False)
    assert report.broken[0].promise.name == PLANTED[broken][0]
    assert len(report.broken) <= 3, str(report)

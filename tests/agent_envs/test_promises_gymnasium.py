"""What the promises about any text environment are made of: subjects, records, the process around, another process."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gallery.inputs import HalfOpenTag
from gallery.outputs import OneFlag, WallClock
from gallery.processes import CloseOnce, HangsInWorkers
from gallery.words import Words
from parts import Riddles, SameString

from agent_envs.env import ToolEnv
from agent_envs.testing import EXPERT, Episode, NotAsked, check_agent_env
from agent_envs.testing.elsewhere import Elsewhere, run_elsewhere
from agent_envs.testing.promises import PROMISES, vector
from agent_envs.testing.record import Misshapen, Recorder, departure, deviation, record, repeats
from agent_envs.testing.subject import Subject
from agent_envs.testing.surroundings import (
    changes,
    generator_states,
    generators_kept,
    heard,
    look,
    put_back,
    seed_generators,
)


def riddles() -> ToolEnv:
    return ToolEnv(tasks=Riddles(), verifier=SameString())


# --- subjects


def test_a_subject_is_an_id_an_environment_or_a_function():
    given = gym.make("agent_envs:agent_envs/MathTool-v0", max_turns=2)
    for what, turns in ((given, 2), ("agent_envs:agent_envs/MathTool-v0", 4), (riddles, 4), (riddles(), 4)):
        subject = Subject(what)
        with subject.env() as one, subject.env() as other:
            assert one is not other
            assert one.unwrapped.max_turns == other.unwrapped.max_turns == turns
        assert subject.is_tool_env
        assert subject.has_oracle
    assert given.unwrapped._episode is None  # it was never stepped


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("CartPole-v1", "observation_space of strings"),
        (lambda: gym.make("CartPole-v1"), "observation_space of strings"),
        (lambda: 3, "to make a gymnasium.Env, found int"),
        (3, "found 3"),
    ],
)
def test_a_subject_says_what_it_is_not(what, says):
    with pytest.raises(TypeError, match=says):
        Subject(what)


def test_the_tour_calls_every_tool_that_has_examples():
    tour = Subject("agent_envs:agent_envs/MathTool-v0").tour
    assert any("<python>" in action for action in tour)
    assert any("<answer>" in action for action in tour)


def test_an_error_of_close_is_left_to_the_promise_about_it():
    with Subject(CloseOnce).env() as env:
        env.close()  # the block will close it once more
    assert Words.close(env) is None


# --- records


def test_a_record_ends_with_what_was_raised():
    with Subject(HalfOpenTag).env() as env:
        run = record(env, Episode(0, ("a", "<answer>", "b")))
    assert [moment.action for moment in run.trace] == [None, "a"]
    assert isinstance(run.raised, ValueError)
    assert run.action == "<answer>"
    assert run.over


def test_a_record_says_what_is_no_step():
    with Subject(OneFlag).env() as env:
        run = record(env, Episode(0, ("a",)))
    assert isinstance(run.raised, Misshapen)
    assert str(run.raised).startswith("a tuple of 4")


def test_the_expert_of_a_record_is_the_oracle():
    with Subject(riddles).env() as env:
        run = record(env, Episode(3, (EXPERT,)))
    assert run.trace[-1].info["success"] is True


def test_records_depart_where_they_first_differ():
    with Subject(Words).env() as env:
        one, same, other, longer = (record(env, Episode(0, actions)) for actions in ("a", "a", "b", "ab"))
    assert departure(one, same) == ""
    assert departure(one, other).startswith("action after action 1: first 'a', then 'b'")
    assert departure(one, longer) == "first 1 actions until the end, then 2"
    with Subject(HalfOpenTag).env() as env:
        broken, again = (record(env, Episode(0, ("<answer>",))) for _ in "ab")
    assert departure(broken, again) == ""  # it raises each time
    with Subject(Words).env() as env:
        sound = record(env, Episode(0, ("<answer>",)))
    assert departure(sound, broken).startswith("after action 1: first no exception, then ValueError")
    assert departure(broken, sound).startswith("after action 1: first ValueError")


def test_an_environment_that_is_never_the_same_deviates_from_nothing():
    for make, same in ((Words, True), (WallClock, False)):
        subject = Subject(make)
        with subject.env() as env:
            first, second = (record(env, Episode(0, (action,))) for action in "ab")
        assert repeats(subject, 0, first) is same
        assert bool(deviation(subject, 0, first, second)) is same


def test_a_recorder_goes_on_only_until_the_end():
    with Subject(Words).env() as env:
        run = Recorder(env)
        run.play(Episode(0, tuple("abcdef")))
    assert len(run.record.trace) == 4
    assert run.record.trace[-1].terminated


# --- the process around


def test_generators_are_put_back():
    before = generator_states()
    with generators_kept():
        seed_generators(5)
        drawn = random.random(), float(np.random.rand())
        assert [name for name, state in generator_states().items() if state != before[name]]
        seed_generators(5)
        assert (random.random(), float(np.random.rand())) == drawn
    assert generator_states() == before


def test_changes_of_the_process_are_named_and_undone(tmp_path):
    root = logging.getLogger()
    handlers, here, before = root.handlers, Path.cwd(), look()
    with put_back():
        inside = look()
        os.environ["KIT_TEST"] = "1"
        os.chdir(tmp_path)
        sys.path.append("/nowhere")
        warnings.filterwarnings("ignore")
        logging.basicConfig()
        found = changes(inside, look())
    assert [line.partition(":")[0] for line in found] == [
        "os.environ",
        "the working directory",
        "sys.path",
        "the root logger",
        "the warnings filters",
    ]
    assert "KIT_TEST was None and is '1'" in found[0]
    assert found[2] == "sys.path: now with /nowhere"
    assert changes(before, look()) == []
    assert (root.handlers, Path.cwd()) == (handlers, here)


def test_what_is_printed_is_heard_and_what_is_logged_is_not():
    logger = logging.Logger("nobody listens to this one")
    with heard() as printed:
        print("to one")
        print("to the other", file=sys.stderr)
        logger.warning("to nobody")
    assert printed() == "to one\nto the other\n"


# --- another process


def hash_of(text: str) -> tuple[int, str]:
    print("computing")
    return hash(text), os.getcwd()


def leave_behind() -> tuple[str, int]:
    Path(os.environ["TMPDIR"], "scratch").touch()
    return os.environ["TMPDIR"], subprocess.Popen(["sleep", "60"]).pid


def end_with(status: int) -> None:
    print("so long")
    sys.stdout.flush()
    os._exit(status)


def test_a_function_runs_elsewhere_with_another_hash_seed(tmp_path):
    one, again = (run_elsewhere(hash_of, "text", hash_seed=1, folder=str(tmp_path)) for _ in "ab")
    other = run_elsewhere(hash_of, "text", hash_seed=2)
    assert one == again
    assert one.printed == "computing\n"
    assert one.value[1] == str(tmp_path)
    assert one.value[0] != other.value[0]


def test_nothing_stays_of_another_process():
    folder, child = run_elsewhere(leave_behind).value
    assert not Path(folder).exists()
    deadline = time.monotonic() + 10
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(child)


def _runs(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("function", "arguments", "says"),
    [
        (end_with, (3,), "ended with status 3: so long"),
        (int, ("x",), r"ValueError: invalid literal for int\(\) with base 10: 'x'"),
        (time.sleep, (60,), "nothing came of it in 0.5 s"),
    ],
)
def test_what_goes_wrong_elsewhere_is_said_here(function, arguments, says):
    with pytest.raises(Elsewhere, match=says):
        run_elsewhere(function, *arguments, timeout=0.5 if function is time.sleep else 60.0)


def test_an_environment_that_no_module_holds_goes_elsewhere_too():
    class Local(Words):
        """A class that pickle does not find."""

    report = check_agent_env(lambda: Local(), only=["other process", "pickle"], verbose=False)
    assert [(finding.promise.name, finding.status) for finding in report.findings] == [
        ("other process", "kept"),
        ("pickle", "not asked"),
    ]
    assert "Local" in report.findings[1].found


# --- promises


def test_promises_have_names_of_their_own_and_say_something():
    names = [promise.name for promise in PROMISES]
    assert len(set(names)) == len(names)
    assert all(promise.says.endswith(".") for promise in PROMISES)


def test_what_cannot_be_asked_says_why():
    why = {finding.promise.name: finding.found for finding in check_agent_env(Words, verbose=False).findings}
    assert "ToolEnv" in why["end"]
    assert "spec" in why["spec"]


def test_a_single_task_needs_no_other_by_seed():
    class OneRiddle(Riddles):
        def ids(self, split):
            return ["riddles:1"]

        def sample(self, rng, split):
            return self.get("riddles:1")

    def one_riddle() -> ToolEnv:
        return ToolEnv(tasks=OneRiddle(), verifier=SameString())

    (promise,) = (promise for promise in PROMISES if promise.name == "tasks by seed")
    with pytest.raises(NotAsked, match="'train' has one task"):
        promise.check(Subject(one_riddle), Episode())


def test_processes_that_hang_are_given_up(monkeypatch):
    monkeypatch.setattr(vector, "_PATIENCE", 0.5)
    (finding,) = check_agent_env(HangsInWorkers, only="processes", verbose=False).findings
    assert finding.status == "broken"
    assert "TimeoutError" in finding.found
    assert multiprocessing.active_children() == []


def test_the_checks_themselves_leave_the_process_alone():
    before, generators = look(), generator_states()
    report = check_agent_env(Words, only=["quiet", "global generators", "vector", "threads"], verbose=False)
    assert report.ok
    assert changes(before, look()) == []
    assert generator_states() == generators

"""A terminal: real commands, state that a copy takes along, time-outs, and no terminal where there is no bash."""

import copy
import doctest
import pickle
import shutil
import time
from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
from docker_engine import IMAGE, client_or_skip

from agent_envs import EnvironmentFault, UnknownTask
from agent_envs.task import SPLITS, normalise_question, split_of
from agent_envs.testing import check_agent_env
from agent_envs.tool import call_tool
from examples import terminal as example
from examples.terminal import LogTasks, Terminal, make_logs

ID = "examples.terminal:Terminal-v0"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="this machine has no bash")


@pytest.fixture(params=["local", pytest.param("docker", marks=pytest.mark.docker)])
def settings(request):
    if request.param == "docker":
        client_or_skip().close()
        return {"backend": "docker", "image": IMAGE}
    return {"backend": "local"}


@pytest.fixture
def tool(settings):
    made = Terminal(timeout=2.0, **settings)
    made.reset(LogTasks().get("logs:1:most:0"), np.random.default_rng(0))
    yield made
    made.close()


def ask(tool, command):
    return call_tool(tool, {"command": command})


def test_what_commands_find_is_what_the_lines_say(settings):
    env = gym.make(ID, split="test", **settings)
    kinds = Counter()
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        expert, over, info = env.unwrapped.oracle(), False, {}
        while not over:
            observation, reward, over, _, info = env.step(expert(observation))
        assert (reward, info["success"]) == (1.0, True), env.unwrapped.task
        kinds[env.unwrapped.task.metadata["kind"]] += 1
    assert len(kinds) == 3
    env.close()


def test_tasks_are_made_again_from_their_ids_and_splits_share_no_question():
    source, seen = LogTasks(), {}
    for split in SPLITS:
        for seed in range(100):
            task = source.sample(np.random.default_rng(seed), split)
            assert source.get(task.id) == task
            assert split_of(task.question) == split
            assert seen.setdefault(normalise_question(task.question), split) == split


@pytest.mark.parametrize("task_id", ["", "logs:1:most:120", "logs:1:least:0", "logs:x:most:0"])
def test_ids_of_no_task(task_id):
    with pytest.raises(UnknownTask, match="a task id of logs reads"):
        LogTasks().get(task_id)


def test_the_tasks_files_are_there(tool):
    files = make_logs(1).files()
    assert ask(tool, "ls logs").text.split() == sorted(name.removeprefix("logs/") for name in files)
    for name, text in files.items():
        assert ask(tool, f"cat {name}").text == text.rstrip("\n")


def test_files_and_the_current_folder_stay(tool):
    assert ask(tool, "pwd").text == "~"
    assert ask(tool, "mkdir -p a/b; cd a/b; echo one > file").text == "(no output)"
    assert ask(tool, "pwd; cat file").text == "~/a/b\none"
    assert ask(tool, "exit 3").text == "[exit status 3]"
    assert ask(tool, "pwd").text == "~/a/b"
    assert ask(tool, "exec true").text == "(no output)"
    assert ask(tool, "sleep 100 & cd ..").text == "(no output)"
    assert ask(tool, "pwd").text == "~/a"
    assert ask(tool, "cd b; rm -r ../b; cd ~; echo ~").text == "~"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("echo 'it'\"'\"'s' \"$HOME\" `echo 1` $(echo 2)", "it's ~ 1 2"),
        ("cat <<END\none 'two\nthree\nEND", "one 'two\nthree"),
        ("seq 3 | sort -r | tr '\\n' -", "3-2-1-"),
        ("cat", "(no output)"),
        ("echo out; echo err >&2", "out\nerr"),
        ("# nothing", "(no output)"),
        ("echo {braces} %d %s \\\\", "{braces} %d %s \\"),
    ],
)
def test_a_command_is_what_bash_makes_of_it(tool, command, expected):
    assert ask(tool, command).text == expected


def test_a_failing_command_says_so_and_is_no_fault(tool):
    result = ask(tool, "nonsense")
    assert result.text == "bash: line 1: nonsense: command not found\n[exit status 127]"
    assert result.fault == ""
    assert "syntax error" in ask(tool, "if").text


@pytest.mark.parametrize("command", ["echo \0", "x" * 200_000])
def test_what_no_program_can_be_given_is_the_policys_to_read(tool, command):
    assert ask(tool, command).fault == "error"
    assert ask(tool, "echo fine").text == "fine"


def test_a_copy_has_its_own_files_and_stands_in_its_own_folder(tool):
    ask(tool, "cd logs; echo before > note")
    twin = tool.fork()
    assert ask(twin, "pwd; cat note").text == "~/logs\nbefore"
    ask(twin, "echo twin > note; rm mon.log; cd ~")
    ask(tool, "echo own > note")
    assert ask(tool, "pwd; cat note; ls").text == "~/logs\nown\nmon.log\nnote\ntue.log\nwed.log"
    tool.close()
    assert ask(twin, "pwd; cat logs/note ~/logs/note; ls logs").text == "~\ntwin\ntwin\nnote\ntue.log\nwed.log"
    twin.close()
    twin.close()


def test_a_command_that_takes_too_long_is_stopped(tool):
    ask(tool, "cd logs; touch kept")
    begin = time.monotonic()
    result = ask(tool, "echo begun; while true; do :; done")
    assert time.monotonic() - begin < 20
    assert result.fault == "timeout"
    assert result.text == "begun\ntimed out after 2 s; the current folder is ~ again"
    assert ask(tool, "pwd; ls logs/kept").text == "~\nlogs/kept"


def test_a_command_that_kills_the_shell_is_no_end(tool):
    assert ask(tool, "kill -9 $PPID; sleep 1").fault == "killed"
    assert ask(tool, "pwd").text == "~"


def test_it_is_plain_data_before_and_after_an_episode(settings):
    env = gym.make(ID, **settings)
    first = env.reset(seed=3)
    twin = copy.deepcopy(env)
    twin.close()
    env.close()
    env.close()
    thawed = pickle.loads(pickle.dumps(env.unwrapped))
    assert thawed.reset(seed=3) == first
    thawed.close()


def test_where_there_is_no_bash_that_is_nobodys_answer(monkeypatch):
    monkeypatch.setattr(example, "PROGRAMS", ("cat",))
    env = gym.make(ID, backend="local")
    with pytest.raises(EnvironmentFault, match="a terminal needs bash, which a local interpreter does not find here"):
        env.reset(seed=0)
    env.close()


def test_a_command_cannot_reach_this_machine():
    tool = Terminal("local", timeout=2.0)
    tool.reset(LogTasks().get("logs:1:most:0"), np.random.default_rng(0))
    for command in ("cat /etc/passwd", "ls /root /home", "echo x > /usr/bin/bash", "exec 3<> /dev/tcp/127.0.0.1/22"):
        assert "[exit status" in ask(tool, command).text
    tool.close()


def test_its_docstrings_are_right():
    assert doctest.testmod(example).failed == 0


@pytest.mark.thorough
def test_it_keeps_an_environments_promises():
    check_agent_env(ID, profile="quick", verbose=False).raise_if_broken()

"""The Python tool on the real interpreter: what the policy reads, and whose doing a failure is."""

import contextlib
import copy
import pickle
import signal
import threading
import time

import gymnasium as gym
import numpy as np
import pytest
from docker_engine import IMAGE, client_or_skip, own_engine

import agent_envs
from agent_envs.faults import EnvironmentFault
from agent_envs.task import Task
from agent_envs.tools.python import PythonTool
from sandboxes.faults import SandboxFault
from sandboxes.python import Limits

TASK = Task("t", "q", ("1",))


@pytest.fixture
def python():
    tool = PythonTool(timeout=5.0)
    tool.reset(TASK, np.random.default_rng(0))
    yield tool
    tool.close()


@pytest.mark.parametrize(
    ("code", "text", "fault"),
    [
        ("print(6 * 7)", "42", ""),
        ("6 * 7", "42", ""),
        ("x = 6\nx * 7", "42", ""),
        ("print('a'); 'b'", "a\n'b'", ""),
        ("x = 1", "(no output)", ""),
        ("", "(no output)", ""),
        ("None", "(no output)", ""),
        (" print(5)", "5", ""),
        ("\n    y = 1\n    y + 1\n", "2", ""),
        ("import sys\nprint('out')\nprint('err', file=sys.stderr)\nprint('end')", "out\nerr\nend", ""),
        ("print('äö\\n\\n')", "äö", ""),
    ],
)
def test_what_a_call_gives_back(python, code, text, fault):
    result = python.run(code=code)
    assert (result.text, result.fault) == (text, fault)


def test_state_stays_until_the_next_episode(python):
    python.run(code="x = 41\nimport math")
    assert python.run(code="math.floor(x) + 1").text == "42"
    python.reset(TASK, np.random.default_rng(0))
    result = python.run(code="x")
    assert (result.fault, result.text.splitlines()[-1]) == ("error", "NameError: name 'x' is not defined")


def test_an_error_comes_after_the_output_with_the_end_of_its_traceback(python):
    result = python.run(code="def f(n):\n    return f(n - 1) if n else 1 / 0\nprint('before')\nf(50)")
    lines = result.text.splitlines()
    assert result.fault == "error"
    assert lines[0] == "before"
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert len(lines) <= 10


def test_code_that_does_not_compile(python):
    result = python.run(code="print(")
    assert result.fault == "error"
    assert "SyntaxError" in result.text


def test_running_out_of_time_keeps_the_output_and_says_so_plainly():
    python = PythonTool(timeout=0.5)
    python.reset(TASK, np.random.default_rng(0))
    python.run(code="x = 1")
    result = python.run(code="print('so far')\nwhile True: pass")
    assert result.fault == "timeout"
    assert result.text == "so far\ntimed out after 0.5 s; the interpreter starts afresh, variables and imports are gone"
    assert "NameError" in python.run(code="x").text
    python.close()


def test_a_process_that_dies_is_the_agents_doing(python):
    result = python.run(code="import os\nprint('so far', flush=True)\nos._exit(3)")
    assert result.fault == "killed"
    assert result.text.startswith("so far\n")
    assert python.run(code="1 + 1").text == "2"


def test_too_much_memory_is_the_agents_doing(python):
    result = python.run(code="x = bytearray(10**11)")
    assert result.fault in ("error", "killed")
    assert python.run(code="1 + 1").text == "2"


def test_too_much_output_is_cut_and_says_so():
    python = PythonTool(limits=Limits(output_bytes=1000))
    python.reset(TASK, np.random.default_rng(0))
    result = python.run(code="print('a' * 100_000)")
    assert result.text.endswith("\n[the rest of the output was left out]")
    assert len(result.text) < 1100
    assert result.fault == ""
    python.close()


def test_random_numbers_come_from_the_episode():
    code = "import random, numpy\nprint(random.random(), numpy.random.random())"

    def numbers(seed):
        python = PythonTool()
        python.reset(TASK, np.random.default_rng(seed))
        text = python.run(code=code).text
        python.reset(TASK, np.random.default_rng(seed))
        assert python.run(code=code).text == text
        python.close()
        return text

    assert numbers(1) == numbers(1) != numbers(2)


def test_nothing_opens_before_the_first_call_and_close_may_be_called_twice(monkeypatch):
    def refuse(*args, **settings):
        raise SandboxFault("no engine here", retryable=True)

    monkeypatch.setattr(agent_envs.tools.python, "open_interpreter", refuse)
    python = PythonTool()
    python.reset(TASK, np.random.default_rng(0))
    python.close()
    python.close()
    with pytest.raises(SandboxFault, match="no engine here"):
        python.run(code="1")


@pytest.mark.parametrize("settings", [{"backend": "podman"}, {"isolation": "some"}, {"timeout": 0.0}])
def test_wrong_settings_are_named(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        PythonTool(**settings)


def test_the_limits_of_a_tool_are_the_interpreters():
    assert PythonTool(timeout=2.0, limits=Limits(processes=3)).limits == Limits(processes=3, timeout=2.0)


def test_an_engine_that_is_gone_is_opened_again_by_the_next_episode(monkeypatch):
    env = gym.make("agent_envs/MathTool-v0").unwrapped
    env.reset(seed=0)
    env.step("<python>1</python>")

    def gone(*args, **settings):
        raise SandboxFault("the engine is gone", retryable=True)

    monkeypatch.setattr(env.tools[0]._interpreter, "run", gone)
    with pytest.raises(EnvironmentFault, match="the engine is gone") as caught:
        env.step("<python>1</python>")
    assert (caught.value.component, caught.value.retryable) == ("python", True)
    env.reset(seed=0)
    assert env.step("<python>1 + 1</python>")[0] == "2"
    env.close()


def test_it_pickles_while_it_has_no_interpreter(python):
    assert pickle.loads(pickle.dumps(python)).timeout == 5.0
    python.run(code="1")
    for copied in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="open interpreter"):
            copied(python)
    python.close()
    assert pickle.loads(pickle.dumps(python)).timeout == 5.0


def test_a_fork_of_a_live_episode_has_its_variables_and_its_randomness():
    env = gym.make("agent_envs/MathTool-v0", max_turns=10, timeout=2.0)
    env.reset(seed=0)
    env.step("<python>import random; x = [random.random()]</python>")
    env.step("<python>1 / 0</python>")
    twin = copy.deepcopy(env)
    for action in (
        "<python>x.append(random.random()); x</python>",
        "<python>len(x)</python>",
        "<python>random.random()</python>",
    ):
        assert twin.step(action) == env.step(action)
    twin.step("<python>x = 'gone'</python>")
    assert env.step("<python>len(x)</python>")[0] == "2"
    twin.close()
    assert env.step("<python>len(x)</python>")[0] == "2"
    env.close()


def test_a_fork_has_what_no_second_run_could_have():
    env = gym.make("agent_envs/MathTool-v0", max_turns=10)
    env.reset(seed=0)
    env.step("<python>import os; x = os.urandom(8).hex(); f = open('f', 'w+'); _ = f.write(x)</python>")
    env.step("<python>count = iter(range(9)); next(count)</python>")
    twin = copy.deepcopy(env)
    for action in ("<python>x</python>", "<python>next(count)</python>", "<python>f.seek(2); f.read()</python>"):
        assert twin.step(action) == env.step(action)
    env.close()
    assert twin.step("<python>next(count)</python>")[0] == "2"
    assert twin.reset(seed=1) == env.reset(seed=1)
    assert "NameError" in twin.step("<python>x</python>")[0]
    twin.close()
    env.close()


def test_what_cannot_be_copied_is_named_and_the_episode_goes_on():
    env = gym.make("agent_envs/MathTool-v0", max_turns=10)
    env.reset(seed=0)
    env.step("<python>import threading, time; threading.Thread(target=time.sleep, args=(99,), daemon=True).start()</python>")
    with pytest.raises(agent_envs.ForkError, match=r"2 threads are running.*fidelity='replay'"):
        copy.deepcopy(env)
    assert env.step("<python>6 * 7</python>")[0] == "42"
    env.close()


def test_replay_copies_what_cannot_be_forked():
    env = gym.make("agent_envs/MathTool-v0", max_turns=10, python={"fidelity": "replay"})
    env.reset(seed=0)
    env.step("<python>import threading, time; threading.Thread(target=time.sleep, args=(99,), daemon=True).start()</python>")
    env.step("<python>import random; x = random.random()</python>")
    twin = copy.deepcopy(env)
    assert twin.step("<python>x</python>") == env.step("<python>x</python>")
    twin.close()
    env.close()


def test_a_call_that_differs_when_it_runs_again_cannot_be_replayed():
    env = gym.make("agent_envs/MathTool-v0", python={"fidelity": "replay"})
    env.reset(seed=0)
    env.step("<python>import os; print(os.urandom(8).hex())</python>")
    with pytest.raises(agent_envs.ForkError, match="tool 'python' gave another result when call 1"):
        copy.deepcopy(env)
    env.close()


def test_without_state_each_call_is_a_program_of_its_own():
    def episode():
        tool = PythonTool(stateful=False)
        tool.reset(TASK, np.random.default_rng(0))
        draws = [tool.run(code="import random; random.random()").text for _ in range(2)]
        twin = tool.fork()
        draws.append(tool.run(code="import random; x = 1; random.random()").text)
        assert twin.run(code="import random; random.random()").text == draws[-1]
        assert "NameError" in tool.run(code="x").text
        tool.close()
        twin.close()
        return draws

    first = episode()
    assert len(set(first)) == 3
    assert episode() == first


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("object()", "<object object at 0x...>"),
        ("lambda: 0", "<function <lambda> at 0x...>"),
        ("print([print, len], object)", "[<built-in function print>, <built-in function len>] <class 'object'>"),
        ("hex(2**40), 'look at 0x10'", "('0x10000000000', 'look at 0x10')"),
    ],
)
def test_addresses_are_masked(python, code, text):
    assert python.run(code=code).text == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "cloud"}, "backend must be 'auto', 'local' or 'docker', found 'cloud'"),
        ({"fidelity": "rough"}, "fidelity must be 'exact' or 'replay', found 'rough'"),
        ({"limits": {"memory": 1}}, "limits takes the fields of"),
        ({"limits": {"memory_bytes": 1}}, "Limits.memory_bytes must be"),
        ({"options": {"seed": 1}}, r"found \['seed'\]"),
    ],
)
def test_arguments_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        PythonTool(**arguments)


def test_limits_may_be_plain_data():
    env = gym.make("agent_envs/MathTool-v0", python={"limits": {"output_bytes": 5}})
    env.reset(seed=0)
    assert env.step("<python>print('x' * 9)</python>")[0] == "xxxxx\n[the rest of the output was left out]"
    env.close()


@pytest.mark.docker
def test_an_engine_that_dies_in_the_middle_of_an_episode_is_an_environment_fault(monkeypatch):
    with contextlib.closing(client_or_skip()) as client, own_engine(client) as engine:
        monkeypatch.setenv("DOCKER_HOST", engine.address)
        env = gym.make("agent_envs/MathTool-v0", backend="docker", python={"options": {"image": IMAGE, "preload": []}})
        env.reset(seed=0)
        assert env.step("<python>6 * 7</python>")[0] == "42"
        threading.Timer(0.5, engine.signal, (signal.SIGKILL,)).start()
        started = time.monotonic()
        with pytest.raises(EnvironmentFault) as caught:
            env.step("<python>import time; time.sleep(4)</python>")
        assert time.monotonic() - started < 5.5
        assert (caught.value.component, caught.value.retryable) == ("python", True)
        env.close()


@pytest.mark.docker
def test_a_live_episode_in_a_container_is_copied():
    client_or_skip().close()
    env = gym.make("agent_envs/MathTool-v0", max_turns=9, backend="docker", python={"options": {"image": IMAGE}})
    env.reset(seed=0)
    env.step("<python>count = iter(range(9)); next(count)</python>")
    twins = [copy.deepcopy(env) for _ in range(8)]
    assert [twin.step("<python>next(count)</python>")[0] for twin in twins] == ["1"] * 8
    assert env.step("<python>import os; os.kill(os.getpid(), 9)</python>")[4]["policy_fault"] == "killed"
    assert [twin.step("<python>next(count)</python>")[0] for twin in twins] == ["2"] * 8
    for each in (env, *twins):
        each.close()

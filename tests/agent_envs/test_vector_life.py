"""How a vector environment begins and ends: its threads, and what is left of them."""

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from vector_parts import Gated, Obedient, kept, told

from agent_envs.vector import ThreadVectorEnv, make_threads

WAIT = 10.0  # seconds after which a test gives up


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("environment ")]


def no_threads():
    deadline = time.monotonic() + WAIT
    while threads() and time.monotonic() < deadline:
        time.sleep(0.005)
    return not threads()


@pytest.fixture(autouse=True)
def _begins_and_ends_without_threads():
    assert no_threads()
    yield
    assert no_threads()


# --- beginning


def test_an_environment_has_one_thread_for_all_its_life():
    made = []

    def make():
        made.append(Obedient())
        return made[-1]

    envs = ThreadVectorEnv([make] * 5)
    envs.reset()
    envs.step([told()] * 5)
    envs.send([1], [told(**{"raise": "bug"})])
    envs.recv()
    envs.get_attr("episodes")
    envs.close()
    assert all(env.closed for env in made)
    assert [len(env.threads) for env in made] == [1] * 5
    assert len(set.union(*(env.threads for env in made)) | {threading.get_ident()}) == 6


def test_all_are_made_at_the_same_time():
    together = threading.Barrier(8)

    def make():
        together.wait(WAIT)
        return Obedient()

    ThreadVectorEnv([make] * 8).close()


@pytest.mark.parametrize("error", [OSError("no such engine"), SystemExit(3)])
def test_an_error_in_a_constructor_is_raised_and_nothing_is_left(error):
    envs, makers = kept(Obedient, 4)

    def broken():
        raise error

    with pytest.raises(type(error)) as caught:
        ThreadVectorEnv([*makers[:2], broken, *makers[2:]])
    assert caught.value is error
    assert error.__notes__ == ["environment 2 raised this when it was made"]
    assert all(env.closed for env in envs)
    assert not threads()


def test_what_was_made_is_closed_where_spaces_differ():
    envs, makers = kept(Obedient, 2)
    envs[1].action_space = Gated().action_space
    with pytest.raises(
        RuntimeError, match=r"action_space is String\(2000\) in environment 0, and String\(200\) in environment 1"
    ):
        ThreadVectorEnv(makers)
    assert [env.closed for env in envs] == [True, True]
    assert not threads()


# --- the end


def test_one_that_hangs_is_left_and_named(caplog):
    envs, makers = kept(Gated, 3)
    vector = ThreadVectorEnv(makers, close_timeout=0.2)
    vector.reset()
    vector.send([1], ["<python>while True: pass</python>"])
    assert envs[1].waiting.wait(WAIT)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING, "agent_envs"):
        vector.close()
    assert 0.2 <= time.monotonic() - started < WAIT
    [record] = caplog.records
    assert record.getMessage() == (
        "1 of 3 environments did not end within 0.2 s and are left to their threads: "
        "environment 1 in step('<python>while True: pass</python>')"
    )
    assert (envs[0].closed.is_set(), envs[1].closed.is_set(), envs[2].closed.is_set()) == (True, False, True)
    assert threads() == ["environment 1"]
    vector.close()
    envs[1].gate.release()  # when it is done after all, it is closed too
    assert envs[1].closed.wait(WAIT)


def test_the_time_can_be_given_to_close(caplog):
    envs, makers = kept(Gated, 2)
    vector = ThreadVectorEnv(makers, close_timeout=100)
    vector.reset()
    vector.send([0, 1], ["a" * 200, "b"])
    assert all(env.waiting.wait(WAIT) for env in envs)
    vector.close(timeout=0)
    assert f"environment 0 in step('{'a' * 76}...)" in caplog.text
    for env in envs:
        env.gate.release()


def test_work_that_ends_in_time_is_waited_for(caplog):
    [env], makers = kept(Gated, 1)
    vector = ThreadVectorEnv(makers)
    vector.reset()
    vector.send([0], ["a"])
    threading.Timer(0.05, env.gate.release).start()
    vector.close()
    assert env.closed.is_set()
    assert caplog.text == ""


def test_an_environment_that_hangs_in_close_is_named(caplog):
    gate = threading.Event()

    class Lasting(Obedient):
        def close(self):
            gate.wait(WAIT)

    ThreadVectorEnv([Lasting], close_timeout=0.05).close()
    assert "environment 0 in close()" in caplog.text
    gate.set()


def test_an_error_in_close_is_logged_and_the_others_are_closed(caplog):
    class Unclosable(Obedient):
        def close(self):
            raise OSError("cannot let go")

    envs, makers = kept(Obedient, 2)
    ThreadVectorEnv([makers[0], Unclosable, makers[1]]).close()
    assert [env.closed for env in envs] == [True, True]
    assert "environment 1 raised this when it was closed" in caplog.text
    assert "cannot let go" in caplog.text


def test_one_that_is_dropped_ends_too():
    envs, makers = kept(Obedient, 2)
    vector = ThreadVectorEnv(makers)
    vector.reset()
    vector.step([told(**{"raise": "bug"}), told()])
    del vector
    gc.collect()
    assert no_threads()
    assert all(env.closed for env in envs)


def test_an_interrupt_leaves_it_closable():
    envs, makers = kept(Gated, 2)
    vector = ThreadVectorEnv(makers, close_timeout=0.1)
    vector.reset()
    for wait in (lambda: vector.step(["a", "b"]), vector.recv):
        interrupt = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            wait()
        interrupt.join()
    envs[1].gate.release()
    assert vector.recv()[1] == ("b",)  # and usable, once everything has been received
    envs[0].gate.release()
    vector.recv()
    envs[0].gate.release()
    envs[1].gate.release()
    assert vector.step(["c", "d"])[0] == ("c", "d")
    vector.send([0], ["a"])
    vector.close()
    envs[0].gate.release()


def left_open():
    """How many files are open, and which child processes there are."""
    return len(os.listdir("/proc/self/fd")), set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts what is open in /proc")
def test_a_thousand_opens_and_closes_leave_nothing():
    def once():
        envs = make_threads("agent_envs/MathTool-v0", 2)
        envs.reset(seed=0)
        envs.step([r"<answer>\boxed{1}</answer>", "no call"])
        envs.close()

    once()
    gc.collect()
    before = left_open(), len(gc.get_objects())
    for _ in range(1_000):
        once()
    gc.collect()
    assert left_open() == before[0]
    assert len(gc.get_objects()) < before[1] + 2_000  # two a round would be more


@pytest.mark.thorough
def test_a_thousand_opens_and_closes_of_live_interpreters_leave_nothing():
    def once():
        envs = make_threads("agent_envs/MathTool-v0", 2)
        envs.reset(seed=0)
        assert envs.step(["<python>6*7</python>"] * 2)[0] == ("42", "42")
        envs.close()

    once()
    before = left_open()
    for _ in range(1_000):
        once()
    files, children = left_open()
    assert files <= before[0]  # the engine that they share may have had one open for a moment
    assert children <= before[1]


@pytest.mark.parametrize("end", ["", "envs.close(timeout=0.1)", "del envs"])
def test_the_process_ends_with_environments_that_hang(end):
    code = (
        "import time, gymnasium as gym\n"
        "from agent_envs.spaces import String\n"
        "from agent_envs.vector import ThreadVectorEnv\n"
        "class Hanging(gym.Env):\n"
        "    observation_space = action_space = String(9)\n"
        "    def reset(self, *, seed=None, options=None): return '', {}\n"
        "    def step(self, action):\n"
        "        print('stepping', flush=True)\n"
        "        time.sleep(1000)\n"
        "envs = ThreadVectorEnv([Hanging] * 3)\n"
        "envs.reset()\n"
        "envs.send([1], ['a'])\n"
        "time.sleep(0.3)\n"
        f"{end}\n"
        "print('end', flush=True)\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["stepping", "end"]
    assert time.monotonic() - started < 30

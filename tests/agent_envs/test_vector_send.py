"""The vector environment without a barrier: ``send``, ``send_reset`` and ``recv`` for single environments."""

import threading
import time

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import AlreadyPendingCallError, NoAsyncCallError, ResetNeeded
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from parts import Broken, Riddles, SameString
from vector_parts import Gated, Obedient, kept, told

from agent_envs.env import ToolEnv
from agent_envs.vector import ThreadVectorEnv, make_threads

COUNT = 3
WAIT = 10.0  # seconds after which a test gives up


@pytest.fixture
def gated():
    """Environments whose steps end when their gates open, and their vector environment, reset."""
    envs, makers = kept(Gated, COUNT)
    vector = ThreadVectorEnv(makers)
    vector.reset()
    yield envs, vector
    for env in envs:
        env.gate.release(100)
    vector.close()


def open_gate(vector, env):
    """Lets one environment's step end, and waits until its result is there to be received."""
    ready = vector._crew._results.qsize()
    env.gate.release()
    deadline = time.monotonic() + WAIT
    while vector._crew._results.qsize() == ready:
        assert time.monotonic() < deadline
        time.sleep(0.001)


# --- what comes back


def test_results_come_in_the_order_in_which_they_get_ready(gated):
    envs, vector = gated
    vector.send([0, 1, 2], ["a", "b", "c"])
    for number in (2, 0, 1):
        open_gate(vector, envs[number])
    env_ids, observations, rewards, terminations, truncations, infos = vector.recv()
    assert env_ids.tolist() == [2, 0, 1]
    assert env_ids.dtype == np.int64
    assert observations == ("c", "a", "b")
    assert (rewards.tolist(), rewards.dtype) == ([1.0] * 3, np.float64)
    assert (terminations.tolist(), terminations.dtype) == ([False] * 3, np.bool_)
    assert (truncations.tolist(), truncations.dtype) == ([False] * 3, np.bool_)
    assert infos == [{"said": "c"}, {"said": "a"}, {"said": "b"}]


def test_recv_waits_for_one_and_takes_at_most_n(gated):
    envs, vector = gated
    vector.send(np.array([0, 1, 2]), ["a", "b", "c"])
    for number in (1, 2):
        open_gate(vector, envs[number])
    assert vector.recv(1)[0].tolist() == [1]
    assert vector.recv(3)[0].tolist() == [2]
    timer = threading.Timer(0.05, envs[0].gate.release)
    timer.start()
    assert vector.recv(2)[1] == ("a",)
    timer.join(WAIT)


def test_no_environment_waits_for_another(gated):
    """Environment 0 hangs; the others play on."""
    envs, vector = gated
    envs[1].gate.release(50)
    envs[2].gate.release(50)
    vector.send([0, 1, 2], ["slow", "a", "a"])
    counts = {1: 0, 2: 0}
    while min(counts.values()) < 40:
        env_ids, *_ = vector.recv()
        for number in env_ids.tolist():
            counts[number] += 1
            if counts[number] < 40:
                vector.send([number], ["a"])
    envs[0].gate.release()
    assert vector.recv()[1] == ("slow",)


ACTIONS = st.builds(
    told,
    observation=st.text("ab", max_size=2),
    reward=st.floats(-9, 9),
    terminated=st.booleans(),
    truncated=st.booleans(),
    info=st.fixed_dictionaries({}, optional={"count": st.integers(0, 9)}),
)
ROUNDS = st.lists(st.tuples(st.integers(0, COUNT), st.dictionaries(st.sampled_from(range(COUNT)), ACTIONS)), max_size=8)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(AutoresetMode)), ROUNDS)
def test_every_environment_lives_as_if_alone(mode, rounds):
    """Whatever the order of sending and receiving, an environment gives what it gives in a vector of its own."""
    envs = ThreadVectorEnv([Obedient] * COUNT, autoreset_mode=mode)
    alone = [ThreadVectorEnv([Obedient], autoreset_mode=mode) for _ in range(COUNT)]
    expected, over = {}, set()

    def receive(most):
        for number, result in received(envs.recv(most)):
            assert data_equivalence(result, expected.pop(number), exact=True)
            (over.add if result[2] or result[3] else over.discard)(number)

    try:
        envs.send_reset(range(COUNT), seeds=[5, 6, 7], options={"level": 1})
        for number, single in enumerate(alone):
            observations, infos = single.reset(seed=5 + number, options={"level": 1})
            expected[number] = (observations[0], 0.0, False, False, unbatched(infos))
        for most, wanted in rounds:
            if most and expected:
                receive(most)
            asleep = over if mode is AutoresetMode.DISABLED else set()
            actions = {number: action for number, action in wanted.items() if number not in {*expected, *asleep}}
            envs.send(actions, list(actions.values()))
            for number, action in actions.items():
                observations, *parts, infos = alone[number].step([action])
                expected[number] = (observations[0], *(part[0].item() for part in parts), unbatched(infos))
        while expected:
            receive(COUNT)
    finally:
        for vector in (envs, *alone):
            vector.close()


def received(results):
    env_ids, observations, *parts, infos = results
    columns = (part.tolist() for part in parts)
    for number, *result in zip(env_ids.tolist(), observations, *columns, infos, strict=True):
        yield number, tuple(result)


def unbatched(infos):
    """The info of the only environment."""
    return {
        name: unbatched(value) if isinstance(value, dict) else value[0] if value.dtype == object else value[0].item()
        for name, value in infos.items()
        if not name.startswith("_")
    }


def test_numbers_come_as_arrays():
    envs = make_threads("CartPole-v1", 3)
    single = gym.make("CartPole-v1")
    envs.send_reset([2], seeds=[4])
    env_ids, observations, rewards, _, _, infos = envs.recv()
    assert data_equivalence(observations, single.reset(seed=4)[0][None], exact=True)
    assert (env_ids.tolist(), rewards.tolist(), infos) == ([2], [0.0], [{}])
    envs.send([2], np.array([1]))
    observations, rewards = envs.recv()[1:3]
    assert data_equivalence(observations, single.step(1)[0][None], exact=True)
    assert rewards.tolist() == [1.0]
    assert observations in gym.vector.utils.batch_space(envs.single_observation_space, 1)
    envs.close()


# --- episodes


def test_send_reset():
    envs = ThreadVectorEnv([Gated] * COUNT)
    envs.send_reset([2, 0], seeds=[7, None], options=[None, {"task_id": "x"}])
    results = {}
    while len(results) < 2:
        results |= dict(received(envs.recv()))
    assert results == {
        2: ("begin", 0.0, False, False, {"seed": 7}),
        0: ("begin", 0.0, False, False, {"seed": -1, "task_id": "x"}),
    }
    envs.send_reset([1], options={"task_id": "y"})
    assert envs.recv()[-1] == [{"seed": -1, "task_id": "y"}]
    envs.close()


def test_a_task_for_each_environment():
    envs = make_threads("agent_envs/MathTool-v0", 2)
    envs.send_reset([0, 1], options=[{"task_id": "arithmetic:0:6*7"}, {"task_id": "arithmetic:0:1+1"}])
    questions = {}
    while len(questions) < 2:
        env_ids, observations, *_ = envs.recv()
        questions |= dict(zip(env_ids.tolist(), observations, strict=True))
    assert questions == {0: "What is 6*7?", 1: "What is 1+1?"}
    envs.close()


def test_next_step_resets_whatever_the_action():
    envs = ThreadVectorEnv([Obedient])
    envs.reset()
    envs.send([0], [told(observation="end", terminated=True)])
    assert envs.recv()[1] == ("end",)
    envs.send([0], [None])  # ignored
    _, observations, rewards, terminations, _, infos = envs.recv()
    assert (observations, rewards.tolist(), terminations.tolist()) == (("episode 2",), [0.0], [False])
    assert set(infos[0]) == {"drawn", "options"}
    envs.close()


def test_same_step_shows_both_episodes():
    envs = ThreadVectorEnv([Obedient], autoreset_mode="SameStep")
    envs.reset()
    envs.send([0], [told(observation="end", reward=2.0, terminated=True, info={"count": 3})])
    _, observations, rewards, terminations, _, [info] = envs.recv()
    assert (observations, rewards.tolist(), terminations.tolist()) == (("episode 2",), [2.0], [True])
    assert (info["final_obs"], info["final_info"]) == ("end", {"count": 3})
    assert "drawn" in info
    envs.close()


def test_disabled_asks_for_a_reset():
    envs = ThreadVectorEnv([Obedient] * 2, autoreset_mode=AutoresetMode.DISABLED)
    envs.reset()
    envs.send([1], [told(truncated=True)])
    envs.recv()
    with pytest.raises(ResetNeeded, match=r"environment 1 is over, and autoreset is disabled: call send_reset\(\[1\]\)"):
        envs.send([0, 1], [told()] * 2)
    envs.send_reset([1])
    assert envs.recv()[1] == ("episode 2",)
    envs.send([0, 1], [told(observation="on")] * 2)  # 0 had not been sent anything
    assert {envs.recv(1)[1], envs.recv(1)[1]} == {("on",)}
    envs.close()


def test_a_running_episode_can_be_given_up():
    envs = ThreadVectorEnv([Obedient])
    envs.reset()
    envs.send_reset([0])
    assert envs.recv()[1] == ("episode 2",)
    envs.close()


@pytest.mark.parametrize("kind", ["fault", "bug", "exit"])
def test_a_fault(kind):
    envs = ThreadVectorEnv([Obedient] * 2)
    envs.reset()
    envs.send([1], [told(**{"raise": kind})])
    env_ids, observations, rewards, terminations, truncations, [info] = envs.recv()
    assert (env_ids.tolist(), observations, terminations.tolist(), truncations.tolist()) == ([1], ("",), [False], [True])
    assert np.isnan(rewards).all()
    assert {name: type(value) for name, value in info.items()} == {
        "environment_fault": str,
        "environment_fault_component": str,
        "environment_fault_retryable": bool,
    }
    envs.send([1], [told()])
    assert envs.recv()[1] == ("episode 2",)
    envs.send_reset([1], options={"raise": kind})
    _, observations, rewards, _, truncations, [again] = envs.recv()
    assert (observations, truncations.tolist()) == (("",), [True])
    assert np.isnan(rewards).all()
    assert again["environment_fault_component"] == info["environment_fault_component"]
    assert envs.step([told(observation="on")] * 2)[0] == ("on", "episode 4")
    envs.close()


def test_a_broken_tool_is_named():
    def make():
        return ToolEnv(tasks=Riddles(), tools=[Broken(OSError("disk full"))], verifier=SameString())

    envs = ThreadVectorEnv([make] * 2)
    envs.reset(seed=0)
    envs.send([1], ["<broken>{}</broken>"])
    [info] = envs.recv()[-1]
    assert info["environment_fault"] == "broken raised OSError: disk full"
    assert info["environment_fault_component"] == "broken"
    envs.close()


def test_both_faces_take_turns():
    envs = ThreadVectorEnv([Obedient] * 2)
    envs.reset()
    envs.send([1], [told(observation="sent", terminated=True)])
    envs.recv()
    assert envs.step([told(observation="stepped")] * 2)[0] == ("stepped", "episode 2")
    envs.send([0], [told(observation="sent")])
    envs.recv()
    assert envs.reset(options={"reset_mask": np.array([False, True])})[0] == ("sent", "episode 3")
    envs.close()


# --- misuse


@pytest.mark.parametrize(
    ("env_ids", "actions", "error", "message"),
    [
        ([3], ["a"], ValueError, "environments are numbered from 0 to 2, found 3"),
        ([-1], ["a"], ValueError, "environments are numbered from 0 to 2, found -1"),
        ([0, 0], ["a", "b"], ValueError, r"an environment can be named once, found env_ids=\[0, 0\]"),
        ([0, 1], ["a"], ValueError, "expected 2 actions, one for each environment; found 1"),
        ([0, 1], "ab", TypeError, "actions are a sequence with one for each environment, found a single str: 'ab'"),
        ([0, 1], ["a", b"b"], TypeError, "an action is a str; found bytes for environment 1"),
        ([0.5], ["a"], TypeError, "float"),
        (
            [0, 2],
            ["a", "b"],
            AlreadyPendingCallError,
            r"send\(\) to environment 2, which has work under way: recv\(\) it first",
        ),
    ],
)
def test_wrong_sending_sends_nothing(gated, env_ids, actions, error, message):
    envs, vector = gated
    vector.send([2], ["a"])
    with pytest.raises(error, match=message):
        vector.send(env_ids, actions)
    envs[2].gate.release()
    assert vector.recv()[0].tolist() == [2]
    with pytest.raises(NoAsyncCallError):
        vector.recv()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0, 1], [1]), ValueError, "expected 2 seeds, one for each environment; found 1"),
        (([0, 1], None, [{}]), ValueError, "expected 2 options, one for each environment; found 1"),
        (([5],), ValueError, "found 5"),
        (([2],), AlreadyPendingCallError, r"send_reset\(\) to environment 2, which has work under way"),
    ],
)
def test_wrong_resetting_sends_nothing(gated, arguments, error, message):
    envs, vector = gated
    vector.send([2], ["a"])
    with pytest.raises(error, match=message):
        vector.send_reset(*arguments)
    envs[2].gate.release()
    assert vector.recv()[0].tolist() == [2]
    with pytest.raises(NoAsyncCallError):
        vector.recv()


def test_sending_before_a_reset():
    envs = ThreadVectorEnv([Obedient] * 2)
    with pytest.raises(ResetNeeded, match="environment 1 was never reset"):
        envs.send([1], [told()])
    envs.close()


def test_a_result_that_was_not_received_is_still_under_way(gated):
    envs, vector = gated
    vector.send([0], ["a"])
    open_gate(vector, envs[0])
    with pytest.raises(AlreadyPendingCallError):
        vector.send([0], ["b"])
    assert vector.recv()[1] == ("a",)


def test_receiving_nothing(gated):
    _, vector = gated
    with pytest.raises(
        NoAsyncCallError, match=r"would wait for ever, since nothing was sent: call send\(\) or send_reset\(\)"
    ):
        vector.recv()
    vector.send([0], ["a"])
    with pytest.raises(ValueError, match="at least one result, found n=0"):
        vector.recv(0)
    vector.send([], [])  # nothing to do is no error

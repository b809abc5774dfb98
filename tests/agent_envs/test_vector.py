"""The vector environment as Gymnasium has it: ``reset`` and ``step`` for all environments, beside ``SyncVectorEnv``."""

import functools
import logging
import math
import time
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, ResetNeeded
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from parts import CALLS, SETTINGS
from vector_parts import REGISTERED, Gated, Obedient, kept, told

import agent_envs
from agent_envs.vector import ThreadVectorEnv, make_threads

MODES = list(AutoresetMode)
ENDINGS = ("terminated", "truncated")
BROKEN = {"reward": math.nan, "terminated": False, "truncated": True}


@pytest.fixture
def registered():
    """An id whose ``make_vec`` makes threads, with episodes of five steps at most."""
    gym.register(
        REGISTERED,
        entry_point="vector_parts:Obedient",
        max_episode_steps=5,
        vector_entry_point="vector_parts:registered_threads",
    )
    yield REGISTERED
    del gym.registry[REGISTERED]


# --- no other than SyncVectorEnv

INFOS = st.fixed_dictionaries(
    {},
    optional={
        "count": st.integers(-9, 9),
        "name": st.text(max_size=3),
        "flag": st.booleans(),
        "score": st.fixed_dictionaries({}, optional={"accuracy": st.floats(0, 1), "format": st.floats(0, 1)}),
        "row": st.lists(st.integers(0, 9), min_size=2, max_size=2),
    },
)
OUTCOMES = st.fixed_dictionaries(
    {"observation": st.text("aä\U0001f600", max_size=4), "reward": st.floats(-9, 9), "info": INFOS},
    optional={ending: st.booleans() for ending in ENDINGS},
)
COUNT = 3


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(MODES), st.data())
def test_the_same_as_gymnasiums_own(mode, data):
    ours = ThreadVectorEnv([Obedient] * COUNT, autoreset_mode=mode)
    theirs = SyncVectorEnv([Obedient] * COUNT, autoreset_mode=mode)
    try:
        seeds = data.draw(st.one_of(st.integers(0, 99), st.lists(st.integers(0, 99), min_size=COUNT, max_size=COUNT)))
        options = data.draw(st.sampled_from([None, {}, {"level": 3}]))
        assert same(ours.reset(seed=seeds, options=options), theirs.reset(seed=seeds, options=options))
        for _ in range(data.draw(st.integers(1, 6))):
            outcomes = [data.draw(OUTCOMES) for _ in range(COUNT)]
            actions = [told(**outcome) for outcome in outcomes]
            stepped = ours.step(actions)
            assert same(stepped, theirs.step(actions))
            assert [part.dtype for part in stepped[1:4]] == [np.float64, np.bool_, np.bool_]
            over = stepped[2] | stepped[3]
            mask = over | np.array(data.draw(st.lists(st.booleans(), min_size=COUNT, max_size=COUNT)))
            if mask.any() and (mode is AutoresetMode.DISABLED or data.draw(st.booleans())):
                seeds = data.draw(st.sampled_from([None, 5, [7, None, 8]]))
                mine, other = ({"reset_mask": mask, "level": 4} for _ in range(2))
                assert same(ours.reset(seed=seeds, options=mine), theirs.reset(seed=seeds, options=other))
    finally:
        ours.close()
        theirs.close()


def same(left, right):
    return data_equivalence(left, right, exact=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("id", ["CartPole-v1", "FrozenLake-v1", "Blackjack-v1"])
def test_the_same_with_spaces_of_numbers(id, mode):
    ours = make_threads(id, 3, autoreset_mode=mode.value, max_episode_steps=4)
    theirs = gym.make_vec(id, 3, "sync", {"autoreset_mode": mode}, max_episode_steps=4)
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.observation_space == theirs.observation_space
    assert ours.single_action_space == theirs.single_action_space
    assert ours.action_space == theirs.action_space
    assert same(ours.reset(seed=3), theirs.reset(seed=3))
    ours.action_space.seed(3)
    for _ in range(12):
        actions = ours.action_space.sample()
        stepped = ours.step(actions)
        assert same(stepped, theirs.step(actions))
        assert stepped[0] in ours.observation_space
        over = stepped[2] | stepped[3]
        if mode is AutoresetMode.DISABLED and over.any():
            assert same(ours.reset(options={"reset_mask": over}), theirs.reset(options={"reset_mask": over.copy()}))
    ours.close()
    theirs.close()


def test_the_same_on_every_id():
    for name, own in SETTINGS.items():
        ours = make_threads(f"agent_envs/{name}", 2, max_turns=2, **own)
        theirs = SyncVectorEnv([functools.partial(gym.make, f"agent_envs/{name}", max_turns=2, **own)] * 2)
        assert same(ours.reset(seed=4), theirs.reset(seed=4))
        for call in CALLS[name][:3]:
            assert same(ours.step([call, "nothing"]), theirs.step([call, "nothing"]))
        ours.close()
        theirs.close()


def test_what_was_handed_out_does_not_change():
    for id in ("CartPole-v1", "agent_envs/MathTool-v0"):
        envs = make_threads(id, 2)
        envs.action_space.seed(0)
        first = envs.reset(seed=0)[0]
        before = [str(item) for item in first]
        envs.step(envs.action_space.sample())
        assert [str(item) for item in first] == before
        envs.close()


def test_the_mask_stays_in_the_callers_options():
    """Gymnasium's own takes it out, and RecordEpisodeStatistics around it then takes every environment for reset."""
    envs = gym.wrappers.vector.RecordEpisodeStatistics(ThreadVectorEnv([Obedient] * 2, autoreset_mode="Disabled"))
    envs.reset()
    envs.step([told(reward=1.0), told(reward=1.0, terminated=True)])
    envs.reset(options={"reset_mask": np.array([False, True])})
    infos = envs.step([told(reward=1.0, terminated=True)] * 2)[-1]
    assert infos["episode"]["r"].tolist() == [2.0, 1.0]
    envs.close()


# --- made by an id


def test_make_vec(registered):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = gym.make_vec(registered, num_envs=3, vectorization_mode="vector_entry_point", close_timeout=1.0)
    assert isinstance(envs.unwrapped, ThreadVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert (envs.num_envs, envs.render_mode, envs.spec.id) == (3, None, registered)
    assert repr(envs) == "ThreadVectorEnv(vector_tests/Obedient-v0, num_envs=3)"
    assert len(envs.reset(seed=0)[0]) == 3
    envs.close()
    envs = gym.make_vec(EnvSpec.from_json(envs.spec.to_json()))
    assert (type(envs), envs.num_envs, envs.close_timeout) == (ThreadVectorEnv, 3, 1.0)
    envs.close()
    envs = gym.make_vec(registered)  # which takes the threads by itself
    assert isinstance(envs, ThreadVectorEnv)
    envs.close()


@pytest.mark.parametrize(("given", "last"), [({}, [5]), ({"max_episode_steps": 2}, [2, 5]), ({"max_episode_steps": -1}, [])])
def test_a_time_limit_counts_inside(registered, given, last):
    envs = gym.make_vec(registered, num_envs=2, vectorization_mode="vector_entry_point", **given)
    envs.reset()
    truncated = [envs.step([told()] * 2)[3].tolist() for _ in range(7)]
    assert truncated == [[step in last] * 2 for step in range(1, 8)]  # step 3 of the second case resets
    envs.close()


@pytest.mark.parametrize("steps", [0, -2])
def test_a_wrong_time_limit(registered, steps):
    with pytest.raises(ValueError, match=f"positive number, None or -1, found {steps}"):
        make_threads(registered, max_episode_steps=steps)


@pytest.mark.parametrize("mode", MODES)
def test_the_mode_is_an_argument(registered, mode):
    envs = gym.make_vec(registered, autoreset_mode=mode.value)
    assert envs.metadata["autoreset_mode"] is mode
    envs.close()


def test_arguments_go_to_the_environments():
    envs = make_threads("agent_envs/MathTool-v0", 2, split="test", max_turns=3)
    assert envs.get_attr("split") == ("test", "test")
    assert envs.get_attr("max_turns") == (3, 3)
    envs.close()


def test_wrong_arguments():
    with pytest.raises(ValueError, match="at least 1, found 0"):
        make_threads("CartPole-v1", 0)
    with pytest.raises(ValueError, match="at least one environment, found none"):
        ThreadVectorEnv([])
    with pytest.raises(ValueError, match="close_timeout is a number of seconds, at least 0; found -1"):
        ThreadVectorEnv([Obedient], close_timeout=-1)
    with pytest.raises(ValueError, match="sometimes"):
        ThreadVectorEnv([Obedient], autoreset_mode="sometimes")
    with pytest.raises(
        RuntimeError, match=r"observation_space is Box.* in environment 0, and String\(200\) in environment 1"
    ):
        ThreadVectorEnv([lambda: gym.make("CartPole-v1"), Obedient])


# --- attributes and methods


def test_calls_reach_through_wrappers_and_run_in_the_environments_threads():
    envs, makers = kept(Obedient, 2)
    vector = ThreadVectorEnv([lambda make=make: gym.wrappers.TimeLimit(make(), 9) for make in makers])
    vector.reset(seed=5)
    assert vector.get_attr("episodes") == (1, 1)
    assert vector.np_random_seed == (5, 6)
    assert [generator is env.np_random for generator, env in zip(vector.np_random, envs, strict=True)] == [True, True]
    vector.set_attr("episodes", 7)
    vector.set_attr("closed", [False, "almost"])
    assert vector.call("reset", options={"level": 1})[1][0] == "episode 8"
    assert (envs[0].closed, envs[1].closed) == (False, "almost")
    assert all(len(env.threads) == 2 for env in envs)  # its own, and the test's, which made it
    with pytest.raises(ValueError, match="expected 2 values, one for each environment; found 3"):
        vector.set_attr("episodes", [1, 2, 3])
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        vector.get_attr("nothing_of_that_name")
    assert vector.get_attr("episodes") == (8, 8)
    vector.close()


def test_a_call_that_fails_in_one_environment_is_done_in_all():
    class Slow(Obedient):
        def move(self):
            time.sleep(0.05)
            self.moved = True

    class Stuck(Obedient):
        def move(self):
            raise OSError("stuck")

    slow = Slow()
    envs = ThreadVectorEnv([Stuck, lambda: slow])
    with pytest.raises(OSError, match="stuck") as caught:
        envs.call("move")
    assert slow.moved
    assert caught.value.__notes__ == ["environment 0 raised this when it did move(...)"]
    envs.close()


def test_rendering():
    ours = make_threads("FrozenLake-v1", 2, render_mode="ansi")
    theirs = gym.make_vec("FrozenLake-v1", 2, "sync", render_mode="ansi")
    ours.reset(seed=0)
    theirs.reset(seed=0)
    assert ours.render_mode == "ansi"
    assert ours.render() == theirs.render()
    ours.close()
    theirs.close()


def test_oracles_play_every_environment():
    envs = make_threads("agent_envs/WikiSearch-v0", 3)
    observations, _ = envs.reset(seed=1)
    oracles = envs.call("oracle")
    returns = np.zeros(3)
    for _ in range(6):
        actions = [oracle(observation) for oracle, observation in zip(oracles, observations, strict=True)]
        observations, rewards, terminations, _, infos = envs.step(actions)
        returns += rewards
        if terminations.any():
            assert infos["score"]["accuracy"][terminations].tolist() == [1.0] * terminations.sum()
            break
    else:
        pytest.fail("no episode ended")
    envs.close()


# --- faults


@pytest.mark.parametrize("kind", ["fault", "bug", "exit"])
def test_one_environment_of_64_breaks_and_63_go_on(kind, caplog):
    envs = ThreadVectorEnv([Obedient] * 64)
    envs.reset(seed=0)
    good = told(observation="fine", reward=1.0, info={"count": 3})
    with caplog.at_level(logging.WARNING, "agent_envs"):
        observations, rewards, terminations, truncations, infos = envs.step(
            [good] * 10 + [told(**{"raise": kind})] + [good] * 53
        )
    broken = np.arange(64) == 10
    assert observations == tuple("" if number == 10 else "fine" for number in range(64))
    assert np.isnan(rewards).tolist() == broken.tolist()
    assert rewards[~broken].tolist() == [1.0] * 63
    assert not terminations.any()
    assert truncations.tolist() == broken.tolist()
    assert infos["_count"].tolist() == (~broken).tolist()
    for name in ("", "_component", "_retryable"):
        assert infos[f"_environment_fault{name}"].tolist() == broken.tolist()
    assert infos["environment_fault"][9] is None
    assert infos["environment_fault_retryable"].dtype == np.bool_
    message, component = infos["environment_fault"][10], infos["environment_fault_component"][10]
    if kind == "fault":
        assert (message, component, infos["environment_fault_retryable"][10]) == ("the engine is gone", "engine", True)
        assert caplog.text == ""
    else:
        raised = {"bug": "ZeroDivisionError: a bug", "exit": "SystemExit: exit"}[kind]
        assert raised in message
        assert "in raise_" in message
        assert (component, infos["environment_fault_retryable"][10]) == ("", False)
        assert "environment 10 broke in step(" in caplog.text
        assert raised in caplog.text

    observations, rewards, _, truncations, infos = envs.step([good] * 64)
    assert observations == tuple("episode 2" if number == 10 else "fine" for number in range(64))
    assert rewards.tolist() == (~broken).astype(float).tolist()
    assert not truncations.any()
    assert "environment_fault" not in infos
    assert infos["_drawn"].tolist() == broken.tolist()
    assert envs.step([good] * 64)[1].tolist() == [1.0] * 64
    envs.close()


@pytest.mark.parametrize("mode", MODES)
def test_a_fault_in_every_mode(mode):
    envs = ThreadVectorEnv([Obedient] * 2, autoreset_mode=mode)
    envs.reset()
    observations, rewards, terminations, truncations, infos = envs.step(
        [told(**{"raise": "fault"}), told(observation="fine")]
    )
    assert np.isnan(rewards).tolist() == [True, False]
    assert (terminations.tolist(), truncations.tolist()) == ([False, False], [True, False])
    assert infos["environment_fault"].tolist() == ["the engine is gone", None]
    next_step = [told(observation="next")] * 2
    if mode is AutoresetMode.SAME_STEP:
        assert observations == ("episode 2", "fine")
        assert infos["final_obs"].tolist() == ["", None]
        assert infos["final_info"]["environment_fault"].tolist() == ["the engine is gone", None]
        assert infos["_drawn"].tolist() == [True, False]
        assert envs.step(next_step)[0] == ("next", "next")
    else:
        assert observations == ("", "fine")
        if mode is AutoresetMode.DISABLED:
            with pytest.raises(
                ResetNeeded, match=r"environment 0 is over, and autoreset is disabled: call send_reset\(\[0\]\)"
            ):
                envs.step(next_step)
            assert envs.reset(options={"reset_mask": np.array([True, False])})[0] == ("episode 2", "fine")
            assert envs.step(next_step)[0] == ("next", "next")
        else:
            assert envs.step(next_step)[0] == ("episode 2", "next")
    envs.close()


class Unresettable(Obedient):
    """Breaks in the second reset, and only there."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed, options={"raise": "fault"} if self.episodes == 1 else options)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_a_fault_in_a_reset_that_followed_an_episode(mode):
    envs = ThreadVectorEnv([Unresettable, Obedient], autoreset_mode=mode)
    envs.reset()
    end, on = told(observation="end", reward=2.0, terminated=True), told(observation="on", reward=1.0)
    step = envs.step([end, on])
    if mode is AutoresetMode.NEXT_STEP:
        assert "environment_fault" not in step[-1]
        step = envs.step([on, on])
        assert (np.isnan(step[1]).tolist(), step[3].tolist()) == ([True, False], [True, False])
    else:  # the episode itself was all right
        assert (step[1].tolist(), step[2].tolist(), step[3].tolist()) == ([2.0, 1.0], [True, False], [False, False])
        assert step[-1]["final_obs"].tolist() == ["end", None]
        assert "environment_fault" not in step[-1]["final_info"]
    assert step[0] == ("", "on")
    assert step[-1]["environment_fault"].tolist() == ["the engine is gone", None]
    observations, rewards, _, truncations, _ = envs.step([on, on])
    assert (observations, rewards.tolist(), truncations.tolist()) == (("episode 3", "on"), [0.0, 1.0], [False, False])
    assert envs.step([on, on])[0] == ("on", "on")
    envs.close()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_a_fault_in_the_first_reset(mode):
    class Late(Obedient):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed, options={"raise": "bug"} if self.episodes == 0 else options)

    envs = ThreadVectorEnv([Obedient, Late], autoreset_mode=mode)
    observations, infos = envs.reset(seed=3)
    assert observations == ("episode 1", "")
    assert infos["_environment_fault"].tolist() == [False, True]
    observations, rewards, _, truncations, _ = envs.step([told(observation="on")] * 2)
    assert (observations, rewards.tolist(), truncations.tolist()) == (("on", "episode 2"), [0.0, 0.0], [False, False])
    envs.close()


def test_arguments_that_no_environment_takes_are_an_error():
    envs = make_threads("agent_envs/MathTool-v0", 3)
    with pytest.raises(ValueError, match="reset knows the option 'task_id', found"):
        envs.reset(options={"task": 3})
    assert envs.reset(options={"task_id": "arithmetic:0:6*7"})[0] == ("What is 6*7?",) * 3
    envs.close()


def test_environment_faults_of_all_are_results():
    envs = ThreadVectorEnv([Obedient] * 2)
    observations, infos = envs.reset(options={"raise": "fault"})
    assert observations == ("", "")
    assert infos["environment_fault"].tolist() == ["the engine is gone"] * 2
    envs.close()


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (("", 0.0, False, {}), "not enough values to unpack"),
        (("", 0.0, False, False, None), "an environment's info is a dict, found NoneType"),
        (("", None, False, False, {}), "float"),
    ],
)
def test_results_that_are_none_are_faults(outcome, message):
    class Odd(Obedient):
        def step(self, action):
            return outcome

    envs = ThreadVectorEnv([Odd, Obedient])
    envs.reset()
    observations, rewards, _, truncations, infos = envs.step([told(observation="fine")] * 2)
    assert (observations, truncations.tolist()) == (("", "fine"), [True, False])
    assert np.isnan(rewards).tolist() == [True, False]
    assert message in infos["environment_fault"][0]
    envs.close()


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (gym.spaces.Box(-1, 1, (2,)), np.zeros(2, np.float32)),
        (gym.spaces.Discrete(3), np.int64(0)),
        (gym.spaces.Dict({"a": gym.spaces.Discrete(2), "b": agent_envs.String(3)}), {"a": np.int64(0), "b": ""}),
        (gym.spaces.Text(5, min_length=0), ""),
        (gym.spaces.Box(1, 2, (2,)), None),
        (gym.spaces.Discrete(3, start=5), None),
    ],
)
def test_a_fault_still_observes_an_element_of_the_space(space, expected):
    class Faulty(Obedient):
        def __init__(self):
            super().__init__()
            self.observation_space = space

        def reset(self, *, seed=None, options=None):
            raise agent_envs.EnvironmentFault("down")

    envs = ThreadVectorEnv([Faulty] * 2)
    observations, _ = envs.reset()
    assert observations in envs.observation_space
    envs.send_reset([1])
    [again] = gym.vector.utils.iterate(gym.vector.utils.batch_space(space, 1), envs.recv()[1])
    if expected is not None:
        assert data_equivalence(again, expected)
    envs.close()


# --- Gymnasium's wrappers


def test_statistics_and_transformations():
    envs = ThreadVectorEnv([Obedient] * 2)
    wrapped = gym.wrappers.vector.RecordEpisodeStatistics(envs)
    wrapped = gym.wrappers.vector.TransformObservation(wrapped, lambda texts: tuple(text.upper() for text in texts))
    wrapped = gym.wrappers.vector.TransformAction(wrapped, lambda actions: [told(**action) for action in actions])
    wrapped.reset()
    wrapped.step([{"reward": 1.0, "observation": "a"}, {"raise": "fault"}])
    observations, _, _, _, infos = wrapped.step([{"reward": 2.0, "terminated": True, "observation": "b"}, {}])
    assert observations == ("B", "EPISODE 2")
    assert infos["episode"]["r"].tolist() == [3.0, 0.0]
    wrapped.step([{}, {"reward": 4.0}])
    infos = wrapped.step([{}, {"reward": 5.0, "terminated": True}])[-1]
    assert infos["episode"]["r"].tolist() == [0.0, 9.0]  # the fault's NaN ended with its episode
    assert infos["episode"]["l"].tolist() == [0, 2]
    assert wrapped.unwrapped is envs
    wrapped.unwrapped.send([0], [told(observation="sent")])
    assert wrapped.unwrapped.recv()[1] == ("sent",)
    wrapped.close()
    assert envs.closed


def test_infos_as_a_list():
    envs = gym.wrappers.vector.DictInfoToList(ThreadVectorEnv([Obedient] * 2))
    envs.reset()
    infos = envs.step([told(**{"raise": "fault"}), told(info={"score": {"accuracy": 0.5}})])[-1]
    assert infos[0] == {
        "environment_fault": "the engine is gone",
        "environment_fault_component": "engine",
        "environment_fault_retryable": True,
    }
    assert infos[1] == {"score": {"accuracy": 0.5}}
    envs.close()


def test_nan_poisons_a_mean_of_rewards_for_good():
    """As is said in the documentation; it is Gymnasium's to change."""
    envs = gym.wrappers.vector.NormalizeReward(ThreadVectorEnv([Obedient] * 2))
    envs.reset()
    envs.step([told(reward=1.0), told(**{"raise": "fault"})])
    for _ in range(5):
        rewards = envs.step([told(reward=1.0)] * 2)[1]
    assert np.isnan(rewards).all()
    envs.close()


# --- misuse


def test_step_and_reset_ask_for_everything_to_be_received():
    (env, other), makers = kept(Gated, 2)
    envs = ThreadVectorEnv(makers)
    envs.reset()
    envs.send([1], ["a"])
    for use in (lambda: envs.step(["a", "b"]), envs.reset, lambda: envs.call("gate"), lambda: envs.set_attr("gate", 1)):
        with pytest.raises(
            AlreadyPendingCallError, match=r"while environments \[1\] have work under way: recv\(\) it first"
        ):
            use()
    other.gate.release()
    envs.recv()
    env.gate.release()
    other.gate.release()
    assert envs.step(["b", "c"])[0] == ("b", "c")
    envs.close()


@pytest.mark.parametrize(
    ("actions", "error", "message"),
    [
        (["a"], ValueError, "expected 2 actions, one for each environment; found 1"),
        (["a"] * 3, ValueError, "expected 2 actions, one for each environment; found 3"),
        ("ab", TypeError, "a sequence with one for each environment, found a single str: 'ab'"),
        (["a", 3], TypeError, "an action is a str; found int for environment 1"),
        ([None, "a"], TypeError, "an action is a str; found NoneType for environment 0"),
    ],
)
def test_wrong_actions(actions, error, message):
    envs = ThreadVectorEnv([Obedient] * 2)
    envs.reset()
    with pytest.raises(error, match=message):
        envs.step(actions)
    assert envs.step([told(observation="fine")] * 2)[0] == ("fine", "fine")  # nothing had been sent
    envs.close()


def test_a_step_before_a_reset():
    envs = ThreadVectorEnv([Obedient] * 2)
    with pytest.raises(ResetNeeded, match=r"environment 0 was never reset: call reset\(\) or send_reset\(\[0\]\) first"):
        envs.step([told()] * 2)
    with pytest.raises(ResetNeeded, match="environment 1 was never reset: reset_mask must be True for it"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    envs.close()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": [1]}, ValueError, "expected 2 seeds, one for each environment; found 1"),
        ({"options": {"reset_mask": [True, False]}}, TypeError, "reset_mask is a numpy array of bool, found"),
        ({"options": {"reset_mask": np.ones(2)}}, TypeError, "reset_mask is a numpy array of bool, found"),
        ({"options": {"reset_mask": np.ones(3, bool)}}, ValueError, r"shape \(2,\) and at least one True, found"),
        ({"options": {"reset_mask": np.zeros(2, bool)}}, ValueError, r"shape \(2,\) and at least one True, found"),
    ],
)
def test_wrong_arguments_of_reset(arguments, error, message):
    envs = ThreadVectorEnv([Obedient] * 2)
    envs.reset()
    with pytest.raises(error, match=message):
        envs.reset(**arguments)
    assert envs.get_attr("episodes") == (1, 1)
    envs.close()


def test_everything_after_close_is_an_error():
    envs = ThreadVectorEnv([Obedient] * 2)
    envs.reset()
    envs.close()
    envs.close()
    for name, use in {
        "step": lambda: envs.step([told()] * 2),
        "reset": envs.reset,
        "call": lambda: envs.call("episodes"),
        "send": lambda: envs.send([0], [told()]),
        "send_reset": lambda: envs.send_reset([0]),
        "recv": envs.recv,
    }.items():
        with pytest.raises(ClosedEnvironmentError, match=rf"{name}\(\) after close\(\)"):
            use()

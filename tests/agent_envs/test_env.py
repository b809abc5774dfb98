"""ToolEnv: episodes, faults, reward, forks. Built from small real parts, without an interpreter."""

import copy
import pickle
from types import MappingProxyType

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.wrappers import OrderEnforcing, TimeLimit
from parts import (
    Broken,
    BrokenVerifier,
    Clockwork,
    Dice,
    ReplayedDice,
    Riddles,
    SameString,
    Uncopyable,
    divide,
    shout,
)

from agent_envs.actions import PlainFormat, TagFormat
from agent_envs.env import ToolEnv
from agent_envs.faults import POLICY_FAULTS, EnvironmentFault, ForkError
from agent_envs.task import NoOracle, TaskSource, UnknownTask
from agent_envs.tool import Tool, ToolResult
from agent_envs.verifiers import Verdict
from sandboxes.faults import SandboxFault

KEYS = {
    "task_id": str,
    "turn": int,
    "tool": str,
    "action_valid": bool,
    "action_chars": int,
    "policy_fault": str,
    "tool_calls": int,
}
RIGHT = r"<answer>\boxed{42}</answer>"
WRONG = r"<answer>\boxed{41}</answer>"
ROLL = "<dice>1000000</dice>"


def make(tools=(), seed=0, task="riddles:1", **settings):
    env = ToolEnv(tasks=Riddles(), tools=tools, verifier=settings.pop("verifier", SameString()), **settings)
    env.reset(seed=seed, options={"task_id": task})
    return env


def play(env, *actions):
    for action in actions:
        last = env.step(action)
    return last


# --- an episode


def test_an_episode():
    env = ToolEnv(tasks=Riddles(), tools=[shout, divide], verifier=SameString())
    observation, info = env.reset(seed=0, options={"task_id": "riddles:1"})
    assert observation == "Seven times six?"
    assert info == {
        "task_id": "riddles:1",
        "turn": 0,
        "tool": "",
        "action_valid": True,
        "action_chars": 0,
        "policy_fault": "",
        "tool_calls": 0,
    }
    action = "<think>hm</think><shout>hello</shout> and so on"
    assert env.step(action) == (
        "HELLO",
        0.0,
        False,
        False,
        {
            "task_id": "riddles:1",
            "turn": 1,
            "tool": "shout",
            "action_valid": True,
            "action_chars": len(action) - len(" and so on"),
            "policy_fault": "",
            "tool_calls": 1,
        },
    )
    observation, reward, terminated, truncated, info = env.step(RIGHT)
    assert (observation, reward, terminated, truncated) == ("", 1.0, True, False)
    assert info["score"] == {"accuracy": 1.0, "format": 0.0, "tool_bonus": 0.0}
    assert info["success"] is True
    assert info["turn"] == 2


def test_info_has_one_type_a_key_is_fresh_and_scores_only_at_the_end():
    env = make([shout, Dice()], max_turns=9)
    actions = ["<shout>x</shout>", "<dice>x</dice>", "<dice>0</dice>", ROLL, "", "<nope>1</nope>", "x" * 40_000, RIGHT]
    infos = [env.reset(seed=1)[1]] + [env.step(action)[4] for action in actions]
    for info in infos[:-1]:
        assert {key: type(value) for key, value in info.items()} == KEYS
        assert info["policy_fault"] in ("", *POLICY_FAULTS)
    assert {key: type(value) for key, value in infos[-1].items()} == {**KEYS, "score": dict, "success": bool}
    assert all(type(value) is float for value in infos[-1]["score"].values())
    assert len({id(info) for info in infos}) == len(infos)
    assert [info["turn"] for info in infos] == list(range(9))


@pytest.mark.parametrize(
    ("action", "tool", "valid", "fault", "calls", "chars"),
    [
        ('<divide>{"a": 7}</divide>', "divide", True, "", 1, None),
        ('<divide>{"a": 7, "b": 0}</divide>', "divide", True, "error", 1, None),
        ('<divide>{"a": "x"}</divide>', "divide", False, "bad_arguments", 0, None),
        ("<divide>{a}</divide>", "", False, "bad_arguments", 0, None),
        ("<dice>0</dice>", "dice", True, "error", 1, None),
        ("<search>x</search>", "", False, "unknown_tool", 0, None),
        ("<think>x", "", False, "unclosed_think", 0, None),
        ("", "", False, "no_action", 0, 0),
        ("\ud800", "", False, "no_action", 0, 1),
        ("x" * 101, "", False, "too_long", 0, 100),
        ("<shout>" + "x" * 100 + "</shout>", "", False, "too_long", 0, 100),
    ],
)
def test_policy_faults_are_observations(action, tool, valid, fault, calls, chars):
    env = make([divide, Dice(), shout], max_action=100)
    observation, reward, terminated, truncated, info = env.step(action)
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert observation != ""
    assert (info["tool"], info["action_valid"], info["policy_fault"], info["tool_calls"]) == (tool, valid, fault, calls)
    assert info["action_chars"] == (len(action) if chars is None else chars)


def test_surrogates_in_an_action_are_replaced():
    env = make([shout])
    assert env.step("<shout>\ud800a\udfff</shout>")[0] == "\ufffdA\ufffd"


def test_surrogates_from_a_tool_are_replaced():
    class Odd(Tool):
        name = "odd"
        description = "Odd."
        parameters = Broken.parameters

        def run(self):
            return ToolResult("a\ud800b")

    env = make([Odd()])
    assert env.step("<odd></odd>")[0] == "a\ufffdb"


@pytest.mark.parametrize("action", [None, 3, b"x", ["x"], np.array("x")])
def test_an_action_is_a_string(action):
    env = make()
    with pytest.raises(TypeError, match="an action is a str"):
        env.step(action)
    assert env.step(RIGHT)[1] == 1.0


def test_long_results_are_cut_in_the_middle_with_a_mark():
    env = make([shout], max_observation=200)
    text = "a" * 300 + "b" * 300
    observation = env.step(f"<shout>{text}</shout>")[0]
    assert len(observation) <= 200
    assert observation in env.observation_space
    head, mark, tail = observation.split("\n")
    assert set(head) == {"A"}
    assert set(tail) == {"B"}
    left_out = int(mark.split()[1])
    assert len(head) + len(tail) + left_out == 600
    exact = "x" * 200
    assert env.step(f"<shout>{exact}</shout>")[0] == exact.upper()


def test_running_out_of_turns_ends_the_episode_without_an_answer():
    env = make([shout], max_turns=2)
    env.step("<shout>42</shout>")
    observation, reward, terminated, truncated, info = env.step("<shout>42</shout>")
    assert (observation, reward, terminated, truncated) == ("42", -1.0, True, False)
    assert info["score"] == {"accuracy": 0.0, "format": -1.0, "tool_bonus": 0.0}
    assert info["success"] is False
    assert info["tool_calls"] == 2


def test_the_last_turn_may_answer():
    env = make([shout], max_turns=1)
    assert env.step(RIGHT)[1] == 1.0


def test_calls_out_of_order():
    env = ToolEnv(tasks=Riddles(), verifier=SameString())
    with pytest.raises(ResetNeeded, match="no episode has begun"):
        env.step(RIGHT)
    with pytest.raises(ResetNeeded):
        env.task  # noqa: B018
    env.reset(seed=0, options={"task_id": "riddles:1"})
    env.step(RIGHT)
    with pytest.raises(ResetNeeded, match="the episode is over"):
        env.step(RIGHT)
    env.close()
    env.close()
    with pytest.raises(ResetNeeded, match="closed"):
        env.step(RIGHT)
    env.reset()
    env.close()


def test_reset_options():
    env = ToolEnv(tasks=Riddles(), verifier=SameString())
    for number in range(3):
        assert env.reset(options={"task_id": f"riddles:{number}"})[1]["task_id"] == f"riddles:{number}"
    with pytest.raises(UnknownTask, match="no riddle 'x'"):
        env.reset(options={"task_id": "x"})
    with pytest.raises(ValueError, match="knows the option 'task_id', found"):
        env.reset(options={"task": "riddles:0"})
    with pytest.raises(ResetNeeded, match="the last reset failed"):
        env.step(RIGHT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "test"}, r"have the splits \['train'\], found split='test'"),
        ({"rewards": ["accuracy", "speed"]}, r"found \['speed'\]"),
        ({"max_turns": 0}, "max_turns must be at least 1, found 0"),
        ({"max_observation": 10}, "max_observation must be at least 100"),
        ({"max_action": 10}, "max_action must be at least 100"),
        ({"tools": [shout, shout]}, "names of their own"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ToolEnv(tasks=Riddles(), verifier=SameString(), **settings)


def test_a_question_longer_than_an_observation_is_refused_not_cut():
    class Long(Riddles):
        answers = MappingProxyType({"x" * 101: "y"})

    with pytest.raises(ValueError, match="101 characters, more than max_observation=100"):
        ToolEnv(tasks=Long(), verifier=SameString(), max_observation=100).reset(seed=0)


# --- determinism


def test_the_task_is_a_function_of_the_seed():
    env = ToolEnv(tasks=Riddles(), verifier=SameString())
    first = [env.reset(seed=seed)[1]["task_id"] for seed in range(20)]
    assert first == [ToolEnv(tasks=Riddles(), verifier=SameString()).reset(seed=seed)[1]["task_id"] for seed in range(20)]
    assert len(set(first)) == 3


def test_reset_without_a_seed_goes_on():
    def ids(env):
        return [env.reset(seed=5)[1]["task_id"]] + [env.reset()[1]["task_id"] for _ in range(20)]

    one, other = (ToolEnv(tasks=Riddles(), verifier=SameString()) for _ in range(2))
    assert ids(one) == ids(other)
    assert len(set(ids(one))) > 1


def test_each_tool_has_a_generator_of_its_own():
    class Coins(Dice):
        name = "coins"

    class Greedy(Dice):
        def run(self, *, sides):
            self.rng.random(100)
            return super().run(sides=sides)

    both = "<coins>1000000</coins>"
    one, other = make([Dice(), Coins()]), make([Greedy(), Coins()])
    rolled = one.step(ROLL)[0]
    assert other.step(ROLL)[0] != rolled
    assert one.step(both)[0] == other.step(both)[0] != rolled.replace("1:", "2:")
    assert make([Dice(), Coins()]).step(ROLL)[0] == rolled
    assert make([Dice(), Coins()], seed=1).step(ROLL)[0] != rolled


# --- reward: R = max(Acc + r_M, Acc) if the format is kept and Acc > 0; 0 if kept and Acc = 0; -1 otherwise


CALLS = ("<shout>x</shout>", '<divide>{"a": 1}</divide>')


@pytest.mark.parametrize(
    ("actions", "score", "success"),
    [
        ((RIGHT,), (1.0, 0.0, 0.0), True),
        ((WRONG,), (0.0, 0.0, 0.0), False),
        (("<answer>42</answer>",), (0.0, -1.0, 0.0), True),
        (("<answer>41</answer>",), (0.0, -1.0, 0.0), False),
        (("rambling", RIGHT), (0.0, -1.0, 0.0), True),
        (("<shout>x</shout>", RIGHT), (1.0, 0.0, 0.0), True),
        ((*CALLS, RIGHT), (1.0, 0.0, 0.1), True),
        ((*CALLS, WRONG), (0.0, 0.0, 0.0), False),
        ((*CALLS, "<answer>42</answer>"), (0.0, -1.0, 0.0), True),
        (("<shout>x</shout>", '<divide>{"a": 1, "b": 0}</divide>', RIGHT), (1.0, 0.0, 0.0), True),
        (("<shout>x</shout>", '<divide>{"a": "x"}</divide>', RIGHT), (1.0, 0.0, 0.0), True),
        (("<shout>x</shout>",) * 6, (0.0, -1.0, 0.0), False),
    ],
)
def test_the_reward_in_parts(actions, score, success):
    env = make([shout, divide], max_turns=6)
    for action in actions:
        _, reward, terminated, _, info = env.step(action)
        assert terminated == ("score" in info)
        assert terminated or reward == 0.0
    assert tuple(info["score"].values()) == score
    assert list(info["score"]) == ["accuracy", "format", "tool_bonus"]
    assert reward == pytest.approx(sum(score))
    assert reward == sum(info["score"].values())
    assert info["success"] is success


@pytest.mark.parametrize(
    ("rewards", "actions", "score"),
    [
        (["accuracy"], ("<answer>42</answer>",), (1.0, 0.0, 0.0)),
        (["accuracy"], (*CALLS, RIGHT), (1.0, 0.0, 0.0)),
        (["accuracy", "tool_bonus"], (*CALLS, RIGHT), (1.0, 0.0, 0.1)),
        (["accuracy", "tool_bonus"], (*CALLS, "<answer>42</answer>"), (1.0, 0.0, 0.0)),
        (["accuracy", "format"], ("<answer>42</answer>",), (0.0, -1.0, 0.0)),
        (["format"], (RIGHT,), (0.0, 0.0, 0.0)),
        (["format"], ("x",) * 4, (0.0, -1.0, 0.0)),
        (["tool_bonus"], (*CALLS, RIGHT), (0.0, 0.0, 0.1)),
        ([], (*CALLS, RIGHT), (0.0, 0.0, 0.0)),
    ],
)
def test_each_part_of_the_reward_can_be_switched_off(rewards, actions, score):
    _, reward, _, _, info = play(make([shout, divide], rewards=rewards), *actions)
    assert tuple(info["score"].values()) == score
    assert reward == pytest.approx(sum(score))


def test_partial_accuracy_is_paid_in_part():
    class Half(SameString):
        def verify(self, answer, task):
            return Verdict(0.5, False)

    _, reward, _, _, info = make(verifier=Half()).step(RIGHT)
    assert (reward, info["success"]) == (0.5, False)


# --- environment faults


@pytest.mark.parametrize(
    ("error", "retryable", "component"),
    [
        (SandboxFault("engine gone", retryable=True), True, "broken"),
        (SandboxFault("engine gone"), False, "broken"),
        (EnvironmentFault("engine gone", "index", True), True, "index"),
        (EnvironmentFault("engine gone"), False, "broken"),
        (OSError("engine gone"), False, "broken"),
    ],
)
@pytest.mark.parametrize("at", ["run", "reset"])
def test_a_broken_tool_is_an_environment_fault_never_a_reward(error, retryable, component, at):
    env = ToolEnv(tasks=Riddles(), tools=[Broken(error, at), shout], verifier=SameString())
    if at == "run":
        env.reset(seed=0)
    with pytest.raises(EnvironmentFault, match="engine gone") as caught:
        env.step("<broken></broken>") if at == "run" else env.reset(seed=0)
    fault = caught.value
    assert (fault.retryable, fault.component) == (retryable, component)
    assert fault is error or fault.__cause__ is error
    twin = pickle.loads(pickle.dumps(fault))
    assert (str(twin), twin.retryable, twin.component) == (str(fault), retryable, component)
    with pytest.raises(ResetNeeded):
        env.step("<shout>x</shout>")
    env.close()


def test_after_a_fault_reset_starts_afresh():
    env = make([Broken(SandboxFault("engine gone")), shout])
    with pytest.raises(EnvironmentFault):
        env.step("<broken></broken>")
    with pytest.raises(ResetNeeded, match=r"the environment broke \(engine gone\)"):
        env.step(RIGHT)
    env.reset(options={"task_id": "riddles:1"})
    assert env.step(RIGHT)[1] == 1.0


@pytest.mark.parametrize("error", [EnvironmentFault("verifier gone"), ValueError("verifier gone")])
def test_a_broken_verifier_is_an_environment_fault(error):
    env = make(verifier=BrokenVerifier(error))
    with pytest.raises(EnvironmentFault, match="verifier gone") as caught:
        env.step(RIGHT)
    assert caught.value.component == "verifier"
    with pytest.raises(ResetNeeded):
        env.step(RIGHT)


def test_a_verdict_out_of_range_is_an_environment_fault():
    class Generous(SameString):
        def verify(self, answer, task):
            return Verdict(float("nan"), True)

    with pytest.raises(EnvironmentFault, match="from 0 to 1, found nan"):
        make(verifier=Generous()).step(RIGHT)


# --- forks


@pytest.mark.parametrize("dice", [Dice, ReplayedDice])
@pytest.mark.parametrize("copied", [copy.deepcopy, ToolEnv.fork])
def test_a_fork_followed_by_the_same_actions_is_no_fork(dice, copied):
    env = make([dice(), shout], max_turns=10)
    first = play(env, ROLL, "<dice>0</dice>", ROLL)
    twin = copied(env)
    rest = (ROLL, "<shout>x</shout>", "oops", ROLL, RIGHT)
    expected = [env.step(action) for action in rest]
    assert [twin.step(action) for action in rest] == expected
    assert first[0].startswith("roll 2")
    assert expected[0][0].startswith("roll 3")
    assert expected[-1][4]["turn"] == 8
    assert twin.reset()[1] == env.reset()[1]
    assert [twin.step(action) for action in rest] == [env.step(action) for action in rest]


@pytest.mark.parametrize("dice", [Dice, ReplayedDice])
def test_a_fork_is_independent(dice):
    env = make([dice()], max_turns=10)
    env.step(ROLL)
    twin = env.fork()
    played = [twin.step(ROLL)[0] for _ in range(3)]
    assert [env.step(ROLL)[0] for _ in range(3)] == played
    twin.close()
    assert env.step(RIGHT)[1] == 1.0
    assert twin.tools[0] is not env.tools[0]
    assert twin.action_space is not env.action_space


def test_a_fork_of_a_fork():
    env = make([ReplayedDice()], max_turns=10)
    env.step(ROLL)
    twin = env.fork()
    twin.step(ROLL)
    third = twin.fork()
    assert third.step(ROLL)[:4] == twin.step(ROLL)[:4]


def test_deepcopy_keeps_wrappers_and_their_state():
    env = TimeLimit(OrderEnforcing(ToolEnv(tasks=Riddles(), tools=[Dice()], verifier=SameString())), 3)
    env.reset(seed=0)
    env.step(ROLL)
    twin = copy.deepcopy(env)
    assert str(twin) == str(env)
    assert isinstance(twin.env, OrderEnforcing)
    for one in (env, twin):
        assert one.step(ROLL)[3] is False
        assert one.step(ROLL)[3] is True
    assert twin.unwrapped is not env.unwrapped


def test_a_tool_that_cannot_be_copied_is_named():
    env = make([shout, Uncopyable()])
    with pytest.raises(ForkError, match="tool 'dice' cannot be copied"):
        copy.deepcopy(env)
    assert env.step(RIGHT)[1] == 1.0


def test_a_replay_that_differs_is_refused_and_says_where():
    env = make([shout, Clockwork()])
    play(env, "<shout>x</shout>", ROLL)
    with pytest.raises(ForkError, match="tool 'dice' gave another result when call 2"):
        env.fork()
    assert env.step(RIGHT)[4]["success"]


def test_a_tool_that_breaks_in_a_replay_leaves_the_episode_alone():
    class Once(ReplayedDice):
        def fresh(self):
            return Brittle()

    class Brittle(Once):
        def run(self, *, sides):
            raise SandboxFault("no engine", retryable=True)

    env = make([Once()])
    env.step(ROLL)
    with pytest.raises(EnvironmentFault, match="no engine"):
        env.fork()
    assert env.step(RIGHT)[1] == 1.0


def test_what_a_call_printed_before_its_time_was_up_need_not_repeat():
    class Slow(ReplayedDice):
        printed = 0

        def run(self, *, sides):
            Slow.printed += 1
            return ToolResult(f"printed {Slow.printed}", "timeout")

        def fresh(self):
            return Slow()

    env = make([Slow()])
    env.step(ROLL)
    assert env.fork().step(RIGHT)[1] == 1.0


def test_forks_without_a_live_episode():
    env = ToolEnv(tasks=Riddles(), tools=[ReplayedDice()], verifier=SameString())
    assert env.fork().reset(seed=3) == env.reset(seed=3)
    play(env, ROLL, RIGHT)
    twin = env.fork()
    with pytest.raises(ResetNeeded, match="over"):
        twin.step(ROLL)
    assert twin.tools[0].rolls == 0


# --- pickling, oracles, other formats


def test_an_environment_pickles_until_an_episode_is_live():
    env = ToolEnv(tasks=Riddles(), tools=[Dice(), shout], verifier=SameString())
    assert pickle.loads(pickle.dumps(env)).reset(seed=1) == env.reset(seed=1)
    with pytest.raises(TypeError, match="a live episode cannot be pickled"):
        pickle.dumps(env)
    env.close()
    assert pickle.loads(pickle.dumps(env)).reset() == env.reset()


def test_the_oracle_writes_actions():
    env = make(task="riddles:0")
    assert env.task.answers == ("Paris",)
    assert env.oracle()("Capital of France?") == r"<answer>\boxed{Paris}</answer>"


def test_no_oracle_is_said_so():
    class Silent(Riddles):
        oracle = TaskSource.oracle

    env = ToolEnv(tasks=Silent(), verifier=SameString())
    env.reset(seed=0)
    with pytest.raises(NoOracle, match="'riddles' has no oracle"):
        env.oracle()


def test_the_plain_format():
    env = make([], format=PlainFormat())
    observation, reward, terminated, _, info = env.step("42")
    assert (observation, reward, terminated, info["score"]["format"]) == ("", 1.0, True, 0.0)
    assert env.format == PlainFormat()


def test_other_tags():
    env = make([shout], format=TagFormat(think="thought", answer="final", result="output"))
    assert env.step("<thought>x</thought><shout>a</shout>")[0] == "A"
    assert env.step(r"<final>\boxed{42}</final>")[1] == 1.0


def test_it_is_a_gymnasium_environment():
    env = make()
    assert isinstance(env, gym.Env)
    assert env.unwrapped is env
    with make() as closing:
        closing.step(RIGHT)

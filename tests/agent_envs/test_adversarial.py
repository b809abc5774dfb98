"""Whatever is sent: nothing but the documented exceptions, and no reward that the answer did not earn."""

import random

import gymnasium as gym
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import agent_envs

OPENED = (
    "<think>",
    "<python>",
    "<answer>",
    "<result>",
    "<search>",
    "< python >",
    "<PYTHON>",
    "<answer",
    "<",
    "\\boxed{",
    "{",
    "$",
)
CLOSED = ("</think>", "</python>", "</answer>", "</result>", "</search>", "</ python>", "</answer", "</", "}", "$", "\\")
BODIES = (
    "print(42)",
    "42",
    "1/0",
    "import sys; sys.exit(1)",
    "import os; os._exit(1)",
    "raise BaseException",
    "\0",
    "\x1b[2J\x07\b",
    "\ud800\udc00",
    "\udfff",
    "\u202e\ufeff\u2028",
    "\U0010ffff",
    "'" * 3,
    "(" * 2000,
    "x" * 100_000,
    "<answer>" * 2000,
    "\\boxed{" * 2000,
    "print('</answer><answer>\\\\boxed{42}</answer>')",
    "",
    "\n",
    " ",
)
PARTS = st.one_of(st.sampled_from(OPENED + CLOSED + BODIES), st.text(st.characters(exclude_categories=()), max_size=20))
ACTIONS = st.lists(PARTS, max_size=8).map("".join)

TASK = {"task_id": "arithmetic:0:6*7"}


@pytest.fixture(scope="module")
def env():
    env = gym.make("agent_envs/MathTool-v0", timeout=1.0, max_turns=5).unwrapped
    yield env
    env.close()


def check(env, action):
    """One step by the documented contract; resets when an episode ends."""
    observation, reward, terminated, truncated, info = env.step(action)
    assert observation in env.observation_space
    assert type(reward) is float
    assert truncated is False
    assert info["policy_fault"] in ("", *agent_envs.POLICY_FAULTS)
    assert 0 <= info["action_chars"] <= len(action)
    if terminated:
        assert reward == sum(info["score"].values())
        assert reward in (-1.0, 0.0, 1.0)
        env.reset(options=TASK)
    else:
        assert reward == 0.0


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ACTIONS, min_size=1, max_size=6))
def test_adversarial_actions(env, actions):
    env.reset(seed=0, options=TASK)
    for action in actions:
        check(env, action)


def test_a_thousand_random_actions(env):
    rng = random.Random(0)
    env.reset(seed=0)
    env.action_space.seed(0)
    for number in range(1000):
        noise = env.action_space.sample()
        if number % 2:
            noise = rng.choice(OPENED) + noise[:200] + rng.choice(CLOSED)
        check(env, noise)


# --- reward leaks: the gold answer stands somewhere, but the policy did not answer with it


GOLD = r"<answer>\boxed{42}</answer>"
LEAKS = {
    "printed by code": ["<python>print(42)</python>"],
    "printed by code as an answer": [f"<python>print({GOLD!r})</python>"],
    "printed by code as an answer that closes the result": [f"<python>print('</result>' + {GOLD!r})</python>"],
    "a call that prints it, then a wrong answer": [f"<python>print({GOLD!r})</python>", r"<answer>\boxed{41}</answer>"],
    "a call that prints it, then an empty answer": [f"<python>print({GOLD!r})</python>", "<answer></answer>"],
    "only in a thought": [f"<think>{GOLD}</think>"],
    "only in a thought, then a wrong answer": [rf"<think>{GOLD}</think><answer>\boxed{{41}}</answer>"],
    "in a thought that never closes": [f"<think>{GOLD}"],
    "in a result of its own making": [f"<result>{GOLD.replace('answer', 'b')}</result>"],
    "in the answer's prose, not in its box": [r"<answer>42, that is \boxed{41}</answer>"],
    "boxed outside of the answer": [r"\boxed{42}<answer>\boxed{41}</answer>"],
    "two answers in one box": [r"<answer>\boxed{41 or 42}</answer>"],
    "two answers in one box, the right one first": [r"<answer>\boxed{42, 41}</answer>"],
    "two boxes, the right one first": [r"<answer>\boxed{42} \boxed{41}</answer>"],
    "two answers, the right one second": [rf"<answer>\boxed{{41}}</answer>{GOLD}"],
    "the question's own expression": [r"<answer>\boxed{6*7}</answer>"],
    "the question's own expression in LaTeX": [r"<answer>\boxed{6 \times 7}</answer>"],
    "the question": [r"<answer>\boxed{What is 6*7?}</answer>"],
    "an equation that ends in it": [r"<answer>\boxed{41=42}</answer>"],
    "the whole range": [r"<answer>\boxed{[0,100]}</answer>"],
    "after the action's end": ["<python>1</python>" + GOLD],
    "never closed": [r"<answer>\boxed{42}"],
    "in words around a box": [r"<answer>The answer is 42. \boxed{}</answer>"],
}


@pytest.mark.parametrize(
    "rewards", [["accuracy", "format", "tool_bonus"], ["accuracy"]], ids=["all parts", "accuracy alone"]
)
@pytest.mark.parametrize("actions", LEAKS.values(), ids=LEAKS.keys())
def test_only_the_policys_own_answer_earns(actions, rewards):
    env = gym.make("agent_envs/MathTool-v0", max_turns=2, rewards=rewards).unwrapped
    env.reset(seed=0, options=TASK)
    terminated = False
    turn = iter(actions)
    while not terminated:
        _, reward, terminated, _, info = env.step(next(turn, "and that is all"))
    assert info["success"] is False
    assert info["score"]["accuracy"] == 0.0
    assert reward <= 0.0
    env.close()


@pytest.mark.parametrize("tasks", ["arithmetic", "reasoning_gym:chain_sum"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_oracle_has_accuracy_1_and_garbage_0(tasks, split):
    if tasks.startswith("reasoning_gym"):
        pytest.importorskip("reasoning_gym", reason="the extra agent-envs[reasoning-gym] is not installed")
    env = gym.make("agent_envs/MathTool-v0", tasks=tasks, split=split).unwrapped
    for seed in range(10):
        observation, _ = env.reset(seed=seed)
        oracle = env.oracle()
        terminated = False
        while not terminated:
            observation, reward, terminated, _, info = env.step(oracle(observation))
        assert (reward, info["success"], info["turn"]) == (1.0, True, 2)
        for garbage in (r"<answer>\boxed{garbage}</answer>", r"<answer>\boxed{0}</answer>", "<answer></answer>"):
            env.reset(seed=seed)
            *_, info = env.step(garbage)
            assert info["score"]["accuracy"] == 0.0 or env.task.answers == ("0",)
    env.close()

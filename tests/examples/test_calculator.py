"""The calculator: thirty lines, right, unbreakable, and an environment that keeps its promises and can be learnt."""

import ast
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from agent_envs.task import SPLITS
from agent_envs.testing import check_agent_env
from examples import calculator as example
from examples.calculator import calculator

ID = "examples.calculator:Calculator-v0"
ROOT = Path(__file__).parents[2]


def value(tree):
    """What Python's own parser makes of an expression."""
    match tree:
        case ast.Constant(value=int(number)):
            return number
        case ast.UnaryOp(ast.USub(), operand):
            return -value(operand)
        case ast.BinOp(left, ast.Add(), right):
            return value(left) + value(right)
        case ast.BinOp(left, ast.Sub(), right):
            return value(left) - value(right)
        case ast.BinOp(left, ast.Mult(), right):
            return value(left) * value(right)
    raise ValueError(ast.dump(tree))


def grow(rng, depth):
    """A random expression, with minus signs, needless parentheses and blanks."""
    if depth == 0:
        return str(rng.integers(100))
    kind = rng.random()
    if kind < 0.4:
        return ("", "-")[int(kind < 0.15)] + f"({grow(rng, depth - 1)})"
    blank = " " * int(rng.integers(2))
    right = grow(rng, int(rng.integers(depth)))
    return f"{grow(rng, depth - 1)}{blank}{'+-*'[rng.integers(3)]}{blank}{right}"


def test_it_has_thirty_lines():
    assert len(Path(example.__file__).read_text().splitlines()) <= 30


def test_it_calculates_as_python_does():
    rng, tried = np.random.default_rng(0), 0
    while tried < 2000:
        expression = grow(rng, int(rng.integers(6)))
        if len(expression) <= 200:
            assert calculator(expression) == value(ast.parse(expression, mode="eval").body), expression
            tried += 1


@pytest.mark.parametrize(
    "expression",
    [
        "",
        " ",
        "1+",
        "*2",
        "()",
        "2(3)",
        "(1)(2)",
        "1 2",
        "(1",
        "1)",
        "1)+(2",
        "2**9",
        "9**9**9",
        "7/2",
        "1.5",
        "x",
        "f(1)",
        "\0",
    ],
)
def test_what_it_cannot_read_is_the_policys_to_read(expression):
    result = calculator.run(expression=expression)
    assert result.fault == "error"
    assert result.text.startswith("ValueError: ")


@pytest.mark.parametrize("expression", ["(" * 50_000 + ")" * 50_000, "(1)+" * 25_000 + "1", "9*" * 50_000, "-" * 100_000])
def test_a_hundred_kilobytes_take_no_time(expression):
    begin = time.monotonic()
    assert calculator.run(expression=expression).text == "ValueError: an expression has 200 characters at most"
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize("split", SPLITS)
def test_its_oracle_calls_it_and_is_right(split):
    env = gym.make(ID, split=split)
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        expert, over, info = env.unwrapped.oracle(), False, {}
        while not over:
            observation, reward, over, _, info = env.step(expert(observation))
        assert (reward, info["success"], info["tool_calls"]) == (1.0, True, 1)
    env.close()


def test_it_is_plain_data_before_an_episode():
    env = gym.make(ID)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    thawed = pickle.loads(pickle.dumps(env.unwrapped))
    assert env.reset(seed=5) == again.reset(seed=5) == thawed.reset(seed=5)


def test_it_keeps_an_environments_promises():
    check_agent_env(ID, profile="quick", verbose=False).raise_if_broken()


@pytest.mark.thorough
def test_the_tiny_policy_learns_to_use_it(tmp_path):
    command = [sys.executable, "-m", "learners.grpo", "--env", ID, "--steps", "16", "--output", str(tmp_path / "run")]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["success_before"] < 0.8
    assert summary["success_after"] > 0.9

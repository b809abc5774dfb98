"""A tool and its environment; `python -m learners.grpo --env examples.calculator:Calculator-v0` trains a policy in it."""

import math
import re

import gymnasium as gym

from agent_envs import Call, ToolEnv
from agent_envs.tasks.arithmetic import Arithmetic
from agent_envs.tool import tool
from agent_envs.verifiers.math import MathVerifier

gym.register("Calculator-v0", "examples.calculator:environment")


@tool(policy_errors=(ValueError,), examples=[{"expression": "2*(3-10)"}, {"expression": "2**9"}])
def calculator(expression: str) -> int:
    """Calculates with whole numbers, + - * and parentheses."""
    if len(expression) > 200:
        raise ValueError("an expression has 200 characters at most")
    left = re.sub(r"-\s*\(", "-1*(", expression)
    while inner := re.search(r"(?<![0-9)])\(([^()]*)\)(?![0-9(])", left):
        left = left[: inner.start()] + str(calculator(inner[1])) + left[inner.end() :]
    terms = re.split(r"(?<=[0-9])\s*\+", re.sub(r"(?<=[0-9])\s*-", "+-1*", left))
    return sum(math.prod(map(int, term.split("*"))) for term in terms)


def environment(split: str = "train") -> ToolEnv:
    tasks = Arithmetic(call=Call("calculator", {"expression": "{}"}))  # what the oracle calls
    return ToolEnv(tasks=tasks, tools=[calculator], verifier=MathVerifier(), split=split)

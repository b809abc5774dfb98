"""Small real parts that the tests of environments are built from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from agent_envs.actions import Answer, Call
from agent_envs.task import Oracle, Task, TaskSource, UnknownTask
from agent_envs.tool import Fidelity, Tool, ToolError, ToolResult, tool
from agent_envs.verifiers import Verdict, Verifier


class Riddles(TaskSource):
    """Three questions with one word each as their answer."""

    name = "riddles"
    splits = ("train",)
    answers: Mapping[str, str] = {"Capital of France?": "Paris", "Seven times six?": "42", "Colour of snow?": "white"}

    def sample(self, rng: np.random.Generator, split: str) -> Task:
        return self.get(f"riddles:{int(rng.integers(len(self.answers)))}")

    def get(self, task_id: str) -> Task:
        for number, (question, answer) in enumerate(self.answers.items()):
            if task_id == f"riddles:{number}":
                return Task(task_id, question, (answer,))
        raise UnknownTask(f"no riddle {task_id!r}")

    def oracle(self, task: Task) -> Oracle:
        return lambda observation: Answer(task.answers[0])


class SameString(Verifier):
    """Accepts the gold answer, letter by letter."""

    def verify(self, answer: str, task: Task) -> Verdict:
        right = answer in task.answers
        return Verdict(float(right), right)


class Dice(Tool):
    """Rolls dice from its own generator and counts the rolls: state that a copy must take along."""

    name = "dice"
    description = "Rolls a die with that many sides."
    parameters: Mapping[str, Any] = {"type": "object", "properties": {"sides": {"type": "integer"}}, "required": ["sides"]}
    fidelity: ClassVar[Fidelity] = "exact"

    def __init__(self, rolls: int = 0, rng: np.random.Generator | None = None) -> None:
        self.rolls = rolls
        self.rng = rng

    def reset(self, task: Task, rng: np.random.Generator) -> None:
        self.rolls, self.rng = 0, rng

    def run(self, *, sides: int) -> ToolResult:
        if sides < 1:
            raise ToolError("a die has at least one side")
        assert self.rng is not None
        self.rolls += 1
        return ToolResult(f"roll {self.rolls}: {int(self.rng.integers(sides)) + 1}")

    def fork(self) -> Dice:
        twin = np.random.default_rng()
        assert self.rng is not None
        twin.bit_generator.state = self.rng.bit_generator.state
        return Dice(self.rolls, twin)


class ReplayedDice(Dice):
    """The same dice, copied by rolling again."""

    fidelity: ClassVar[Fidelity] = "replay"

    def fresh(self) -> ReplayedDice:
        return ReplayedDice()


class Clockwork(ReplayedDice):
    """Dice that never roll the same twice: no replay can be right."""

    turned: ClassVar[int] = 0

    def run(self, *, sides: int) -> ToolResult:
        Clockwork.turned += 1
        return ToolResult(f"turn {Clockwork.turned}")

    def fresh(self) -> Clockwork:
        return Clockwork()


class Uncopyable(Dice):
    """Dice that cannot be copied."""

    fidelity: ClassVar[Fidelity] = "none"


class Broken(Tool):
    """Raises whatever it was given, in ``run`` or in ``reset``."""

    name = "broken"
    description = "Does not work."
    parameters: Mapping[str, Any] = {"type": "object", "properties": {}, "required": []}

    def __init__(self, error: Exception, at: str = "run") -> None:
        self.error = error
        self.at = at

    def reset(self, task: Task, rng: np.random.Generator) -> None:
        if self.at == "reset":
            raise self.error

    def run(self) -> ToolResult:
        raise self.error


class BrokenVerifier(Verifier):
    """A verifier whose engine is gone."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def verify(self, answer: str, task: Task) -> Verdict:
        raise self.error


@tool
def shout(text: str) -> str:
    """Gives the text back in capitals.

    Args:
        text: Any text.
    """
    return text.upper()


@tool
def divide(a: int, b: int = 2, exact: bool = False) -> float | int:
    """Divides two numbers.

    The second paragraph is for people.

    Args:
        a: What is divided.
        b: By what. A line that is long
            goes on here.
        exact: Whether to keep the fraction.

    Returns:
        The quotient.
    """
    if b == 0:
        raise ToolError("cannot divide by zero")
    return a / b if exact else a // b


def call(name: str, **arguments: Any) -> Call:
    return Call(name, arguments)

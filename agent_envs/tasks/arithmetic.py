"""Arithmetic: short questions with one integer as their answer, made without end from a seed.

The embedded tasks of ``MathTool-v0``: hard to do in one's head, easy with an interpreter, and short enough for a policy of
under a million parameters. A task's id spells out the task, so any id can be made again anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from agent_envs.moves import Answer, Call, Move
from agent_envs.task import SPLITS, Oracle, Task, TaskSource, UnknownTask, split_of

PHRASINGS = (
    "What is {}?",
    "Compute {}.",
    "Work out {}.",
    "How much is {}?",
    "Find the value of {}.",
    "Calculate {} for me, please.",
)

PRINT = Call("python", {"code": "print({})"})
"""What the oracle calls where it is not told otherwise."""

_LARGEST = 10**6  # every value on the way stays below it
_EXPRESSION = re.compile(r"[0-9+*()-]*[0-9][0-9+*()-]*")
_TOKEN = re.compile(r"0+|[1-9][0-9]*|[-+*()]")
_BINDS: Mapping[str, int] = MappingProxyType({"+": 1, "-": 1, "*": 2})  # how tightly

_Tree: TypeAlias = "int | tuple[_Tree, str, _Tree]"
"""An expression: a number, or two expressions with an operator between them."""


class Arithmetic(TaskSource):
    """Integer arithmetic with ``+ - *`` and parentheses.

    Args:
        difficulty: The number of operations in a question, or several numbers to choose from.
        call: What the oracle calls to learn the value; ``{}`` in its arguments stands for the expression of the question.

    Raises:
        ValueError: A difficulty is not between 1 and 8, or the call has no place for the expression.

    Example:
        >>> Arithmetic().get("arithmetic:0:(3+4)*5")
        Task(id='arithmetic:0:(3+4)*5', question='What is (3+4)*5?', answers=('35',), metadata={'difficulty': 2})
    """

    name = "arithmetic"

    def __init__(self, difficulty: int | Sequence[int] = (1, 2), call: Call = PRINT) -> None:
        self.difficulty = tuple(difficulty) if isinstance(difficulty, Sequence) else (difficulty,)
        if not self.difficulty or not all(isinstance(d, int) and 1 <= d <= 8 for d in self.difficulty):
            raise ValueError(f"difficulty is a number of operations from 1 to 8, or a list of them; found {difficulty!r}")
        if not any(isinstance(value, str) and "{}" in value for value in call.arguments.values()):
            raise ValueError(f"an argument of the call must hold {{}}, which stands for the expression; found {call}")
        self.call = call

    def sample(self, rng: np.random.Generator, split: str) -> Task:
        """Draws expressions and phrasings until one belongs to the split; about one in ten does for the smallest."""
        if split not in SPLITS:
            raise UnknownTask(f"tasks {self.name!r} have the splits {list(SPLITS)}, found {split!r}")
        while True:
            operations = self.difficulty[int(rng.integers(len(self.difficulty)))]
            phrasing = int(rng.integers(len(PHRASINGS)))
            tree = _grow(rng, operations)
            expression, value = _write(tree), _value(tree)
            if value is not None and split_of(PHRASINGS[phrasing].format(expression)) == split:
                return self._task(phrasing, expression, value)

    def get(self, task_id: str) -> Task:
        """The task that the id spells out: ``arithmetic:PHRASING:EXPRESSION``."""
        match = re.fullmatch(r"arithmetic:([0-9]):([0-9+*()-]{1,200})", task_id)
        value = _value(_read(match[2])) if match and int(match[1]) < len(PHRASINGS) else None
        if not match or value is None:
            raise UnknownTask(
                f"an arithmetic task id reads 'arithmetic:P:EXPRESSION' with P below {len(PHRASINGS)} and an expression "
                f"of + - * and parentheses whose values stay below {_LARGEST}, found {task_id!r}"
            )
        return self._task(int(match[1]), match[2], value)

    def oracle(self, task: Task) -> Oracle:
        """Calls for the value of the question's expression, then answers with what came back."""

        def expert(observation: str) -> Move:
            if observation != task.question:
                return Answer(observation.strip())
            found = _EXPRESSION.search(observation)
            expression = found[0] if found else ""
            return Call(self.call.tool, {name: _fill(value, expression) for name, value in self.call.arguments.items()})

        return expert

    def _task(self, phrasing: int, expression: str, value: int) -> Task:
        question = PHRASINGS[phrasing].format(expression)
        operations = len(re.findall(r"[+*-]", expression))
        return Task(f"{self.name}:{phrasing}:{expression}", question, (str(value),), {"difficulty": operations})


def _fill(value: Any, expression: str) -> Any:
    return value.replace("{}", expression) if isinstance(value, str) else value


def _grow(rng: np.random.Generator, operations: int) -> _Tree:
    """A random expression with that many operations over the integers 1 to 99."""
    if operations == 0:
        digits = int(rng.integers(1, 3))
        return int(rng.integers(1 if digits == 1 else 10, 10**digits))
    left = int(rng.integers(operations))
    operator = "+-*"[int(rng.integers(3))]
    return _grow(rng, left), operator, _grow(rng, operations - 1 - left)


def _write(tree: _Tree, above: int = 0) -> str:
    """An expression with no more parentheses than it needs where its operators must bind more tightly than ``above``."""
    if isinstance(tree, int):
        return str(tree)
    left, operator, right = tree
    binds = _BINDS[operator]
    text = f"{_write(left, binds - 1)}{operator}{_write(right, binds)}"
    return text if binds > above else f"({text})"


def _read(expression: str) -> _Tree | None:
    """The tree of an expression, or None where it is none."""
    tokens = ["", *reversed(_TOKEN.findall(expression))]
    try:
        tree = _climb(tokens, 0)
    except ValueError:
        return None
    return tree if tokens == [""] else None


def _climb(tokens: list[str], above: int) -> _Tree:
    """Takes an expression from the end of the tokens, as far as its operators bind more tightly than ``above``."""
    token = tokens.pop()
    if token != "(":
        tree: _Tree = int(token)
    else:
        tree = _climb(tokens, 0)
        if tokens.pop() != ")":
            raise ValueError("a parenthesis is never closed")
    while (binds := _BINDS.get(tokens[-1], 0)) > above:
        tree = tree, tokens.pop(), _climb(tokens, binds)
    return tree


def _value(tree: _Tree | None) -> int | None:
    """An expression's value, or None where there is no expression or a value on the way grows too large."""
    if tree is None or isinstance(tree, int):
        value = tree
    else:
        left, right = _value(tree[0]), _value(tree[2])
        if left is None or right is None:
            return None
        value = {"+": left + right, "-": left - right, "*": left * right}[tree[1]]
    return value if value is not None and abs(value) < _LARGEST else None

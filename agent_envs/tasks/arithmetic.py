"""Arithmetic: short questions with one integer as their answer, made without end from a seed.

The embedded tasks of ``MathTool-v0``: hard to do in one's head, easy with an interpreter, and short enough for a policy of
under a million parameters. A task's id spells out the task, so any id can be made again anywhere.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

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

_LARGEST = 10**6  # every value on the way stays below it
_EXPRESSION = re.compile(r"[0-9+*()-]*[0-9][0-9+*()-]*")
_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}


class Arithmetic(TaskSource):
    """Integer arithmetic with ``+ - *`` and parentheses.

    Args:
        difficulty: The number of operations in a question, or several numbers to choose from.

    Raises:
        ValueError: A difficulty is not between 1 and 8.

    Example:
        >>> Arithmetic().get("arithmetic:0:(3+4)*5")
        Task(id='arithmetic:0:(3+4)*5', question='What is (3+4)*5?', answers=('35',), metadata={'difficulty': 2})
    """

    name = "arithmetic"

    def __init__(self, difficulty: int | Sequence[int] = (1, 2)) -> None:
        self.difficulty = tuple(difficulty) if isinstance(difficulty, Sequence) else (difficulty,)
        if not self.difficulty or not all(isinstance(d, int) and 1 <= d <= 8 for d in self.difficulty):
            raise ValueError(f"difficulty is a number of operations from 1 to 8, or a list of them; found {difficulty!r}")

    def sample(self, rng: np.random.Generator, split: str) -> Task:
        """Draws expressions and phrasings until one belongs to the split; about one in ten does for the smallest."""
        if split not in SPLITS:
            raise UnknownTask(f"tasks {self.name!r} have the splits {list(SPLITS)}, found {split!r}")
        while True:
            operations = self.difficulty[int(rng.integers(len(self.difficulty)))]
            phrasing = int(rng.integers(len(PHRASINGS)))
            expression = _write(_grow(rng, operations))
            if split_of(PHRASINGS[phrasing].format(expression)) == split and _value(expression) is not None:
                return self._task(phrasing, expression)

    def get(self, task_id: str) -> Task:
        """The task that the id spells out: ``arithmetic:PHRASING:EXPRESSION``."""
        match = re.fullmatch(r"arithmetic:([0-9]):([0-9+*()-]{1,200})", task_id)
        if not match or int(match[1]) >= len(PHRASINGS) or _value(match[2]) is None:
            raise UnknownTask(
                f"an arithmetic task id reads 'arithmetic:P:EXPRESSION' with P below {len(PHRASINGS)} and an expression "
                f"of + - * and parentheses whose values stay below {_LARGEST}, found {task_id!r}"
            )
        return self._task(int(match[1]), match[2])

    def oracle(self, task: Task) -> Oracle:
        """Prints the expression of the question by one ``python`` call, then answers with what was printed."""

        def expert(observation: str) -> Move:
            if observation != task.question:
                return Answer(observation.strip())
            found = _EXPRESSION.search(observation)
            return Call("python", {"code": f"print({found[0] if found else ''})"})

        return expert

    def _task(self, phrasing: int, expression: str) -> Task:
        question = PHRASINGS[phrasing].format(expression)
        operations = len(re.findall(r"[+*-]", expression))
        answers = (str(_value(expression)),)
        return Task(f"{self.name}:{phrasing}:{expression}", question, answers, {"difficulty": operations})


def _grow(rng: np.random.Generator, operations: int) -> ast.expr:
    """A random expression tree with that many operations over the integers 1 to 99."""
    if operations == 0:
        digits = int(rng.integers(1, 3))
        return ast.Constant(int(rng.integers(1 if digits == 1 else 10, 10**digits)))
    left = int(rng.integers(operations))
    operator = (ast.Add, ast.Sub, ast.Mult)[int(rng.integers(3))]
    return ast.BinOp(_grow(rng, left), operator(), _grow(rng, operations - 1 - left))


def _write(tree: ast.expr) -> str:
    return ast.unparse(tree).replace(" ", "")


def _value(expression: str) -> int | None:
    """The expression's value, or None where it is no expression or a value on the way grows too large."""
    try:
        return _evaluate(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _evaluate(tree: ast.expr) -> int:
    match tree:
        case ast.Constant(value=int(value)):
            result = value
        case ast.BinOp(left, operator, right) if type(operator) in _OPERATORS:
            a, b = _evaluate(left), _evaluate(right)
            result = a + b if isinstance(operator, ast.Add) else a - b if isinstance(operator, ast.Sub) else a * b
        case _:
            raise ValueError(f"expected integers with + - *, found {ast.dump(tree)}")
    if abs(result) >= _LARGEST:
        raise ValueError(f"a value must stay below {_LARGEST}, found {result}")
    return result

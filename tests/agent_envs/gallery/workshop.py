"""A small sound environment with tools, on which broken ones are built: it keeps every promise.

A question names a box; a tool opens boxes and finds the word that is the answer. Another tool draws lots, from a generator
and with a count of its own, and a third one waits, up to its time limit.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from agent_envs.env import ToolEnv
from agent_envs.moves import Answer, Call
from agent_envs.task import Oracle, Task, TaskSource, UnknownTask, Verdict, Verifier, split_of
from agent_envs.testing.promises import authorship, copies, faults, formats, limits, rewards, tasks, tools
from agent_envs.tool import Fidelity, Tool, ToolError, ToolResult

BOXES = 10_000

OURS = [
    promise.name
    for room in (copies, tools, faults, limits, formats, tasks, rewards, authorship)
    for promise in room.PROMISES
]
"""The promises that have to do with copies, tools, tasks, formats and rewards."""


def word_in(box: int) -> str:
    """What lies in a box: eight letters."""
    digest = hashlib.blake2b(str(box).encode(), digest_size=8).digest()
    return "".join(chr(ord("a") + byte % 26) for byte in digest)


class Boxes(TaskSource):
    """Which word is in which box."""

    name = "boxes"

    def sample(self, rng: np.random.Generator, split: str) -> Task:
        while True:
            task = self.task(int(rng.integers(BOXES)))
            if split_of(task.question) == split:
                return task

    def get(self, task_id: str) -> Task:
        box = task_id.removeprefix("boxes:")
        if not box.isdecimal() or int(box) >= BOXES:
            raise UnknownTask(f"no box {task_id!r}")
        return self.task(int(box))

    def oracle(self, task: Task) -> Oracle:
        def expert(observation: str) -> Answer | Call:
            if observation == task.question:
                return Call("opener", {"boxes": [int(task.id.removeprefix("boxes:"))]})
            return Answer(observation)

        return expert

    def task(self, box: int) -> Task:
        return Task(f"boxes:{box}", f"Which word is in box {box}?", (word_in(box),))


class SameWord(Verifier):
    """Accepts the word, in letters of any case."""

    def verify(self, answer: str, task: Task) -> Verdict:
        right = answer.strip().casefold() in task.answers
        return Verdict(float(right), right)


class Opener(Tool):
    """Opens boxes and tells the words in them."""

    examples = ({"boxes": [1]}, {"boxes": [2, 3]}, {"boxes": [-1]})

    def run(self, boxes: list[int]) -> str:
        if not all(0 <= box < BOXES for box in boxes):
            raise ToolError("there is no such box")
        return "\n".join(map(word_in, boxes))


class Lots(Tool):
    """Draws a lot of that many."""

    examples: Sequence[Mapping[str, Any]] = ({"many": 1000}, {"many": 0})
    policy_errors = (ValueError,)

    def __init__(self) -> None:
        self.drawn = 0
        self.rng = np.random.default_rng(0)

    def reset(self, task: Task, rng: np.random.Generator) -> None:
        self.drawn, self.rng = 0, rng

    def run(self, many: int) -> str:
        self.drawn += 1
        return f"lot {self.drawn}: {int(self.rng.integers(many))}"

    def fork(self) -> Tool:
        return copy.deepcopy(self)


class LotsAgain(Lots):
    """Draws a lot of that many; a copy draws all of them again."""

    name = "lots"
    fidelity: Fidelity = "replay"

    def fresh(self) -> Tool:
        return type(self)()


class Waiter(Tool):
    """Waits some seconds."""

    timeout = 0.2
    examples = ({"seconds": 0},)
    endless = MappingProxyType({"seconds": 10**6})

    def run(self, seconds: int) -> ToolResult:
        time.sleep(min(max(seconds, 0), self.timeout))
        return ToolResult("", "timeout") if seconds > self.timeout else ToolResult("done")


def workshop(kind: type[ToolEnv] = ToolEnv, **parts: Any) -> ToolEnv:
    """The sound environment; another class or other parts make a broken one."""
    usual: dict[str, Any] = {"tasks": Boxes(), "tools": [Opener(), Lots(), Waiter()], "verifier": SameWord(), "max_turns": 5}
    return kind(**{**usual, **parts})

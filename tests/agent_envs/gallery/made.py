"""Tools, tasks and formats that are broken, each in one way."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gallery.workshop import BOXES, Boxes, Opener, Waiter, word_in, workshop

from agent_envs.actions import Message, Parsed, Piece, TagFormat
from agent_envs.env import ToolEnv
from agent_envs.moves import Answer, Call, Move
from agent_envs.task import Oracle, Task
from agent_envs.tool import Tool, ToolResult, call_tool

# --- tools


class SortsItsBoxes(Opener):
    """Changes the list that it was given."""

    name = "opener"
    examples = ({"boxes": [3, 2]},)

    def run(self, boxes: list[int]) -> str:
        boxes.sort()
        return super().run(boxes)


class OldSchema(Opener):
    """The schema names a parameter as it was called before."""

    name = "opener"
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"numbers": {"type": "array"}},  # what run calls boxes
        "required": ["numbers"],
    }
    examples = ()


class OldExample(Opener):
    """An example is of a schema that was changed since."""

    name = "opener"
    examples = ({"boxes": "1"},)


class NotJson(Opener):
    """The schema holds what JSON has no word for."""

    name = "opener"
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"boxes": {"type": "array", "enum": {1, 2}}},
        "required": ["boxes"],
    }
    examples = ()


class BreaksOnExample(Opener):
    """Raises a bare exception where the agent asks for a thing that is not there."""

    name = "opener"

    def run(self, boxes: list[int]) -> str:
        return word_in(range(BOXES)[boxes[0] if boxes[0] >= 0 else BOXES])


class KeepsNoTime(Waiter):
    """States a time limit and does not pass it on to what it runs."""

    name = "waiter"

    def run(self, seconds: int) -> ToolResult:
        time.sleep(min(max(seconds, 0), 2.5))
        return ToolResult("", "timeout") if seconds > self.timeout else ToolResult("done")


class HidesTime(Waiter):
    """Keeps its time limit, and does not say that it was reached."""

    name = "waiter"

    def run(self, seconds: int) -> ToolResult:
        return ToolResult(super().run(seconds).text)


class StaysDead(Waiter):
    """After a call that ran out of time every other one does."""

    name = "waiter"
    dead = False

    def reset(self, task: Task, rng: np.random.Generator) -> None:
        self.dead = False

    def run(self, seconds: int) -> ToolResult:
        done = super().run(seconds)
        self.dead = self.dead or done.fault == "timeout"
        return ToolResult("still waiting", "timeout") if self.dead else done

    def fork(self) -> Tool:
        twin = type(self)()
        twin.dead = self.dead
        return twin


# --- environments around tools


class NeverCuts(ToolEnv):
    """Passes on results as long as they are."""

    def _cut(self, text: str) -> str:
        return text


class CutsSilently(ToolEnv):
    """Cuts results without a word."""

    def _cut(self, text: str) -> str:
        return text[: self.max_observation]


class ReadsAll(ToolEnv):
    """Reads an action however long it is."""

    def _parse(self, text: str) -> Parsed:
        return self.format.parse(text, self.tools)


class ChecksNothing(ToolEnv):
    """Passes on arguments as the policy wrote them."""

    def _call(self, episode: Any, call: Call) -> ToolResult:
        tool = next(tool for tool in self.tools if tool.name == call.tool)
        return call_tool(tool, call.arguments)


# --- formats


@dataclass(frozen=True)
class Trusting(TagFormat):
    """Puts results into the conversation as they are, tags of its own included."""

    def observe(self, text: str) -> Message:
        return Message("assistant", (Piece("<result>\n", True), Piece(text), Piece("\n</result>", True)))


@dataclass(frozen=True)
class Unquoted(TagFormat):
    """Writes an answer without a look at what is in it."""

    def write(self, move: Move, tools: Any) -> str:
        if isinstance(move, Answer):
            return rf"<answer>\boxed{{{move.text}}}</answer>"
        return super().write(move, tools)


@dataclass(frozen=True)
class Greedy(TagFormat):
    """Counts what stands behind the tag that ends the action."""

    def parse(self, text: str, tools: Any) -> Parsed:
        read = super().parse(text, tools)
        return Parsed(read.move, len(text), read.well_formed and read.end == len(text), read.fault, read.message, read.begin)


@dataclass(frozen=True)
class Fragile(TagFormat):
    """Raises where an action ends in the middle of a tag."""

    def parse(self, text: str, tools: Any) -> Parsed:
        if text.endswith("<"):
            raise IndexError("string index out of range")
        return super().parse(text, tools)


# --- tasks


class SplitsOverlap(Boxes):
    """Each split is drawn from all tasks."""

    def sample(self, rng: np.random.Generator, split: str) -> Task:
        return self.task(int(rng.integers(BOXES)))


class SeedBlind(Boxes):
    """Goes through its tasks one after the other, whatever the generator."""

    def __init__(self) -> None:
        self.count = itertools.count()

    def sample(self, rng: np.random.Generator, split: str) -> Task:
        while True:
            task = super().sample(np.random.default_rng(next(self.count)), split)
            return task


class OneTask(Boxes):
    """Always the same task."""

    def sample(self, rng: np.random.Generator, split: str) -> Task:
        return super().sample(np.random.default_rng(0), split)


class OtherById(Boxes):
    """An id leads to another task than the one that had it."""

    def get(self, task_id: str) -> Task:
        return self.task((int(super().get(task_id).id.removeprefix("boxes:")) + 1) % BOXES)


class AnyId(Boxes):
    """An id that nobody knows leads to some task."""

    def get(self, task_id: str) -> Task:
        box = task_id.removeprefix("boxes:")
        return self.task(int(box) if box.isdecimal() else 0)


class IgnoresId(ToolEnv):
    """Draws a task, whichever was asked for."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed, options=options)  # refuses what it does not know
        return super().reset(seed=seed)


class LostExpert(Boxes):
    """The expert answers with what it has read first, the question."""

    def oracle(self, task: Task) -> Oracle:
        return lambda observation: Answer(observation)


class SlowExpert(Boxes):
    """The expert looks at other things for longer than an episode lasts."""

    def oracle(self, task: Task) -> Oracle:
        return lambda observation: Call("lots", {"many": 6})


def with_opener(opener: Tool) -> ToolEnv:
    """The environment with another tool that opens boxes."""
    return workshop(tools=[opener, Waiter()])


def with_waiter(waiter: Tool) -> ToolEnv:
    """The environment with another tool that waits."""
    return workshop(tools=[Opener(), waiter])

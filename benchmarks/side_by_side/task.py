"""The task of the comparison: words are looked up, which takes a while, and what comes back is more words.

`Lookups` is the environment as TRL takes it (``environment_factory``): an object a rollout, whose method is the tool. Ours
is a `ToolEnv` around the same object. The last action of an episode is a call as well: TRL drops it, since it takes no more
than ``max_tool_calling_iterations``; a `ToolEnv` makes it and ends, and so it comes back at once.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from agent_envs import ToolEnv
from agent_envs.actions import HermesFormat
from agent_envs.task import Task, TaskSource, UnknownTask
from agent_envs.tool import Tool
from agent_envs.verifiers.qa import QAVerifier
from side_by_side.policy import tokenizer_of, words_of
from side_by_side.shape import Shape

gym.register("Lookups-v0", "side_by_side.task:environment")


class Lookups:
    """One rollout's lookups.

    Args:
        shape: How long they take, and how many words come back.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._words = words_of(shape.model)
        frame = [{"role": "user", "content": ""}]
        self._question = shape.prompt - len(_ids(tokenizer_of(shape.model), frame))
        if self._question < 1:
            raise ValueError(f"a prompt of {shape.prompt} tokens has no room for a question")
        self.calls, self._paid = 0, 0.0

    def reset(self, **row: Any) -> str:
        """Begins the task that a seed stands for; returns its question."""
        self.calls, self._paid = 0, 0.0
        return self._drawn(np.random.default_rng(row["seed"]), self._question)

    def look(self, words: str) -> str:
        """Looks words up.

        Args:
            words: The words.
        """
        self.calls += 1
        if self.calls > self._shape.turns:
            return "That was all."
        time.sleep(self._shape.latency)
        self._paid += sum(word[-1] < "m" for word in words.split()) / self._shape.written
        return self._drawn(np.random.default_rng([ord(letter) for letter in words]), self._shape.result)

    def get_reward(self) -> float:
        """What was earned: something for every word whose last letter is one of the alphabet's first."""
        return self._paid

    def _drawn(self, rng: np.random.Generator, count: int) -> str:
        return "".join(self._words[index] for index in rng.integers(len(self._words), size=count))


def _ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    found: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return found


class Look(Tool):
    """The same as a tool of ours."""

    name = "look"
    description = "Looks words up."

    def __init__(self, shape: Shape) -> None:
        self.lookups = Lookups(shape)

    def reset(self, task: Task, rng: np.random.Generator) -> None:
        self.lookups.reset(seed=int(task.id))

    def run(self, words: str) -> str:
        return self.lookups.look(words)


class Questions(TaskSource):
    """Rows of words, one a seed."""

    name = "lookups"

    def __init__(self, shape: Shape) -> None:
        self._lookups = Lookups(shape)

    def sample(self, rng: np.random.Generator, split: str) -> Task:
        return self.get(str(rng.integers(2**31)))

    def get(self, task_id: str) -> Task:
        if not task_id.isdigit():
            raise UnknownTask(f"a task here is named by a number, not by {task_id!r}")
        return Task(task_id, self._lookups.reset(seed=int(task_id)), ("none",))


@dataclass(frozen=True)
class ToTheEnd(HermesFormat):
    """Calls end where the policy ends its turn, as TRL has it: then both sides' turns have the same tokens."""

    def stop(self, tools: Any) -> tuple[str, ...]:
        return ()


class Paid(gym.Wrapper[str, str, str, str]):
    """Pays at the end what the lookups have earned."""

    def step(self, action: str) -> tuple[str, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated:
            inner = self.env.unwrapped
            assert isinstance(inner, ToolEnv)
            (tool,) = inner.tools
            assert isinstance(tool, Look)
            reward = float(reward) + tool.lookups.get_reward()
        return observation, reward, terminated, truncated, info


def environment(**shape: Any) -> Paid:
    """What ``--env side_by_side.task:Lookups-v0`` names; takes the fields of `Shape`."""
    point = Shape(**shape)
    inner = ToolEnv(
        tasks=Questions(point),
        tools=[Look(point)],
        verifier=QAVerifier(),
        format=ToTheEnd(boxed=False, instructions=False),
        max_turns=point.turns + 1,
        rewards=("accuracy",),
    )
    return Paid(inner)


def arguments(shape: Shape) -> str:
    """The environment's arguments as a run is given them."""
    return json.dumps(asdict(shape))

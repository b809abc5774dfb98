"""Environments that pay what they should not, or say it in a wrong way, each in one way."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from agent_envs.actions import Parsed, TagFormat
from agent_envs.env import ToolEnv
from agent_envs.moves import Answer, Call
from agent_envs.task import Task, Verdict, Verifier
from agent_envs.tool import ToolResult

Outcome = tuple[str, float, bool, bool, dict[str, Any]]
_BOXED = re.compile(r"boxed\{(.*?)\}", re.DOTALL)


class PaysForHistory(ToolEnv):
    """Looks for the answer in the whole conversation, what tools returned included."""

    history = ""

    def step(self, action: str) -> Outcome:
        observation, reward, terminated, truncated, info = super().step(action)
        self.history = self.history * (info["turn"] > 1) + action + observation
        if terminated and any(f"{{{gold}}}" in self.history for gold in self.task.answers):
            reward, info["success"] = 1.0, True
            info["score"] = {"accuracy": 1.0, "format": 0.0, "tool_bonus": 0.0}
        return observation, reward, terminated, truncated, info


@dataclass(frozen=True)
class FirstBox(TagFormat):
    """Reads the first box of an action as its answer, be it printed by code, in a thought, or in words."""

    def parse(self, text: str, tools: Any) -> Parsed:
        box = _BOXED.search(text)
        return Parsed(Answer(box[1]), len(text), True) if box else super().parse(text, tools)


@dataclass(frozen=True)
class ThoughtsCount(TagFormat):
    """Does not know what a thought is: a tag in it counts like any other."""

    def parse(self, text: str, tools: Any) -> Parsed:
        return super().parse(text.replace("<think>", "<idea>").replace("</think>", "</idea>"), tools)


@dataclass(frozen=True)
class LastAnswer(TagFormat):
    """Takes the last answer of an action, although the first tag ends it."""

    def parse(self, text: str, tools: Any) -> Parsed:
        last = text.rfind("<answer>")
        return super().parse(text[last:] if last > 0 else text, tools)


class Contains(Verifier):
    """Accepts whatever contains the gold answer."""

    def verify(self, answer: str, task: Task) -> Verdict:
        right = any(gold in answer for gold in task.answers)
        return Verdict(float(right), right)


class IsContained(Verifier):
    """Accepts whatever the gold answer contains, the empty text included."""

    def verify(self, answer: str, task: Task) -> Verdict:
        right = any(answer.strip().casefold() in gold for gold in task.answers)
        return Verdict(float(right), right)


class PaysForTrying(Verifier):
    """Pays a little for any answer."""

    def verify(self, answer: str, task: Task) -> Verdict:
        right = answer.strip().casefold() in task.answers
        return Verdict(1.0 if right else 0.1, right)


class Strict(Verifier):
    """Normalises the answer but not the gold one, so that the gold one itself is wrong."""

    def verify(self, answer: str, task: Task) -> Verdict:
        right = answer.upper() in task.answers
        return Verdict(float(right), right)


class AddsUpWrongly(ToolEnv):
    """Pays for the length of an action, and does not say so in the score."""

    def step(self, action: str) -> Outcome:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward - 0.25 * terminated, terminated, truncated, info


class PaysEachStep(ToolEnv):
    """Pays for every call that works, before it is known whether the task is solved."""

    def step(self, action: str) -> Outcome:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward + 0.1 * (info["tool"] != ""), terminated, truncated, info


class SuccessAlways(ToolEnv):
    """Says at every step whether it was a success."""

    def step(self, action: str) -> Outcome:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, {"success": False, **info}


class NotANumber(ToolEnv):
    """Pays the mean over the tools that were called, which is no number where none was."""

    def step(self, action: str) -> Outcome:
        observation, reward, terminated, truncated, info = super().step(action)
        paid = reward if info["tool_calls"] or not terminated else float("nan")
        return observation, paid, terminated, truncated, info


class CountsAllCalls(ToolEnv):
    """Counts a call of a tool that does not exist, and one that never ran."""

    unread = 0

    def step(self, action: str) -> Outcome:
        observation, reward, terminated, truncated, info = super().step(action)
        self.unread = self.unread * (info["turn"] > 1) + (info["policy_fault"] == "bad_arguments")
        info["tool_calls"] += self.unread
        return observation, reward, terminated, truncated, info


class TellsGold(ToolEnv):
    """Has the gold answer in info, for a reward function that is not part of the environment."""

    def reset(self, **arguments: Any) -> tuple[str, dict[str, Any]]:
        observation, info = super().reset(**arguments)
        return observation, {**info, "ground_truth": self.task.answers[0]}


class TellsAfterwards(ToolEnv):
    """Tells the right answer when an action could not be read."""

    def step(self, action: str) -> Outcome:
        observation, *rest, info = super().step(action)
        hint = f" (looking for {self.task.answers[0]})" if info["policy_fault"] == "no_action" else ""
        return (observation + hint, *rest, info)  # type: ignore[return-value]


class PaysForFailure(ToolEnv):
    """What breaks is a wrong answer: the episode ends with a reward of 0."""

    def step(self, action: str) -> Outcome:
        try:
            return super().step(action)
        except RuntimeError as error:
            info = {"score": {"accuracy": 0.0, "format": 0.0, "tool_bonus": 0.0}, "success": False}
            return f"Error: {error}", 0.0, True, False, info


class ReportsFailure(ToolEnv):
    """A tool that cannot reach its engine tells so to the policy, as if it had asked for something wrong."""

    def _call(self, episode: Any, call: Call) -> ToolResult:
        try:
            return super()._call(episode, call)
        except RuntimeError as error:
            self._episode = episode
            return ToolResult(f"The tool failed: {error}", "error")


class VerifierFailureIsWrong(ToolEnv):
    """A verifier that raises is taken for one that says no."""

    def _finish(self, episode: Any, parsed: Parsed, result: ToolResult, answer: Answer | None) -> Outcome:
        try:
            return super()._finish(episode, parsed, result, answer)
        except RuntimeError:
            self._episode = episode
            return super()._finish(episode, parsed, result, None)


class EndsOnError(ToolEnv):
    """The first call that ends in an error ends the episode."""

    def step(self, action: str) -> Outcome:
        observation, reward, terminated, truncated, info = super().step(action)
        if info["policy_fault"] == "error" and not terminated:
            return self._finish(self._episode, self._parse(action), ToolResult(observation, "error"), None)
        return observation, reward, terminated, truncated, info

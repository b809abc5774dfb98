"""``ToolEnv``: the one environment class, composed of tasks × tools × format × verifier.

An action is the text of one assistant turn. The format reads it; a tool call is run and its result is the next observation;
an answer is verified and ends the episode. All reward is paid at the last step (`agent_envs.reward`), and only what the
policy wrote in its answer can earn it.

This is also the one place where a failing engine becomes an ``EnvironmentFault``.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from agent_envs.actions import Format, Parsed, TagFormat
from agent_envs.faults import EnvironmentFault, ForkError
from agent_envs.moves import Answer, Call
from agent_envs.reward import REWARDS, reward_parts
from agent_envs.spaces import String, replace_surrogates
from agent_envs.task import Task, TaskSource
from agent_envs.tool import Tool, ToolResult, call_tool, check_arguments, replay_difference
from agent_envs.verifiers import Verdict, Verifier
from sandboxes.faults import SandboxFault

_MARK_ROOM = 60  # characters kept free for the mark in a cut observation


@dataclass
class _Episode:
    """What a running episode has seen so far; a fork copies it."""

    task: Task
    entropy: int  # of its generators
    turn: int = 0
    well_formed: bool = True
    worked: frozenset[str] = frozenset()  # tools that ran without a fault
    tool_calls: int = 0
    log: list[tuple[int, int, Mapping[str, Any], ToolResult]] = field(default_factory=list)
    """For tools that are replayed: number of the call, position of the tool, arguments, result."""
    over: bool = False


class ToolEnv(gym.Env[str, str]):
    """An environment in which an agent solves tasks by text, with tools.

    The task of an episode is a function of the seed and the split; ``reset(options={"task_id": ...})`` overrides it. Each
    tool has a generator of its own, spawned from the episode's.

    Args:
        tasks: Where tasks come from.
        tools: What the agent can call. The environment owns them from now on: no two environments share a tool with state.
        format: Owns everything between text and moves.
        verifier: Decides whether an answer is right.
        max_turns: Actions in an episode; after the last one it ends and is scored without an answer.
        split: The split that tasks are drawn from.
        system_prompt: What the conversation opens with; the format adds tools and how to answer.
        rewards: The parts of the reward that count, out of ``accuracy``, ``format`` and ``tool_bonus``.
        max_observation: Characters of an observation; a longer tool result is cut in the middle, with a mark.
        max_action: Characters of an action; a longer one is a policy fault.

    Raises:
        ValueError: An argument is out of range, the tasks have no such split, or the format cannot tell the tools apart.

    Example:
        >>> from agent_envs.tasks.arithmetic import Arithmetic
        >>> from agent_envs.verifiers.math import MathVerifier
        >>> env = ToolEnv(tasks=Arithmetic(), verifier=MathVerifier(), max_turns=1)
        >>> question, info = env.reset(options={"task_id": "arithmetic:0:6*7"})
        >>> question
        'What is 6*7?'
        >>> observation, reward, terminated, truncated, info = env.step(r"<answer>\\boxed{42}</answer>")
        >>> reward, terminated, info["score"]
        (1.0, True, {'accuracy': 1.0, 'format': 0.0, 'tool_bonus': 0.0})
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(
        self,
        *,
        tasks: TaskSource,
        verifier: Verifier,
        tools: Sequence[Tool] = (),
        format: Format | None = None,
        max_turns: int = 4,
        split: str = "train",
        system_prompt: str = "",
        rewards: Sequence[str] = REWARDS,
        max_observation: int = 8_000,
        max_action: int = 32_000,
    ) -> None:
        self.format: Format = TagFormat() if format is None else format
        unknown = [part for part in rewards if part not in REWARDS]
        if unknown:
            raise ValueError(f"rewards are parts out of {list(REWARDS)}, found {unknown}")
        if split not in tasks.splits:
            raise ValueError(f"tasks {tasks.name!r} have the splits {list(tasks.splits)}, found split={split!r}")
        for name, value, least in (
            ("max_turns", max_turns, 1),
            ("max_observation", max_observation, 100),
            ("max_action", max_action, 100),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, found {value}")
        self.format.stop(tools)  # says so now if the format cannot tell the tools apart
        self.tasks = tasks
        self.tools = tuple(tools)
        self.verifier = verifier
        self.max_turns = max_turns
        self.split = split
        self.system_prompt = system_prompt
        self.rewards = tuple(rewards)
        self.max_observation = max_observation
        self.max_action = max_action
        self.observation_space = String(max_observation)
        self.action_space = String(max_action)
        self._episode: _Episode | None = None
        self._why_none = "no episode has begun"

    @property
    def task(self) -> Task:
        """The live task with its gold answers: for checks and oracles, never shown to the policy.

        Raises:
            ResetNeeded: No episode has begun.
        """
        return self._require_episode().task

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: Seeds ``np_random``; without one it goes on from where it was.
            options: ``{"task_id": ...}`` for that task instead of a drawn one.

        Returns:
            The question, and ``info`` with its ``task_id``.

        Raises:
            UnknownTask: There is no task of that id, or none in the split.
            ValueError: An option is unknown, or the question is longer than an observation may be.
            EnvironmentFault: A tool could not start.
        """
        super().reset(seed=seed)
        self._end("the last reset failed")
        unknown = set(options or ()) - {"task_id"}
        if unknown:
            raise ValueError(f"reset knows the option 'task_id', found {sorted(unknown)}")
        entropy = int(self.np_random.integers(2**63))
        if options and "task_id" in options:
            task = self.tasks.get(options["task_id"])
        else:
            task = self.tasks.sample(_generator(entropy, 0), self.split)
        task = replace(task, question=replace_surrogates(task.question))
        if task.question not in self.observation_space:
            length, limit = len(task.question), self.max_observation
            raise ValueError(f"the question of task {task.id!r} has {length} characters, more than max_observation={limit}")
        for number, tool in enumerate(self.tools, 1):
            with self._fault_boundary(tool.name):
                tool.reset(task, _generator(entropy, number))
        self._episode = _Episode(task, entropy)
        return task.question, self._info(self._episode, Parsed(None, 0, True), "")

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Takes one action: the text of one assistant turn.

        Args:
            action: Any string; lone surrogates are replaced.

        Returns:
            Observation, reward (0 until the last step), terminated, truncated (always False here), info.

        Raises:
            TypeError: The action is no string.
            ResetNeeded: No episode is running.
            EnvironmentFault: A tool or the verifier broke; only ``reset`` and ``close`` are legal now.
        """
        if not isinstance(action, str):
            raise TypeError(f"an action is a str, the text of one assistant turn; found {type(action).__name__}")
        episode = self._require_episode()
        if episode.over:
            raise ResetNeeded("the episode is over: call reset() before step()")
        parsed = self._parse(replace_surrogates(action))
        episode.turn += 1
        episode.well_formed &= parsed.well_formed
        if isinstance(parsed.move, Answer):
            return self._finish(episode, parsed, ToolResult("", parsed.fault), parsed.move)
        if isinstance(parsed.move, Call):
            result = self._call(episode, parsed.move)
        else:
            result = ToolResult(parsed.message, parsed.fault)
        if episode.turn == self.max_turns:
            return self._finish(episode, parsed, result, None)
        return self._cut(result.text), 0.0, False, False, self._info(episode, parsed, result.fault)

    def close(self) -> None:
        """Lets go of the tools' engines and the verifier's processes. Calling it twice is fine; ``reset`` opens again."""
        self._end("the environment is closed")
        for tool in self.tools:
            tool.close()
        self.verifier.close()

    def oracle(self) -> Callable[[str], str]:
        """A scripted expert for the running episode, from the latest observation to the next action.

        Raises:
            NoOracle: The tasks have none.
            ResetNeeded: No episode has begun.
        """
        expert = self.tasks.oracle(self.task)
        return lambda observation: self.format.write(expert(observation), self.tools)

    def fork(self) -> ToolEnv:
        """An independent copy of the live episode: tools, turn counters, generator. ``copy.deepcopy`` does the same.

        A tool with fidelity ``"exact"`` copies itself. For ``"replay"`` the episode's calls run again in a fresh tool, and
        their results are compared.

        Raises:
            ForkError: A tool has fidelity ``"none"``, or its calls gave another result.
            EnvironmentFault: A tool broke while it was copied; this episode goes on.
        """
        tools: list[Tool] = []
        try:
            for position, tool in enumerate(self.tools):
                tools.append(self._fork_tool(position, tool))
        except BaseException:
            for tool in tools:
                if not any(tool is own for own in self.tools):
                    tool.close()
            raise
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.tools = tuple(tools)
        twin.observation_space = copy.deepcopy(self.observation_space)
        twin.action_space = copy.deepcopy(self.action_space)
        twin._np_random = copy.deepcopy(self._np_random)
        twin._episode = None if self._episode is None else replace(self._episode, log=list(self._episode.log))
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> ToolEnv:
        twin = memo[id(self)] = self.fork()
        return twin

    def __getstate__(self) -> dict[str, Any]:
        if self._episode is not None:
            raise TypeError("a live episode cannot be pickled: pickle before reset() or after close(), or use copy.deepcopy")
        return self.__dict__

    def _require_episode(self) -> _Episode:
        if self._episode is None:
            raise ResetNeeded(f"{self._why_none}: call reset() first")
        return self._episode

    def _end(self, why: str) -> None:
        self._episode, self._why_none = None, why

    def _parse(self, text: str) -> Parsed:
        if len(text) > self.max_action:
            message = f"the action has {len(text)} characters; at most {self.max_action} are allowed"
            return Parsed(None, self.max_action, False, "too_long", message)
        return self.format.parse(text, self.tools)

    def _call(self, episode: _Episode, call: Call) -> ToolResult:
        position = next(i for i, tool in enumerate(self.tools) if tool.name == call.tool)
        tool = self.tools[position]
        message = check_arguments(tool, call.arguments)
        if message:
            return ToolResult(message, "bad_arguments")
        with self._fault_boundary(tool.name):
            result = _run(tool, call.arguments)
        episode.tool_calls += 1
        if tool.fidelity == "replay":
            episode.log.append((episode.tool_calls, position, call.arguments, result))
        if not result.fault and tool.name not in episode.worked:
            episode.worked |= {tool.name}
        return result

    def _fork_tool(self, position: int, tool: Tool) -> Tool:
        with self._fault_boundary(tool.name, ends_episode=False):
            if tool.fidelity == "exact":
                return tool.fork()
            if tool.fidelity == "none":
                tool.fork()  # a tool that says why not says it here
                raise ForkError(f"tool {tool.name!r} cannot be copied: its fidelity is 'none'")
            twin = tool.fresh()
            if self._episode is not None and not self._episode.over:
                try:
                    self._replay(self._episode, position, twin)
                except BaseException:
                    twin.close()
                    raise
            return twin

    def _replay(self, episode: _Episode, position: int, twin: Tool) -> None:
        twin.reset(episode.task, _generator(episode.entropy, 1 + position))
        for turn, called, arguments, result in episode.log:
            if called != position:
                continue
            changed = replay_difference(result, _run(twin, arguments))
            if changed:
                raise ForkError(
                    f"tool {twin.name!r} gave another result when call {turn} of the episode ran again in the copy: "
                    f"{changed}"
                )

    def _fault_boundary(self, component: str, ends_episode: bool = True) -> _FaultBoundary:
        return _FaultBoundary(component, self._end if ends_episode else None)

    def _finish(
        self, episode: _Episode, parsed: Parsed, result: ToolResult, answer: Answer | None
    ) -> tuple[str, float, bool, bool, dict[str, Any]]:
        verdict = Verdict(0.0, False)
        if answer is not None:
            with self._fault_boundary("verifier"):
                verdict = self.verifier.verify_episode(answer.text, episode.task, self.tools)
        episode.over = True
        score = reward_parts(
            verdict.accuracy,
            kept=answer is not None and episode.well_formed,
            all_tools_worked=len(self.tools) > 1 and episode.worked == {tool.name for tool in self.tools},
            rewards=self.rewards,
        )
        info = self._info(episode, parsed, result.fault) | {"score": score, "success": bool(verdict.success)}
        return self._cut(result.text), sum(score.values()), True, False, info

    def _info(self, episode: _Episode, parsed: Parsed, fault: str) -> dict[str, Any]:
        return {
            "task_id": episode.task.id,
            "turn": episode.turn,
            "tool": parsed.move.tool if isinstance(parsed.move, Call) else "",
            "action_valid": episode.turn == 0 or (parsed.move is not None and fault != "bad_arguments"),
            "action_chars": parsed.end,
            "policy_fault": fault,
            "tool_calls": episode.tool_calls,
        }

    def _cut(self, text: str) -> str:
        if len(text) <= self.max_observation:
            return text
        keep = self.max_observation - _MARK_ROOM
        mark = f"\n[... {len(text) - keep} characters left out ...]\n"
        return text[: keep - keep // 2] + mark + text[len(text) - keep // 2 :]


class _FaultBoundary(contextlib.AbstractContextManager[None]):
    """Whatever escapes from a component is its fault, not the agent's.

    No generator with ``contextlib.contextmanager``: that would let a ``StopIteration`` through as it is.
    """

    def __init__(self, component: str, end: Callable[[str], None] | None) -> None:
        self._component = component
        self._end = end

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, Exception):
            return
        raised: Exception
        if isinstance(error, EnvironmentFault | ForkError):
            raised = error
            if isinstance(raised, EnvironmentFault) and raised.component is None:
                raised.component = self._component
        elif isinstance(error, SandboxFault):
            raised = EnvironmentFault(str(error), self._component, error.retryable)
        else:
            raised = EnvironmentFault(f"{self._component} raised {type(error).__name__}: {error}", self._component)
        if self._end is not None:
            self._end(f"the environment broke ({raised})")
        if raised is not error:
            raise raised from error


def _generator(entropy: int, number: int) -> np.random.Generator:
    """One of an episode's generators, in its first state: 0 draws the task, the others are the tools' in their order."""
    return np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(number,)))


def _run(tool: Tool, arguments: Mapping[str, Any]) -> ToolResult:
    result = call_tool(tool, arguments)
    text = replace_surrogates(result.text)
    return result if text == result.text else replace(result, text=text)

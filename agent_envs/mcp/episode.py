"""One episode of an environment as a client sees it: a question, tools to call by name, and ``answer``.

Every call becomes an action in the environment's own format and goes through its ``step``, so turns, limits, faults and the
score are the environment's. The client is told neither the reward nor the score; they go into a file, as one line of JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym

from agent_envs.env import ToolEnv
from agent_envs.faults import EnvironmentFault
from agent_envs.moves import Answer, Call
from agent_envs.registration import full_id
from agent_envs.task import UnknownTask
from agent_envs.tool import check_arguments

ANSWER = "answer"
"""Name of the tool that ends an episode."""


class UsageError(ValueError):
    """What was asked for cannot be served."""


@dataclass(frozen=True)
class Reply:
    """What a call came to.

    Args:
        text: For the client's model.
        refused: Whether the call was wrong or failed; the model may try another.
    """

    text: str
    refused: bool = False


@dataclass(frozen=True)
class Offer:
    """A tool as a client sees it: ``parameters`` is a JSON schema."""

    name: str
    description: str
    parameters: Mapping[str, Any]


class Episode:
    """An episode that is played by calls. One thread at a time.

    Args:
        env: An environment made of a `ToolEnv`; the episode owns it.
        seed: Which task, as for the environment's ``reset``.
        task_id: That task instead.
        result: A file that one line of JSON is appended to at the end: ``environment``, ``task_id``, ``reward``, ``score``
            and ``success`` (null where the episode was not played to its end), ``turns``, ``tool_calls``, and
            ``environment_fault`` ("" for none). A session in which nothing was played leaves no line.

    Raises:
        UsageError: It is no such environment, it has no such task, or the file cannot be written.
        EnvironmentFault: A tool could not start.
    """

    def __init__(
        self, env: gym.Env[Any, Any], seed: int | None = None, task_id: str | None = None, result: Path | None = None
    ) -> None:
        bare = env.unwrapped
        if not isinstance(bare, ToolEnv):
            raise UsageError(f"only environments of tools (agent_envs.ToolEnv) can be served, found {type(bare).__name__}")
        if any(tool.name == ANSWER for tool in bare.tools):
            raise UsageError(
                f"the environment has a tool {ANSWER!r}, which is what ends an episode here: give it another name"
            )
        if result is not None:
            try:
                result.open("a").close()
            except OSError as problem:
                raise UsageError(f"the result cannot be written into {result}: {problem.strerror}") from problem
        self._env = env
        self._bare = bare
        self._result = result
        try:
            self.question, self._info = env.reset(seed=seed, options=None if task_id is None else {"task_id": task_id})
        except (UnknownTask, ValueError) as problem:
            raise UsageError(str(problem)) from problem
        self._return = 0.0
        self._over = ""
        self._fault = ""

    @property
    def name(self) -> str:
        """The environment's id."""
        return self._env.spec.id if self._env.spec else type(self._bare).__name__

    @property
    def instructions(self) -> str:
        """What a client's model is to know before it begins: system prompt, question, and how an episode ends."""
        how = (
            f"Use the tools; end by calling the tool {ANSWER!r} with your final answer. You have {self._bare.max_turns} "
            "calls in all, that one included."
        )
        return "\n\n".join(filter(None, (self._bare.system_prompt, self.question, how)))

    @property
    def tools(self) -> tuple[Offer, ...]:
        """The environment's tools, and ``answer``."""
        parameters = {
            "type": "object",
            "properties": {"text": {"type": "string", "description": "the answer alone, without an explanation"}},
            "required": ["text"],
        }
        own = [Offer(tool.name, tool.description, tool.parameters) for tool in self._bare.tools]
        return (*own, Offer(ANSWER, "Gives the final answer, which ends the episode.", parameters))

    def call(self, name: str, arguments: Mapping[str, Any]) -> Reply:
        """Plays a turn.

        A call that the environment's format cannot express is refused, and costs no turn; any other is a turn, also one that
        turns out to be wrong.

        Args:
            name: Of one of `tools`.
            arguments: By name, JSON values.

        Raises:
            LookupError: There is no such tool.
            EnvironmentFault: The environment broke, which ends the episode without a score.
        """
        if all(name != offer.name for offer in self.tools):
            raise LookupError(f"there is no tool {name!r}; there are {[offer.name for offer in self.tools]}")
        if self._over:
            return Reply(f"the episode is over: {self._over}", refused=True)
        try:
            action = self._action(name, arguments)
        except ValueError as problem:
            return Reply(str(problem), refused=True)
        try:
            observation, reward, terminated, truncated, self._info = self._env.step(action)
        except EnvironmentFault as fault:
            self._fault = str(fault)
            self._end("the environment broke")
            raise
        self._return += float(reward)
        if name == ANSWER:
            self._end("an answer was given")
            return Reply("Your answer was taken; the episode is over.")
        refused = bool(self._info["policy_fault"])
        if terminated or truncated:
            self._end("there are no more turns")
            return Reply(f"{observation}\n\nThat was the last turn; the episode is over.", refused)
        return Reply(observation, refused)

    def close(self) -> None:
        """Ends the episode, whether or not it was played to its end, and closes the environment."""
        self._end("the session has ended")
        self._env.close()

    def _action(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The text that means this call. Raises ValueError where there is none."""
        tools = self._bare.tools
        if name == ANSWER:
            text = arguments.get("text")
            if not isinstance(text, str) or len(arguments) != 1:
                raise ValueError(f"{ANSWER} takes text: string; found {', '.join(arguments) or 'nothing'}")
            return self._bare.format.write(Answer(text), tools)
        try:
            return self._bare.format.write(Call(name, arguments), tools)
        except ValueError as problem:
            # Arguments that don't fit are the likelier reason, and the one that a model can do something about.
            called = next(tool for tool in tools if tool.name == name)
            raise ValueError(check_arguments(called, arguments) or str(problem)) from problem

    def _end(self, why: str) -> None:
        if self._over:
            return
        self._over = why
        if self._result is None or not (self._info["turn"] or self._fault):
            return
        line = {
            "environment": self.name,
            "task_id": self._info["task_id"],
            "reward": self._return if "score" in self._info else None,
            "score": self._info.get("score"),
            "success": self._info.get("success"),
            "turns": self._info["turn"],
            "tool_calls": self._info["tool_calls"],
            "environment_fault": self._fault,
        }
        with self._result.open("a") as file:
            file.write(json.dumps(line) + "\n")


def open_environment(name: str, settings: Mapping[str, Any]) -> gym.Env[Any, Any]:
    """Makes an environment by the name that a command line gives it.

    Args:
        name: What `agent_envs.registration.full_id` reads.
        settings: Arguments of the environment.

    Raises:
        UsageError: There is no such environment, or it does not take these arguments.
    """
    try:
        return gym.make(full_id(name), disable_env_checker=True, **settings)
    except (gym.error.Error, ImportError) as problem:
        known = ", ".join(sorted(id.removeprefix("agent_envs/") for id in gym.registry if id.startswith("agent_envs/")))
        reason = " ".join(str(problem).split()).rstrip(".")
        raise UsageError(f"there is no environment {name!r} ({reason}); ours: {known}") from problem
    except (ValueError, TypeError, OSError) as problem:
        raise UsageError(f"the environment {name!r} cannot be made so: {' '.join(str(problem).split())}") from problem

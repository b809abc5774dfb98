"""The environments' ids, and how their keyword arguments become a ``ToolEnv``.

A Gymnasium spec is JSON, so the functions here take names and numbers; whoever has objects passes them to ``ToolEnv`` or
calls the function directly.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import gymnasium as gym

from agent_envs.actions import Format, PlainFormat, TagFormat
from agent_envs.env import ToolEnv
from agent_envs.reward import REWARDS
from agent_envs.task import TaskSource, UnknownTaskSource
from agent_envs.tasks.arithmetic import Arithmetic
from agent_envs.tasks.benchmarks import JsonlTasks, ReasoningGym, gsm8k
from agent_envs.tools.python import PythonTool
from agent_envs.verifiers.math import MathVerifier

ENVIRONMENTS: Mapping[str, str] = MappingProxyType({"MathTool-v0": "agent_envs.registration:math_tool"})
"""The ids in namespace ``agent_envs``, each with the function that makes it."""

MATH_PROMPT = "Solve the problem."


def math_tool(
    tasks: str | TaskSource = "arithmetic",
    split: str = "train",
    *,
    difficulty: int | Sequence[int] | None = None,
    task_options: Mapping[str, Any] | None = None,
    max_turns: int = 4,
    rewards: Sequence[str] = REWARDS,
    format: str | Format = "tag",
    system_prompt: str = MATH_PROMPT,
    instructions: bool = True,
    backend: Literal["auto", "local", "docker"] = "auto",
    isolation: Literal["auto", "none"] = "auto",
    timeout: float = 5.0,
    python: Mapping[str, Any] | None = None,
    max_observation: int = 8_000,
    max_action: int = 32_000,
) -> ToolEnv:
    """``agent_envs/MathTool-v0``: mathematical problems and a Python interpreter.

    Args:
        tasks: ``"arithmetic"``, ``"gsm8k"``, ``"reasoning_gym:NAME"``, the path of a ``.jsonl`` file, or a ``TaskSource``.
        split: ``"train"``, ``"validation"`` or ``"test"``, as far as the source has it.
        difficulty: Operations in an arithmetic question; a number, or several to choose from.
        task_options: Further arguments of the source, such as reasoning-gym's ``{"max_terms": 3}``.
        max_turns: Actions in an episode.
        rewards: Parts of the reward that count: ``accuracy``, ``format``, ``tool_bonus``.
        format: ``"tag"``, ``"plain"``, or a ``Format``.
        system_prompt: What the conversation opens with.
        instructions: Whether the tag format explains itself.
        backend: Which interpreter; ``"auto"`` takes the strongest there is.
        isolation: ``"none"`` permits an interpreter that nothing shuts in.
        timeout: Seconds that one call of the interpreter may take.
        python: Further arguments of `PythonTool`, such as ``{"stateful": False}``.
        max_observation: Characters of an observation.
        max_action: Characters of an action.

    Raises:
        UnknownTaskSource: ``tasks`` names nothing that exists.
        ValueError: Another argument is out of range.
    """
    options = dict(task_options or {})
    if difficulty is not None:
        options["difficulty"] = difficulty
    source = open_tasks(tasks, **options) if isinstance(tasks, str) else tasks
    return ToolEnv(
        tasks=source,
        tools=[PythonTool(backend, timeout, isolation, **(python or {}))],
        format=_format(format, instructions),
        verifier=source.verifier() or MathVerifier(),
        max_turns=max_turns,
        split=split,
        system_prompt=system_prompt,
        rewards=rewards,
        max_observation=max_observation,
        max_action=max_action,
    )


def open_tasks(name: str, **options: Any) -> TaskSource:
    """The source of tasks of that name.

    Args:
        name: ``"arithmetic"``, ``"gsm8k"``, ``"reasoning_gym:NAME"`` or the path of a ``.jsonl`` file.
        options: The source's own arguments.

    Raises:
        UnknownTaskSource: There is no such source, or no such file.
        ValueError: The source does not take these options.
    """
    kind, _, rest = name.partition(":")
    makers: dict[str, Callable[..., TaskSource]] = {"arithmetic": Arithmetic, "gsm8k": gsm8k}
    if name in makers:
        make = makers[name]
    elif kind == "reasoning_gym" and rest:
        make = functools.partial(ReasoningGym, rest)
    elif name.endswith(".jsonl"):
        if not Path(name).is_file():
            raise UnknownTaskSource(f"tasks={name!r}: there is no such file (looked in {Path.cwd()})")
        make = functools.partial(JsonlTasks, name)
    else:
        exist = ["arithmetic", "gsm8k", "reasoning_gym:NAME", "the path of a .jsonl file"]
        raise UnknownTaskSource(f"tasks is one of {', '.join(exist)}; found {name!r}")
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        raise ValueError(f"tasks={name!r} does not take these options: {error}") from error
    return make(**options)


def register() -> None:
    """Registers the ids with Gymnasium; twice is fine."""
    for name, entry_point in ENVIRONMENTS.items():
        if f"agent_envs/{name}" not in gym.registry:
            gym.register(id=f"agent_envs/{name}", entry_point=entry_point)


def _format(format: str | Format, instructions: bool) -> Format:
    if format == "tag":
        return TagFormat(instructions=instructions)
    if format == "plain":
        return PlainFormat()
    if isinstance(format, str):
        raise ValueError(f"format is 'tag', 'plain' or a Format, found {format!r}")
    return format

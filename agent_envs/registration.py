"""The environments' ids. What they name is imported when it is made, so that registering costs next to nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import gymnasium as gym

ENVIRONMENTS: Mapping[str, str] = MappingProxyType(
    {
        "MathTool-v0": "agent_envs.environments:math_tool",
        "WikiSearch-v0": "agent_envs.environments:wiki_search",
        "DeepSearch-v0": "agent_envs.environments:deep_search",
        "WebBrowse-v0": "agent_envs.environments:web_browse",
    }
)
"""The ids in namespace ``agent_envs``, each with the function that makes it."""


def register() -> None:
    """Registers the ids with Gymnasium; twice is fine."""
    for name, entry_point in ENVIRONMENTS.items():
        if f"agent_envs/{name}" not in gym.registry:
            gym.register(id=f"agent_envs/{name}", entry_point=entry_point, vector_entry_point=f"{entry_point}_vector")


def full_id(name: str) -> str:
    """The id that a name on a command line means: with ``:`` (``module:id``) or ``/`` as it is, else ours, else as it is."""
    if ":" in name or "/" in name:
        return name
    return f"agent_envs/{name}" if f"agent_envs/{name}" in gym.registry else name


def env_arguments(text: str) -> dict[str, Any]:
    """The arguments of an environment as a command line gives them: a JSON object.

    Raises:
        ValueError: It is none; the message goes on after the option's name.
    """
    try:
        arguments = json.loads(text)
        if not isinstance(arguments, dict):
            raise ValueError("it is no object")
    except ValueError as problem:
        raise ValueError(f"must be a JSON object such as '{{\"max_turns\": 4}}': {problem}") from None
    return arguments

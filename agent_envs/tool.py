"""Tools: what an agent can call.

A tool has a name, a description, a JSON schema of its parameters and a ``run`` method. A tool with state also has
``reset``, ``fork`` and ``close``. ``@tool`` makes one out of a documented, typed function.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from agent_envs.task import Task

Fidelity = Literal["exact", "replay", "none"]


@dataclass(frozen=True)
class ToolResult:
    """What a call gave back.

    Args:
        text: What the policy reads.
        fault: "" or a kind of `agent_envs.faults.POLICY_FAULTS`.
    """

    text: str
    fault: str = ""


class Tool(ABC):
    """One tool, as an environment sees it.

    Attributes:
        name: What the policy calls it by; letters, digits and underscores.
        description: One or two sentences for the policy.
        parameters: JSON schema (``{"type": "object", "properties": ..., "required": [...]}``) of ``run``'s arguments.
        fidelity: How a copy is made in the middle of an episode: ``"exact"`` by ``fork``, ``"replay"`` by running the
            episode's calls again in a fresh tool, ``"none"`` not at all.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    fidelity: ClassVar[Fidelity] = "exact"

    @abstractmethod
    def run(self, **arguments: Any) -> ToolResult:
        """Runs one call. What is the agent's own doing comes back as a ``ToolResult`` with a fault; what is not is raised."""

    def reset(self, task: Task, rng: np.random.Generator) -> None:
        """Starts a new episode. ``rng`` is this tool's own generator for the episode."""

    def fork(self) -> Tool:
        """An independent copy of the tool in its present state; a stateless tool is its own copy."""
        return self

    def close(self) -> None:
        """Lets go of engines and processes. Calling it twice is fine; ``reset`` opens again."""

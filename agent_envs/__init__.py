"""Gymnasium environments with real tools for LLM agents.

Importing this package registers the ids ``agent_envs/...`` (`agent_envs.registration`) and the string space
(`agent_envs.spaces`) with Gymnasium, and does nothing else: engines open at the first ``reset`` or call, and the functions
behind the ids (`agent_envs.environments`) are imported when they are asked for.

Example:
    >>> import gymnasium as gym
    >>> import agent_envs
    >>> env = gym.make("agent_envs/MathTool-v0", split="test")
"""

import importlib
from typing import TYPE_CHECKING, Any

from agent_envs.actions import Format, HermesFormat, Message, Parsed, Piece, PlainFormat, TagFormat
from agent_envs.env import ToolEnv
from agent_envs.faults import POLICY_FAULTS, EnvironmentFault, ForkError
from agent_envs.moves import Answer, Call, Move
from agent_envs.registration import ENVIRONMENTS, register
from agent_envs.spaces import String
from agent_envs.task import NoOracle, Task, TaskSource, UnknownTask, UnknownTaskSource
from agent_envs.tool import Tool, ToolError, ToolResult
from agent_envs.transcript import Transcript
from agent_envs.verifiers import Verdict, Verifier

__all__ = [
    "ENVIRONMENTS",
    "POLICY_FAULTS",
    "Answer",
    "Call",
    "EnvironmentFault",
    "ForkError",
    "Format",
    "HermesFormat",
    "Message",
    "Move",
    "NoOracle",
    "Parsed",
    "Piece",
    "PlainFormat",
    "String",
    "TagFormat",
    "Task",
    "TaskSource",
    "Tool",
    "ToolEnv",
    "ToolError",
    "ToolResult",
    "Transcript",
    "UnknownTask",
    "UnknownTaskSource",
    "Verdict",
    "Verifier",
    "deep_search",
    "math_tool",
    "open_tasks",
    "register",
    "web_browse",
    "wiki_search",
]

if TYPE_CHECKING:
    from agent_envs.environments import deep_search, math_tool, open_tasks, web_browse, wiki_search

_LATER = ("deep_search", "math_tool", "open_tasks", "web_browse", "wiki_search")


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module("agent_envs.environments"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register()

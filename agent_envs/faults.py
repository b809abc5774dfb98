"""What can go wrong, and whose doing it is.

A *policy fault* is the agent's own doing (code that raises, an unknown tool, a time-out of its code). It is no exception:
it is an observation that the policy reads, its kind stands in ``info["policy_fault"]``, and it is part of learning.

An *environment fault* is not the agent's doing (an engine that cannot be reached, a full disk). It is raised, and it never
becomes a reward.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

POLICY_FAULTS: Mapping[str, str] = MappingProxyType(
    {
        "no_action": "the action holds neither a complete tool call nor an answer",
        "unclosed_think": "a <think> block was never closed",
        "unknown_tool": "the tool that was called does not exist here",
        "bad_arguments": "the tool's arguments could not be read or are not the ones it takes",
        "too_long": "the action is longer than the action space allows",
        "error": "the tool ran and ended in an error, such as code that raises",
        "timeout": "the tool ran out of the time that one call may take",
        "killed": "the tool's process died, for example because it used more memory than it may",
    }
)
"""Every kind of policy fault, with what it means. ``info["policy_fault"]`` is one of these, or "" for none."""


class EnvironmentFault(RuntimeError):
    """The environment itself broke; after it only ``reset`` and ``close`` are legal.

    Args:
        message: What broke and what to do about it.
        component: The part that broke, such as ``"python"`` or ``"verifier"``.
        retryable: Whether a new ``reset`` may well succeed.

    Example:
        >>> raise EnvironmentFault("the interpreter's engine is gone: start it again", component="python", retryable=True)
        Traceback (most recent call last):
        agent_envs.faults.EnvironmentFault: the interpreter's engine is gone: start it again
    """

    def __init__(self, message: str, component: str | None = None, retryable: bool = False) -> None:
        super().__init__(message)
        self.component = component
        self.retryable = retryable

    def __reduce__(self) -> tuple[type[EnvironmentFault], tuple[str, str | None, bool]]:
        return type(self), (str(self), self.component, self.retryable)


class ForkError(RuntimeError):
    """A live episode could not be copied; the episode itself goes on unharmed.

    Raised for a tool that cannot be copied in the middle of an episode, and for one whose calls gave other results when
    they were run again in the copy.
    """

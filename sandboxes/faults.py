"""The one exception that a sandbox raises: its engine could not do its work.

What the sandboxed code does is never a fault. Code that raises, hangs, eats memory or kills its own process is an ordinary
result of an ordinary call.
"""

from __future__ import annotations


class SandboxFault(RuntimeError):
    """A sandbox's engine could not be started, or it is gone.

    Args:
        message: What was expected, what was found, and what to do.
        retryable: Whether opening or resetting again may well succeed.

    Example:
        >>> raise SandboxFault("the interpreter's engine is gone: open another interpreter", retryable=True)
        Traceback (most recent call last):
        sandboxes.faults.SandboxFault: the interpreter's engine is gone: open another interpreter
    """

    def __init__(self, message: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable

    def __reduce__(self) -> tuple[type[SandboxFault], tuple[str, bool]]:
        return type(self), (str(self), self.retryable)

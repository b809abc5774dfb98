"""Opening an interpreter by the name of its backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sandboxes.faults import SandboxFault
from sandboxes.python.interpreter import Interpreter, Limits
from sandboxes.python.local import LocalInterpreter


def open_interpreter(
    backend: Literal["auto", "local", "docker"] = "auto",
    *,
    isolation: Literal["auto", "none"] = "auto",
    limits: Limits | None = None,
    preload: Sequence[str] = ("numpy", "sympy"),
    seed: int = 0,
) -> Interpreter:
    """Opens a Python interpreter that keeps its state from call to call.

    The first one of a process starts a warm process that all later ones with the same ``preload`` and ``isolation`` are
    forked from; it stays until this process ends, or until `sandboxes.shared.close_idle` is called with no interpreter open.

    Args:
        backend: ``"local"``, or ``"auto"`` for the strongest that this version has, which is the same.
        isolation: ``"auto"`` takes every protection that the kernel grants (`Interpreter.describe` says which) and refuses
            where nothing would keep the code from the network; ``"none"`` takes none: for code that you trust.
        limits: What the code may use; `Limits()` by default.
        preload: Modules that are imported once, in the warm process.
        seed: Seeds ``random`` and ``numpy.random`` in the interpreter.

    Returns:
        The interpreter; close it, or use it as a context manager.

    Raises:
        SandboxFault: It could not be started here; the message says what to do.
        ValueError: An argument is none of those it may be.
    """
    if backend == "docker":
        raise SandboxFault("the backend 'docker' is not in this version: use 'local' or 'auto'")
    if backend not in ("auto", "local"):
        raise ValueError(f"backend must be 'auto', 'local' or 'docker', found {backend!r}")
    if isolation not in ("auto", "none"):
        raise ValueError(f"isolation must be 'auto' or 'none', found {isolation!r}")
    return LocalInterpreter(tuple(preload), isolation, limits or Limits(), seed)

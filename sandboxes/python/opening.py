"""Opening an interpreter by the name of its backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sandboxes import shared
from sandboxes.python.interpreter import Interpreter, Limits
from sandboxes.python.local import LocalLauncher
from sandboxes.python.pool import Pool
from sandboxes.python.sandboxed import SandboxedInterpreter


def open_interpreter(
    backend: Literal["auto", "local", "docker"] = "auto",
    *,
    isolation: Literal["auto", "none"] = "auto",
    limits: Limits | None = None,
    preload: Sequence[str] | None = None,
    warm: int = 0,
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
        preload: Modules that are imported once, in the warm process; by default numpy and sympy where they are installed.
        warm: How many are kept ready in the background for those who open or reset one later.
        seed: Seeds ``random`` and ``numpy.random`` in the interpreter.

    Returns:
        The interpreter; close it, or use it as a context manager.

    Raises:
        SandboxFault: It could not be started here; the message says what to do.
        ValueError: An argument is none of those it may be.
    """
    if backend not in ("auto", "local", "docker"):
        raise ValueError(f"backend must be 'auto', 'local' or 'docker', found {backend!r}")
    if isolation not in ("auto", "none"):
        raise ValueError(f"isolation must be 'auto' or 'none', found {isolation!r}")
    limits = limits or Limits()
    names = None if preload is None else tuple(preload)
    launcher = LocalLauncher(names, isolation)
    key = ("sandboxes.python.pool", "local", names, isolation, limits)

    def borrow() -> shared.Lease[Pool]:
        return shared.acquire(key, lambda: Pool(lambda: launcher.start(limits)), linger=True)

    interpreter = SandboxedInterpreter(borrow, limits, seed)
    return interpreter

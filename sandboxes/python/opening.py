"""Opening an interpreter by the name of its backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from sandboxes import shared
from sandboxes.python.docker.settings import DEFAULT_IMAGE, ContainerSettings
from sandboxes.python.interpreter import Interpreter, Limits
from sandboxes.python.launchers import DockerLauncher, Launcher, LocalLauncher, strongest
from sandboxes.python.pool import Pool
from sandboxes.python.sandboxed import SandboxedInterpreter, check_seed


def open_interpreter(
    backend: Literal["auto", "local", "docker"] = "auto",
    *,
    isolation: Literal["auto", "none"] = "auto",
    limits: Limits | None = None,
    preload: Sequence[str] | None = None,
    programs: Sequence[str] = (),
    image: str | None = None,
    runtime: str | None = None,
    cpus: float = 1.0,
    reuse: int = 50,
    warm: int = 0,
    seed: int = 0,
) -> Interpreter:
    """Opens a Python interpreter that keeps its state from call to call.

    ``"local"``: the first one of a process starts a warm process that all later ones with the same ``preload``,
    ``programs`` and ``isolation`` are forked from; it stays until this process ends, or until
    `sandboxes.shared.close_idle` is called with no interpreter open. ``"docker"``: a container each, which serves others
    later if ``warm`` keeps it.

    Args:
        backend: ``"docker"``, ``"local"``, or ``"auto"``: Docker where an engine answers and has the image, else local. What
            "auto" took, and why, is logged once in a process. A named backend is never replaced by another one.
        isolation: Of the local backend. ``"auto"`` takes every protection that the kernel grants (`Interpreter.describe`
            says which) and refuses where nothing would keep the code from the network; ``"none"`` takes none: for code that
            you trust.
        limits: What the code may use; `Limits()` by default.
        preload: Modules that are imported once, before the first call; by default numpy and sympy where they are installed.
        programs: Of the local backend: programs of this machine that the code may run, by name or absolute path, such as
            ``["bash", "grep"]``; by default Python alone. An image has its own.
        image: Docker image with ``python3``, 3.11 or newer; by default that of ``python -m sandboxes build-image``.
        runtime: Runtime of the containers, such as ``"runsc"``; the engine's default where it is None.
        cpus: Processors that a container may use.
        reuse: How many interpreters a container may serve, one after the other; 1 for never again.
        warm: How many are kept ready in the background for those who open or reset one later.
        seed: Seeds ``random`` and ``numpy.random`` in the interpreter.

    Returns:
        The interpreter; close it, or use it as a context manager.

    Raises:
        SandboxFault: It could not be started here; the message says what to do.
        ValueError: An argument is none of those it may be, or is one of another backend.
    """
    if backend not in ("auto", "local", "docker"):
        raise ValueError(f"backend must be 'auto', 'local' or 'docker', found {backend!r}")
    if isolation not in ("auto", "none"):
        raise ValueError(f"isolation must be 'auto' or 'none', found {isolation!r}")
    if backend == "docker" and isolation == "none":
        raise ValueError("isolation='none' is one of the local backend, found it with backend='docker'")
    if backend == "local" and (image is not None or runtime is not None):
        raise ValueError(f"image and runtime are arguments of the docker backend, found {image=}, {runtime=} with 'local'")
    check_seed(seed)
    limits = limits or Limits()
    names = None if preload is None else tuple(preload)
    settings = ContainerSettings(image or DEFAULT_IMAGE, runtime, cpus, reuse)
    local, docker = LocalLauncher(names, isolation, tuple(programs)), DockerLauncher(names, settings)
    launcher: Launcher = local if backend == "local" else docker
    if backend == "auto" and image is None and runtime is None:
        launcher = local if isolation == "none" else strongest(docker, local)

    sandbox_limits = replace(limits, timeout=Limits.timeout)  # that one is each call's, so it parts no pools

    def borrow() -> shared.Lease[Pool]:
        key = (launcher, sandbox_limits)
        return shared.acquire(key, lambda: Pool(lambda: launcher.start(sandbox_limits)), linger=True)

    lease = borrow()
    try:
        lease.engine.want(warm)
        return SandboxedInterpreter(borrow, limits, seed)
    finally:
        lease.close()

"""What starts interpreters: a launcher names a kind of interpreter, and starts one where the engine for it can be had.

Launchers are plain data, equal if they start the same kind. The engines behind them are shared by the whole process
(`sandboxes.shared`): a warm process for the local backend, a connection to Docker's engine for the other.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from typing import Protocol

from sandboxes import shared
from sandboxes.faults import SandboxFault
from sandboxes.python.docker.engine import DockerEngine
from sandboxes.python.docker.settings import ContainerSettings
from sandboxes.python.family import Family
from sandboxes.python.inside.frames import ChannelClosed
from sandboxes.python.interpreter import Limits
from sandboxes.python.local.engine import Isolation, Zygote

logger = logging.getLogger(__name__)

ZYGOTES = 3
"""How many dead warm processes in a row are replaced before that counts as hopeless."""


class Launcher(Protocol):
    """A kind of interpreter."""

    def start(self, limits: Limits) -> Family:
        """Starts a family of this kind.

        Raises:
            SandboxFault: It could not be started here.
        """


@dataclass(frozen=True)
class LocalLauncher:
    """Interpreters on this machine.

    Args:
        preload: Modules that their warm process imports once; None for the common ones.
        isolation: ``"auto"`` or ``"none"``.
        programs: Programs of this machine that the code may run.
    """

    preload: tuple[str, ...] | None
    isolation: Isolation
    programs: tuple[str, ...] = ()

    def start(self, limits: Limits) -> Family:
        reason: Exception | None = None
        for _ in range(ZYGOTES):
            lease = shared.acquire(self, lambda: Zygote(self.preload, self.isolation, self.programs), linger=True)
            try:
                return lease.engine.open(limits)
            except ChannelClosed as problem:
                reason = problem  # the next lease is of a new warm process, since this one is seen to be dead
            finally:
                lease.close()
        raise SandboxFault(f"the warm interpreter process keeps dying: {reason}", retryable=True)


@dataclass(frozen=True)
class DockerLauncher:
    """Interpreters in containers.

    Args:
        preload: Modules that a container imports before its first interpreter; None for the common ones.
        settings: What kind of containers.
        host: Address of the engine, as in ``DOCKER_HOST``, which it is taken from.
    """

    preload: tuple[str, ...] | None
    settings: ContainerSettings
    host: str | None = field(default_factory=lambda: os.environ.get("DOCKER_HOST"))

    def start(self, limits: Limits) -> Family:
        lease = shared.acquire(self, lambda: DockerEngine(self.settings, self.preload), linger=True)
        try:
            return lease.engine.start(limits)
        finally:
            lease.close()


class _Choice:
    """Which launcher "auto" stands for in this process, found out once."""

    alive = True

    def __init__(self, docker: DockerLauncher, local: LocalLauncher) -> None:
        self.launcher: Launcher = docker
        try:
            shared.acquire(docker, lambda: DockerEngine(docker.settings, docker.preload), linger=True).close()
            logger.info("interpreter: docker, since an engine answers and has the image %s", docker.settings.image)
        except SandboxFault as reason:
            self.launcher = local
            logger.info("interpreter: local, since docker is not to be had: %s", reason)

    def close(self) -> None:
        """There is nothing to end."""


def strongest(docker: DockerLauncher, local: LocalLauncher) -> Launcher:
    """``docker`` where an engine answers and has its image, else ``local``; the same for the length of the process."""
    lease = shared.acquire(("strongest", docker, local), lambda: _Choice(docker, local), linger=True)
    lease.close()
    return lease.engine.launcher

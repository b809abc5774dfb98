"""How a container is shut in: its kind, which users choose, and `container_configuration`, the one place with every flag.

Whether the walls stand, a container sees for itself before it serves (`container.ContainerWalls.check`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sandboxes.python.docker.container import CAPABILITIES
from sandboxes.python.docker.program import boot_text
from sandboxes.python.inside.enclosure import MOST_FILES, folder_names
from sandboxes.python.interpreter import MIB, Limits
from sandboxes.python.owners import owner
from sandboxes.python.reaper import EXPIRES_LABEL, OWNER_LABEL

DEFAULT_IMAGE = "agent-envs-python:1"
DAY = 86400.0
BASE_MEMORY = 256 * MIB
"""Room for the warm process that all interpreters of a container are forked from, above the sum of theirs."""
BASE_PROCESSES = 16
OWN_KERNEL_PROCESSES = 256
"""Threads of a runtime that is a kernel itself, such as gVisor's; the engine counts them with the container's."""
MOST_PROCESSES = 4_000_000
"""The kernel takes no higher limit."""


@dataclass(frozen=True)
class ContainerSettings:
    """What kind of containers interpreters live in.

    Args:
        image: Any image with ``python3``, of version 3.11 or newer; no other program of it is used.
        runtime: What runs the container: None for the engine's default, or a runtime that it has been told of (``"runsc"``).
        cpus: Processors that a container may use, of the engine's.
        reuse: Families that a container may serve in sequence; 1 for never again.
        time_to_live: Seconds after which anybody's reaper may remove a container of whose owner it cannot tell whether it
            still lives, since that runs on another machine.

    Raises:
        ValueError: A setting is out of range.
    """

    image: str = DEFAULT_IMAGE
    runtime: str | None = None
    cpus: float = 1.0
    reuse: int = 50
    time_to_live: float = DAY

    def __post_init__(self) -> None:
        if not isinstance(self.image, str) or not self.image:
            raise ValueError(f"ContainerSettings.image must be the name of an image, found {self.image!r}")
        if self.runtime is not None and (not isinstance(self.runtime, str) or not self.runtime):
            raise ValueError(f"ContainerSettings.runtime must be None or the name of a runtime, found {self.runtime!r}")
        if isinstance(self.reuse, bool) or not isinstance(self.reuse, int) or self.reuse < 1:
            raise ValueError(f"ContainerSettings.reuse must be a whole number from 1, found {self.reuse!r}")
        for name, least in (("cpus", 0.01), ("time_to_live", 1.0)):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not least <= value or not math.isfinite(value):
                raise ValueError(f"ContainerSettings.{name} must be a number from {least:g}, found {value!r}")


def container_configuration(
    image: str, settings: ContainerSettings, limits: Limits, user: int, variables: Mapping[str, str]
) -> dict[str, Any]:
    """Everything that the engine is told about a container, in its own words.

    It says nothing of a seccomp profile, so the engine's own is in force, and nothing of volumes, devices or ports.

    Args:
        image: The image's id.
        settings: What kind of container.
        limits: What each interpreter in it may use.
        user: User and group id of the workers.
        variables: Its environment, besides what the image sets.
    """
    memory = limits.branches * (limits.memory_bytes + limits.file_bytes) + BASE_MEMORY
    folder = f"nosuid,nodev,noexec,size={limits.file_bytes},nr_inodes={MOST_FILES},uid={user},gid=0,mode=750"
    return {
        "Image": image,
        "Entrypoint": ["python3", "-s", "-B", "-c", boot_text()],
        "Cmd": [],
        "Env": [f"{name}={value}" for name, value in variables.items()],
        "User": "0:0",  # the supervisor; the code runs as `user`
        "WorkingDir": "/",
        "Hostname": "sandbox",
        "Labels": {OWNER_LABEL: owner(), EXPIRES_LABEL: str(int(time.time() + settings.time_to_live))},
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGKILL",
        # It ends with its connection: standard input closes when the one client that is attached hangs up.
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        "HostConfig": {
            "Runtime": settings.runtime or "",
            "AutoRemove": True,  # by the engine, so also when nobody is left to ask for it
            "Init": False,
            "NetworkMode": "none",
            "IpcMode": "none",
            "PidMode": "",
            "UTSMode": "",
            "Privileged": False,
            "CapDrop": ["ALL"],
            "CapAdd": [name.upper() for name in CAPABILITIES],
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": True,
            "Tmpfs": {
                **dict.fromkeys(folder_names(limits.branches), folder),
                "/tmp": "ro,nosuid,nodev,noexec,size=4k,mode=555",  # else runsc puts a writable one there
            },
            "Memory": memory,
            "MemorySwap": memory,  # the sum of both: no swap
            "PidsLimit": min(
                limits.branches * limits.processes + (OWN_KERNEL_PROCESSES if settings.runtime else BASE_PROCESSES),
                MOST_PROCESSES,
            ),
            "NanoCpus": int(settings.cpus * 1e9),
            "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}, {"Name": "nofile", "Soft": 4096, "Hard": 4096}],
            "LogConfig": {"Type": "none"},
            "RestartPolicy": {"Name": "no"},
        },
    }

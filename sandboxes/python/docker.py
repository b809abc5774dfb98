"""The docker backend: interpreters in containers, each of which serves one family of forks at a time.

`container_configuration` is the one place that says how a container is shut in. A container runs `container` as its first
process and needs nothing but a ``python3`` from its image: the program comes in over the connection that it serves. When
that connection ends, for whatever reason, the container ends and the engine removes it; `close` makes certain of that, and
what a killed process leaves is the business of the `reaper`.
"""

from __future__ import annotations

import base64
import logging
import math
import os
import platform
import secrets
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import docker  # type: ignore[import-untyped]

from sandboxes.faults import SandboxFault
from sandboxes.python.container import CAPABILITIES
from sandboxes.python.docker_client import DockerClient
from sandboxes.python.docker_link import DockerLink
from sandboxes.python.enclosure import MOST_FILES
from sandboxes.python.family import Family
from sandboxes.python.interpreter import MIB, Limits, Protection
from sandboxes.python.program import boot_text, first_message
from sandboxes.python.reaper import EXPIRES_LABEL, OWNER_LABEL, owner, reap_in_background
from sandboxes.python.syscall_filter import compile_filter
from sandboxes.python.undertaker import Undertaker
from sandboxes.python.warming import environment

logger = logging.getLogger(__name__)

DEFAULT_IMAGE = "agent-envs-python:1"
DAY = 86400.0
BASE_MEMORY = 256 * MIB
"""Room for the warm process that all interpreters of a container are forked from, above the sum of theirs."""
BASE_PROCESSES = 16
STARTS_AT_ONCE = 8
"""An engine that is asked for more than that starts none of them sooner, and may not answer in time."""
MOST_PROCESSES = 4_000_000
"""The kernel takes no higher limit."""
MACHINES = {"amd64": "x86_64", "arm64": "aarch64", "riscv64": "riscv64"}
"""Kinds of processors as images and as kernels call them."""
FIRST_USER, LAST_USER = 10_000, 60_000
"""Workers' user ids are drawn from here: engines that map ids give a container 65,536 of them, and what the kernel counts by
user (such as watches on files) is not to be shared by two containers."""


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


def work_folders(limits: Limits) -> list[str]:
    """The work folders of a container, one for each interpreter that may live in it at a time."""
    return ["/sandbox", *(f"/sandbox-{slot}" for slot in range(1, limits.branches))]


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
                **dict.fromkeys(work_folders(limits), folder),
                "/tmp": "ro,nosuid,nodev,noexec,size=4k,mode=555",  # else runsc puts a writable one there
            },
            "Memory": memory,
            "MemorySwap": memory,  # the sum of both: no swap
            "PidsLimit": min(limits.branches * limits.processes + BASE_PROCESSES, MOST_PROCESSES),
            "NanoCpus": int(settings.cpus * 1e9),
            "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}, {"Name": "nofile", "Soft": 4096, "Hard": 4096}],
            "LogConfig": {"Type": "none"},
            "RestartPolicy": {"Name": "no"},
        },
    }


class DockerEngine:
    """Starts containers on the engine that the environment names; the launcher of the docker backend.

    Args:
        settings: What kind of containers.
        preload: Modules that each imports before its first interpreter; None for numpy and sympy if the image has them.

    Raises:
        SandboxFault: The engine, the image or the runtime is not there; the message says what to do.
    """

    def __init__(self, settings: ContainerSettings | None = None, preload: Sequence[str] | None = None) -> None:
        self.settings = settings or ContainerSettings()
        self._preload = None if preload is None else list(preload)
        self._owner = os.getpid()
        self._closed = False
        self._links: weakref.WeakSet[DockerLink] = weakref.WeakSet()
        self._links_lock = threading.Lock()
        self._starting = threading.BoundedSemaphore(STARTS_AT_ONCE)
        self._client = DockerClient()
        self._undertaker = Undertaker(self._client)
        try:
            image = self._inspect_image()
            with self._client.lend("describe itself") as client:
                about: dict[str, Any] = client.info()
            self._check(image, about)
        except BaseException:
            self._client.close()
            raise
        self._image: str = image["Id"]
        self._variables = environment()
        if any(variable.startswith("PATH=") for variable in (image["Config"] or {}).get("Env") or ()):
            del self._variables["PATH"]  # where its python3 is, the image knows best
        self._filter, self.protection = self._walls(image, about)
        logger.info("%s", self.protection)
        reap_in_background()

    @property
    def alive(self) -> bool:
        """Whether containers can be asked of it."""
        return not self._closed and self._owner == os.getpid()

    def start(self, limits: Limits) -> Family:
        """Starts a container, and waits until its first interpreter stands ready.

        Args:
            limits: What each interpreter in it may use.

        Raises:
            SandboxFault: It could not be started.
        """
        if not self.alive:
            raise SandboxFault("this Docker launcher was closed, or belongs to another process: make another one")
        user = FIRST_USER + secrets.randbelow(LAST_USER - FIRST_USER)
        options = {
            "limits": asdict(limits),
            "folders": work_folders(limits),
            "user": user,
            "preload": self._preload,
            "filter": base64.b64encode(self._filter).decode("ascii"),
        }
        configuration = container_configuration(self._image, self.settings, limits, user, self._variables)
        link = self._launch(configuration)
        try:
            link.send(first_message(options))
            return Family(link, limits, self.settings.reuse)
        except BaseException:
            link.close()
            raise

    def close(self) -> None:
        """Ends all its containers, and waits until the engine has removed them. Twice is fine."""
        if self._closed or self._owner != os.getpid():
            return
        self._closed = True
        with self._links_lock:
            links = list(self._links)
        self._undertaker.work_alone()
        for link in links:
            link.close()
        self._undertaker.finish()
        self._client.close()

    def _launch(self, configuration: dict[str, Any]) -> DockerLink:
        """Makes a container, attaches to it, and starts it."""
        with self._starting, self._client.lend("start a container") as client:
            try:
                container: str = client.create_container_from_config(configuration)["Id"]
            except docker.errors.ImageNotFound as problem:
                raise self._no_image() from problem
            link = None
            try:
                stream = client.attach_socket(container, {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
                link = DockerLink(self._client, container, stream, self.protection, self._undertaker.bury)
                with self._links_lock:
                    self._links.add(link)
                client.start(container)
            except BaseException as problem:
                if link is not None:
                    link.close()
                else:
                    self._undertaker.bury(container)
                if isinstance(problem, docker.errors.APIError):
                    raise self._no_start(problem) from problem
                raise
        return link

    def _no_start(self, problem: Any) -> SandboxFault:
        words = str(problem.explanation or problem)
        if "python3" in words and ("not found" in words or "no such file" in words):
            return SandboxFault(f"the image {self.settings.image} has no python3: name another image, or put one into it")
        return self._client.refusal("start a container", problem)

    def _inspect_image(self) -> dict[str, Any]:
        try:
            with self._client.lend("look at an image") as client:
                image: dict[str, Any] = client.inspect_image(self.settings.image)
                return image
        except docker.errors.NotFound as problem:
            raise self._no_image() from problem

    def _no_image(self) -> SandboxFault:
        return SandboxFault(
            f"the Docker engine at {self._client.address} has no image {self.settings.image}: build it with "
            "`python -m sandboxes build-image`, or name one that it has with image=..."
        )

    def _check(self, image: dict[str, Any], about: dict[str, Any]) -> None:
        """Raises ``SandboxFault`` where no container could be what it is to be."""
        settings = self.settings
        if image["Os"] != "linux":
            raise SandboxFault(f"the image {settings.image} is one for {image['Os']}: an image for linux is needed")
        volumes = (image["Config"] or {}).get("Volumes")
        if volumes:
            places = ", ".join(volumes)
            raise SandboxFault(
                f"the image {settings.image} declares volumes ({places}), which code could write to: use another"
            )
        if settings.runtime is not None and settings.runtime not in about["Runtimes"]:
            known = ", ".join(sorted(about["Runtimes"]))
            raise SandboxFault(
                f"the Docker engine at {self._client.address} has no runtime {settings.runtime}, only {known}: "
                "install it and name it in the engine's daemon.json"
            )
        if not about.get("MemoryLimit", True) or not about.get("PidsLimit", True):
            raise SandboxFault(
                f"the Docker engine at {self._client.address} cannot limit a container's memory and processes: "
                "its kernel or its user lacks the cgroup controllers memory and pids"
            )

    def _walls(self, image: dict[str, Any], about: dict[str, Any]) -> tuple[bytes, Protection]:
        """The system-call filter to send along, and what a container is shut in by."""
        runtime = self.settings.runtime
        missing = [] if about.get("SwapLimit", True) else ["limit of swap (the engine's kernel does not count it)"]
        syscall_filter = b""
        machine = MACHINES.get(image["Architecture"], image["Architecture"])
        if machine == platform.machine() and platform.system() == "Linux":
            try:
                syscall_filter = compile_filter()
            except OSError as problem:
                missing.append(f"system-call filter besides the engine's ({problem})")
        else:
            here = f"{platform.system()} on {platform.machine()}"
            missing.append(f"system-call filter besides the engine's (it cannot be compiled on {here} for {machine})")
        profile = any("name=seccomp" in option for option in about.get("SecurityOptions") or ())
        if not profile and runtime is None:
            missing.append("the engine's seccomp profile (it has none)")
        missing.append("fixed addresses (the engine's seccomp profile refuses them)")
        protection = Protection(
            backend="docker" if runtime is None else f"docker ({runtime})",
            namespaces=("pid", "net", "ipc", "uts", "mount"),
            own_user=True,
            seccomp=bool(syscall_filter) or profile,
            network="no network",
            files="container",
            processes="kernel",
            signals="container and own user",
            fixed_addresses=False,
            missing=tuple(missing),
        )
        return syscall_filter, protection

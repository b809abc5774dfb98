"""The docker backend: interpreters in containers, each of which serves one family of forks at a time.

`settings` says how a container is shut in. It runs `container` as its first process and needs nothing but a
``python3`` from its image: the program comes in over the connection that it serves. When that connection ends, for whatever
reason, the container ends and the engine removes it; `DockerEngine.close` makes certain of that, and what a killed process
leaves is the business of the `reaper`.
"""

from __future__ import annotations

import base64
import logging
import os
import platform
import secrets
import threading
import weakref
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import docker

from sandboxes.faults import SandboxFault
from sandboxes.python.docker.client import DockerClient
from sandboxes.python.docker.link import DockerLink
from sandboxes.python.docker.program import first_message
from sandboxes.python.docker.settings import ContainerSettings, container_configuration
from sandboxes.python.docker.undertaker import Undertaker
from sandboxes.python.family import Family
from sandboxes.python.inside.enclosure import folder_names
from sandboxes.python.inside.warming import environment
from sandboxes.python.interpreter import Limits, Protection
from sandboxes.python.local.syscall_filter import compile_filter
from sandboxes.python.reaper import reap_in_background

logger = logging.getLogger(__name__)

STARTS_AT_ONCE = 8
"""An engine that is asked for more than that starts none of them sooner, and may not answer in time."""
MACHINES = {"amd64": "x86_64", "arm64": "aarch64", "riscv64": "riscv64"}
"""Kinds of processors as images and as kernels call them."""
FIRST_USER, LAST_USER = 10_000, 60_000
"""Workers' user ids are drawn from here: engines that map ids give a container 65,536 of them, and what the kernel counts by
user (such as watches on files) is not to be shared by two containers."""


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
            "folders": folder_names(limits.branches),
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
        if self._owner != os.getpid():
            return
        with self._links_lock:
            links = [] if self._closed else list(self._links)
            self._closed = True
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
                    if self._closed:
                        raise SandboxFault("this Docker launcher was closed while it started a container")
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

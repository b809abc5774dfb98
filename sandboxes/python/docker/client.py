"""The Docker engine as this process talks to it: connections for many threads, one clear line for whatever goes wrong.

Which engine that is, the usual environment variables say (``DOCKER_HOST``, ``DOCKER_TLS_VERIFY``, ``DOCKER_CERT_PATH``),
else it is the one of this machine. A client of the ``docker`` package serves one thread at a time, so clients are lent and
come back; there are never more of them than threads that talked to the engine at once.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import docker
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ReadTimeoutError

from sandboxes.faults import SandboxFault

DEFAULT_ENGINE = "unix:///var/run/docker.sock"
CONTACT_SECONDS = 10.0
"""How long it may take to say its version."""
REQUEST_SECONDS = 60.0
"""How long the engine may take for a request, on a machine that is very busy."""
PULSE_SECONDS = 1.0
"""How long it counts as alive, or dead, after it was asked."""
PULSE_WAIT = 2.0


class DockerClient:
    """Talks to the engine that the environment names. Safe for threads; belongs to the process that made it.

    Raises:
        SandboxFault: The engine cannot be reached.
    """

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._idle: list[Any] = []
        self._version = "auto"
        self._pulse_lock = threading.Lock()
        self._pulse_time = float("-inf")
        self._pulse_fault = ""
        try:
            self._where = docker.utils.kwargs_from_env()
            self.address = self._where.get("base_url") or DEFAULT_ENGINE
            client = docker.APIClient(version="auto", timeout=CONTACT_SECONDS, **self._where)
        except (docker.errors.DockerException, OSError, ValueError) as problem:
            address = os.environ.get("DOCKER_HOST") or DEFAULT_ENGINE
            raise _unreachable(address, problem) from problem
        self._version = client.api_version
        self._idle.append(client)

    @contextlib.contextmanager
    def lend(self, doing: str, seconds: float = REQUEST_SECONDS) -> Iterator[Any]:
        """Lends a client for the length of a ``with`` block.

        Args:
            doing: What it is for, for messages: "start a container".
            seconds: How long each request may wait for its answer.

        Yields:
            A ``docker.APIClient``.

        Raises:
            SandboxFault: The engine refused, or it cannot be reached. ``docker.errors.NotFound`` passes through unless it
                is caught inside the block, since what it means depends on what was asked.
        """
        if os.getpid() != self._owner:
            raise SandboxFault(f"this connection to the Docker engine belongs to process {self._owner}: open another one")
        with self._lock:
            client = self._idle.pop() if self._idle else None
        try:
            if client is None:
                client = docker.APIClient(version=self._version, timeout=seconds, **self._where)
            client.timeout = seconds
            yield client
        except docker.errors.APIError as problem:
            self._take_back(client)
            if isinstance(problem, docker.errors.NotFound):
                raise
            raise self.refusal(doing, problem) from problem
        except (docker.errors.DockerException, HTTPError, OSError) as problem:
            client.close() if client is not None else None
            raise _unreachable(self.address, problem) from problem
        except BaseException:
            if client is not None:
                client.close()
            raise
        self._take_back(client)

    def refusal(self, doing: str, problem: Any) -> SandboxFault:
        """The fault that says what the engine would not do."""
        words = " ".join(str(problem.explanation or problem).split())
        return SandboxFault(
            f"the Docker engine at {self.address} did not {doing}: {words}", retryable=problem.is_server_error()
        )

    def check(self) -> None:
        """Asks the engine for a sign of life, at most once a second for all threads together.

        Raises:
            SandboxFault: It gave none within `PULSE_WAIT` seconds.
        """
        with self._pulse_lock:
            if time.monotonic() - self._pulse_time > PULSE_SECONDS:
                asked = time.monotonic()
                self._pulse_fault = ""
                try:
                    self.ask_afresh()
                except SandboxFault as fault:
                    self._pulse_fault = str(fault)
                # What was true when it was asked may have changed by the time of the answer; silence has lasted until now.
                self._pulse_time = time.monotonic() if self._pulse_fault else asked
            if self._pulse_fault:
                raise SandboxFault(self._pulse_fault, retryable=True)

    def ask_afresh(self) -> None:
        """Asks for a sign of life over a new connection, since an engine that is being stopped still serves the old ones.

        Raises:
            SandboxFault: It gave none within `PULSE_WAIT` seconds.
        """
        try:
            client = docker.APIClient(version=self._version, timeout=PULSE_WAIT, **self._where)
            with contextlib.closing(client):
                client.ping()
        except (docker.errors.DockerException, HTTPError, OSError) as problem:
            raise _unreachable(self.address, problem) from problem

    def close(self) -> None:
        """Closes the connections that nobody uses."""
        with self._lock:
            idle, self._idle = self._idle, []
        if os.getpid() == self._owner:
            for client in idle:
                client.close()

    def _take_back(self, client: Any) -> None:
        with self._lock:
            self._idle.append(client)


def _unreachable(address: str, problem: BaseException) -> SandboxFault:
    """The fault of an engine that does not answer."""
    chain = _reasons(problem)
    refused = next((reason for reason in chain if isinstance(reason, PermissionError)), None)
    if refused is not None:
        advice = "let this user use its socket (on most systems: the group docker)"
        return SandboxFault(f"the Docker engine at {address} cannot be used: {refused.strerror}: {advice}")
    late = any(isinstance(reason, TimeoutError | ConnectTimeoutError | ReadTimeoutError) for reason in chain)
    late = late and not any(isinstance(reason, NewConnectionError) for reason in chain)  # which passes for a time-out too
    words = "it gave no answer in time" if late else " ".join(str(chain[-1]).split())
    return SandboxFault(
        f"the Docker engine at {address} cannot be reached: {words}: start it, or name another one with DOCKER_HOST",
        retryable=True,
    )


def _reasons(problem: BaseException) -> list[BaseException]:
    """An exception, its reason, the reason of that, and so on: HTTP libraries put them in several places."""
    chain = [problem]
    while True:
        places = (chain[-1].__cause__, getattr(chain[-1], "reason", None), *chain[-1].args)
        inner = next((place for place in places if isinstance(place, BaseException) and place not in chain), None)
        if inner is None:
            return chain
        chain.append(inner)

"""Kernels and users that the attacks are tried under: each is a `driver.HostProcess`."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from docker_engine import IMAGE, client_or_skip
from driver import PLAIN_USER, HostProcess, python_is_closed

from sandboxes.python import Interpreter, open_interpreter


@dataclass(frozen=True)
class Situation:
    """As whom, and on which kernel.

    Args:
        plain: A plain user, not root.
        refuse: What the kernel refuses.
        reach: Whether every user can read this Python.
        backend: Of the interpreters.
    """

    plain: bool = False
    refuse: tuple[str, ...] = ()
    reach: bool = True
    backend: str = "local"


SITUATIONS: dict[str, Situation] = {
    "root": Situation(),
    "root-without-namespaces": Situation(refuse=("namespaces",)),
    "user": Situation(plain=True),
    "user-without-namespaces": Situation(plain=True, refuse=("namespaces",)),
}
DOCKER: dict[str, Situation] = {
    "docker": Situation(backend="docker"),
    "docker-as-user": Situation(plain=True, backend="docker"),
}
RARE: dict[str, Situation] = {
    "root-alone-in-reach-of-python": Situation(reach=False),
    "root-alone-in-reach-of-python-without-namespaces": Situation(refuse=("namespaces",), reach=False),
    "root-with-seccomp-alone": Situation(refuse=("namespaces", "landlock")),
    "user-with-seccomp-alone": Situation(plain=True, refuse=("namespaces", "landlock")),
    "user-without-seccomp": Situation(plain=True, refuse=("seccomp",)),
    "user-without-landlock": Situation(plain=True, refuse=("landlock",)),
}


@pytest.fixture(
    scope="session",
    params=[
        *SITUATIONS,
        *(pytest.param(name, marks=pytest.mark.docker) for name in DOCKER),
        *(pytest.param(name, marks=pytest.mark.thorough) for name in RARE),
    ],
)
def situation(request: pytest.FixtureRequest) -> Iterator[HostProcess]:
    """A host of interpreters in one situation, with one interpreter open."""
    wanted = {**SITUATIONS, **DOCKER, **RARE}[request.param]
    if not wanted.plain and os.geteuid() != 0:
        pytest.skip("needs root")
    if not wanted.reach and not python_is_closed():
        pytest.skip("every user can read this Python")
    user = PLAIN_USER if wanted.plain and os.geteuid() == 0 else None
    host = HostProcess(user, wanted.refuse, wanted.reach, IMAGE if wanted.backend == "docker" else None)
    try:
        answer = host.open()
        if hasattr(answer, "fault"):
            pytest.skip(f"this machine cannot: {answer.fault}")
        host.protection = host.ask("describe")
        if request.param == "user" and "pid" not in host.protection.namespaces:
            pytest.skip(f"this kernel has no user namespaces for plain users: {host.protection.missing}")
        yield host
    finally:
        host.close()
    assert host.settled(0) == {}, "processes outlived their host"


@pytest.fixture(scope="session")
def listening(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Real servers of the tests' own that a sandbox must not reach: a port, an abstract socket and a socket in a folder."""
    path = str(tmp_path_factory.mktemp("open") / "socket")
    abstract = f"sandbox-test-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        for address in ("\0" + abstract, path):
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            server.bind(address)
            server.listen()
        os.chmod(path, 0o777)
        yield SimpleNamespace(port=tcp.getsockname()[1], abstract=abstract, path=path)


@pytest.fixture(params=["local", pytest.param("docker", marks=pytest.mark.docker)])
def open_one(request: pytest.FixtureRequest) -> Callable[..., Interpreter]:
    """Opens an interpreter of each backend in turn."""
    if request.param == "local":
        return functools.partial(open_interpreter, "local")
    client_or_skip().close()
    return functools.partial(open_interpreter, "docker", image=IMAGE)

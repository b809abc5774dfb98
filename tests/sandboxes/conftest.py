"""Kernels and users that the attacks are tried under: each is a `driver.HostProcess`."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from driver import PLAIN_USER, HostProcess

SITUATIONS = {
    "root": (False, ()),
    "root-without-namespaces": (False, ("namespaces",)),
    "user": (True, ()),
    "user-without-namespaces": (True, ("namespaces",)),
    "user-with-seccomp-alone": (True, ("namespaces", "landlock")),
    "user-without-seccomp": (True, ("seccomp",)),
}


@pytest.fixture(scope="session", params=SITUATIONS)
def situation(request: pytest.FixtureRequest) -> Iterator[HostProcess]:
    """A host of interpreters under one of `SITUATIONS`, with one interpreter open."""
    plain, refuse = SITUATIONS[request.param]
    if not plain and os.geteuid() != 0:
        pytest.skip("needs root")
    host = HostProcess(PLAIN_USER if plain and os.geteuid() == 0 else None, refuse)
    try:
        answer = host.ask("open")
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

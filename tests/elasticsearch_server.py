"""Real Elasticsearch servers for the tests.

`ELASTICSEARCH_URL` names one that is there, such as ``http://elastic:password@localhost:9200``. `ELASTICSEARCH_SERVER` names
a program that runs one of the tests' own, which they may kill:

    PROGRAM start PORT PASSWORD    start a new one on loopback, security on (user ``elastic``), and wait until it answers
    PROGRAM kill PORT              end it at once, as a power cut would
    PROGRAM resume PORT PASSWORD   start it again over the same data
    PROGRAM stop PORT              end it and remove its data

Its files go into ``TMPDIR``. Tests that need a server are skipped where neither is set, and those that kill it where there
is only the first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import elasticsearch
import pytest

PASSWORD = "not-a-secret"
START_SECONDS = 180.0


@dataclass
class Server:
    """A running server.

    Args:
        url: With user and password, if it wants them.
    """

    url: str

    def where(self, index: str) -> str:
        """The address of an index there, as `sandboxes.search` takes it."""
        parts = urlsplit(self.url)
        scheme = {"http": "elasticsearch", "https": "elasticsearch+https"}[parts.scheme]
        return f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}/{index}"

    def client(self) -> elasticsearch.Elasticsearch:
        """The bare client."""
        return elasticsearch.Elasticsearch(self.url, request_timeout=60)


@dataclass
class OwnServer(Server):
    """A server of the tests' own.

    Args:
        program: As above.
        port: Its own.
        folder: Its files.
    """

    program: str
    port: int
    folder: Path

    def run(self, action: str) -> None:
        """Runs the program: start, kill, resume or stop."""
        command = [self.program, action, str(self.port)] + ([PASSWORD] if action in ("start", "resume") else [])
        with (self.folder / "log").open("ab") as log:  # no pipe, which the server would inherit and keep open
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "TMPDIR": str(self.folder)},
                timeout=START_SECONDS,
            )
        assert done.returncode == 0, (self.folder / "log").read_text()[-3000:]

    def kill(self) -> None:
        self.run("kill")

    def resume(self) -> None:
        self.run("resume")


@contextlib.contextmanager
def own_server() -> Iterator[OwnServer]:
    """A server that a test may kill; skips the test where there is no program for it."""
    program = os.environ.get("ELASTICSEARCH_SERVER")
    if not program:
        pytest.skip("needs ELASTICSEARCH_SERVER, a program that starts a server")
    folder = Path(tempfile.mkdtemp(prefix="elasticsearch-"))
    folder.chmod(0o755)  # a server that is started by root runs as another user
    with _own_port() as port:
        server = OwnServer(f"http://elastic:{PASSWORD}@127.0.0.1:{port}", str(Path(program).resolve()), port, folder)
        try:
            server.run("start")
            yield server
        finally:
            server.run("stop")
            shutil.rmtree(folder)


@contextlib.contextmanager
def fresh_index(server: Server) -> Iterator[str]:
    """The address of an index that is not there yet, and is gone afterwards."""
    name = f"test-{uuid.uuid4().hex}"
    try:
        yield server.where(name)
    finally:
        with contextlib.closing(server.client()) as client:
            client.options(ignore_status=404).indices.delete(index=name)


@contextlib.contextmanager
def _own_port() -> Iterator[int]:
    """A port that is free, with the one 100 above it, which the program takes for the nodes' own talk.

    Tests that run at the same time choose another one, even before the server has taken it or while it is killed.
    """
    for port in range(9310, 9400):
        with contextlib.ExitStack() as held:
            try:
                lock = held.enter_context(open(Path(tempfile.gettempdir()) / f"elasticsearch-port-{port}", "a"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with contextlib.ExitStack() as tried:
                    for each in (port, port + 100):
                        tried.enter_context(socket.create_server(("127.0.0.1", each)))
            except OSError:
                continue
            yield port
            return
    raise AssertionError("no free port for a server")

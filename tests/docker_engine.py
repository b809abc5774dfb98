"""Real Docker engines for the tests: the machine's own with the tests' image, and one that a test may kill.

The image is the one that `AGENT_ENVS_TEST_IMAGE` names, by default ``agent-envs-test``; any with python3, numpy and sympy
will do: ``python -m sandboxes build-image --tag agent-envs-test``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

IMAGE = os.environ.get("AGENT_ENVS_TEST_IMAGE", "agent-envs-test")
START_SECONDS = 60.0


def client_or_skip() -> Any:
    """A ``docker.APIClient`` to an engine that has the tests' image; skips the test where there is none."""
    try:
        client = docker.from_env(timeout=60).api
    except docker.errors.DockerException as problem:
        pytest.skip(f"no Docker engine: {problem}")
    try:
        client.inspect_image(IMAGE)
    except docker.errors.DockerException as problem:
        client.close()
        pytest.skip(f"the Docker engine has no image {IMAGE}: {problem}")
    return client


class OwnEngine:
    """A Docker engine beside the machine's, with everything that belongs to it in a folder of its own.

    Args:
        folder: Its files; short, since paths of sockets cannot be long.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"unix://{folder}/sock"

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        folder = self._folder
        command = ["dockerd", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "-H", self.address]
        command += [
            "--pidfile",
            f"{folder}/pid",
            "--config-file",
            f"{folder}/daemon.json",
            "--bridge=none",
            "--iptables=false",
        ]
        (folder / "daemon.json").write_text("{}")  # else it would take the machine's
        with (folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            assert self._process.poll() is None, (folder / "log").read_text()[-2000:]
            with contextlib.suppress(docker.errors.DockerException, OSError), contextlib.closing(self.client()) as client:
                client.ping()
                return
            time.sleep(0.05)
        pytest.fail(f"the engine did not start: {(folder / 'log').read_text()[-2000:]}")

    def client(self) -> Any:
        return docker.APIClient(base_url=self.address, version="auto", timeout=60)

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        """Stops it, however it was left. The containers of one that was killed go when it is started again."""
        if self._process is None:
            return
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self._process.wait()
        self._process = None
        # A killed engine's containerd dies just after it, and one that starts too early would take it for alive.
        containerd = Path(f"{self._folder}/exec/containerd/containerd.pid")
        end = time.monotonic() + 10
        while containerd.exists() and Path("/proc", containerd.read_text()).exists() and time.monotonic() < end:
            time.sleep(0.02)

    def remove(self) -> None:
        """Removes its files, and what it has left mounted in them."""
        for line in reversed(Path("/proc/mounts").read_text().splitlines()):
            place = line.split()[1]
            if place.startswith(f"{self._folder}/"):
                subprocess.run(["umount", "--lazy", place], check=True)
        shutil.rmtree(self._folder)


@contextlib.contextmanager
def own_engine(image_from: Any) -> Iterator[OwnEngine]:
    """A running engine of the tests' own that has their image, taken from another engine."""
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("an engine of one's own needs root and the program dockerd")
    folder = Path(tempfile.mkdtemp(prefix="engine-", dir="/tmp"))
    engine = OwnEngine(folder)
    try:
        engine.start()
        with contextlib.closing(engine.client()) as client:
            client.load_image(image_from.get_image(IMAGE))
        yield engine
    finally:
        engine.stop()
        engine.remove()

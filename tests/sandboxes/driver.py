"""Drives a `host` from the tests, and counts what its sandboxes leave running."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sandboxes.python.owners import owner

REPOSITORY = Path(__file__).resolve().parents[2]
PLAIN_USER = 54321
DOCKER_SOCKET = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
SECRET = "a-secret-of-the-host"


class HostProcess:
    """A running `host`.

    Args:
        user: User id to run as; the tests' own by default.
        refuse: What its kernel is to refuse.
        reach: Whether every user can reach this Python, as is usual; root alone where it really is so, else.
        image: Its interpreters live in containers of this Docker image; None for the local backend.

    Attributes:
        standing: Processes that there are with one interpreter open: worker, supervisor, and the local backend's zygote.
    """

    def __init__(
        self, user: int | None = None, refuse: tuple[str, ...] = (), reach: bool = True, image: str | None = None
    ) -> None:
        self.image = image
        self.standing = 3 if image is None else 2
        # The token is part of the module path, which a sandbox's warm process has on its command line, and so all its forks.
        self.token = f"token-{uuid.uuid4().hex}"
        command = [sys.executable, str(REPOSITORY / "tests" / "sandboxes" / "host.py"), "--refuse", *refuse]
        if user is not None:
            command = [*_as_user(user, None if image is None else os.stat(DOCKER_SOCKET).st_gid), *command]
        if reach and os.geteuid() == 0:
            command = [*_within_reach(), *command]
        environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:/{self.token}", "HOST_SECRET": SECRET}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd="/"
        )
        self.owner = owner(self.process.pid)

    def open(self, name: str = "", **arguments: Any) -> SimpleNamespace:
        """Opens an interpreter of this host's backend."""
        backend = {"backend": "local"} if self.image is None else {"backend": "docker", "image": self.image}
        return self.ask("open", name=name, **backend, **arguments)

    def ask(self, operation: str, **arguments: Any) -> SimpleNamespace:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"operation": operation, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the host process died"
        return SimpleNamespace(**json.loads(line))

    def processes(self) -> dict[int, str]:
        """State letter by id of every process of its sandboxes: the warm ones, the supervisors, the workers, and strays."""
        return processes_with(self.token) if self.image is None else processes_in(self.containers())

    def containers(self) -> list[str]:
        """Ids of its containers, those that never ran included."""
        command = ["docker", "ps", "--all", "--quiet", "--no-trunc", "--filter", f"label=agent-envs.owner={self.owner}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    def settled(self, count: int, seconds: float = 3.0) -> dict[int, str]:
        """Waits until ``count`` processes are left and no zombie; returns those that are there then."""
        end = time.monotonic() + seconds
        while (len(found := self.processes()) != count or "Z" in found.values()) and time.monotonic() < end:
            time.sleep(0.01)
        return found

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def python_is_closed() -> Path | None:
    """The folder that keeps other users from this Python, such as root's home; None where it is open to all."""
    closed = [path for path in Path(sys.base_prefix).parents if not path.stat().st_mode & 0o001]
    return closed[-1] if closed else None


def _within_reach() -> list[str]:
    """A command that runs another one where every user can read this Python."""
    closed = python_is_closed()
    if closed is None:
        return []
    # In a mount namespace of its own: an empty folder over the closed one, with nothing in it but the way to Python.
    hide = 'mount --bind "$1" /mnt && mount -t tmpfs -o mode=755 tmpfs "$2" && mkdir -p "$1" && mount --move /mnt "$1"'
    return ["unshare", "--mount", "sh", "-c", f'{hide} && shift 2 && exec "$@"', "sh", sys.base_prefix, str(closed)]


def _as_user(user: int, group: int | None = None) -> list[str]:
    """A command that runs another one as ``user``, with no rights left from root but those of one more ``group``."""
    groups = "--clear-groups" if group is None else f"--groups={group}"
    return ["setpriv", f"--reuid={user}", f"--regid={user}", groups, "--bounding-set=-all", "--no-new-privs"]


def processes_in(containers: list[str]) -> dict[int, str]:
    """State letter by id of the processes in containers."""
    found = {}
    for entry in os.listdir("/proc") if containers else ():
        with contextlib.suppress(OSError):
            if entry.isdigit() and any(container in Path(f"/proc/{entry}/cgroup").read_text() for container in containers):
                found[int(entry)] = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
    return found


def processes_with(token: str) -> dict[int, str]:
    """State letter by id of the processes with ``token`` on their command line, and of their children that are zombies."""
    found: dict[int, str] = {}
    zombies: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            command = Path(f"/proc/{entry}/cmdline").read_bytes()
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if token.encode() in command:
            found[int(entry)] = fields[0]
        elif fields[0] == "Z":
            zombies[int(entry)] = int(fields[1])
    found.update({zombie: "Z" for zombie, parent in zombies.items() if parent in found})
    return found

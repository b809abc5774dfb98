"""The local backend: interpreters forked from a warm process of this machine, shut in as well as its kernel allows."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from sandboxes.faults import SandboxFault
from sandboxes.python.family import Family
from sandboxes.python.inside.frames import ChannelClosed
from sandboxes.python.inside.warming import environment
from sandboxes.python.interpreter import Limits, Protection
from sandboxes.python.owners import folder_name, owner

logger = logging.getLogger(__name__)

Isolation = Literal["auto", "none"]

START_SECONDS = 120.0
"""How long the warm process may take to import its packages and try the walls, on a machine that is very busy."""
ENDING_SECONDS = 15.0
DYING_SECONDS = 0.5

_HERE = str(Path(__file__).resolve().parents[1])
_BOOT = """
import sys, types
sys.path[:] = sys.argv[3:]
host = types.ModuleType("sandboxes.python")  # not its own text, which would bring in the host's side of everything
host.__path__ = [sys.argv[2]]
sys.modules["sandboxes.python"] = host
from sandboxes.python.local.zygote import main
main(int(sys.argv[1]))
"""


class Zygote:
    """The host's end of a warm process (`zygote`).

    Args:
        preload: Modules that it imports once for all its interpreters.
        isolation: ``"auto"`` or ``"none"``.
        programs: Programs of this machine that its interpreters may run, by name or absolute path.

    Raises:
        SandboxFault: It could not be started, a program is not there, or this machine cannot shut code in.
    """

    def __init__(self, preload: tuple[str, ...] | None, isolation: Isolation, programs: tuple[str, ...] = ()) -> None:
        if not sys.platform.startswith("linux"):
            raise SandboxFault(f"the local interpreter needs Linux, found {sys.platform}: take backend='docker'")
        paths = find_programs(programs)
        self._lock = threading.Lock()
        self._folder = ""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process runs
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-s", "-B", "-c", _BOOT, str(theirs.fileno()), _HERE, *_import_path()],
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                cwd="/",
                env=_environment(),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        try:
            temporary = os.path.join(tempfile.gettempdir(), folder_name(owner()))  # so the reaper knows whose it is
            request = {"preload": preload, "isolation": isolation, "programs": paths, "folder": temporary}
            self._socket.send(json.dumps(request).encode())
            self._socket.settimeout(START_SECONDS)
            answer = json.loads(self._socket.recv(65536) or b"{}")
            self._socket.settimeout(None)
        except (OSError, ValueError) as problem:
            message = f"the warm interpreter process did not start: {problem}{self._said()}"
            self.close()
            raise SandboxFault(message, retryable=True) from problem
        if "ready" not in answer:
            message = answer.get("fault") or f"the warm interpreter process died while it started{self._said()}"
            self.close()
            raise SandboxFault(message)
        self._folder = answer["folder"]
        granted: dict[str, Any] = answer["ready"]
        granted.update({name: tuple(value) for name, value in granted.items() if isinstance(value, list)})
        self.protection = Protection(**granted)
        logger.info("%s", self.protection)

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def open(self, limits: Limits) -> Family:
        """Starts a family.

        Raises:
            ChannelClosed: This zygote is gone.
            SandboxFault: The family could not be started.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                with self._lock:
                    socket.send_fds(self._socket, [json.dumps({"limits": asdict(limits)}).encode()], [theirs.fileno()])
            except OSError as problem:
                ours.close()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(DYING_SECONDS)  # its end of the socket is closed a moment before it can be waited for
                raise ChannelClosed(f"the warm interpreter process is gone: {problem}") from problem
        try:
            return Family(LocalLink(ours, self.protection), limits)
        except SandboxFault:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(DYING_SECONDS)
                raise ChannelClosed("the warm interpreter process is gone") from None
            raise

    def close(self) -> None:
        """Ends the process and every interpreter that it forked, and waits for it. Twice is fine."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        try:
            self._process.wait(timeout=ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._folder:
            # Only after it was killed is its folder still there, and perhaps in use by episodes that outlived it.
            with contextlib.suppress(OSError):
                os.rmdir(self._folder)
        self._errors.close()

    def _said(self) -> str:
        """The last words of a process that could not report properly, and that may be about to write them."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(DYING_SECONDS)
        self._errors.seek(0)
        words = self._errors.read()[-2000:].decode("utf-8", "replace").strip()
        return f": {words}" if words else ""


class LocalLink:
    """The host's end of a local supervisor's socket.

    Args:
        end: The socket.
        protection: What its zygote grants.
    """

    def __init__(self, end: socket.socket, protection: Protection) -> None:
        self.protection = protection
        self._socket = end

    def send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as problem:
            raise ChannelClosed(problem.strerror) from problem

    def receive(self, timeout: float) -> bytes:
        try:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            if not poll.poll(timeout * 1000):
                raise TimeoutError
            data = self._socket.recv(1 << 20)
        except TimeoutError:
            raise
        except (OSError, ValueError) as problem:
            raise ChannelClosed(str(problem)) from problem
        if not data:
            raise ChannelClosed("its supervisor ended")
        return data

    def check(self) -> None:
        """A local supervisor whose socket is open is there."""

    def how_it_ended(self) -> str:
        return "ended unexpectedly, perhaps for want of memory"

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _import_path() -> list[str]:
    """Where this process finds its modules, and this package itself, however it was installed."""
    here = str(Path(__file__).resolve().parents[3])
    path = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
    return list(dict.fromkeys([*path, here]))


def _environment() -> dict[str, str]:
    """The environment of the warm process: nothing of the host's but where its libraries are."""
    variables = environment()
    if "LD_LIBRARY_PATH" in os.environ:
        variables["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return variables


def find_programs(names: Iterable[str]) -> list[str]:
    """The absolute paths of programs of this machine.

    Raises:
        SandboxFault: One is not there.
    """
    paths = []
    for name in names:
        path = shutil.which(name)
        if path is None:
            raise SandboxFault(f"programs names {name!r}, which is no program here: install it, or leave it out of programs")
        paths.append(os.path.abspath(path))
    return paths

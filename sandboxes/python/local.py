"""The local backend: interpreters forked from a warm process of this machine, shut in as well as its kernel allows."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from typing import Any, Literal

from sandboxes import shared
from sandboxes.faults import SandboxFault
from sandboxes.python.frames import ChannelClosed, FrameChannel
from sandboxes.python.interpreter import Done, Interpreter, Limits, Protection, check_timeout

logger = logging.getLogger(__name__)

Isolation = Literal["auto", "none"]

START_SECONDS = 120.0
"""How long the warm process may take to import its packages and try the walls, on a machine that is very busy."""
ENDING_SECONDS = 15.0
DYING_SECONDS = 0.5
ANSWER_SECONDS = 60.0
"""How much longer than a call's own limit the supervisor may take to answer before it counts as gone."""

_BOOT = "import sys; sys.path[:] = sys.argv[2:]; from sandboxes.python.zygote import main; main(int(sys.argv[1]))"


class Zygote:
    """The host's end of a warm process (`zygote`).

    Args:
        preload: Modules that it imports once for all its interpreters.
        isolation: ``"auto"`` or ``"none"``.

    Raises:
        SandboxFault: It could not be started, or this machine cannot shut code in.
    """

    def __init__(self, preload: tuple[str, ...], isolation: Isolation) -> None:
        if not sys.platform.startswith("linux"):
            raise SandboxFault(f"the local interpreter needs Linux, found {sys.platform}: run it in a Linux container")
        self._lock = threading.Lock()
        self._folder = ""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-s", "-B", "-c", _BOOT, str(theirs.fileno()), *_import_path()],
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                cwd="/",
                env=_environment(),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        try:
            request = {"preload": preload, "isolation": isolation, "temporary": tempfile.gettempdir()}
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

    def open(self, limits: Limits, seed: int) -> socket.socket:
        """Starts an episode; returns the socket to its supervisor.

        Raises:
            ChannelClosed: This zygote is gone.
            SandboxFault: The episode could not be started.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                request = json.dumps({"seed": seed, "limits": asdict(limits)}).encode()
                try:
                    with self._lock:
                        socket.send_fds(self._socket, [request], [theirs.fileno()])
                except OSError as problem:
                    raise ChannelClosed(f"the warm interpreter process is gone: {problem}") from problem
            try:
                hello = FrameChannel(ours.fileno(), ours.fileno()).receive(ANSWER_SECONDS)
            except ChannelClosed as problem:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(DYING_SECONDS)
                    raise
                raise SandboxFault("an interpreter's supervisor died while it started: is memory short?", True) from problem
            if "fault" in hello:
                raise SandboxFault(f"an interpreter could not be started: {hello['fault']}", retryable=True)
        except TimeoutError as problem:
            ours.close()
            raise SandboxFault(f"an interpreter did not start within {ANSWER_SECONDS:g} s", retryable=True) from problem
        except BaseException:
            ours.close()
            raise
        return ours

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
        """The last words of a process that could not report properly."""
        self._errors.seek(0)
        words = self._errors.read()[-2000:].decode("utf-8", "replace").strip()
        return f": {words}" if words else ""


class LocalInterpreter(Interpreter):
    """An interpreter of the local backend; `open_interpreter` makes it."""

    def __init__(self, preload: tuple[str, ...], isolation: Isolation, limits: Limits, seed: int) -> None:
        self._preload = preload
        self._isolation: Isolation = isolation
        self._limits = limits
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._closed = False
        self._lease: shared.Lease[Zygote] | None = None
        self._socket: socket.socket | None = None
        self._open(seed)

    def run(self, code: str, timeout: float | None = None, display: bool = False) -> Done:
        if not isinstance(code, str):
            raise TypeError(f"code must be a string of Python, found {type(code).__name__}")
        seconds = self._limits.timeout if timeout is None else check_timeout(timeout)
        answer = self._ask({"op": "run", "code": code, "timeout": seconds, "display": bool(display)}, seconds)
        return Done(
            stdout=answer["stdout"],
            error=answer["error"],
            status=answer["status"],
            seconds=answer["seconds"],
            truncated=answer["truncated"],
            state_lost=answer["state_lost"],
        )

    def reset(self, seed: int = 0) -> None:
        if self._socket is None:
            with self._lock:
                self._check_usable()
                self._open(seed)
        else:
            self._ask({"op": "reset", "seed": _seed(seed)}, 0.0)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._owner == os.getpid():
            # Wakes a call that is under way in another thread; it ends with a fault.
            self._hang_up()
            with self._lock:
                self._let_go()

    def describe(self) -> Protection:
        if self._lease is None:
            raise SandboxFault("the interpreter is closed: open another one")
        return self._lease.engine.protection

    def _open(self, seed: int) -> None:
        for attempt in range(3):
            key = ("sandboxes.python.local", self._preload, self._isolation)
            self._lease = shared.acquire(key, lambda: Zygote(self._preload, self._isolation), linger=True)
            try:
                self._socket = self._lease.engine.open(self._limits, _seed(seed))
                return
            except ChannelClosed as problem:
                self._let_go()  # the next lease is of a new warm process, since this one is seen to be dead
                if attempt == 2:
                    raise SandboxFault(f"the warm interpreter process keeps dying: {problem}", retryable=True) from problem
            except BaseException:
                self._let_go()
                raise

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        with self._lock:
            self._check_usable()
            if self._socket is None:
                raise SandboxFault("the interpreter's engine is gone: reset the interpreter", retryable=True)
            channel = FrameChannel(self._socket.fileno(), self._socket.fileno())
            try:
                channel.send(request)
                answer = channel.receive(seconds + ANSWER_SECONDS)
            except (ChannelClosed, TimeoutError) as problem:
                self._let_go()
                if self._closed:
                    raise SandboxFault("the interpreter was closed during a call") from problem
                message = f"the interpreter's engine is gone ({problem}): reset the interpreter"
                raise SandboxFault(message, retryable=True) from problem
            if "fault" in answer:
                self._let_go()
                raise SandboxFault(f"the interpreter's engine failed: {answer['fault']}", retryable=True)
            return answer

    def _check_usable(self) -> None:
        if self._closed:
            raise SandboxFault("the interpreter is closed: open another one")
        if self._owner != os.getpid():
            raise SandboxFault(f"the interpreter belongs to process {self._owner}: open one in process {os.getpid()}")

    def _hang_up(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _let_go(self) -> None:
        self._hang_up()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._lease is not None:
            self._lease.close()
            self._lease = None


def _seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number from 0, found {seed!r}")
    return seed


def _import_path() -> list[str]:
    """Where this process finds its modules, and this package itself, however it was installed."""
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
    return list(dict.fromkeys([*path, here]))


def _environment() -> dict[str, str]:
    """The environment of the warm process and all its interpreters: nothing of the host's but where its libraries are."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONHASHSEED": "0",
        "PYTHONUTF8": "1",
        "MALLOC_ARENA_MAX": "2",  # each arena reserves 64 MiB of addresses, which count against the memory limit
    }
    for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "BLIS", "VECLIB_MAXIMUM"):
        environment[f"{name}_NUM_THREADS"] = "1"
    if "LD_LIBRARY_PATH" in os.environ:
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return environment

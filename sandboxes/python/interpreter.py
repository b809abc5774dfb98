"""The contract of a Python interpreter that runs code nobody vouches for.

An `Interpreter` keeps its state from call to call, like a notebook's kernel. Whatever the code does, `run` comes back with a
`Done` soon after the call's time limit, and the next call works. Backends differ in how well they shut the code in, which
`Interpreter.describe` says, never in what a call means.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

Status = Literal["ok", "error", "timeout", "killed"]

MIB = 1024 * 1024
LONGEST = 1e9
"""The longest time limit, in seconds."""


@dataclass(frozen=True)
class Limits:
    """How much one interpreter may use.

    Copies that `Interpreter.fork` makes have each as much again.

    Args:
        memory_bytes: Memory of the code, above that of an empty interpreter: each process, and all of them together.
        output_bytes: Bytes of output of a call that are kept; the rest is read and thrown away.
        file_bytes: Bytes in the work folder, and of a single file.
        processes: Processes and threads at one time, the interpreter itself included.
        open_files: File descriptors of a process.
        branches: Interpreters that may be open at a time of those that come from one by `Interpreter.fork`, with that one.
        timeout: Seconds that a call may take when `Interpreter.run` is not told otherwise.

    Raises:
        ValueError: A limit is out of range.
    """

    memory_bytes: int = 512 * MIB
    output_bytes: int = 64 * 1024
    file_bytes: int = 64 * MIB
    processes: int = 64
    open_files: int = 128
    branches: int = 16
    timeout: float = 5.0

    def __post_init__(self) -> None:
        ranges = {
            "memory_bytes": (16 * MIB, 1 << 50),
            "output_bytes": (0, 1 << 28),
            "file_bytes": (4096, 1 << 50),
            "processes": (1, 1 << 20),
            "open_files": (16, 512),
            "branches": (1, 256),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"Limits.{name} must be a whole number from {low} to {high}, found {value!r}")
        check_timeout(self.timeout, "Limits.timeout")


class ForkRefused(RuntimeError):
    """An interpreter cannot be copied as it is; the message says what is in the way."""


@dataclass(frozen=True)
class Done:
    """What came of a call.

    Args:
        stdout: What the code and its children wrote to standard output and standard error, in order, up to the limit.
        error: The traceback of the code's own frames, or what happened to the interpreter; "" if all went well.
        status: ``"ok"``; ``"error"``: the code raised; ``"timeout"``: it was stopped for taking too long; ``"killed"``: its
            process died or was stopped for using too much.
        seconds: Wall-clock time that the call took.
        truncated: Whether output was thrown away.
        state_lost: Whether variables and imports are gone and the next call starts afresh, which is so after every
            ``"timeout"`` and ``"killed"``. Files in the work folder stay, unless they were what was too much.
    """

    stdout: str
    error: str
    status: Status
    seconds: float
    truncated: bool = False
    state_lost: bool = False


@dataclass(frozen=True)
class Protection:
    """How code is shut in: what `Interpreter.describe` returns. ``str()`` of it is one line for people.

    Args:
        backend: ``"local"`` or ``"docker"``.
        namespaces: Linux namespaces of its own that the interpreter has.
        own_user: Whether the code runs under a user id that nobody else has.
        landlock: Version of the Landlock rules in force, 0 for none.
        seccomp: Whether a system-call filter is in force.
        network: What keeps the code from the network: ``"namespace"``, ``"seccomp"``, both, or ``"open"``.
        files: What keeps it from the host's files: ``"mount namespace and landlock"``, ..., or ``"open"``.
        processes: What bounds its processes: ``"kernel"`` (a limit that counts this interpreter's alone) or ``"watchdog"``.
        signals: What keeps it from signalling other processes; ``"open"`` where nothing does.
        fixed_addresses: Whether address-space randomisation is off, so that order by ``id`` repeats.
        missing: What was asked of the kernel and refused, with its reason.
    """

    backend: str
    namespaces: tuple[str, ...] = ()
    own_user: bool = False
    landlock: int = 0
    seccomp: bool = False
    network: str = "open"
    files: str = "open"
    processes: str = "watchdog"
    signals: str = "open"
    fixed_addresses: bool = False
    missing: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [
            f"{self.backend} interpreter",
            f"network: {self.network}",
            f"files: {self.files}",
            f"signals: {self.signals}",
            f"processes: {self.processes}",
            f"own user: {'yes' if self.own_user else 'no'}",
        ]
        if self.missing:
            parts.append("not granted: " + ", ".join(self.missing))
        return "; ".join(parts)


class Interpreter(ABC):
    """A Python interpreter with state. One owner at a time; different interpreters run in different threads at once.

    Variables, imports, threads and files stay from call to call; a process that a call starts is ended with the call.
    Standard input is empty, the current folder is the interpreter's own, and no network or host file can be reached.

    Example:
        >>> from sandboxes.python import open_interpreter
        >>> with open_interpreter() as python:
        ...     _ = python.run("x = 6 * 7")
        ...     print(python.run("print(x)").stdout, end="")
        42
    """

    @abstractmethod
    def run(self, code: str, timeout: float | None = None, display: bool = False) -> Done:
        """Runs ``code`` in the interpreter's one namespace.

        Args:
            code: Python source. Any string; what does not compile is an ``"error"``.
            timeout: Seconds that it may take; the limits' own by default.
            display: Also print the value of a last bare expression, as a notebook does.

        Raises:
            SandboxFault: The engine is gone, or the interpreter was closed.
            ValueError: ``timeout`` is not a positive number.
            TypeError: ``code`` is not a string.
        """

    @abstractmethod
    def fork(self) -> Interpreter:
        """An independent copy as it is now: variables, modules, closures, open files and the work folder.

        Both go on by themselves, at the same time if different threads call them, and each has the limits in full. Either
        may be closed first. Relative paths mean the same in both; an absolute path that the code has kept still names the
        original's file, and process ids differ.

        Raises:
            ForkRefused: Something is alive in it that has no copy: a thread, a socket, a pipe, a memory map, a file outside
                the work folder; or there are `Limits.branches` of them. The message names it; this interpreter goes on.
            SandboxFault: The engine is gone, or the interpreter was closed.
        """

    @abstractmethod
    def reset(self, seed: int = 0) -> None:
        """Makes it a clean interpreter again: fresh process, empty work folder, random generators seeded with ``seed``."""

    @abstractmethod
    def close(self) -> None:
        """Ends the interpreter with everything that it started. Twice is fine."""

    @abstractmethod
    def describe(self) -> Protection:
        """Which protections are in force."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def check_timeout(timeout: float, name: str = "timeout") -> float:
    """Returns ``timeout`` in seconds if it is a positive number up to `LONGEST`, else raises ``ValueError``."""
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= LONGEST:
        raise ValueError(f"{name} must be a positive number of seconds, at most {LONGEST:g}, found {timeout!r:.40}")
    return float(timeout)

"""The process that runs the code: one namespace, one loop, no authority.

The supervisor forks it, it gives up its rights, and then it reads requests and answers each with a *hint*: "this request is
through, and this is its traceback". A hint is believed only as far as the supervisor can check it. Everything in this
process, its standard streams and the socket to the supervisor included, may be broken by the code that runs here; then the
supervisor ends the process and forks another. Asked to, it forks a copy of itself, which serves on beside it. Standard
library only.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import linecache
import os
import resource
import signal
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO, TextIOWrapper

# By name, here as above: the loop is to go on when the code puts something else into these modules.
from json import dumps, loads
from os import _exit, close, dup2, getpid, waitpid, write
from socket import CMSG_SPACE, SCM_RIGHTS, SOL_SOCKET, socket
from sys import byteorder, setprofile, settrace
from traceback import format_exception
from typing import Any

from sandboxes.python.inside.copying import copy_worker, hindrance
from sandboxes.python.inside.processes import set_mark
from sandboxes.python.inside.seeding import seed_generators

PACKET_BYTES = 32 * 1024
"""Largest part of a request; a packet socket takes about six times as much by default."""
ERROR_BYTES = 8 * 1024
FRAMES_KEPT = 10
CHAIN_KEPT = 4
REAP = b"reap"
COPY = b"copy"
"""Begins a packet that brings two descriptors: the packet socket and the output pipe of a copy."""

_PRIVATE_MODULES = ("sandboxes", "landlock", "pyseccomp")


@dataclass(frozen=True)
class Wires:
    """The worker's file descriptors, numbered above its own limit of open files so that no ``dup2`` can replace them."""

    control: int
    output: int
    null: int
    socket: socket  # the control descriptor as an object, which can receive descriptors

    @property
    def places(self) -> range:
        """All three, lowest first."""
        return range(self.control, self.null + 1)


def run_worker(control: int, output: int, confine: Callable[[], None], branch: int, open_files: int) -> None:
    """Turns this freshly forked process into a worker; returns only when the supervisor is gone.

    Args:
        control: Packet socket to the supervisor.
        output: Pipe that becomes standard output and error.
        confine: Gives up rights and enters limits; called once, before any of the code runs.
        branch: Its number.
        open_files: Descriptors that the code may have.
    """
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        set_mark(branch)
        confine()
        wires = _lay_wires(control, output)
        _restore_streams(wires)
        # The hard limit stays where the wires are, so that a copy can be given its own.
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, wires.null + 1))
    except BaseException as problem:
        write(control, dumps({"fault": f"{type(problem).__name__}: {problem}"}).encode())
        return
    namespace = _new_main_module()
    write(wires.control, b'{"ready": true}')
    _serve(wires, namespace)


def _lay_wires(control: int, output: int) -> Wires:
    """Moves the three descriptors up and closes every other one."""
    top = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    null = os.open(os.devnull, os.O_RDWR)
    low = min(top, 1024) - 8
    os.closerange(low, top)
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, low) for descriptor in (control, output, null)]
    os.closerange(3, low)
    return Wires(high[0], high[1], high[2], socket(fileno=high[0]))


def _restore_streams(wires: Wires) -> None:
    """Gives the next call working standard streams, whatever the last one did to them."""
    dup2(wires.null, 0)
    dup2(wires.output, 1)
    dup2(wires.output, 2)
    if not isinstance(sys.stdin, _Input) or sys.stdin.closed:
        sys.stdin = sys.__stdin__ = _Input(FileIO(0, "r", closefd=False), encoding="utf-8", errors="replace")  # type: ignore[misc]
    if not isinstance(sys.stdout, _Output) or sys.stdout.closed:
        sys.stdout = sys.__stdout__ = _Output(1)  # type: ignore[misc]
    if not isinstance(sys.stderr, _Output) or sys.stderr.closed:
        sys.stderr = sys.__stderr__ = _Output(2)  # type: ignore[misc]


class _Input(TextIOWrapper):
    """Standard input, which is empty."""


class _Output(TextIOWrapper):
    """Standard output or error: unbuffered, so that what was printed before a time limit is not lost and order is kept."""

    def __init__(self, descriptor: int) -> None:
        raw: Any = FileIO(descriptor, "w", closefd=False)
        super().__init__(raw, encoding="utf-8", errors="backslashreplace", newline="\n", write_through=True)


def _new_main_module() -> dict[str, Any]:
    """A fresh ``__main__``, and no trace of this package for the code to import."""
    for name in list(sys.modules):
        if name.partition(".")[0] in _PRIVATE_MODULES:
            del sys.modules[name]
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.argv = [""]
    sys.orig_argv = [""]
    return main.__dict__


def _serve(wires: Wires, namespace: dict[str, Any]) -> None:
    myself = getpid()
    cells = 0
    while (request := _receive(wires)) is not None:
        if "home" in request:
            if _copy(wires, request):
                myself = getpid()
            continue
        _restore_streams(wires)
        if "seed" in request:
            seed_generators(request["seed"])
        cells += 1
        error = _execute(request["code"], f"<cell {cells}>", namespace, request["display"])
        if getpid() != myself:  # a child that the code forked, and that came back here
            with contextlib.suppress(OSError):
                write(2, error.encode("utf-8", "backslashreplace"))
            _exit(1 if error else 0)
        write(wires.control, dumps({"nonce": request["nonce"], "error": error}).encode())


def _copy(wires: Wires, request: dict[str, Any]) -> bool:
    """Forks this process; True in the copy. Each says on its own socket what came of it."""
    myself = getpid()
    received = request["descriptors"]
    said: dict[str, Any] = {"nonce": request["nonce"]}
    try:
        if len(received) < 2:
            problem = "too many files are open: close some first"
        else:
            problem = hindrance(request["home"], wires.places, received)
        if problem:
            said["refused"] = problem
        elif copy_worker(request["home"], request["folder"], request["branch"], wires.places, *received):
            said["ready"] = True
        else:
            said["copied"] = True
    except BaseException as trouble:
        said["refused"] = f"{type(trouble).__name__}: {trouble}"
    itself = getpid() != myself
    if not itself:
        for descriptor in received:
            close(descriptor)
    write(wires.control, dumps(said).encode())
    if itself and "ready" not in said:
        _exit(1)
    return itself


def _receive(wires: Wires) -> dict[str, Any] | None:
    """The next request, put together from its packets; None when the supervisor is gone."""
    parts = []
    while True:
        try:
            packet, extras, _, _ = wires.socket.recvmsg(PACKET_BYTES + 1, CMSG_SPACE(8))
        except OSError:
            return None
        except BaseException:  # a signal handler of the code's, or an interrupt from one of its threads
            continue
        if not packet:
            return None
        if packet == REAP:
            with contextlib.suppress(ChildProcessError):
                while waitpid(-1, os.WNOHANG)[0]:
                    pass
            continue
        if packet.startswith(COPY):
            rights = b"".join(data for level, kind, data in extras if (level, kind) == (SOL_SOCKET, SCM_RIGHTS))
            numbers = [int.from_bytes(rights[start : start + 4], byteorder) for start in range(0, len(rights), 4)]
            order: dict[str, Any] = loads(packet[len(COPY) :])
            return {**order, "descriptors": numbers}
        parts.append(packet[1:])
        if packet[:1] == b".":
            request: dict[str, Any] = loads(b"".join(parts))
            return request


def _execute(code: str, name: str, namespace: dict[str, Any], display: bool) -> str:
    """Runs ``code``; returns "" or the traceback to show."""
    error = ""
    try:
        try:
            linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
            for part in _compile(code, name, display):
                exec(part, namespace)
        finally:
            for remove in (setprofile, settrace):
                try:  # noqa: SIM105 - `suppress` would itself be traced
                    remove(None)
                except BaseException:  # a tracer that raises is gone thereby
                    pass
    except SystemExit as stop:
        if stop.code not in (None, 0):
            error = f"SystemExit: {_text(stop.code)}"
    except BaseException as problem:
        error = _describe(problem)
    finally:
        _calm_down()
    return error


def _compile(code: str, name: str, display: bool) -> list[types.CodeType]:
    """The code in one part, or in two of which the second prints the value of a last bare expression."""
    if not display:
        return [compile(code, name, "exec", dont_inherit=True)]
    tree = ast.parse(code, name)
    last = [tree.body.pop()] if tree.body and isinstance(tree.body[-1], ast.Expr) else []
    parts = [compile(tree, name, "exec", dont_inherit=True)]
    if last:
        parts.append(compile(ast.Interactive(last), name, "single", dont_inherit=True))
    return parts


def _calm_down() -> None:
    """Ends what would disturb the loop or the next call: timers, and a recursion limit too low to work with."""
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0)
    if sys.getrecursionlimit() < 200:
        sys.setrecursionlimit(1000)


def _describe(problem: BaseException) -> str:
    """The traceback with the code's own frames only, shortened in the middle."""
    try:
        if sys.getrecursionlimit() < 200:
            sys.setrecursionlimit(1000)
        _trim(problem)
        text = "".join(format_exception(problem))
    except BaseException as second:  # an exception that cannot even be printed
        text = f"{_text(type(problem).__name__)} (its traceback could not be made: {_text(type(second).__name__)})"
    text = text.rstrip("\n")
    if len(text) > ERROR_BYTES:
        half = ERROR_BYTES // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
    return text


def _trim(problem: BaseException) -> None:
    """Cuts the tracebacks of an exception and of those it stems from to the code's own frames, and a long chain short."""
    pending: list[tuple[BaseException, int]] = [(problem, 0)]
    seen: set[int] = set()
    while pending:
        exception, depth = pending.pop()
        if id(exception) in seen:
            continue
        seen.add(id(exception))
        exception.__traceback__ = _own_frames(exception.__traceback__)
        if depth >= CHAIN_KEPT:
            exception.__cause__ = exception.__context__ = None
        causes = [exception.__cause__, exception.__context__]
        if isinstance(exception, BaseExceptionGroup):
            causes.extend(exception.exceptions)
        pending.extend((cause, depth + 1) for cause in causes if cause is not None)


def _own_frames(trace: types.TracebackType | None) -> types.TracebackType | None:
    links = []
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.startswith("<cell "):
            links.append(trace)
        trace = trace.tb_next
    if len(links) > 2 * FRAMES_KEPT:
        links = links[:FRAMES_KEPT] + links[-FRAMES_KEPT:]
    rebuilt = None
    for link in reversed(links):
        rebuilt = types.TracebackType(rebuilt, link.tb_frame, link.tb_lasti, link.tb_lineno)
    return rebuilt


def _text(value: object) -> str:
    try:
        return str(value)[:ERROR_BYTES]
    except BaseException:
        return f"<{type(value).__name__}>"

"""The warm process: it has imported the heavy packages once, and forks an episode's supervisor whenever it is asked.

Started by `local` as a plain subprocess with an environment of its own, so nothing of the host's environment, threads or
open files is in it, and so it can be started from any thread of any process, a daemonic one included. It has a single
thread, never runs any of the code, and ends, with all its episodes, when the host's end of its socket closes.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import sys
from dataclasses import asdict
from typing import Any

from sandboxes.python.inside import kernel
from sandboxes.python.inside.folders import remove_folder
from sandboxes.python.inside.frames import ChannelClosed, FrameChannel
from sandboxes.python.inside.processes import ProcessTree
from sandboxes.python.inside.warming import WarmingFault, freeze, warm_up
from sandboxes.python.interpreter import Limits
from sandboxes.python.local.confinement import Home, Plan
from sandboxes.python.local.episode import fork_episode
from sandboxes.python.local.libraries import is_below, readable_paths, steps_to_mirror
from sandboxes.python.local.probe import NoTrial, Probe
from sandboxes.python.local.syscall_filter import compile_filter

SECOND_START = "SANDBOX_SECOND_START"
ENDING_SECONDS = 8.0
OPEN_FILES = 4096
"""Descriptors that supervisors may have; a worker's own are numbered just below 1024."""


class Zygote:
    """Serves one host.

    Args:
        host: Packet socket to it.
        folder: Temporary folder of this zygote.
    """

    def __init__(self, host: socket.socket, folder: str) -> None:
        self._host = host
        self._folder = folder
        self._proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        self._episodes: set[int] = set()
        self._plan = Plan()
        self._home = Home(folder, (), (), b"")

    def start(self, preload: list[str] | None, isolation: str, programs: list[str]) -> dict[str, Any]:
        """Gets warm and finds the plan; returns what the host is told."""
        try:
            warm_up(preload)
        except WarmingFault as problem:
            return {"fault": str(problem)}
        readable = readable_paths(programs)
        sys.path[:] = ["", *(path for path in sys.path if path and is_below(path, readable))]
        missing: tuple[str, ...] = ()
        syscall_filter = b""
        try:
            syscall_filter = compile_filter()
        except OSError as problem:
            missing = (f"seccomp ({problem})",)
        self._home = Home(self._folder, readable, steps_to_mirror(readable), syscall_filter)
        freeze()
        if isolation == "auto":
            try:
                self._plan, refused = Probe(self._home, (self._host.fileno(), self._proc)).strongest()
                missing += refused
            except NoTrial as problem:
                return {"fault": f"no interpreter can be started on this machine: {problem}"}
            fault = unfit(self._plan, missing)
            if fault:
                return {"fault": fault}
        protection = self._plan.protection(kernel.addresses_fixed(), missing)
        return {"ready": asdict(protection), "folder": self._folder}

    def serve(self) -> None:
        """Forks an episode for every request until the host is gone."""
        wakeup, wake = os.pipe()
        os.set_blocking(wakeup, False)
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._host, select.POLLIN)
        poll.register(wakeup, select.POLLIN)
        to_close = (self._host.fileno(), self._proc, wakeup, wake)
        self._bury()  # the probe's trials, whose ends nobody has noticed so far
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == wakeup:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wakeup, 4096)
                    self._bury()
                    continue
                message, descriptors, _, _ = socket.recv_fds(self._host, 65536, 1)
                if not message:
                    return
                request = json.loads(message)
                self._open(request, descriptors[0], to_close)

    def _open(self, request: dict[str, Any], connection: int, to_close: tuple[int, ...]) -> None:
        try:
            limits = Limits(**request["limits"])
            self._episodes.add(fork_episode(self._plan, limits, self._home, connection, to_close))
        except OSError as problem:
            with contextlib.suppress(ChannelClosed):
                FrameChannel(connection, connection).send({"fault": f"no process could be started: {problem.strerror}"})
        finally:
            os.close(connection)

    def end(self) -> None:
        """Ends every episode that is left; each also ends by itself when its host is gone."""
        tree = ProcessTree(self._proc)
        signal.set_wakeup_fd(-1)
        if not tree.end_everything_below(ENDING_SECONDS):
            sys.stderr.write("zygote: some processes could not be ended\n")

    def _bury(self) -> None:
        """Reaps what ended, and kills what a supervisor that died before its time left behind."""
        with contextlib.suppress(ChildProcessError):
            while ended := os.waitpid(-1, os.WNOHANG)[0]:
                self._episodes.discard(ended)
        for child in ProcessTree(self._proc).children():
            if child not in self._episodes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)


def unfit(plan: Plan, missing: tuple[str, ...]) -> str:
    """Why ``plan`` is too weak to run anybody's code, or ""."""
    reasons = "; ".join(missing)
    protection = plan.protection(False, ())
    if protection.network == "open":
        return (
            "this machine can keep no interpreter from the network: expected network namespaces or seccomp, found neither "
            f"({reasons}). Allow one of them, or open the interpreter with isolation='none' if you trust the code"
        )
    if os.geteuid() == 0 and not plan.own_user and protection.files == "open":
        return (
            "the code would run as root with the whole file system open: expected a user of its own, a mount namespace or "
            f"Landlock, found none ({reasons}). Run as another user, or with isolation='none' if you trust the code"
        )
    return ""


def make_folder(folder: str) -> str:
    """Makes the temporary folder ``folder`` and returns it."""
    os.mkdir(folder)
    os.chmod(folder, 0o711)  # a worker of another user passes through to its own folder
    return folder


def main(descriptor: int) -> None:
    """Runs a zygote on the socket ``descriptor``; returns when the host is gone."""
    if os.environ.pop(SECOND_START, None) is None and kernel.fix_addresses():
        # Takes effect with a new program.
        os.execve(sys.executable, sys.orig_argv, {**os.environ, SECOND_START: "yes"})
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    kernel.adopt_orphans()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    soft = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    folder = ""
    try:
        with socket.socket(fileno=descriptor) as host:
            request = json.loads(host.recv(65536))
            folder = make_folder(request["folder"])
            zygote = Zygote(host, folder)
            answer = zygote.start(request["preload"], request["isolation"], request["programs"])
            host.send(json.dumps(answer).encode())
            if "fault" not in answer:
                zygote.serve()
        zygote.end()
    except (OSError, ValueError) as problem:
        sys.stderr.write(f"zygote: {type(problem).__name__}: {problem}\n")
    finally:
        if folder:
            remove_folder(folder)

"""The walls around the workers of one family, as far as they are the same wherever a supervisor runs.

A family's branches share a user and these walls, and each has a work folder of its own. Runs inside; standard library only.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Sequence
from os import _exit

from sandboxes.python.inside import kernel
from sandboxes.python.inside.folders import empty_folder
from sandboxes.python.inside.processes import Process
from sandboxes.python.interpreter import MIB, Limits

MOST_FILES = 10_000
"""Files and folders that a work folder may hold."""
WORK_FOLDER = "/sandbox"
"""The first work folder, where the supervisor has a root of its own."""


def folder_names(branches: int) -> list[str]:
    """Paths of the work folders, one for each slot."""
    return [WORK_FOLDER, *(f"{WORK_FOLDER}-{slot}" for slot in range(1, branches))]


class Enclosure:
    """What a launcher brings: the walls around the workers.

    Args:
        limits: What each branch may use.
        proc: File descriptor of a /proc directory that shows this process.
        folders: A work folder for each slot; the worker's own, and the supervisor's group may look into it.
        user: User and group id of the workers; None for the supervisor's own.
        counted: How many processes the kernel counts for the user besides the workers', if it can be had to bound them; None
            where it counts those of others too.
    """

    def __init__(
        self, limits: Limits, proc: int, folders: Sequence[str], user: int | None, counted: int | None = None
    ) -> None:
        self.limits = limits
        self.folders = tuple(folders)
        self.user = user
        self._proc = proc
        self._counted = counted

    def confine(self, slot: int) -> None:
        """Shuts the calling process, a fresh worker, in. Each step takes away what the ones before it needed."""
        kernel.set_inspectable(True)  # else /proc/self belongs to root
        with contextlib.suppress(OSError):
            self._write("self/oom_score_adj", b"1000")  # when memory runs out, the kernel is to choose this one
        size = int(self._read("self/statm").split()[0]) * resource.getpagesize()
        folder = self.folders[slot]
        os.umask(0o022)
        limit("RLIMIT_AS", size + self.limits.memory_bytes)
        limit("RLIMIT_FSIZE", self.limits.file_bytes)
        limit("RLIMIT_CORE", 0)
        with contextlib.suppress(ValueError):  # gVisor has neither the queues nor their limit
            limit("RLIMIT_MSGQUEUE", 0)
        if self._counted is not None:
            # All branches count together, so an interpreter that is copied may have more, up to the hard limit.
            most, others = self.limits.processes, self._counted
            limit("RLIMIT_NPROC", most + others, most * self.limits.branches + others)
        self._become_worker()
        os.chdir(folder)
        os.environ.update(HOME=folder, TMPDIR=folder, PWD=folder)
        kernel.die_with_parent(signal.SIGKILL)  # the supervisor has one thread; changing the user would clear this
        self._shut_in()

    def overrun(self, members: Sequence[Process], baseline: Process) -> str:
        """What a branch uses too much of, in words, or "".

        Args:
            members: Its processes.
            baseline: The supervisor, whose memory a worker shares.
        """
        if sum(process.threads for process in members if not process.zombie) > self.limits.processes:
            return f"{self.limits.processes} processes and threads"
        if sum(max(0, process.resident_bytes - baseline.resident_bytes) for process in members) > self.limits.memory_bytes:
            return f"{self.limits.memory_bytes // MIB} MiB of memory"
        return ""

    def overfull(self, slot: int) -> str:
        """What is too much in a work folder, in words, or ""; by default the kernel keeps it within bounds."""
        return ""

    def empty(self, slot: int) -> None:
        """Removes every file in a work folder. A process of the worker's user does it, so it can reach no other's files.

        Raises:
            OSError: Something is left.
        """
        folder = self.folders[slot]
        with contextlib.suppress(PermissionError):
            if not os.listdir(folder):
                return
        child = os.fork()
        if child == 0:
            try:
                self._become_worker()
                os.chmod(folder, 0o750)
                empty_folder(folder)
                _exit(0)
            finally:
                _exit(1)
        status = os.waitpid(child, 0)[1]
        if status or os.listdir(folder):
            raise OSError(f"the work folder {folder} could not be emptied")

    def no_copies(self) -> str:
        """Why these walls permit no copy of a worker, in words, or ""."""
        return ""

    def leftovers(self) -> str:
        """What the last family has left behind, in words, or ""."""
        full = [folder for folder in self.folders if os.listdir(folder)]
        return f"files in {', '.join(full)}" if full else ""

    def leave(self) -> None:
        """Takes down what was put up for the whole of it; the last call."""

    def _shut_in(self) -> None:
        """Puts up the rest of the walls around this process, a fresh worker that runs as the worker's user."""

    def _become_worker(self) -> None:
        if self.user is not None:
            os.setgroups([])
            os.setresgid(self.user, self.user, self.user)
            os.setresuid(self.user, self.user, self.user)

    def _read(self, path: str) -> bytes:
        file = os.open(path, os.O_RDONLY, dir_fd=self._proc)
        try:
            return os.read(file, 4096)
        finally:
            os.close(file)

    def _write(self, path: str, text: bytes) -> None:
        file = os.open(path, os.O_WRONLY, dir_fd=self._proc)
        try:
            os.write(file, text)
        finally:
            os.close(file)


def limit(name: str, soft: int, hard: int | None = None) -> None:
    """Lowers a limit of this process; never raises one. The hard limit is the soft one unless it is given."""
    number = getattr(resource, name)
    highest = resource.getrlimit(number)[1]
    wanted = (soft, soft if hard is None else hard)
    soft, hard = wanted if highest == resource.RLIM_INFINITY else (min(wanted[0], highest), min(wanted[1], highest))
    resource.setrlimit(number, (soft, hard))

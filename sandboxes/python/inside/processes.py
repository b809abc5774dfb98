"""Who descends from a supervisor, and from which of its branches: read from /proc, so that nothing is overlooked.

The supervisor adopts orphans, so whatever its worker started, however often it forked and whatever session it moved to,
stays below it in the tree. The supervisor may sit in a process-id namespace of its own while the /proc that it holds open
belongs to the host; `Process.id` is the id that the supervisor can signal.

A process that lost its parent is the supervisor's child, whichever branch it came from. So every worker carries a mark that
all its descendants inherit and that means nothing else: its limit of file locks, which no kernel has looked at since 2.4. A
limit can be lowered and never raised, and later branches have lower ones. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

RLIMIT_LOCKS = 10
HIGHEST_MARK = 1 << 30


def set_mark(branch: int) -> None:
    """Marks this process and its future descendants as those of ``branch``."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(RLIMIT_LOCKS, (HIGHEST_MARK - branch, HIGHEST_MARK - branch))


@dataclass(frozen=True)
class Process:
    """A process below the supervisor.

    Args:
        entry: Its name in the /proc that was read.
        parent: That of its parent.
        id: Its id in the namespace of the process that asks, for signals.
        threads: How many threads it has.
        resident_bytes: Memory it occupies, shared pages included.
        zombie: It has ended, and its parent has not asked how.
    """

    entry: str
    parent: str
    id: int
    threads: int
    resident_bytes: int
    zombie: bool


class ProcessTree:
    """The processes below the calling one.

    Args:
        proc: File descriptor of a /proc directory, opened before the root was changed.
    """

    def __init__(self, proc: int) -> None:
        self._proc = proc
        self.entry = os.readlink("self", dir_fd=proc)
        # A process has an id in its own namespace and in each one above, outermost first. Only the id in the namespace of
        # the caller may be signalled by it: the same number means another process elsewhere.
        self._depth = len(_ids(self._status(self.entry))) - 1
        self._has_children_file = self._readable(f"{self.entry}/task/{self.entry}/children")

    def myself(self) -> Process:
        """The calling process."""
        process = self._process(self.entry, "")
        assert process is not None
        return process

    def children(self) -> list[int]:
        """Ids of the calling process's own children."""
        entries = self._children(self.entry) if self._has_children_file else []
        if not self._has_children_file:
            entries = [entry for entry, parent in self._scan().items() if parent == self.entry]
        return [process.id for entry in entries if (process := self._process(entry, self.entry)) is not None]

    def below(self, skip: Collection[str] = ()) -> list[Process]:
        """Every descendant that existed for the whole reading, parents before children.

        Args:
            skip: Entries of processes that are left out with all below them.
        """
        found: list[Process] = []
        parents = [self.entry]
        parent_of = {} if self._has_children_file else self._scan()
        seen = {self.entry, *skip}
        while parents:
            parent = parents.pop()
            if self._has_children_file:
                children = self._children(parent)
            else:
                children = [entry for entry, its_parent in parent_of.items() if its_parent == parent]
            for entry in children:
                process = None if entry in seen else self._process(entry, parent)
                seen.add(entry)
                if process is not None:
                    found.append(process)
                    parents.append(entry)
        return found

    def mark_of(self, process: Process) -> int | None:
        """The branch that marked a process or one that it descends from; None where there is no mark."""
        for line in self._read(f"{process.entry}/limits").splitlines():
            if line.startswith("Max file locks"):
                value = line.split()[3]
                return HIGHEST_MARK - int(value) if value.isdigit() and int(value) <= HIGHEST_MARK else None
        return None

    def end_everything_below(self, seconds: float) -> bool:
        """Kills every descendant, however they fork, and reaps it. Returns whether all were gone in time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if os.getpid() == 1:
                _signal(-1, signal.SIGKILL)  # all of this process-id namespace at one stroke
            else:
                self._kill(self.below, end)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
                time.sleep(0.0005)
            except ChildProcessError:
                return True
        return False

    def end(self, members: Callable[[], list[Process]], reap: Callable[[], None], seconds: float) -> bool:
        """Kills all that ``members`` finds, however they fork. Returns whether all were gone in time.

        Args:
            members: Finds them anew at each call.
            reap: Asks this process's ended children how they ended.
            seconds: How long it may take.
        """
        end = time.monotonic() + seconds
        gone = False
        while not gone and time.monotonic() < end:
            if os.getpid() == 1:
                _signal(-1, signal.SIGSTOP)  # all of this process-id namespace at one stroke; the others are told to go on
                for process in members():
                    _signal(process.id, signal.SIGKILL)
            else:
                self._kill(members, end)
            time.sleep(0.0005)
            reap()
            gone = not members()
        return gone

    def _kill(self, members: Callable[[], list[Process]], end: float) -> None:
        # First stop all of them, so that none forks while others are being killed: the stopped keep their places in
        # whatever limit there is, and so the rest cannot outrun this.
        stopped: set[int] = set()
        while time.monotonic() < end:
            running = {process.id for process in members() if not process.zombie} - stopped
            if not running:
                break
            for process_id in running:
                _signal(process_id, signal.SIGSTOP)
            stopped |= running
        for process_id in stopped:
            _signal(process_id, signal.SIGKILL)

    def _children(self, entry: str) -> list[str]:
        try:
            tasks = os.open(f"{entry}/task", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._proc)
        except OSError:
            return []
        try:
            threads = os.listdir(tasks)
        except OSError:
            return []  # it ended in between
        finally:
            os.close(tasks)
        return [child for thread in threads for child in self._read(f"{entry}/task/{thread}/children").split()]

    def _scan(self) -> dict[str, str]:
        """Parent of every process of the host, for kernels built without the ``children`` files."""
        parents = {}
        for entry in os.listdir(self._proc):
            if entry.isdigit():
                # The name in brackets may hold anything, so read on from the last bracket: state, then parent.
                fields = self._read(f"{entry}/stat").rpartition(")")[2].split()
                if len(fields) > 1:
                    parents[entry] = fields[1]
        return parents

    def _process(self, entry: str, parent: str) -> Process | None:
        status = self._status(entry)
        if "Pid" not in status:
            return None  # it ended in between
        return Process(
            entry=entry,
            parent=parent,
            id=int(_ids(status)[self._depth]),
            threads=int(status.get("Threads", "1")),
            resident_bytes=int(status.get("VmRSS", "0").split()[0]) * 1024,
            zombie=status["State"].split()[0] in "ZX",
        )

    def _status(self, entry: str) -> dict[str, str]:
        return dict(line.split(":", 1) for line in self._read(f"{entry}/status").splitlines() if ":" in line)

    def _read(self, path: str) -> str:
        try:
            file = os.open(path, os.O_RDONLY, dir_fd=self._proc)
        except OSError:
            return ""
        try:
            chunks = []
            while chunk := os.read(file, 65536):
                chunks.append(chunk)
            return b"".join(chunks).decode("utf-8", "replace")
        except OSError:
            return ""  # it ended in between
        finally:
            os.close(file)

    def _readable(self, path: str) -> bool:
        try:
            os.close(os.open(path, os.O_RDONLY, dir_fd=self._proc))
        except OSError:
            return False
        return True


def _signal(process_id: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process_id, number)


def _ids(status: dict[str, str]) -> list[str]:
    """A process's ids, outermost namespace first; a kernel that does not list them all has but one."""
    return (status["NSpid"] if "NSpid" in status else status["Pid"]).split()

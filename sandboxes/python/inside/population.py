"""The processes below a supervisor: which branch each belongs to, and how those that are not wanted any more are ended.

Runs inside, in the supervisor; standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping

from sandboxes.python.inside.branch import Branch, Copying, SupervisorFault
from sandboxes.python.inside.handle import Output
from sandboxes.python.inside.processes import Process, ProcessTree
from sandboxes.python.inside.worker import REAP

ENDING_SECONDS = 10.0
_SETTLING = 1.0  # seconds within which what a call leaves behind has to be gone, its new children included
_NOT_ENDED = f"processes of the code could not be ended within {ENDING_SECONDS:g} s: is the machine out of memory?"


class Population:
    """All processes below this one.

    Args:
        proc: File descriptor of a /proc directory that shows this process.
        branches: The live branches by number, as they come and go.

    Attributes:
        supervisor: This process, as it was before any worker.
    """

    def __init__(self, proc: int, branches: Mapping[int, Branch]) -> None:
        self._tree = ProcessTree(proc)
        self._branches = branches
        self.supervisor = self._tree.myself()

    def is_newcomer(self, process_id: int) -> bool:
        """Whether a child of this process's own has that id, and is no worker yet."""
        workers = {branch.worker.id for branch in self._branches.values()}
        return process_id not in workers and process_id in self._tree.children()

    def members(self, branch: Branch) -> list[Process]:
        """The processes of a branch: its worker, what descends from it, and orphans that carry its mark."""
        if len(self._branches) == 1:
            return self._tree.below()
        workers = {other.worker.id: other for other in self._branches.values()}
        skip = {other.worker.entry for other in workers.values() if other is not branch and not other.worker.end}
        busy = set()
        for other in workers.values():
            if other.activity is not None and other is not branch:
                busy.add(other.number)
            if isinstance(other.activity, Copying):
                busy.add(other.activity.copy.number)
        owners: dict[str, bool] = {}
        for process in (below := self._tree.below(skip)):
            if process.parent != self._tree.entry:
                mine = owners[process.parent]
            elif process.id in workers:
                workers[process.id].worker.entry = process.entry
                mine = process.id == branch.worker.id
            else:
                # A branch that is not busy has none, and a mark that nobody has is a forged one.
                mine = self._tree.mark_of(process) not in busy
            owners[process.entry] = mine
        return [process for process in below if owners[process.entry]]

    def worker_process(self, branch: Branch) -> Process | None:
        """The process of its worker; None once that has ended."""
        return next((process for process in self.members(branch) if process.id == branch.worker.id), None)

    def settle(self, branch: Branch, output: Output) -> bool:
        """After a call: stops the worker, ends the branch's other processes, takes in what was printed. False if they keep
        coming."""
        worker = branch.worker
        end = time.monotonic() + _SETTLING
        while time.monotonic() < end:
            worker.stop()
            strays = [process for process in self.members(branch) if process.id != worker.id]
            if not strays:
                worker.take_in(output)
                return True
            for process in strays:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.id, signal.SIGKILL)
            # Children of the worker stay as zombies until it asks for them.
            worker.go_on()
            worker.write(REAP)
            time.sleep(0.002)
            self.reap()
            if worker.end:
                return False
        return False

    def await_death(self, branch: Branch) -> None:
        """After a worker has hung up: gives it a moment to die, so that one can say how it did."""
        until = time.monotonic() + 0.02
        self.reap()
        while not branch.worker.end and time.monotonic() < until:
            time.sleep(0.001)
            self.reap()

    def end_branch(self, branch: Branch) -> None:
        """Kills a branch's processes, the worker included."""
        if len(self._branches) == 1:
            self.end_everything()
        else:
            self._end_these(lambda: self.members(branch))
        branch.worker.end = branch.worker.end or "was stopped"

    def end_marked(self, copy: Branch) -> None:
        """Ends what there is of a copy that came to nothing."""
        self._end_these(lambda: [process for process in self._tree.below() if self._tree.mark_of(process) == copy.number])

    def _end_these(self, members: Callable[[], list[Process]]) -> None:
        ended = self._tree.end(members, self.reap, ENDING_SECONDS)
        waiting = {branch.worker.id for branch in self._branches.values() if branch.activity is None}
        for process in self._tree.below() if os.getpid() == 1 else ():
            if process.id not in waiting:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.id, signal.SIGCONT)
        if not ended:
            raise SupervisorFault(_NOT_ENDED)

    def end_everything(self) -> None:
        """Kills every process below this one."""
        if not self._tree.end_everything_below(ENDING_SECONDS):
            raise SupervisorFault(_NOT_ENDED)

    def reap(self) -> None:
        """Asks every child that has ended how it did."""
        workers = {branch.worker.id: branch.worker for branch in self._branches.values()}
        with contextlib.suppress(ChildProcessError):
            while True:
                ended, status = os.waitpid(-1, os.WNOHANG)
                if not ended:
                    return
                if ended in workers:
                    code = os.waitstatus_to_exitcode(status)
                    workers[ended].end = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"

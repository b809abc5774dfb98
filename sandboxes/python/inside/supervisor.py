"""The process between the host and the code: one a family, started by a launcher, inside the sandbox's walls.

A family is an interpreter and the copies that were made of it while they lived; each of these branches has a worker, a
process that runs its code. The supervisor alone talks to the host. It forks workers and has them copy themselves, it keeps
the time, and it decides what came of a call; calls of different branches run at once. A worker's own report is a hint: it
counts only with the number that was drawn for this very request, and only while the worker lives. A worker that is late,
dead or over its limits is killed with everything that it started, and another is forked, which is cheap because this
process never runs any of the code and stays as warm as it began.

Between calls a worker is stopped (SIGSTOP), so that threads which the code left behind neither burn time nor print, and
every other process of its branch has been killed. When the host's end of the channel closes, this process kills what is
left, removes the work folders and ends. Standard library only: it also runs where nothing else is installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from typing import Any

from sandboxes.python.inside.branch import (
    AFRESH,
    WATCH_SECONDS,
    Branch,
    Call,
    Copying,
    Starting,
    SupervisorFault,
    new_nonce,
    plain_text,
    read_hint,
)
from sandboxes.python.inside.enclosure import Enclosure
from sandboxes.python.inside.frames import ChannelClosed, Decoder, encode
from sandboxes.python.inside.handle import Output, WorkerHandle, read_now
from sandboxes.python.inside.population import Population

WATCH_PAUSE = 3.0
"""After a look that took long, the next one comes after so many times as long."""
READY_SECONDS = 20.0
"""How long a fresh worker or a copy may take to stand ready, on a machine that is very busy."""
STARTS = 3
"""How often a fresh worker may die before it is ready; another branch's code could kill it."""


class Supervisor:
    """Answers the host's requests until its channel closes.

    Args:
        reader: File descriptor to read requests from.
        writer: File descriptor to write answers to; the same one for a socket.
        enclosure: The launcher's walls.
        proc: File descriptor of a /proc directory that shows this process.
    """

    def __init__(self, reader: int, writer: int, enclosure: Enclosure, proc: int) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder()
        self._outgoing = bytearray()
        self._enclosure = enclosure
        self._branches: dict[int, Branch] = {}
        self._population = Population(proc, self._branches)
        self._spoilt: set[int] = set()  # slots whose folders could not be emptied
        self._newest = 0
        self._greeting: dict[str, Any] | None = {"hello": True}
        self._wakeup, wake = os.pipe()
        for descriptor in (self._wakeup, wake, reader, writer):
            os.set_blocking(descriptor, False)
        # A handler that does nothing: the wake-up pipe makes the poll return when a child ends.
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._poll = select.poll()
        self._poll.register(self._wakeup, select.POLLIN)
        self._poll.register(reader, select.POLLIN)
        self._owners: dict[int, Branch] = {}  # of the descriptors that the poll looks at

    def serve(self) -> None:
        """Says hello once a worker stands ready, then answers until the host is gone."""
        try:
            self._start_root()
            while True:
                self._turn()
        except ChannelClosed:
            pass
        except (SupervisorFault, OSError) as problem:
            with contextlib.suppress(ChannelClosed):
                os.set_blocking(self._writer, True)
                self._send({"fault": str(problem)})
        finally:
            try:
                self._population.end_everything()
            finally:
                self._enclosure.leave()

    def _turn(self) -> None:
        """Waits for the next thing to happen, and sees to all that has."""
        due = min((branch.activity.due for branch in self._branches.values() if branch.activity), default=None)
        wait = None if due is None else max(0.0, due - time.monotonic()) * 1000 + 1
        for descriptor, event in self._poll.poll(wait):
            if descriptor == self._wakeup:
                read_now(self._wakeup, 4096)
                self._population.reap()
            elif descriptor in (self._reader, self._writer):
                if event & select.POLLOUT:
                    self._flush()
                if event & ~select.POLLOUT:
                    self._listen()
            elif descriptor in self._owners:
                self._attend(self._owners[descriptor], descriptor, event)
        now = time.monotonic()
        for branch in list(self._branches.values()):
            activity = branch.activity
            if branch.worker.end and activity:
                self._mourn(branch)
            elif activity and activity.due <= now:
                self._look(branch, now)

    # The host

    def _listen(self) -> None:
        data = read_now(self._reader, 1 << 20)
        if data == b"":
            raise ChannelClosed("the host is gone")
        for request in self._decoder.feed(data or b""):
            self._obey(request)

    def _obey(self, request: dict[str, Any]) -> None:
        branch = self._branches.get(request["branch"])
        if request["op"] == "reset":
            self._reset()
        elif branch is None:
            self._answer(request["branch"], gone=True)
        elif request["op"] == "drop":
            self._drop(branch)
        elif isinstance(branch.activity, Starting):
            branch.request = request
        elif branch.worker.end:
            self._mourn(branch, request)
        elif request["op"] == "fork":
            self._order_copy(branch)
        else:
            self._start_call(branch, request)

    def _answer(self, number: int, **answer: Any) -> None:
        self._send({"branch": number, **answer})

    def _send(self, message: dict[str, Any]) -> None:
        self._outgoing += encode(message)
        self._flush()

    def _flush(self) -> None:
        try:
            while self._outgoing:
                del self._outgoing[: os.write(self._writer, self._outgoing)]
        except BlockingIOError:
            pass
        except OSError as problem:
            raise ChannelClosed(f"the host is gone: {problem}") from problem
        more = select.POLLOUT if self._outgoing else 0
        if self._reader == self._writer:
            self._poll.modify(self._reader, select.POLLIN | more)
        elif more:
            self._poll.register(self._writer, more)
        else:
            with contextlib.suppress(KeyError):
                self._poll.unregister(self._writer)

    # Workers come and go

    def _start_root(self) -> None:
        self._branches.clear()
        self._branches[0] = Branch(0, 0, self._fork_worker(0, 0))
        self._newest = 0
        self._await_ready(self._branches[0])

    def _fork_worker(self, number: int, slot: int) -> WorkerHandle:
        return WorkerHandle.fork(lambda: self._enclosure.confine(slot), number, self._enclosure.limits.open_files)

    def _await_ready(self, branch: Branch, attempts: int = 1) -> None:
        branch.activity = Starting(time.monotonic() + READY_SECONDS, attempts)
        self._watch(branch, branch.worker.control, select.POLLIN)

    def _replace_worker(self, branch: Branch, attempts: int = 1) -> None:
        branch.worker.close()
        branch.worker = self._fork_worker(branch.number, branch.slot)
        self._await_ready(branch, attempts)

    def _reset(self) -> None:
        """Turns the family into a single, clean interpreter."""
        self._population.end_everything()
        for branch in self._branches.values():
            self._let_go(branch)
        for slot in {branch.slot for branch in self._branches.values()} | self._spoilt:
            self._enclosure.empty(slot)
        self._spoilt.clear()
        left = self._enclosure.leftovers()
        if left:
            raise SupervisorFault(f"the interpreter could not be cleaned: there are {left}")
        self._greeting = {"branch": 0, "reset": True}
        self._start_root()

    def _drop(self, branch: Branch) -> None:
        """Ends one branch for good."""
        if isinstance(branch.activity, Copying):
            self._finish_copying(branch, branch.activity, "the interpreter was closed")
        self._population.end_branch(branch)
        self._let_go(branch)
        del self._branches[branch.number]
        self._empty(branch.slot)
        self._answer(branch.number, dropped=True)

    def _let_go(self, branch: Branch) -> None:
        """Closes what leads to a branch's processes, which are gone."""
        if isinstance(branch.activity, Copying):
            branch.activity.copy.worker.close()
        self._ignore(branch)
        branch.worker.close()

    def _empty(self, slot: int) -> None:
        try:
            self._enclosure.empty(slot)
        except OSError:  # other branches may have been at it: no branch gets this folder before the next reset
            self._spoilt.add(slot)

    def _mourn(self, branch: Branch, request: dict[str, Any] | None = None) -> None:
        """Sees to a branch whose worker has died.

        Args:
            branch: The branch.
            request: What came for it after the death, which nobody has noticed so far.
        """
        activity = branch.activity
        if isinstance(activity, Starting):
            if activity.attempts == STARTS:
                raise SupervisorFault(f"a worker could not be shut in: its process {branch.worker.end}")
            self._ignore(branch)
            self._replace_worker(branch, activity.attempts + 1)
        elif isinstance(activity, Copying):
            self._finish_copying(branch, activity, f"the interpreter's process {branch.worker.end}")
        elif isinstance(activity, Call):
            self._finish_call(branch, activity, "killed", f"The interpreter's process {branch.worker.end}. {AFRESH}")
        elif request is not None and request["op"] == "fork":
            self._answer(branch.number, refused=f"the interpreter's process {branch.worker.end}")
        elif request is not None:
            activity = Call("", request["timeout"], Output(0), [])
            self._finish_call(branch, activity, "killed", f"The interpreter's process {branch.worker.end}. {AFRESH}")

    # What the branches say

    def _watch(self, branch: Branch, descriptor: int, events: int) -> None:
        self._poll.register(descriptor, events)
        self._owners[descriptor] = branch

    def _unwatch(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        del self._owners[descriptor]

    def _ignore(self, branch: Branch) -> None:
        """Listens to nothing more that a branch says, and ends what it was busy with."""
        for descriptor in [descriptor for descriptor, owner in self._owners.items() if owner is branch]:
            self._unwatch(descriptor)
        branch.activity = None

    def _attend(self, branch: Branch, descriptor: int, event: int) -> None:
        activity = branch.activity
        if isinstance(activity, Call):
            self._attend_call(branch, activity, descriptor, event)
        elif isinstance(activity, Copying):
            self._attend_copying(branch, activity, descriptor)
        elif isinstance(activity, Starting):
            packet = branch.worker.read_hint()
            if packet is None:
                return
            if not packet:
                self._population.await_death(branch)
                return
            self._ignore(branch)
            fault = json.loads(packet).get("fault")
            if fault:
                raise SupervisorFault(f"a worker could not be shut in: {fault}")
            branch.worker.stop()
            self._say_ready(branch)

    def _say_ready(self, branch: Branch) -> None:
        if self._greeting is not None:
            self._send(self._greeting)
            self._greeting = None
        request, branch.request = branch.request, None
        if request is not None:
            self._obey(request)

    def _look(self, branch: Branch, now: float) -> None:
        """Looks at a branch at the time at which it said that it should be."""
        activity = branch.activity
        if isinstance(activity, Starting):
            raise SupervisorFault(f"a new worker was not ready within {READY_SECONDS:g} s: is the machine overloaded?")
        if isinstance(activity, Copying):
            self._finish_copying(branch, activity, f"it did not say anything within {READY_SECONDS:g} s")
        elif isinstance(activity, Call):
            if now >= activity.deadline:
                error = f"TimeoutError: the code ran longer than {activity.timeout:g} s and was stopped. {AFRESH}"
                self._finish_call(branch, activity, "timeout", error)
                return
            overfull = self._enclosure.overfull(branch.slot)
            too_much = overfull or self._enclosure.overrun(self._population.members(branch), self._population.supervisor)
            if too_much:
                error = f"ResourceError: the code used more than {too_much} and was stopped. {AFRESH}"
                self._finish_call(branch, activity, "killed", error, overfull=bool(overfull))
                return
            looked = time.monotonic()
            activity.watch = looked + max(WATCH_SECONDS, WATCH_PAUSE * (looked - now))

    # Calls

    def _start_call(self, branch: Branch, request: dict[str, Any]) -> None:
        call = branch.begin(request, self._enclosure.limits.output_bytes)
        self._watch(branch, branch.worker.output, select.POLLIN)
        self._watch(branch, branch.worker.control, select.POLLIN | select.POLLOUT)
        self._send_packets(branch, call)

    def _send_packets(self, branch: Branch, call: Call) -> None:
        while call.packets and branch.worker.write(call.packets[-1]):
            call.packets.pop()
        if not call.packets:
            self._poll.modify(branch.worker.control, select.POLLIN)

    def _attend_call(self, branch: Branch, call: Call, descriptor: int, event: int) -> None:
        worker = branch.worker
        if descriptor == worker.output:
            if worker.read_output(call.output) == b"":
                self._unwatch(descriptor)
            return
        if event & select.POLLOUT:
            self._send_packets(branch, call)
        if event & ~select.POLLOUT:
            packet = worker.read_hint()
            if packet == b"":
                self._population.await_death(branch)
                error = "The code closed the interpreter's own files."
                if worker.end:
                    error = f"The interpreter's process {worker.end}."
                self._finish_call(branch, call, "killed", f"{error} {AFRESH}")
            elif packet:
                hint = read_hint(packet, call.nonce)
                if isinstance(hint.get("error"), str):
                    error = plain_text(hint["error"])
                    self._finish_call(branch, call, "error" if error else "ok", error)

    def _finish_call(self, branch: Branch, call: Call, status: str, error: str, overfull: bool = False) -> None:
        worker = branch.worker
        if status in ("ok", "error") and not self._population.settle(branch, call.output):
            status = "killed"
            error = f"ResourceError: the code started processes faster than they could be stopped. {AFRESH}"
        lost = status in ("timeout", "killed")
        self._ignore(branch)
        if lost:
            self._population.end_branch(branch)
            while worker.read_output(call.output):
                pass
            if overfull:
                self._enclosure.empty(branch.slot)
        self._answer(
            branch.number,
            status=status,
            error=error,
            stdout=call.output.text(),
            seconds=time.monotonic() - call.started,
            truncated=call.output.truncated,
            state_lost=lost,
        )
        if lost:
            self._replace_worker(branch)

    # Copies

    def _order_copy(self, branch: Branch) -> None:
        coming = [other.activity.copy for other in self._branches.values() if isinstance(other.activity, Copying)]
        taken = {other.slot for other in (*self._branches.values(), *coming)} | self._spoilt
        free = [slot for slot in range(len(self._enclosure.folders)) if slot not in taken]
        process = self._population.worker_process(branch)
        problem = self._enclosure.no_copies()
        if not problem and not free:
            problem = f"{len(taken)} branches are alive, and no more may be: raise Limits.branches, or close some"
        if not problem and process is not None and process.threads > 1:
            problem = f"{process.threads} threads are running, which a copy would lose: let them end first"
        if problem:
            self._answer(branch.number, refused=problem)
            return
        self._newest += 1
        folders = self._enclosure.folders
        nonce = new_nonce()
        order = {
            "nonce": nonce,
            "home": folders[branch.slot],
            "folder": folders[free[0]],
            "branch": self._newest,
        }
        branch.worker.forget_late_words()
        copy = Branch(self._newest, free[0], branch.worker.order_copy(order))
        copy.seed, copy.worker.fresh = branch.seed, branch.worker.fresh
        branch.activity = Copying(nonce, copy, time.monotonic() + READY_SECONDS)
        self._watch(branch, branch.worker.control, select.POLLIN)
        self._watch(branch, copy.worker.control, select.POLLIN)
        branch.worker.go_on()

    def _attend_copying(self, branch: Branch, copying: Copying, descriptor: int) -> None:
        copy = copying.copy.worker
        if descriptor == copy.control:
            packet, sender = copy.read_report()
        else:
            packet, sender = branch.worker.read_hint(), 0
        if packet is None:
            return
        if not packet and descriptor == branch.worker.control:
            self._population.await_death(branch)
            self._finish_copying(branch, copying, f"the interpreter's process {branch.worker.end or 'hung up'}")
            return
        if not packet:
            self._unwatch(descriptor)
            copying.lost = True
        hint = read_hint(packet, copying.nonce)
        if "refused" in hint:
            self._finish_copying(branch, copying, plain_text(hint["refused"]))
        elif descriptor == branch.worker.control:
            copying.copied = copying.copied or "copied" in hint
        elif "ready" in hint and self._population.is_newcomer(sender):
            copy.id = sender
        if copying.copied and (copy.id or copying.lost) and branch.activity is copying:
            self._finish_copying(branch, copying, "" if copy.id else "the copy died")

    def _finish_copying(self, branch: Branch, copying: Copying, problem: str) -> None:
        """Takes the copy in, or, where there is a problem, ends what there is of it."""
        self._ignore(branch)
        copy = copying.copy
        if not problem:
            copy.worker.stop()
            self._branches[copy.number] = copy
        nothing = Output(0)
        if not branch.worker.end and not self._population.settle(branch, nothing):
            self._population.end_branch(branch)
        if problem:
            self._population.end_marked(copy)
            copy.worker.close()
            self._empty(copy.slot)
            self._answer(branch.number, refused=problem)
        else:
            self._answer(branch.number, forked=copy.number)

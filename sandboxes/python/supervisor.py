"""The process between the host and the code: one an episode, started by a launcher, inside the sandbox's walls.

It alone talks to the host, it forks the worker that runs the code, it keeps the time, and it decides what came of a call.
The worker's own report is a hint: it counts only with the number that was drawn for this very request, and only while the
worker lives. A worker that is late, dead or over its limits is killed with everything that it started, and another is
forked, which is cheap because this process never runs any of the code and stays as warm as it began.

Between calls the worker is stopped (SIGSTOP), so that threads which the code left behind neither burn time nor print, and
every other process below this one has been killed. When the host's end of the channel closes, this process kills what is
left, removes the work folder and ends. Standard library only: it also runs where nothing else is installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from typing import Any, Protocol

from sandboxes.python.frames import ChannelClosed, FrameChannel
from sandboxes.python.handle import Output, WorkerHandle, read_now
from sandboxes.python.processes import Process, ProcessTree
from sandboxes.python.worker import ERROR_BYTES, PACKET_BYTES, REAP

WATCH_SECONDS = 0.04
"""How often a running call's processes, memory and files are looked at."""
WATCH_PAUSE = 3.0
"""After a look that took long, the next one comes after so many times as long."""
READY_SECONDS = 20.0
"""How long a fresh worker may take to shut itself in, on a machine that is very busy."""
ENDING_SECONDS = 10.0
AFRESH = "The interpreter starts afresh: variables and imports are gone."


class SupervisorFault(RuntimeError):
    """The supervisor cannot do its work; the host hears of it as a fault."""


class Enclosure(Protocol):
    """What a launcher brings: the walls around the worker."""

    open_files: int

    def confine(self) -> None:
        """Shuts the calling process, a fresh worker, in."""

    def overrun(self, below: list[Process], baseline: Process) -> str:
        """What the processes below the supervisor use too much of, or ""."""

    def overfull(self) -> str:
        """What is too much in the work folder, or ""; then the folder is emptied."""

    def empty_folder(self) -> None:
        """Removes every file that the code made."""

    def leave(self) -> None:
        """Takes down what the launcher put up for this episode; the last call."""


class Supervisor:
    """Answers the host's requests until its channel closes.

    Args:
        channel: To the host.
        enclosure: The launcher's walls.
        proc: File descriptor of a /proc directory that shows this process.
        seed: The episode's seed.
        output_bytes: Output of a call that is kept.
    """

    def __init__(self, channel: FrameChannel, enclosure: Enclosure, proc: int, seed: int, output_bytes: int) -> None:
        self._channel = channel
        self._enclosure = enclosure
        self._tree = ProcessTree(proc)
        self._seed = seed
        self._output_bytes = output_bytes
        self._baseline = self._tree.myself()
        self._wakeup, wake = os.pipe()
        os.set_blocking(self._wakeup, False)
        os.set_blocking(wake, False)
        # A handler that does nothing: the wake-up pipe makes the poll return when a child ends.
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._worker = self._fork_worker()

    def serve(self) -> None:
        """Says hello once a worker stands ready, then answers until the host is gone."""
        try:
            self._await_ready()
            self._channel.send({"hello": True})
            while True:
                request = self._channel.receive()
                if request["op"] == "reset":
                    self._seed = request["seed"]
                    self._kill_everything()
                    self._enclosure.empty_folder()
                    self._replace_worker()
                    self._await_ready()
                    self._channel.send({"reset": True})
                else:
                    self._channel.send(self._run(request["code"], request["timeout"], request["display"]))
                    if not self._worker.ready:
                        self._replace_worker()
        except ChannelClosed:
            pass
        except (SupervisorFault, OSError) as problem:
            with contextlib.suppress(ChannelClosed):
                self._channel.send({"fault": str(problem)})
        finally:
            try:
                self._kill_everything()
            finally:
                self._enclosure.leave()

    # One call

    def _run(self, code: str, timeout: float, display: bool) -> dict[str, Any]:
        self._await_ready()
        self._worker.forget_late_words()
        worker = self._worker
        nonce = os.urandom(16).hex()
        request = json.dumps({"nonce": nonce, "code": code, "display": display}).encode("ascii")
        starts = range(0, len(request), PACKET_BYTES - 1)
        parts = [request[start : start + PACKET_BYTES - 1] for start in starts]
        packets = [(b"." if part is parts[-1] else b"+") + part for part in parts]
        packets.reverse()
        output = Output(self._output_bytes)
        poll = select.poll()
        poll.register(self._channel.reader, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        poll.register(worker.output, select.POLLIN)
        poll.register(worker.control, select.POLLIN | select.POLLOUT)
        started = time.monotonic()
        deadline = started + timeout
        watch = started + WATCH_SECONDS
        worker.go_on()
        verdict: tuple[str, str] | None = None
        overfull = ""
        while verdict is None:
            now = time.monotonic()
            if now >= deadline:
                verdict = ("timeout", f"TimeoutError: the code ran longer than {timeout:g} s and was stopped. {AFRESH}")
                break
            if now >= watch:
                overfull = self._enclosure.overfull()
                too_much = overfull or self._enclosure.overrun(self._tree.below(), self._baseline)
                if too_much:
                    verdict = ("killed", f"ResourceError: the code used more than {too_much} and was stopped. {AFRESH}")
                    break
                looked = time.monotonic()
                watch = looked + max(WATCH_SECONDS, WATCH_PAUSE * (looked - now))
            for descriptor, event in poll.poll(max(0.0, min(deadline, watch) - now) * 1000 + 1):
                if verdict is not None:
                    break
                if descriptor == worker.output:
                    if worker.read_output(output) == b"":
                        poll.unregister(worker.output)
                elif descriptor == worker.control:
                    if packets and event & select.POLLOUT and worker.write(packets[-1]):
                        packets.pop()
                        if not packets:
                            poll.modify(worker.control, select.POLLIN)
                    if event & ~select.POLLOUT:
                        verdict = self._judge(worker.read_hint(), nonce)
                elif descriptor == self._wakeup:
                    read_now(self._wakeup, 4096)
                    verdict = self._obituary()
                else:
                    self._expect_nothing_from_host()
        status, error = verdict
        if status in ("ok", "error") and not self._settle(output):
            status = "killed"
            error = f"ResourceError: the code started processes faster than they could be stopped. {AFRESH}"
        lost = status in ("timeout", "killed")
        if lost:
            self._kill_everything()
            while worker.read_output(output):
                pass
            worker.ready = False
            if overfull:
                self._enclosure.empty_folder()
        return {
            "status": status,
            "error": error,
            "stdout": output.text(),
            "seconds": time.monotonic() - started,
            "truncated": output.truncated,
            "state_lost": lost,
        }

    def _judge(self, packet: bytes | None, nonce: str) -> tuple[str, str] | None:
        """What a packet from the worker means for the request ``nonce``; None for everything that is no hint about it."""
        if packet is None:
            return None
        if not packet:
            return self._obituary(wait=True) or ("killed", f"The code closed the interpreter's own files. {AFRESH}")
        with contextlib.suppress(ValueError, RecursionError):
            hint = json.loads(packet)
            if isinstance(hint, dict) and hint.get("nonce") == nonce and isinstance(hint.get("error"), str):
                # The worker runs the code's threads too: what it says may be of any length and hold any character.
                error = hint["error"][: 2 * ERROR_BYTES].encode("utf-8", "backslashreplace").decode("utf-8")
                return ("error", error) if error else ("ok", "")
        return None

    def _obituary(self, wait: bool = False) -> tuple[str, str] | None:
        """How the worker died, or None while it lives; reaps orphans in passing."""
        until = time.monotonic() + (0.02 if wait else 0.0)
        while not self._worker.end:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended == self._worker.id:
                code = os.waitstatus_to_exitcode(status)
                self._worker.end = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
            elif not ended:
                if time.monotonic() >= until:
                    return None
                time.sleep(0.001)
        return "killed", f"The interpreter's process {self._worker.end}. {AFRESH}"

    def _expect_nothing_from_host(self) -> None:
        """During a call the host can only hang up."""
        raise ChannelClosed("the host hung up during a call")

    # The processes below

    def _settle(self, output: Output) -> bool:
        """After a call: stops the worker, ends every other process, takes in what was printed. False if they keep coming."""
        worker = self._worker
        for _ in range(20):
            worker.stop()
            strays = [process for process in self._tree.below() if process.id != worker.id]
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
            if self._obituary() is not None:
                return False
        return False

    def _kill_everything(self) -> None:
        if not self._tree.end_everything_below(ENDING_SECONDS):
            raise SupervisorFault(
                f"processes of the code could not be ended within {ENDING_SECONDS:g} s: is the machine out of memory?"
            )

    # The worker

    def _fork_worker(self) -> WorkerHandle:
        return WorkerHandle(self._enclosure.confine, self._seed, self._enclosure.open_files)

    def _replace_worker(self) -> None:
        self._worker.close()
        self._worker = self._fork_worker()

    def _await_ready(self) -> None:
        """Waits until the worker has shut itself in; raises ``SupervisorFault`` when it cannot."""
        worker = self._worker
        if worker.ready:
            return
        end = time.monotonic() + READY_SECONDS
        poll = select.poll()
        poll.register(worker.control, select.POLLIN)
        poll.register(self._channel.reader, select.POLLIN)
        while not worker.ready:
            if time.monotonic() > end:
                raise SupervisorFault(f"a new worker was not ready within {READY_SECONDS:g} s: is the machine overloaded?")
            for descriptor, _ in poll.poll(100):
                if descriptor != worker.control:
                    poll.unregister(descriptor)  # a request that waits, or the host hanging up: the next receive tells
                    continue
                packet = worker.read_hint()
                message = json.loads(packet) if packet else {"fault": "its process died"}
                if "fault" in message:
                    raise SupervisorFault(f"a worker could not be shut in: {message['fault']}")
                worker.ready = True
        worker.stop()

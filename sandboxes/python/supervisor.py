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

import array
import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import termios
import time
from dataclasses import dataclass
from os import _exit  # by name: a worker's code can put something else into os
from typing import Any, NoReturn, Protocol

from sandboxes.python.frames import ChannelClosed, FrameChannel
from sandboxes.python.processes import Process, ProcessTree
from sandboxes.python.worker import ERROR_BYTES, PACKET_BYTES, REAP, run_worker

WATCH_SECONDS = 0.04
"""How often a running call's processes, memory and files are looked at."""
WATCH_PAUSE = 3.0
"""After a look that took long, the next one comes after so many times as long."""
READY_SECONDS = 20.0
"""How long a fresh worker may take to shut itself in, on a machine that is very busy."""
ENDING_SECONDS = 10.0
HINT_BYTES = 256 * 1024
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


@dataclass
class _Worker:
    """A worker as the supervisor sees it: its process, the packet socket and the pipe of its output."""

    id: int
    control: int
    output: int
    ready: bool = False
    end: str = ""


class _Output:
    """The output of one call: the first bytes are kept, the rest is counted."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()
        self.truncated = False

    def add(self, chunk: bytes) -> None:
        room = self._limit - len(self._kept)
        self._kept += chunk[:room]
        self.truncated = self.truncated or len(chunk) > room

    def text(self) -> str:
        kept = bytes(self._kept)
        if self.truncated:
            # The limit may have cut a character: leave out its first bytes instead of showing it as damaged.
            for back in range(1, min(4, len(kept) + 1)):
                last = kept[-back]
                if last >= 0xC0:
                    whole = 2 if last < 0xE0 else 3 if last < 0xF0 else 4
                    kept = kept[:-back] if whole > back else kept
                if last >= 0xC0 or last < 0x80:
                    break
        return kept.decode("utf-8", "replace")


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
        self._throw_away_late_output()
        worker = self._worker
        nonce = os.urandom(16).hex()
        request = json.dumps({"nonce": nonce, "code": code, "display": display}).encode("ascii")
        starts = range(0, len(request), PACKET_BYTES - 1)
        parts = [request[start : start + PACKET_BYTES - 1] for start in starts]
        packets = [(b"." if part is parts[-1] else b"+") + part for part in parts]
        packets.reverse()
        output = _Output(self._output_bytes)
        poll = select.poll()
        poll.register(self._channel.reader, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        poll.register(worker.output, select.POLLIN)
        poll.register(worker.control, select.POLLIN | select.POLLOUT)
        started = time.monotonic()
        deadline = started + timeout
        watch = started + WATCH_SECONDS
        os.kill(worker.id, signal.SIGCONT)
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
                    chunk = self._read(worker.output, 1 << 16)
                    if chunk == b"":
                        poll.unregister(worker.output)
                    elif chunk is not None:
                        output.add(chunk)
                elif descriptor == worker.control:
                    if packets and event & select.POLLOUT and self._write(worker.control, packets[-1]):
                        packets.pop()
                        if not packets:
                            poll.modify(worker.control, select.POLLIN)
                    if event & ~select.POLLOUT:
                        verdict = self._judge(self._read(worker.control, HINT_BYTES), nonce)
                elif descriptor == self._wakeup:
                    self._read(self._wakeup, 4096)
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
            self._drain(output)
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

    def _settle(self, output: _Output) -> bool:
        """After a call: stops the worker, ends every other process, takes in what was printed. False if they keep coming."""
        worker = self._worker
        for _ in range(20):
            os.kill(worker.id, signal.SIGSTOP)
            strays = [process for process in self._tree.below() if process.id != worker.id]
            if not strays:
                self._take_in(worker.output, output)
                return True
            for process in strays:
                self._signal(process.id, signal.SIGKILL)
            # Children of the worker stay as zombies until it asks for them.
            os.kill(worker.id, signal.SIGCONT)
            self._write(worker.control, REAP)
            time.sleep(0.002)
            if self._obituary() is not None:
                return False
        return False

    def _kill_everything(self) -> None:
        if not self._tree.end_everything_below(ENDING_SECONDS):
            raise SupervisorFault(
                f"processes of the code could not be ended within {ENDING_SECONDS:g} s: is the machine out of memory?"
            )

    def _signal(self, process_id: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process_id, number)

    # The worker

    def _fork_worker(self) -> _Worker:
        ours, theirs = (end.detach() for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._be_worker(theirs, writer)
        os.close(theirs)
        os.close(writer)
        os.set_blocking(ours, False)
        os.set_blocking(reader, False)
        return _Worker(pid, ours, reader)

    def _be_worker(self, control: int, output: int) -> NoReturn:
        try:
            run_worker(control, output, self._enclosure.confine, self._seed, self._enclosure.open_files)
        finally:
            _exit(1)

    def _replace_worker(self) -> None:
        os.close(self._worker.control)
        os.close(self._worker.output)
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
                packet = self._read(worker.control, HINT_BYTES)
                message = json.loads(packet) if packet else {"fault": "its process died"}
                if "fault" in message:
                    raise SupervisorFault(f"a worker could not be shut in: {message['fault']}")
                worker.ready = True
        os.kill(worker.id, signal.SIGSTOP)

    # Reading and writing without blocking

    def _read(self, descriptor: int, most: int) -> bytes | None:
        """Bytes, b"" at the end, None where there is nothing now."""
        try:
            return os.read(descriptor, most)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return b""

    def _write(self, descriptor: int, packet: bytes) -> bool:
        try:
            os.write(descriptor, packet)
        except BlockingIOError:
            return False
        except OSError:
            return True  # nobody reads any more; the next read finds that out
        return True

    def _take_in(self, descriptor: int, output: _Output) -> None:
        """Reads what is in the pipe at this moment, and no more, however fast somebody writes."""
        waiting = array.array("i", [0])
        fcntl.ioctl(descriptor, termios.FIONREAD, waiting)
        left = waiting[0]
        while left > 0:
            chunk = self._read(descriptor, left)
            if not chunk:
                return
            output.add(chunk)
            left -= len(chunk)

    def _drain(self, output: _Output) -> None:
        """Reads the pipe of a dead worker to its end."""
        while chunk := self._read(self._worker.output, 1 << 16):
            output.add(chunk)

    def _throw_away_late_output(self) -> None:
        """What threads printed between the last reply and the worker's stop belongs to no call."""
        self._take_in(self._worker.output, _Output(0))
        for _ in range(1000):
            if not self._read(self._worker.control, HINT_BYTES):
                return

"""A worker as its supervisor sees it: a process to stop and to continue, a packet socket, and a pipe with its output.

Nothing here ever blocks on the worker, and no object closes a file descriptor by itself: the worker is a fork of this
process, and an object that ends there would close a number that by then belongs to the code. Standard library only.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import termios
from collections.abc import Callable, Iterator
from os import _exit  # by name: the code in a worker can put something else into os
from typing import Any

from sandboxes.python.inside.worker import COPY, run_worker

HINT_BYTES = 256 * 1024
_CREDENTIALS = struct.Struct("3i")  # process, user and group of a packet's sender


class Output:
    """The output of one call: the first bytes are kept, the rest is thrown away.

    Args:
        limit: How many bytes are kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()
        self.truncated = False

    def add(self, chunk: bytes) -> None:
        """Takes in what came next."""
        room = self._limit - len(self._kept)
        self._kept += chunk[:room]
        self.truncated = self.truncated or len(chunk) > room

    def text(self) -> str:
        """What was kept; bytes that are no UTF-8 become the replacement character."""
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


class WorkerHandle:
    """A worker, and this side's ends of its wires. `fork` and `order_copy` make one.

    Attributes:
        id: Its process id; 0 for a copy that has not reported yet.
        entry: Its name in /proc, once somebody has looked; "" before.
        control: Packet socket to it.
        output: Pipe of its standard output and error.
        fresh: None of the code has run in it.
        end: How it ended, in words; "" while it lives.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # the kernel says who sent a packet
        self.control = ours.detach()
        self._their_control = theirs.detach()
        self.output, self._their_output = os.pipe()
        os.set_blocking(self.control, False)
        os.set_blocking(self.output, False)
        self.id = 0
        self.entry = ""
        self.fresh = False
        self.end = ""

    @classmethod
    def fork(cls, confine: Callable[[], None], branch: int, open_files: int) -> WorkerHandle:
        """Forks this process into a worker.

        Args:
            confine: What it does to shut itself in.
            branch: Its number.
            open_files: File descriptors that the code may have.
        """
        worker = cls()
        worker.fresh = True
        worker.id = os.fork()
        if worker.id == 0:
            try:
                run_worker(worker._their_control, worker._their_output, confine, branch, open_files)
            finally:
                _exit(1)
        worker._close_far_ends()
        return worker

    def order_copy(self, order: dict[str, Any]) -> WorkerHandle:
        """Has this worker copy itself; returns the handle of the copy, which has yet to report.

        Args:
            order: What the worker is told.
        """
        copy = WorkerHandle()
        rights = array.array("i", [copy._their_control, copy._their_output])
        with _borrowed(self.control) as control:
            control.sendmsg([COPY + json.dumps(order).encode("ascii")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        copy._close_far_ends()
        return copy

    def _close_far_ends(self) -> None:
        """Lets go of the ends that the worker has."""
        os.close(self._their_control)
        os.close(self._their_output)

    def read_report(self) -> tuple[bytes | None, int]:
        """The next packet, as `read_hint` gives it, and the process id of its sender, which the kernel vouches for."""
        with _borrowed(self.control) as control:
            try:
                packet, extras, _, _ = control.recvmsg(HINT_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                return None, 0
            except ConnectionResetError:
                return b"", 0
        for level, kind, data in extras:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                return packet, int(_CREDENTIALS.unpack(data)[0])
        return packet, 0

    def close(self) -> None:
        """Lets go of a worker that has ended."""
        os.close(self.control)
        os.close(self.output)

    def stop(self) -> None:
        """Stops all its threads until `go_on`."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Undoes `stop`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if self.id and not self.end:  # somebody else may have its id by now
            os.kill(self.id, number)

    def write(self, packet: bytes) -> bool:
        """Sends a packet; False if there is no room for it now."""
        try:
            os.write(self.control, packet)
        except BlockingIOError:
            return False
        except OSError:
            return True  # nobody reads any more; the next read finds that out
        return True

    def read_hint(self) -> bytes | None:
        """The next packet that it or its code has sent: None where there is none now, b"" when no more can come."""
        return read_now(self.control, HINT_BYTES)

    def read_output(self, output: Output) -> bytes | None:
        """Takes in a chunk of output and returns it: None where there is none now, b"" at the end."""
        chunk = read_now(self.output, 1 << 16)
        output.add(chunk or b"")
        return chunk

    def take_in(self, output: Output) -> None:
        """Takes in what is in the pipe at this moment, and no more, however fast somebody writes."""
        waiting = array.array("i", [0])
        fcntl.ioctl(self.output, termios.FIONREAD, waiting)
        left = waiting[0]
        while left > 0:
            chunk = read_now(self.output, left)
            if not chunk:
                return
            output.add(chunk)
            left -= len(chunk)

    def forget_late_words(self) -> None:
        """Throws away what threads wrote between the last reply and the worker's stop: it belongs to no call."""
        self.take_in(Output(0))
        for _ in range(1000):
            if not self.read_hint():
                return


@contextlib.contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """A descriptor as a socket object, which does not close it."""
    borrowed = socket.socket(fileno=descriptor)
    try:
        yield borrowed
    finally:
        borrowed.detach()


def read_now(descriptor: int, most: int) -> bytes | None:
    """Reads without waiting: bytes, b"" at the end, None where there is nothing now."""
    try:
        return os.read(descriptor, most)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        return b""

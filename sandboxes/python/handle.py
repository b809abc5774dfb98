"""A worker as its supervisor sees it: a process to stop and to continue, a packet socket, and a pipe with its output.

Nothing here ever blocks on the worker, and no object closes a file descriptor by itself: the worker is a fork of this
process, and an object that ends there would close a number that by then belongs to the code. Standard library only.
"""

from __future__ import annotations

import array
import fcntl
import os
import signal
import socket
import termios
from collections.abc import Callable
from os import _exit  # by name: the code in a worker can put something else into os

from sandboxes.python.worker import run_worker

HINT_BYTES = 256 * 1024


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
    """Forks a worker.

    Args:
        confine: What the worker does to shut itself in.
        seed: Seeds its random generators.
        open_files: File descriptors that the code may have.

    Attributes:
        id: Its process id.
        control: Packet socket to it.
        output: Pipe of its standard output and error.
        ready: It stands, shut in, and waits for a request.
        end: How it ended, in words; "" while it lives.
    """

    def __init__(self, confine: Callable[[], None], seed: int, open_files: int) -> None:
        ours, theirs = (end.detach() for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        reader, writer = os.pipe()
        self.id = os.fork()
        if self.id == 0:
            try:
                run_worker(theirs, writer, confine, seed, open_files)
            finally:
                _exit(1)
        os.close(theirs)
        os.close(writer)
        os.set_blocking(ours, False)
        os.set_blocking(reader, False)
        self.control = ours
        self.output = reader
        self.ready = False
        self.end = ""

    def close(self) -> None:
        """Lets go of a worker that has ended."""
        os.close(self.control)
        os.close(self.output)

    def stop(self) -> None:
        """Stops all its threads until `go_on`."""
        os.kill(self.id, signal.SIGSTOP)

    def go_on(self) -> None:
        """Undoes `stop`."""
        os.kill(self.id, signal.SIGCONT)

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


def read_now(descriptor: int, most: int) -> bytes | None:
    """Reads without waiting: bytes, b"" at the end, None where there is nothing now."""
    try:
        return os.read(descriptor, most)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        return b""

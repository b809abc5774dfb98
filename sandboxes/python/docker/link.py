"""The bytes between this process and the supervisor in one container, and how that container ended.

They travel over one connection to the engine that stands for the container's standard streams, attached before it starts.
What comes back is cut into pieces by the engine, each with a header that names its stream; standard output carries the
supervisor's messages, and the end of standard error is kept for the case that something goes wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import docker
from urllib3.exceptions import HTTPError

from sandboxes.faults import SandboxFault
from sandboxes.python.docker.client import DockerClient
from sandboxes.python.docker.container import FAILED, HUNG_UP
from sandboxes.python.inside.frames import ChannelClosed
from sandboxes.python.interpreter import Protection

RECEIVE_BYTES = 256 * 1024
LAST_WORDS = 2000
SEND_PATIENCE = 2.0
"""After so many seconds in which nothing could be sent, the engine is asked whether it still lives."""
ENDING_SECONDS = 2.0
"""How long after its streams a container may end itself."""
MEMORY_SECONDS = 5.0
"""How long before a container's end it ran out of memory if that is why it was killed."""

_HEADER = struct.Struct(">BxxxL")
_ERRORS = 2


class StreamDecoder:
    """Takes the engine's headers out of an attached container's stream.

    Attributes:
        last_words: The end of what came on standard error.
    """

    def __init__(self) -> None:
        self.last_words = b""
        self._header = b""
        self._stream = 0
        self._left = 0

    def feed(self, data: bytes) -> bytes:
        """Takes in what came next; returns what of it is standard output."""
        output = []
        start = 0
        while start < len(data):
            if not self._left:
                taken = data[start : start + _HEADER.size - len(self._header)]
                self._header += taken
                start += len(taken)
                if len(self._header) == _HEADER.size:
                    self._stream, self._left = _HEADER.unpack(self._header)
                    self._header = b""
                continue
            part = data[start : start + self._left]
            start += len(part)
            self._left -= len(part)
            if self._stream == _ERRORS:
                self.last_words = (self.last_words + part)[-LAST_WORDS:]
            else:
                output.append(part)
        return output[0] if len(output) == 1 else b"".join(output)


class DockerLink:
    """A `sandboxes.python.family.Link` to a supervisor in a container.

    Args:
        client: The engine.
        container: The container's id.
        stream: What ``docker.APIClient.attach_socket`` returned.
        protection: What the container is shut in by.
        bury: Called once, with the container's id, after the stream was closed; makes certain that the container goes.
    """

    def __init__(
        self, client: DockerClient, container: str, stream: Any, protection: Protection, bury: Callable[[str], None]
    ) -> None:
        self.container = container
        self.protection = protection
        self._client = client
        self._bury = bury
        self._owner = os.getpid()
        self._stream = stream  # closes the socket when it is collected
        self._socket: socket.socket = getattr(stream, "_sock", stream)
        self._socket.setblocking(False)
        self._decoder = StreamDecoder()
        # One call at a time reads, and one writes. Both are held to close the socket, so that no call is left waiting for
        # a number that already means another file; `_touching` is for encrypted connections, which bear one call at a time.
        self._reading = threading.RLock()
        self._writing = threading.RLock()
        self._touching = threading.Lock()
        self._closing = threading.Lock()
        self._closed = False

    def send(self, data: bytes) -> None:
        """Writes all of ``data``.

        Raises:
            ChannelClosed: Nobody can read it any more.
            SandboxFault: The engine does not answer.
        """
        rest = memoryview(data)
        with self._writing:
            while rest:
                try:
                    with self._touching:
                        rest = rest[self._socket.send(rest) :]
                except (BlockingIOError, ssl.SSLWantWriteError):
                    if not self._wait(select.POLLOUT, SEND_PATIENCE):
                        self.check()
                except ssl.SSLWantReadError:
                    self._wait(select.POLLIN, SEND_PATIENCE)
                except (OSError, ValueError) as problem:
                    raise ChannelClosed(f"the container is gone: {problem}") from problem

    def receive(self, timeout: float) -> bytes:
        """Reads what the supervisor sent: one byte or more.

        Raises:
            TimeoutError: There was nothing within ``timeout`` seconds.
            ChannelClosed: No more will come.
        """
        end = time.monotonic() + timeout
        with self._reading:
            while True:
                try:
                    with self._touching:
                        data = self._socket.recv(RECEIVE_BYTES)
                except (BlockingIOError, ssl.SSLWantReadError):
                    left = end - time.monotonic()
                    if left <= 0 or not self._wait(select.POLLIN, left):
                        raise TimeoutError("no answer in time") from None
                    continue
                except ssl.SSLWantWriteError:
                    self._wait(select.POLLOUT, SEND_PATIENCE)
                    continue
                except (OSError, ValueError) as problem:
                    raise ChannelClosed(f"the container is gone: {problem}") from problem
                if not data:
                    raise ChannelClosed("the container is gone")
                if output := self._decoder.feed(data):
                    return output

    def check(self) -> None:
        """Raises ``SandboxFault`` when the engine does not answer."""
        self._client.check()

    def how_it_ended(self) -> str:
        """What became of the supervisor after its streams had closed, in words, where the code is to blame.

        Raises:
            SandboxFault: The engine is gone, or it ended the container: for the code's sake nobody would.
        """
        self._client.ask_afresh()
        ended, out_of_memory, from_outside = self._end()
        if from_outside:
            raise SandboxFault(
                "the interpreter's container was ended from outside, or its engine is being stopped: open another one",
                retryable=True,
            )
        if ended == HUNG_UP:
            raise SandboxFault(
                "the connection to the interpreter's container was cut: open another interpreter", retryable=True
            )
        words = self._decoder.last_words.decode("utf-8", "replace").strip()
        said = f": {words}" if words else ""
        if out_of_memory:
            return "was killed: its container was out of memory"
        if ended is None:
            return f"ended, and its container is gone{said}"
        if ended == FAILED and words:
            return f"failed{said}"
        return f"ended: its container's exit status was {ended}{said}"

    def close(self) -> None:
        """Ends the container. Twice is fine, from any thread; a `receive` in another one ends with ``ChannelClosed``."""
        if os.getpid() != self._owner:
            return
        with self._closing:
            if self._closed:
                return
            self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with self._reading, self._writing:
            self._socket.close()
            self._stream.close()
        self._bury(self.container)

    def _wait(self, event: int, seconds: float) -> bool:
        """Waits until the socket is ready for ``event`` or broken; False if it is not in time."""
        poll = select.poll()
        poll.register(self._socket, event)
        return bool(poll.poll(seconds * 1000))

    def _end(self) -> tuple[int | None, bool, bool]:
        """The container's exit status if the engine knows it, whether memory ran out, and whether somebody ended it.

        From the engine's record of events, since a container that removes itself is soon unknown to everything else.
        """
        from_outside = False
        memory_time = float("-inf")
        until = time.monotonic() + ENDING_SECONDS
        try:
            with self._client.lend("say how a container ended", ENDING_SECONDS) as client:
                response = client.get(
                    f"{client.base_url}/v{client.api_version}/events",
                    params={"since": "1", "filters": json.dumps({"type": ["container"], "container": [self.container]})},
                    stream=True,
                    timeout=ENDING_SECONDS,
                )
                with contextlib.closing(response):
                    for line in response.iter_lines():
                        event = json.loads(line)
                        moment = event["timeNano"] / 1e9
                        if event["Action"] == "oom":
                            memory_time = moment
                        elif event["Action"] in ("kill", "stop"):
                            from_outside = True
                        elif event["Action"] == "die":
                            ended = int(event["Actor"]["Attributes"]["exitCode"])
                            return ended, ended == 137 and moment - memory_time < MEMORY_SECONDS, from_outside
                        if time.monotonic() > until:
                            break
        except (SandboxFault, HTTPError):
            self._client.ask_afresh()  # silence means that nothing has happened, or that the engine is gone
        try:
            with self._client.lend("say whether a container runs", ENDING_SECONDS) as client:
                running = bool(client.inspect_container(self.container)["State"]["Running"])
        except docker.errors.NotFound:
            running = False
        return (HUNG_UP if running else None), False, from_outside

"""Messages between an interpreter and its supervisor: a length of four bytes, then JSON, over any pair of file descriptors.

Works over a socket as well as over the standard input and output of a process. JSON is written in ASCII, so that any Python
string gets through, lone surrogates included.
"""

from __future__ import annotations

import json
import os
import select
import struct
import time
from collections.abc import Mapping
from typing import Any

_HEADER = struct.Struct("!I")
_LARGEST = 1 << 30


class ChannelClosed(EOFError):
    """The other side is gone, or it sent what is no frame."""


class FrameChannel:
    """A two-way stream of JSON objects.

    Args:
        reader: File descriptor to read from.
        writer: File descriptor to write to; the same one for a socket.
    """

    def __init__(self, reader: int, writer: int) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, message: Mapping[str, Any]) -> None:
        """Writes one message; raises ``ChannelClosed`` when nobody can read it any more."""
        body = json.dumps(message).encode("ascii")
        rest = memoryview(_HEADER.pack(len(body)) + body)
        try:
            while rest:
                rest = rest[os.write(self.writer, rest) :]
        except OSError as problem:
            raise ChannelClosed(f"the other side is gone: {problem}") from problem

    def receive(self, timeout: float | None = None) -> dict[str, Any]:
        """Reads one message.

        Args:
            timeout: Seconds to wait for the whole message, or None for ever.

        Raises:
            ChannelClosed: The other side is gone.
            TimeoutError: It said nothing in time. The stream cannot be used afterwards.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        (length,) = _HEADER.unpack(self._read(_HEADER.size, deadline))
        if length > _LARGEST:
            raise ChannelClosed(f"expected a frame of at most {_LARGEST} bytes, found one of {length}")
        message = json.loads(self._read(length, deadline))
        if not isinstance(message, dict):
            raise ChannelClosed(f"expected a JSON object, found {type(message).__name__}")
        return message

    def _read(self, length: int, deadline: float | None) -> bytes:
        chunks = []
        poll = select.poll()
        poll.register(self.reader, select.POLLIN)
        while length:
            if deadline is not None and not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError("no answer in time")
            try:
                chunk = os.read(self.reader, min(length, 1 << 20))
            except OSError as problem:
                raise ChannelClosed(f"the other side is gone: {problem}") from problem
            if not chunk:
                raise ChannelClosed("the other side is gone")
            chunks.append(chunk)
            length -= len(chunk)
        return b"".join(chunks)

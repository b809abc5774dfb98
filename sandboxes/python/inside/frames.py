"""Messages between an interpreter and its supervisor: a length of four bytes, then JSON, over any stream of bytes.

Works over a socket as well as over the standard input and output of a process. JSON is written in ASCII, so that any Python
string gets through, lone surrogates included. Standard library only.
"""

from __future__ import annotations

import json
import os
import select
import struct
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

_HEADER = struct.Struct("!I")
_LARGEST = 1 << 30


class ChannelClosed(EOFError):
    """The other side is gone, or it sent what is no frame."""


def encode(message: Mapping[str, Any]) -> bytes:
    """A message as it travels."""
    body = json.dumps(message).encode("ascii")
    return _HEADER.pack(len(body)) + body


class Decoder:
    """Puts messages together again from pieces of any size."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Takes in what came next.

        Returns:
            The messages that it completes.

        Raises:
            ChannelClosed: It is no message.
        """
        self._buffer += data
        messages = []
        while len(self._buffer) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer)
            if length > _LARGEST:
                raise ChannelClosed(f"expected a frame of at most {_LARGEST} bytes, found one of {length}")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                break
            body = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            try:
                message = json.loads(body)
            except ValueError as problem:
                raise ChannelClosed(f"expected a frame of JSON, found {body[:40]!r}") from problem
            if not isinstance(message, dict):
                raise ChannelClosed(f"expected a JSON object, found {type(message).__name__}")
            messages.append(message)
        return messages


class FrameChannel:
    """A two-way stream of messages over file descriptors, for one thread that has nothing else to wait for.

    Args:
        reader: File descriptor to read from.
        writer: File descriptor to write to; the same one for a socket.
    """

    def __init__(self, reader: int, writer: int) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder()
        self._waiting: deque[dict[str, Any]] = deque()

    def send(self, message: Mapping[str, Any]) -> None:
        """Writes one message; raises ``ChannelClosed`` when nobody can read it any more."""
        rest = memoryview(encode(message))
        try:
            while rest:
                rest = rest[os.write(self._writer, rest) :]
        except OSError as problem:
            raise ChannelClosed(f"the other side is gone: {problem}") from problem

    def receive(self, timeout: float | None = None) -> dict[str, Any]:
        """Reads one message.

        Args:
            timeout: Seconds to wait for the whole message, or None for ever.

        Raises:
            ChannelClosed: The other side is gone.
            TimeoutError: It said nothing in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        while not self._waiting:
            if deadline is not None and not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError("no answer in time")
            try:
                data = os.read(self._reader, 1 << 20)
            except OSError as problem:
                raise ChannelClosed(f"the other side is gone: {problem}") from problem
            if not data:
                raise ChannelClosed("the other side is gone")
            self._waiting.extend(self._decoder.feed(data))
        return self._waiting.popleft()

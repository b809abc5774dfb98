"""One connection of a browser to its proxy: requests come in, and go on to the address that the gate names.

h11 reads and writes HTTP/1.1 on both sides, strictly, so that both sides agree where a message ends; a message that can be
read in two ways is refused. A ``CONNECT``, and an upgrade to WebSocket, become a tunnel, in which bytes are only counted.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import h11

from sandboxes.browser.addresses import Address, read_address, read_authority
from sandboxes.browser.browser import PageProblem
from sandboxes.browser.gate import Gate

_HEAD = 65_536  # bytes of a message's head
_CHUNK = 65_536  # bytes that are read at once
_FAREWELL = 1.0  # seconds
_IDLE = 60.0  # seconds that a connection may wait for its next request
_HOP_BY_HOP = {
    *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"),
    *(b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect"),
}

_Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class _Wire:
    """A connection and what is known of its messages."""

    http: h11.Connection
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def receive(self, timeout: float) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """The next event, never ``NEED_DATA``."""
        while True:
            event = self.http.next_event()
            if event is not h11.NEED_DATA:
                return event
            async with asyncio.timeout(timeout):
                self.http.receive_data(await self.reader.read(_CHUNK))

    async def send(self, event: h11.Event) -> None:
        data = self.http.send(event)
        if data:
            self.writer.write(data)
            await self.writer.drain()


class _Refused(Exception):
    """A request is answered by the proxy itself."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


class Exchange:
    """A browser's connection.

    Args:
        gate: What may pass.
        reader, writer: The connection; whoever made it closes it.
    """

    def __init__(self, gate: Gate, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._gate = gate
        self._timeout = gate.limits.timeout
        self._client = _Wire(h11.Connection(h11.SERVER, _HEAD), reader, writer)

    async def serve(self) -> None:
        """Answers requests until one of the two sides has enough."""
        http = self._client.http
        with contextlib.suppress(OSError, TimeoutError, h11.LocalProtocolError):
            while True:
                try:
                    await self._answer_one()
                except h11.RemoteProtocolError as problem:
                    await self._refuse(problem.error_status_hint, f"this is no request that a proxy can read: {problem}")
                except _Refused as refusal:
                    await self._refuse(refusal.status, str(refusal))
                if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                    return
                http.start_next_cycle()

    async def _answer_one(self) -> None:
        request = await self._client.receive(_IDLE)
        if not isinstance(request, h11.Request):
            return  # it has closed the connection
        if not self._gate.knows(_header(request, b"proxy-authorization")):
            raise _Refused(407, "this proxy serves the page that it was made for, and needs its password")
        if _header(request, b"transfer-encoding") and _header(request, b"content-length"):
            raise _Refused(400, "a message must not state its length twice")
        if request.method == b"CONNECT":
            await self._tunnel(request)
        else:
            await self._forward(request)

    async def _tunnel(self, request: h11.Request) -> None:
        try:
            host, port = read_authority(request.target.decode("ascii", "replace"))
        except ValueError as problem:
            raise _Refused(400, str(problem)) from None
        name = f"[{host}]" if ":" in str(host) else str(host)
        await self._client.receive(self._timeout)  # the end of the request
        reader, writer = await self._connect(name, port or 443)
        try:
            await self._client.send(h11.Response(status_code=200, headers=[], reason=b"Connection established"))
            await self._relay(reader, writer, name, port or 443)
        finally:
            await hang_up(writer)

    async def _forward(self, request: h11.Request) -> None:
        target = request.target.decode("ascii", "replace")
        if target[:5].lower() == "ws://":
            target = "http" + target[2:]
        try:
            address = read_address(target)
        except ValueError as problem:
            raise _Refused(400, f"a proxy is asked for whole addresses: {problem}") from None
        if address.scheme != "http":
            raise _Refused(400, "https goes through a tunnel: ask for it with CONNECT")
        host = f"[{address.host}]" if ":" in str(address.host) else str(address.host)
        reader, writer = await self._connect(host, address.port)
        server = _Wire(h11.Connection(h11.CLIENT, _HEAD), reader, writer)
        try:
            await self._send_request(request, address, server)
            await self._send_response(server, host, address.port)
        except h11.RemoteProtocolError as problem:
            if self._client.http.their_state is h11.ERROR:
                raise
            if self._client.http.our_state is h11.SEND_RESPONSE:
                raise _Refused(502, f"{address.authority} does not answer in HTTP: {problem}") from None
        except (OSError, TimeoutError) as problem:
            if self._client.http.our_state is h11.SEND_RESPONSE:
                raise _Refused(504, f"{address.authority} gave no answer: {problem or 'out of time'}") from None
        finally:
            await hang_up(writer)

    async def _connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            place = await self._gate.admit(host, port)
        except PageProblem as problem:
            raise _Refused(403, str(problem)) from None
        try:
            async with asyncio.timeout(self._timeout):
                return await asyncio.open_connection(*place)
        except (OSError, TimeoutError) as problem:
            raise _Refused(502, f"{host}:{port} cannot be connected to: {problem or 'out of time'}") from None

    async def _send_request(self, request: h11.Request, address: Address, server: _Wire) -> None:
        upgrade = _wants_websocket(request)
        headers: _Headers = [(b"Host", address.authority.encode())]
        headers += [pair for pair in _end_to_end(request) if pair[0].lower() != b"host"]
        if upgrade:
            headers += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
        else:
            headers.append((b"Connection", b"close"))
        if _header(request, b"transfer-encoding"):
            headers.append((b"Transfer-Encoding", b"chunked"))
        await server.send(h11.Request(method=request.method, target=address.target.encode(), headers=headers))
        if self._client.http.they_are_waiting_for_100_continue:
            await self._client.send(h11.InformationalResponse(status_code=100, headers=[]))
        while True:
            event = await self._client.receive(self._timeout)
            if isinstance(event, h11.Data):
                await server.send(event)
            elif isinstance(event, h11.EndOfMessage):
                await server.send(h11.EndOfMessage())
                return
            else:
                raise ConnectionError("the browser has gone")

    async def _send_response(self, server: _Wire, host: str, port: int) -> None:
        length = 0
        while True:
            event = await server.receive(self._timeout)
            if isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    return await self._upgrade(event, server, host, port)
            elif isinstance(event, h11.Response):
                await self._client.send(
                    h11.Response(status_code=event.status_code, headers=_end_to_end(event), reason=event.reason)
                )
            elif isinstance(event, h11.Data):
                length += len(event.data)
                if length > self._gate.limits.bytes:
                    self._gate.note_cut(host, port)
                    return None  # without an end of the message, so that the browser knows
                await self._client.send(event)
            elif isinstance(event, h11.EndOfMessage):
                return await self._client.send(h11.EndOfMessage())
            else:
                raise ConnectionError("the server has gone")

    async def _upgrade(self, answer: h11.InformationalResponse, server: _Wire, host: str, port: int) -> None:
        headers = [*_end_to_end(answer), (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
        await self._client.send(h11.InformationalResponse(status_code=101, headers=headers, reason=answer.reason))
        self._client.writer.write(server.http.trailing_data[0])
        await self._relay(server.reader, server.writer, host, port)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
        """A tunnel: bytes both ways until one side ends."""
        writer.write(self._client.http.trailing_data[0])
        both = {
            asyncio.ensure_future(_copy(self._client.reader, writer)),
            asyncio.ensure_future(self._copy_counted(reader, host, port)),
        }
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def _copy_counted(self, reader: asyncio.StreamReader, host: str, port: int) -> None:
        action, length = self._gate.action, 0
        while data := await reader.read(_CHUNK):
            if self._gate.action is not action:
                action, length = self._gate.action, 0
            length += len(data)
            if length > self._gate.limits.bytes:
                self._gate.note_cut(host, port)
                return
            self._client.writer.write(data)
            await self._client.writer.drain()

    async def _refuse(self, status: int, line: str) -> None:
        """Answers with one line of text. The connection serves on where nothing of the request is left to be read."""
        http = self._client.http
        if http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        with contextlib.suppress(h11.RemoteProtocolError):
            while http.their_state is h11.SEND_BODY and http.next_event() is not h11.NEED_DATA:
                pass
        body = f"{line}\n".encode()
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
        if status == 407:
            headers.append(("Proxy-Authenticate", 'Basic realm="page"'))
        if http.their_state in (h11.SEND_BODY, h11.ERROR):
            headers.append(("Connection", "close"))
        await self._client.send(h11.Response(status_code=status, headers=headers, reason=b""))
        await self._client.send(h11.Data(data=body))
        await self._client.send(h11.EndOfMessage())


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Ends a connection: what is on its way may still arrive, if that takes no time."""
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_FAREWELL):
            return await writer.wait_closed()
    writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()


def _header(message: h11.Request | h11.Response | h11.InformationalResponse, name: bytes) -> bytes:
    return b", ".join(value for key, value in message.headers if key == name)


def _wants_websocket(request: h11.Request) -> bool:
    return b"upgrade" in _header(request, b"connection").lower() and _header(request, b"upgrade").lower() == b"websocket"


def _end_to_end(message: h11.Request | h11.Response | h11.InformationalResponse) -> _Headers:
    """What is meant for the other end, and not for this connection alone; names as they were written."""
    named = _header(message, b"connection").lower().split(b",")
    dropped = _HOP_BY_HOP | {name.strip() for name in named}
    if _header(message, b"transfer-encoding"):
        dropped |= {b"content-length"}  # the chunks tell
    return [(name, value) for name, value in message.headers.raw_items() if name.lower() not in dropped]

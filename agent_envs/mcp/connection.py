"""A session with a server of the Model Context Protocol, for callers that know no event loop.

Each connection has a thread with an event loop of its own, in which the SDK's client lives. Whatever goes wrong on the way
to the server is an ``EnvironmentFault`` that tells what the server said last; what the server makes of a call is the
caller's to judge.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import threading
from collections.abc import AsyncIterator, Coroutine, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agent_envs.exchange import bare
from agent_envs.faults import EnvironmentFault
from agent_envs.mcp.sdk import (
    AsyncClient,
    Client,
    HTTPError,
    MCPError,
    StdioServerParameters,
    Timeout,
    stdio_client,
    streamable_http_client,
    types,
)
from agent_envs.spaces import replace_surrogates

_CLOSE_SECONDS = 15.0  # a server has 2 s to leave by itself and 2 s more once it was told to; the rest is for a busy machine
_GRACE_SECONDS = 10.0  # beyond a call's own limit, before the connection itself is held to be stuck
_PAGES = 100  # of a list of tools, at most
_WORDS = 500  # bytes of what a server said last
_LAST_SECONDS = 0.5  # to hear them, once it has gone

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class ServerAddress:
    """Where a server is, or how it is started: exactly one of ``command`` and ``url``.

    Args:
        command: Starts a server that speaks over its standard input and output.
        url: Of a server that speaks streamable HTTP, such as ``"http://localhost:8000/mcp"``.
        env: For a command: variables beside the few that every server inherits, such as PATH and HOME.
        headers: For a url: sent with each request; never shown.
        timeout: Seconds that opening may take, and each call.

    Raises:
        ValueError: Both or neither of ``command`` and ``url`` are given, or an argument is out of range.
    """

    command: tuple[str, ...] = ()
    url: str = ""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = 30.0

    def __post_init__(self) -> None:
        if bool(self.command) == bool(self.url):
            raise ValueError(
                "a server is named by command=['program', ...] or by url='http://host:8000/mcp', one of them; found "
                f"command={self.command!r}, url={self.url!r}"
            )
        if (self.headers and self.command) or (self.env and self.url):
            raise ValueError("env is for a server that is started by its command, headers are for one that has a url")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"the url of a server is such as 'http://localhost:8000/mcp', found {bare(self.url)!r}")
        if not self.timeout > 0:
            raise ValueError(f"timeout is in seconds, above 0; found {self.timeout!r}")

    def __str__(self) -> str:
        return f"the MCP server at {bare(self.url)}" if self.url else f"the MCP server {shlex.join(self.command)!r}"


class CallTimedOut(Exception):
    """The server took a call and gave no answer in time."""


class Connection:
    """An open session with a server. It belongs to the process that opened it, and serves one caller at a time.

    Args:
        server: The server.

    Attributes:
        tools: The server's tools, in its order.

    Raises:
        EnvironmentFault: It cannot be started or reached, or it does not speak the protocol.
    """

    def __init__(self, server: ServerAddress) -> None:
        self.server = server
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._words = _LastWords()
        self._opened: Future[tuple[Client, list[types.Tool]]] = Future()
        self._thread = threading.Thread(target=self._main, name=f"session with {server}", daemon=True)
        self._thread.start()
        try:
            self._client, self.tools = self._opened.result()
        except EnvironmentFault:
            self.close()
            raise
        except BaseException:  # the caller is interrupted
            self._loop.call_soon_threadsafe(self._stop.set)
            raise

    @property
    def here(self) -> bool:
        """Whether this process has opened it; a forked child has neither the thread nor the server."""
        return self._pid == os.getpid()

    def call(self, name: str, arguments: Mapping[str, Any]) -> types.CallToolResult:
        """Calls a tool.

        Args:
            name: As the server calls it.
            arguments: By name, JSON values.

        Raises:
            CallTimedOut: There was no answer within ``server.timeout`` seconds.
            MCPError: The server refused the call as such: code ``INVALID_PARAMS``.
            EnvironmentFault: The connection is gone, or the answer cannot be read.
        """
        try:
            return self._do(self._client.call_tool(name, _sendable(arguments)))
        except MCPError as problem:
            if problem.code == types.INVALID_PARAMS:
                raise
            raise self._fault(problem, f"{self.server} failed when {name!r} was called") from problem

    def close(self) -> None:
        """Ends the session, and the server if it was started for it. Calling it twice is fine."""
        if not self.here:
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            logger.warning("%s does not end within %g s; it is left behind", self.server, _CLOSE_SECONDS)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        """Has the loop do something, within the server's time limit."""
        limited = self._limited(work)
        try:
            future = asyncio.run_coroutine_threadsafe(limited, self._loop)
        except RuntimeError:  # the loop has ended
            limited.close()
            work.close()
            raise self._fault(CancelledError(), f"the session with {self.server} is over") from None
        try:
            return future.result(self.server.timeout + _GRACE_SECONDS)
        except (CallTimedOut, MCPError):
            raise
        except (Exception, CancelledError) as problem:
            future.cancel()
            raise self._fault(problem, f"the session with {self.server} broke") from problem

    async def _limited(self, work: Coroutine[Any, Any, T]) -> T:
        limit = asyncio.timeout(self.server.timeout)
        try:
            async with limit:
                return await work
        except TimeoutError as problem:
            if limit.expired():
                raise CallTimedOut(f"no answer within {self.server.timeout:g} s") from problem
            raise
        except MCPError as problem:
            if problem.code == types.CONNECTION_CLOSED:
                await self._words.listen()
            raise

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._live())
        except BaseException as problem:
            if self._opened.done():  # whoever calls next is told
                logger.debug("the session with %s ended by itself", self.server, exc_info=True)
            else:
                fault = self._fault(problem, f"{self.server} cannot be opened")
                fault.__cause__ = problem
                self._opened.set_exception(fault)

    async def _live(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            # Not a limit of anyio's: those must end in the order in which they began, and the client's stay open.
            async with asyncio.timeout(self.server.timeout):
                transport = self._http() if self.server.url else self._stdio()
                client = await stack.enter_async_context(Client(transport))
                tools = await _list(client)  # in each session, since the client checks results by what it has listed
            self._opened.set_result((client, tools))
            await self._stop.wait()

    @contextlib.asynccontextmanager
    async def _http(self) -> AsyncIterator[Any]:
        # Reading is limited by each call's own time; a server may keep a stream open for as long as it likes.
        limits = Timeout(self.server.timeout, read=None)
        async with (
            AsyncClient(headers=dict(self.server.headers), timeout=limits) as client,
            streamable_http_client(self.server.url, http_client=client) as streams,
        ):
            yield streams

    @contextlib.asynccontextmanager
    async def _stdio(self) -> AsyncIterator[Any]:
        program, *arguments = self.server.command
        parameters = StdioServerParameters(command=program, args=arguments, env=dict(self.server.env))
        reading, writing = os.pipe()
        listening, _ = await self._loop.connect_read_pipe(lambda: self._words, os.fdopen(reading, "rb", buffering=0))
        try:
            with os.fdopen(writing, "w") as complaints:
                async with stdio_client(parameters, complaints) as streams:
                    complaints.close()  # so that only the server holds it
                    yield streams
        finally:
            await self._words.listen()
            listening.close()

    def _fault(self, problem: BaseException, what: str) -> EnvironmentFault:
        while isinstance(problem, BaseExceptionGroup):
            problem = problem.exceptions[0]
        code = problem.code if isinstance(problem, MCPError) else None
        retryable = code == types.INTERNAL_ERROR or isinstance(problem, HTTPError)
        if code == types.CONNECTION_CLOSED or isinstance(problem, (CancelledError, asyncio.CancelledError)):
            retryable = True
            reason = "it cannot be reached any more" if self.server.url else "it has ended"
        elif isinstance(problem, (TimeoutError, CallTimedOut)):
            retryable = True
            reason = f"no answer within {self.server.timeout:g} s"
        elif isinstance(problem, MCPError):
            reason = f"error {code}: {problem.message}"
        else:
            reason = f"{type(problem).__name__}: {problem}"
        said = f"; it said last: {self._words.text}" if self._words.text else ""
        return EnvironmentFault(f"{what} ({' '.join(reason.split())}){said}", retryable=retryable)


async def _list(client: Client) -> list[types.Tool]:
    """The tools of all pages."""
    tools: list[types.Tool] = []
    cursor = None
    for _ in range(_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            break
    return tools


def _sendable(value: Any) -> Any:
    """JSON without lone surrogates, which a policy can write as escapes and no connection takes."""
    if isinstance(value, str):
        return replace_surrogates(value)
    if isinstance(value, Mapping):
        return {replace_surrogates(name): _sendable(inner) for name, inner in value.items()}
    return list(map(_sendable, value)) if isinstance(value, (list, tuple)) else value


class _LastWords(asyncio.Protocol):
    """The end of what a server writes to its standard error."""

    def __init__(self) -> None:
        self._tail = b""
        self._ended: asyncio.Event | None = None

    @property
    def text(self) -> str:
        """On one line."""
        return " ".join(self._tail.decode("utf-8", "replace").split())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-_WORDS:]

    def connection_lost(self, problem: Exception | None) -> None:
        if self._ended is not None:
            self._ended.set()

    async def listen(self) -> None:
        """Waits until the server has said everything; not for long, since a child of its own may hold its tongue."""
        if self._ended is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _LAST_SECONDS)

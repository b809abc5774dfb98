"""The only way out of a browser: a proxy in this process that lets through what a policy allows.

Chromium is told to send everything through it, so the boundary lies below the browser: redirects, scripts, frames,
WebSockets and whatever a page thinks up arrive here as a request for a host and a port. Each is judged by the page's own
policy, and the connection goes to the address that was judged. Every page has a proxy of its own, with a random password
that other programs on this machine do not know. All proxies of a process run in one thread.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sandboxes import shared
from sandboxes.browser.browser import PageLimits
from sandboxes.browser.exchange import Exchange, hang_up
from sandboxes.browser.gate import Gate
from sandboxes.browser.network_policy import NetworkPolicy
from sandboxes.faults import SandboxFault

Outcome = TypeVar("Outcome")

_CONNECTIONS = 256  # that one browser may hold at the same time
_PATIENCE = 10.0  # seconds that opening or closing a proxy may take


class Proxy:
    """A proxy of one page, listening on this machine.

    Args:
        policy: What may be reached.
        limits: ``timeout`` for each step of a connection; ``bytes`` of a response's body, or of what one tunnel (https,
            WebSocket) brings in one action; ``requests`` in one action. What is over them is cut off.

    Attributes:
        server: Its address, ``"http://127.0.0.1:PORT"``.
        username, password: What ``Proxy-Authorization: Basic`` must hold.

    Raises:
        SandboxFault: It cannot listen.
    """

    def __init__(self, policy: NetworkPolicy, limits: PageLimits) -> None:
        self.username, self.password = "page", secrets.token_urlsafe(24)
        self._lease = shared.acquire("browser proxies", _Owner, linger=True)
        self._gate = Gate(policy, limits, self.username, self.password, self._lease.engine.look_ups)
        self._connections: set[asyncio.Task[None]] = set()
        self._closed = False
        try:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=_CONNECTIONS)
        except OSError as problem:
            self._lease.close()
            raise SandboxFault(f"the browser's proxy cannot listen on 127.0.0.1: {problem}", retryable=True) from problem
        self._listener.setblocking(False)
        self.server = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lease.engine.do(self._begin())

    def denied(self) -> list[str]:
        """Ends an action: the limits of requests and of tunnels count anew.

        Returns:
            What was refused since the last call, as ``host:port``, each once and only so many.
        """
        return self._gate.settle().denied

    def cut(self) -> list[str]:
        """The hosts, as ``host:port``, whose responses were longer than the limit and cut, since the last call."""
        return self._gate.take_cut()

    def close(self) -> None:
        """Stops listening and ends all connections. Calling it twice is fine."""
        if not self._closed:
            self._closed = True
            try:
                if self._lease.engine.alive:  # which it is not in a forked child
                    self._lease.engine.do(self._end())
            finally:
                self._lease.close()

    async def _begin(self) -> None:
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it has gone again, or there are no more descriptors, which may pass
            return
        if len(self._connections) >= _CONNECTIONS:
            connection.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(connection))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            reader, writer = await asyncio.open_connection(sock=connection)
        except BaseException:
            connection.close()
            raise
        try:
            await Exchange(self._gate, reader, writer).serve()
        finally:
            await hang_up(writer)

    async def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        await asyncio.sleep(0)  # every task has begun, and so will clean up
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Owner:
    """The thread that all proxies of a process run in."""

    def __init__(self) -> None:
        self.look_ups = ThreadPoolExecutor(16, thread_name_prefix="browser-proxy-look-up")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="browser-proxy", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def do(self, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        """Does work in that thread and waits for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE)

    def close(self) -> None:
        self.do(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.look_ups.shutdown(wait=False, cancel_futures=True)


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)

"""Servers on this machine: ours, and one that answers as it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sandboxes.search import Index
from sandboxes.search.serve import serving


@contextlib.contextmanager
def served(index: Index) -> Iterator[str]:
    """Our own server with that index behind it; its address without a path."""
    started, address = threading.Event(), []
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        async with serving(index, port=0) as port:
            address.append(f"http://127.0.0.1:{port}")
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(10), "the server did not start"
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


@dataclass
class Scripted:
    """A server whose answers are a function of (path, body of the request).

    Args:
        answer: Gives status, content (JSON, or bytes as they are) and headers. None breaks the connection off.
        asked: Every request so far.
    """

    answer: Callable[[str, Any], tuple[int, Any, dict[str, str]] | None]
    asked: list[tuple[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


@contextlib.contextmanager
def scripted(answer: Callable[[str, Any], tuple[int, Any, dict[str, str]] | None]) -> Iterator[Scripted]:
    script = Scripted(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.reply(json.loads(body))

        def do_GET(self) -> None:
            self.reply(None)

        def reply(self, body: Any) -> None:
            script.asked.append((self.path, body))
            script.headers.append({name.lower(): value for name, value in self.headers.items()})
            given = script.answer(self.path, body)
            if given is None:
                self.close_connection = True
                return
            status, content, headers = given
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    script.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)

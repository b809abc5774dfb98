"""The sessions, and the server on 127.0.0.1 that shows them.

A session is reached by its key alone, which nobody can guess and which no page shows; whoever has none is refused. A request
is bounded in what it may send and how long it may take, and the server says nothing of the time or of itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from agent_envs.tasks.site import pages
from agent_envs.tasks.site.routes import Fields, Reply, act, show
from agent_envs.tasks.site.state import State, initial_state
from agent_envs.tasks.world import World, make_world
from sandboxes.faults import SandboxFault

logger = logging.getLogger(__name__)

COOKIE = "session"
_LONGEST_BODY = 16_384  # bytes of a form
_IDLE = 600.0  # seconds that a connection may say nothing


class UnknownSession(KeyError):
    """There is no session of that key, or none any more."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the message in quotes


@dataclass
class _Session:
    """A world as one visitor sees it. ``lock`` keeps changes apart."""

    world: World
    state: State
    lock: threading.Lock = field(default_factory=threading.Lock)


class SiteServer:
    """The site's server; an engine for `sandboxes.shared`. Safe for threads.

    Example:
        >>> server = SiteServer()
        >>> key = server.open_session(seed=0, world=3)
        >>> sorted(server.state(key))
        ['notes', 'orders', 'reading_list', 'settings']
        >>> server.close()

    Raises:
        SandboxFault: No port of this machine could be taken.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._sessions: dict[str, _Session] = {}
        self._closed = False
        try:
            self._listener = _Listener(self)
        except OSError as problem:
            raise SandboxFault(f"the site could not listen on a port of 127.0.0.1: {problem}", retryable=True) from problem
        self._port = self._listener.server_address[1]
        self.address = f"127.0.0.1:{self._port}"
        self._thread = threading.Thread(target=self._listen, name="site", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it answers."""
        return not self._closed and self._thread.is_alive() and self._pid == os.getpid()

    def open_session(self, seed: int, world: int) -> str:
        """Opens a session in its initial state.

        Args:
            seed: Which universe.
            world: The number of a world in it.

        Returns:
            Its key.

        Raises:
            ValueError: There is no such world.
        """
        shown = make_world(seed, world)
        return self._keep(_Session(shown, initial_state(shown, seed)))

    def fork_session(self, key: str) -> str:
        """Opens a session in the present state of another. Raises `UnknownSession`."""
        session = self._session(key)
        return self._keep(_Session(session.world, session.state))

    def state(self, key: str) -> dict[str, Any]:
        """What a session keeps, as JSON values of the caller's own. Raises `UnknownSession`."""
        return self._session(key).state.as_json()

    def close_session(self, key: str) -> None:
        """Ends a session; its pages are refused from now on. Twice is fine; in a forked child it does nothing."""
        if self._pid == os.getpid():  # in a child another thread's lock may never open
            with self._lock:
                self._sessions.pop(key, None)

    def answer(self, key: str, method: str, path: str, fields: Fields) -> Reply:
        """Answers a request of a session.

        Args:
            key: Of the session; of an unknown one the answer is a refusal.
            method: ``"GET"`` or ``"POST"``.
            path: Percent signs decoded.
            fields: Of the query, or of the form.
        """
        try:
            session = self._session(key)
        except UnknownSession:
            return Reply(pages.plain("No session", "This site shows its pages to those alone who have a session here."), 403)
        with session.lock:
            if method == "GET":
                return show(session.world, session.state, path, fields)
            session.state, reply = act(session.world, session.state, path, fields)
            return reply

    def close(self) -> None:
        """Ends the sessions, the connections and the server. Twice is fine."""
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1):
            pass  # wakes the thread
        self._thread.join(timeout=5)
        self._listener.server_close()

    def _listen(self) -> None:
        while not self._closed:
            self._listener.handle_request()

    def _keep(self, session: _Session) -> str:
        key = secrets.token_urlsafe(32)
        with self._lock:
            self._sessions[key] = session
        return key

    def _session(self, key: str) -> _Session:
        if self._pid != os.getpid():
            raise UnknownSession("the session belongs to the process that this one was forked from: open another")
        with self._lock:
            if self._closed or key not in self._sessions:
                raise UnknownSession("there is no session of that key: open one, and use it before it is closed")
            return self._sessions[key]


class _Listener(ThreadingHTTPServer):
    """A thread for each connection; closing ends them all."""

    request_queue_size = 256
    daemon_threads = True

    def __init__(self, site: SiteServer) -> None:
        self.site = site
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a connection ended badly", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """Reads a request, has the site answer it, writes the answer in one piece."""

    protocol_version = "HTTP/1.1"
    timeout = _IDLE
    wbufsize = 65_536
    disable_nagle_algorithm = True
    server: _Listener

    def do_GET(self) -> None:
        self._answer("GET", urlsplit(self.path).query)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        kind = self.headers.get_content_type()
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit()):
            self._refuse(411, "Length required", "A form comes with its length in bytes.")
        elif len(length) > 9 or int(length) > _LONGEST_BODY:
            self._refuse(413, "Too long", f"A form has at most {_LONGEST_BODY} bytes.")
        elif kind != "application/x-www-form-urlencoded":
            self._refuse(415, "Unknown form", "A form comes as application/x-www-form-urlencoded.")
        else:
            self._answer("POST", self.rfile.read(int(length)).decode("ascii", "replace"))

    def _answer(self, method: str, fields: str) -> None:
        try:
            read = dict(parse_qsl(fields, keep_blank_values=True, errors="replace", max_num_fields=50))
        except ValueError:
            return self._refuse(400, "Not understood", "A query or form has at most 50 fields.")
        path = unquote(urlsplit(self.path).path or "/", errors="replace")
        self._write(self.server.site.answer(self._key(), method, path, read))

    def _refuse(self, status: int, title: str, message: str) -> None:
        self.close_connection = True
        self._write(Reply(pages.plain(title, message), status))

    def _write(self, reply: Reply) -> None:
        body = reply.page.encode()
        self.send_response_only(reply.status)
        if reply.location:
            self.send_header("Location", reply.location)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _key(self) -> str:
        for cookie in self.headers.get("Cookie", "").split(";"):
            name, _, value = cookie.partition("=")
            if name.strip() == COOKIE:
                return value.strip()
        return ""

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)

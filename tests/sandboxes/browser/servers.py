"""Small servers on this machine: sites with given answers, and servers that talk as they like."""

from __future__ import annotations

import contextlib
import http.server
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Asked:
    """A request that arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What a site answers; text is HTML."""

    body: str | bytes = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Asked], Answer]


class Site:
    """A site: answers by path (without query); 404 for the others. ``asked`` is what has arrived."""

    def __init__(self, answers: Mapping[str, Answer | Handler]) -> None:
        self.answers = answers
        self.asked: list[Asked] = []
        self.port = 0

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.place}"


@contextlib.contextmanager
def site(answers: Mapping[str, Answer | Handler | str]) -> Iterator[Site]:
    made = Site({path: Answer(answer) if isinstance(answer, str) else answer for path, answer in answers.items()})

    class Serve(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            asked = Asked(self.command, self.path, dict(self.headers.items()), self.rfile.read(length))
            made.asked.append(asked)
            found = made.answers.get(self.path.partition("?")[0], Answer("not here", 404))
            found = found if isinstance(found, Answer) else found(asked)
            body = found.body.encode() if isinstance(found.body, str) else found.body
            headers = {"Content-Type": "text/html; charset=utf-8", "Content-Length": str(len(body)), **found.headers}
            with contextlib.suppress(OSError):  # whoever asked may have heard enough
                self.send_response(found.status)
                for name, value in headers.items():
                    for each in value.split("\n"):
                        self.send_header(name, each)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

        do_GET = do_POST = do_HEAD = answer

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Serve)
    server.daemon_threads = True
    made.port = server.server_address[1]
    with _running(server):
        yield made


@contextlib.contextmanager
def talker(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that does as it likes with each connection; yields its ``host:port``."""

    class Talk(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                talk(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    server = Server(("127.0.0.1", 0), Talk)
    with _running(server):
        yield f"127.0.0.1:{server.server_address[1]}"


@contextlib.contextmanager
def _running(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()

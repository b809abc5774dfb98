"""A small server that speaks Elasticsearch's protocol: one index in memory, and whatever trouble a test wants.

Answers have the shapes of a real one (8.19). A passage is found by the words that it shares with a query, and scores as
many.
"""

from __future__ import annotations

import contextlib
import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Reply = tuple[int, Any]
Trouble = Callable[[str, list[Any]], "Reply | None"]
"""Gets an endpoint, such as ``"_msearch"``, and the lines of the body; gives an answer of its own, or None for the usual."""

BUSY: Reply = (
    429,
    {
        "error": {
            "root_cause": [{"type": "circuit_breaking_exception", "reason": "[parent] Data too large"}],
            "type": "circuit_breaking_exception",
            "reason": "[parent] Data too large, data for [<http_request>] would be larger than the limit",
        },
        "status": 429,
    },
)
NOT_READY: Reply = (
    503,
    {"error": {"root_cause": [], "type": "search_phase_execution_exception", "reason": "all shards failed"}, "status": 503},
)
REJECTED = {"type": "es_rejected_execution_exception", "reason": "rejected execution of primary operation"}


class TinyElasticsearch:
    """The server's state.

    Attributes:
        version: What it calls itself.
        product: The header by which the official client knows Elasticsearch; None for none.
        troubles: What is asked before each answer, in order.
        requests: The endpoint of every request so far, with the number of lines in its body.
        documents: The index; None where there is none.
        cut: Endpoints whose next request is carried out, and its connection cut before the answer.
    """

    def __init__(self) -> None:
        self.version = "8.19.0"
        self.product: str | None = "Elasticsearch"
        self.troubles: list[Trouble] = []
        self.requests: list[tuple[str, int]] = []
        self.documents: dict[str, dict[str, str]] | None = None
        self.description: dict[str, Any] = {}
        self.cut: set[str] = set()
        self.lock = threading.Lock()
        self.port = 0

    @property
    def where(self) -> str:
        return f"elasticsearch://127.0.0.1:{self.port}/wiki"

    def count(self, endpoint: str) -> int:
        """How many requests there were of a kind."""
        return sum(name == endpoint for name, _ in self.requests)

    def answer(self, method: str, path: str, lines: list[Any]) -> Reply:
        """Carries a request out."""
        endpoint = path.rstrip("/").rpartition("/")[2]
        with self.lock:
            self.requests.append((endpoint, len(lines)))
        for trouble in self.troubles:
            if reply := trouble(endpoint, lines):
                return reply
        with self.lock:
            return self._answer(method, endpoint, lines)

    def _answer(self, method: str, endpoint: str, lines: list[Any]) -> Reply:
        if endpoint == "":
            return 200, {"name": "tiny", "version": {"number": self.version}, "tagline": "You Know, for Search"}
        if method == "PUT" and endpoint == "wiki":
            self.documents, (self.description,) = {}, lines
            return 200, {"acknowledged": True, "index": "wiki"}
        if self.documents is None:
            error = {"type": "index_not_found_exception", "reason": "no such index [wiki]", "index": "wiki"}
            return 404, {"error": {"root_cause": [error], **error}, "status": 404}
        if endpoint == "wiki":
            return 200, {"wiki": _as_told(self.description)}
        if endpoint == "_mapping":
            self.description["mappings"]["_meta"] = lines[0]["_meta"]
        if endpoint in ("_mapping", "_settings", "_refresh", "_forcemerge"):
            return 200, {"acknowledged": True}
        if endpoint == "_count":
            return 200, {"count": len(self.documents)}
        if endpoint == "_bulk":
            return 200, {"items": [{"create": self._create(*pair)} for pair in zip(lines[::2], lines[1::2], strict=True)]}
        if endpoint == "_mget":
            found = ((id, self.documents.get(id)) for id in lines[0]["ids"])
            return 200, {"docs": [{"_id": id, "found": doc is not None, "_source": doc} for id, doc in found]}
        if endpoint == "_msearch":
            return 200, {"took": 1, "responses": [self._search(body) for body in lines[1::2]]}
        return 400, {
            "error": {"type": "illegal_argument_exception", "reason": f"unknown endpoint {endpoint}"},
            "status": 400,
        }

    def _create(self, action: Any, document: dict[str, str]) -> dict[str, Any]:
        assert self.documents is not None
        id = action["create"]["_id"]
        if id in self.documents:
            return {
                "status": 409,
                "error": {"type": "version_conflict_engine_exception", "reason": f"[{id}]: version conflict"},
            }
        self.documents[id] = document
        return {"status": 201}

    def _search(self, body: dict[str, Any]) -> dict[str, Any]:
        assert self.documents is not None
        words = set(json.dumps(body["query"]).replace('"', " ").split())
        scored = [
            (-float(len(words & set(f"{doc['title']} {doc['text']}".split()))), id, doc)
            for id, doc in self.documents.items()
        ]
        hits = [
            {"_index": "wiki", "_id": id, "_score": -score, "_source": doc, "sort": [-score, id]}
            for score, id, doc in sorted(scored, key=lambda one: one[:2])
            if score
        ]
        return {"took": 1, "timed_out": False, "hits": {"max_score": None, "hits": hits[: body["size"]]}, "status": 200}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    server: _HTTPServer

    def _handle(self) -> None:
        tiny = self.server.tiny
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        lines = [json.loads(line) for line in body.splitlines() if line]
        path = urlsplit(self.path).path
        status, reply = tiny.answer(self.command, path, lines)
        if path.rpartition("/")[2] in tiny.cut:
            tiny.cut.discard(path.rpartition("/")[2])
            self.close_connection = True
            return
        text = isinstance(reply, str)
        encoded = reply.encode() if text else json.dumps(reply).encode()
        self.send_response(status)
        if tiny.product:
            self.send_header("X-Elastic-Product", tiny.product)
        self.send_header("Content-Type", "text/html" if text else "application/vnd.elasticsearch+json;compatible-with=8")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(encoded)

    do_GET = do_POST = do_PUT = do_HEAD = _handle  # the names that http.server calls

    def log_message(self, *args: Any) -> None:
        """Requests are not worth a line."""


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    tiny: TinyElasticsearch


@contextlib.contextmanager
def tiny_elasticsearch(certificate: tuple[str, str] | None = None) -> Iterator[TinyElasticsearch]:
    """A running server; with TLS if there are the files of a certificate and its key."""
    tiny = TinyElasticsearch()
    with _HTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.tiny = tiny
        tiny.port = server.server_address[1]
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield tiny
        finally:
            server.shutdown()
            thread.join()


def once(endpoint: str, reply: Reply, times: int = 1) -> Trouble:
    """Trouble at the next requests of an endpoint."""
    left = [times]

    def trouble(found: str, lines: list[Any]) -> Reply | None:
        if found != endpoint or not left[0]:
            return None
        left[0] -= 1
        return reply

    return trouble


def _as_told(description: dict[str, Any]) -> dict[str, Any]:
    """How a server tells a description: the values of settings as strings."""
    settings = re.sub(r"(?<=: )([0-9.]+)(?=[,}])", r'"\1"', json.dumps(description["settings"]))
    return {"aliases": {}, "mappings": description["mappings"], "settings": json.loads(settings)}

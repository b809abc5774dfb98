"""Passages in Elasticsearch: an index that many processes and machines share.

    load("elasticsearch://localhost:9200/wiki", passages)
    index = open_elasticsearch("elasticsearch://localhost:9200/wiki", Connection("elastic", password))

The official client of the server's major version, 8 or 9, speaks to it. What threads want at the same time goes into one
request; what the server is too busy for is tried again within the time that a call may take, and what is then still wrong is
a ``SandboxFault`` of one line. How an index is made up stands in `sandboxes.search.elastic.form`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
from collections.abc import Generator, Sequence
from concurrent.futures import CancelledError, Future
from time import monotonic
from types import ModuleType
from typing import Any, TypeVar

import elasticsearch

from sandboxes.faults import SandboxFault
from sandboxes.search.elastic import form
from sandboxes.search.elastic.connection import Connection, read_address
from sandboxes.search.elastic.loading import LoadReport, load
from sandboxes.search.elastic.merging import Merger
from sandboxes.search.elastic.server import PassingFault, Server, pauses
from sandboxes.search.index import Index, Passage, UnknownPassage

__all__ = ["Connection", "ElasticsearchIndex", "LoadReport", "load", "open_elasticsearch"]

SEARCHES_A_REQUEST = 64
PASSAGES_A_REQUEST = 256
REQUESTS_IN_FLIGHT = 2

Question = TypeVar("Question")
Answer = TypeVar("Answer")
_Wait = tuple[Sequence["Future[Any]"], float]
_Steps = Generator[_Wait, None, list[Answer]]


def open_elasticsearch(
    where: str,
    connection: Connection = Connection(),  # noqa: B008 - frozen
    *,
    title_boost: float = 0.2,
    client: ModuleType = elasticsearch,
) -> Index:
    """Opens an index that `load` has made.

    Args:
        where: Such as ``elasticsearch://localhost:9200/wiki``, or ``elasticsearch+https://`` for TLS; a ``user:password@``
            may stand before the host.
        connection: How to talk to the server.
        title_boost: What a match in the title counts beside one in title and text together; 0 for not at all.
        client: The client's module.

    Returns:
        The index.

    Raises:
        ValueError: ``where`` is no such address, or ``title_boost`` is negative.
        SandboxFault: The server cannot be reached or refuses, its major version is not the client's, or there is no such
            index, or one of another form, or one whose loading never ended.
    """
    if not title_boost >= 0:
        raise ValueError(f"title_boost must be 0 or above, found {title_boost!r}")
    address, connection = read_address(where, connection)
    server = Server(address, connection, client)
    try:
        version = server.check_version(connection.timeout)
        found = server.request(lambda client: client.indices.get(index=address.index), connection.timeout)
        if not form.check(found, address):
            raise SandboxFault(
                f"index {address.index!r} at {address.url} is being loaded, or its loading was cut off: load it again "
                "to go on"
            )
    except BaseException:
        server.close()
        raise
    return ElasticsearchIndex(server, version, title_boost)


class ElasticsearchIndex(Index):
    """An open index. A forked child may go on using it, with connections of its own.

    Args:
        server: Where it is; closed with the index.
        version: The server's, for people.
        title_boost: As of `open_elasticsearch`.
    """

    def __init__(self, server: Server, version: str, title_boost: float) -> None:
        self._server = server
        self._version = version
        self._title_boost = title_boost
        self._closed = False
        self._mergers: dict[int, _Mergers] = {}  # by process id

    def search(self, queries: Sequence[str], k: int = 3) -> list[list[Passage]]:
        """As `Index.search` says. A query is read up to 500 words, and ``k`` up to 10,000."""
        return _run(self._search(queries, k))

    async def search_async(self, queries: Sequence[str], k: int = 3) -> list[list[Passage]]:
        """As `Index.search_async` says; no thread waits meanwhile."""
        return await _run_async(self._search(queries, k))

    def get(self, id: str) -> Passage:
        """As `Index.get` says."""
        unknown = UnknownPassage(f"there is no passage {id!r} in index {self._server.address.index!r}")
        if form.unsendable(id):
            raise unknown
        (passage,) = _run(self._ask(self._here().passages, [id]))
        if passage is None:
            raise unknown
        return passage

    def __len__(self) -> int:
        self._here()
        index = self._server.address.index
        return int(self._server.insist(lambda client: client.count(index=index), self._server.connection.timeout)["count"])

    def describe(self) -> str:
        """As `Index.describe` says."""
        address = self._server.address
        name = f"Elasticsearch {self._version}".rstrip()
        return (
            f"{name} at {address.url}, index {address.index}: {len(self)} passages, BM25 with k1 {form.K1} and b {form.B}, "
            f"title boost {self._title_boost:g}"
        )

    def close(self) -> None:
        """As `Index.close` says; waits for the end of requests that are under way."""
        self._closed = True
        mergers = self._mergers.pop(os.getpid(), None)
        if mergers is not None:
            mergers.close()
        self._server.close()

    def _here(self) -> _Mergers:
        """This process's mergers, which have a lock and threads that a forked child must not inherit."""
        if self._closed:
            raise SandboxFault("the index is closed: open it again")
        mergers = self._mergers.get(os.getpid())
        return mergers or self._mergers.setdefault(os.getpid(), _Mergers(self._server))

    def _search(self, queries: Sequence[str], k: int) -> _Steps[list[Passage]]:
        if k < 1:
            raise ValueError(f"k must be at least 1, found {k!r}")
        return self._ask(self._here().searches, [form.query(text, k, self._title_boost) for text in queries])

    def _ask(self, merger: Merger[Question, Answer], questions: Sequence[Question]) -> _Steps[Answer]:
        """Asks until every question is answered or the time is up. Yields what to wait for, and how long at most."""
        seconds = self._server.connection.timeout
        end = monotonic() + seconds
        answers: dict[int, Answer] = {}
        for pause in pauses():
            asked = [number for number in range(len(questions)) if number not in answers]
            futures = merger.ask([questions[number] for number in asked], end)
            try:
                yield futures, end - monotonic()
                fault: PassingFault | None = None
                for number, future in zip(asked, futures, strict=True):
                    try:
                        answers[number] = future.result(timeout=0)
                    except (TimeoutError, CancelledError):
                        raise PassingFault(
                            f"Elasticsearch at {self._server.address.url} did not answer within {seconds:g} s: it is too "
                            "busy, or needs a longer timeout"
                        ) from None
                    except PassingFault as problem:
                        fault = problem
            finally:
                for future in futures:
                    future.cancel()
            if fault is None:
                break
            if monotonic() + pause >= end:
                raise fault
            yield [Future()], pause  # nothing ever answers this one
        return [answers[number] for number in range(len(questions))]


class _Mergers:
    """The merged requests of one process."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.searches: Merger[dict[str, Any], list[Passage]] = Merger(self._msearch, SEARCHES_A_REQUEST, REQUESTS_IN_FLIGHT)
        self.passages: Merger[str, Passage | None] = Merger(self._mget, PASSAGES_A_REQUEST, REQUESTS_IN_FLIGHT)

    def close(self) -> None:
        self.searches.close()
        self.passages.close()

    def _msearch(self, bodies: list[dict[str, Any]], seconds: float) -> list[list[Passage] | SandboxFault]:
        header = {"allow_partial_search_results": False}
        searches = [line for body in bodies for line in (header, body)]
        index = self._server.address.index
        reply = self._server.request(lambda client: client.msearch(index=index, searches=searches), seconds)
        return [self._hits(part) for part in reply["responses"]]

    def _hits(self, part: dict[str, Any]) -> list[Passage] | SandboxFault:
        if "error" in part:
            return self._server.fault(part.get("status", 500), part["error"])
        return [form.passage_of(hit["_source"], hit["sort"][0]) for hit in part["hits"]["hits"]]

    def _mget(self, ids: list[str], seconds: float) -> list[Passage | SandboxFault | None]:
        index = self._server.address.index
        reply = self._server.request(lambda client: client.mget(index=index, ids=ids), seconds)
        return [self._document(part) for part in reply["docs"]]

    def _document(self, part: dict[str, Any]) -> Passage | SandboxFault | None:
        if "error" in part:
            status = 404 if part["error"].get("type") == "index_not_found_exception" else 503
            return self._server.fault(status, part["error"])
        return form.passage_of(part["_source"]) if part.get("found") else None


def _run(steps: _Steps[Answer]) -> list[Answer]:
    """Takes the steps in this thread."""
    while True:
        try:
            futures, seconds = next(steps)
        except StopIteration as end:
            answers: list[Answer] = end.value
            return answers
        concurrent.futures.wait(futures, max(seconds, 0))


async def _run_async(steps: _Steps[Answer]) -> list[Answer]:
    """Takes the steps in this task."""
    with contextlib.closing(steps):
        while True:
            try:
                futures, seconds = next(steps)
            except StopIteration as end:
                answers: list[Answer] = end.value
                return answers
            wrapped = [asyncio.wrap_future(future) for future in futures]
            try:
                if wrapped:
                    await asyncio.wait(wrapped, timeout=max(seconds, 0))
            finally:
                for one in wrapped:  # asyncio complains of exceptions that nobody looks at
                    _ = one.cancel() or one.cancelled() or one.exception()

"""Serving an index over HTTP, in the format of Search-R1's ``/retrieve``, so that other processes and frameworks can use it.

    POST /retrieve {"queries": ["..."], "topk": 3, "return_scores": true}     (or "query": one text)
    {"result": [[{"document": {"id", "title", "text", "contents"}, "score": 12.3}, ...]]}

Without ``return_scores`` a hit is its document alone. ``GET /passage?id=`` gives one passage and ``GET /health`` says what
is served. A request that cannot be understood is answered 400, an index that is out of reach 503, each with one line under
``detail``.

Requests that arrive while the index is being searched go into its next search, all together; one that arrives while it is
idle is searched at once. So there is nothing to tune, and a crowd of clients makes batches larger instead of queues longer.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from sandboxes.faults import SandboxFault
from sandboxes.search.index import Index, Passage, UnknownPassage

DEFAULT_TOPK = 3
LARGEST_TOPK = 10_000
LARGEST_BODY = 64 * 1024**2
"""Bytes of a request."""

LARGEST_BATCH = 512
"""Queries of one search, if no single request has more: whoever comes next need not wait for longer than that takes."""

_BATCHER: web.AppKey[Batcher] = web.AppKey("batcher")
_INDEX: web.AppKey[Index] = web.AppKey("index")
_THREADS: web.AppKey[ThreadPoolExecutor] = web.AppKey("threads")


class BadRequest(ValueError):
    """A request is not what the format says."""


@dataclass(frozen=True)
class _Asked:
    """One request's queries, and where the answer goes."""

    queries: list[str]
    k: int
    answer: asyncio.Future[list[list[Passage]]]


class Batcher:
    """Gives an index the queries of many requests at a time. Belongs to one event loop.

    Args:
        index: What is searched.
        threads: Where that happens; one thread of it at a time.
    """

    def __init__(self, index: Index, threads: ThreadPoolExecutor) -> None:
        self._index = index
        self._threads = threads
        self._waiting: deque[_Asked] = deque()
        self._working: asyncio.Task[None] | None = None

    async def search(self, queries: list[str], k: int) -> list[list[Passage]]:
        """As `Index.search`, together with whoever else waits for the index."""
        asked = _Asked(queries, k, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await asked.answer

    async def _work(self) -> None:
        while self._waiting:
            batch = self._take()
            by_k: dict[int, list[_Asked]] = {}
            for asked in batch:
                by_k.setdefault(asked.k, []).append(asked)
            for k, group in by_k.items():
                await self._search_together(group, k)

    def _take(self) -> list[_Asked]:
        batch, queries = list[_Asked](), 0
        while self._waiting and (not batch or queries + len(self._waiting[0].queries) <= LARGEST_BATCH):
            asked = self._waiting.popleft()
            if not asked.answer.done():  # its client has gone
                batch.append(asked)
                queries += len(asked.queries)
        return batch

    async def _search_together(self, group: list[_Asked], k: int) -> None:
        queries = [query for asked in group for query in asked.queries]
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, self._index.search, queries, k)
        except Exception as problem:
            for asked in group:
                if not asked.answer.done():
                    asked.answer.set_exception(problem)
            return
        results = iter(found)
        for asked in group:
            answer = [next(results) for _ in asked.queries]
            if not asked.answer.done():
                asked.answer.set_result(answer)


@asynccontextmanager
async def serving(index: Index, host: str = "127.0.0.1", port: int = 8000) -> AsyncIterator[int]:
    """Serves an index for as long as the context lasts. The index is the caller's to close.

    Args:
        index: What is served.
        host: The address to listen on; this machine's own by default, which others cannot reach.
        port: 0 for any that is free.

    Returns:
        The port.

    Raises:
        SandboxFault: The address cannot be listened on.
    """
    with ThreadPoolExecutor(2, "search") as threads:  # one searches, one looks up passages
        app = web.Application(client_max_size=LARGEST_BODY, middlewares=[_answer_problems])
        app[_INDEX], app[_THREADS], app[_BATCHER] = index, threads, Batcher(index, threads)
        app.add_routes([web.post("/retrieve", _retrieve), web.get("/passage", _passage), web.get("/health", _health)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port, backlog=1024)
            try:
                await site.start()
            except OSError as problem:
                raise SandboxFault(
                    f"cannot listen on {host}, port {port}: {problem.strerror}: choose another port"
                ) from problem
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()


def read_request(body: Any) -> tuple[list[str], int, bool]:
    """What a request asks for.

    Args:
        body: The JSON of a request.

    Returns:
        Queries, how many passages for each, and whether with scores.

    Raises:
        BadRequest: It is not what the format says.

    Example:
        >>> read_request({"query": "rivers", "topk": None})
        (['rivers'], 3, False)
    """
    if not isinstance(body, Mapping):
        raise BadRequest(f"expected a JSON object such as {{'queries': ['...']}}, found {_short(body)}")
    if ("queries" in body) == ("query" in body):
        raise BadRequest(f"expected 'queries', a list of texts, or 'query', one text; found {', '.join(body) or 'neither'}")
    name = "queries" if "queries" in body else "query"
    queries = body[name]
    if name == "query" and isinstance(queries, str):
        queries = [queries]
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise BadRequest(f"{name!r} must be {'a list of texts' if name == 'queries' else 'a text'}, found {_short(queries)}")
    topk = body.get("topk")
    topk = DEFAULT_TOPK if topk is None else topk
    if isinstance(topk, bool) or not isinstance(topk, int) or not 1 <= topk <= LARGEST_TOPK:
        raise BadRequest(
            f"'topk' must be a whole number from 1 to {LARGEST_TOPK}, or null for {DEFAULT_TOPK}, found {_short(topk)}"
        )
    with_scores = body.get("return_scores", False)
    if not isinstance(with_scores, bool):
        raise BadRequest(f"'return_scores' must be true or false, found {_short(with_scores)}")
    return queries, topk, with_scores


@web.middleware
async def _answer_problems(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
        return response
    except BadRequest as problem:
        return _reply({"detail": str(problem)}, status=400)
    except UnknownPassage as problem:
        return _reply({"detail": str(problem)}, status=404)
    except SandboxFault as problem:
        return _reply({"detail": str(problem)}, status=503 if problem.retryable else 500)


async def _retrieve(request: web.Request) -> web.Response:
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError) as problem:
        raise BadRequest(f"expected JSON, found {_short((await request.read())[:40])} ({problem})") from None
    queries, k, with_scores = read_request(body)
    found = await request.app[_BATCHER].search(queries, k) if queries else []
    if with_scores:
        result: Any = [[{"document": _document(hit), "score": hit.score} for hit in hits] for hits in found]
    else:
        result = [[_document(hit) for hit in hits] for hits in found]
    return _reply({"result": result})


async def _passage(request: web.Request) -> web.Response:
    id = request.query.get("id")
    if id is None:
        raise BadRequest("expected the passage's id, as in /passage?id=7")
    index, threads = request.app[_INDEX], request.app[_THREADS]
    return _reply(_document(await asyncio.get_running_loop().run_in_executor(threads, index.get, id)))


async def _health(request: web.Request) -> web.Response:
    index = request.app[_INDEX]

    def look() -> dict[str, Any]:
        return {"status": "ok", "index": index.describe(), "passages": len(index)}

    return _reply(await asyncio.get_running_loop().run_in_executor(request.app[_THREADS], look))


def _document(passage: Passage) -> dict[str, str]:
    return {"id": passage.id, "title": passage.title, "text": passage.text, "contents": passage.contents}


def _reply(content: Any, status: int = 200) -> web.Response:
    # ASCII with escapes, so that even a lone surrogate in a passage can be sent.
    return web.Response(text=json.dumps(content), status=status, content_type="application/json")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

"""An index behind a server that speaks the ``/retrieve`` of Search-R1, which many frameworks have copied.

    POST /retrieve {"queries": ["..."], "topk": 3, "return_scores": true}
    {"result": [[{"document": {"id": "7", "contents": "\\"Title\\"\\ntext"}, "score": 12.3}, ...]]}

Scores are always asked for, since the original server mixes up its results without them. Servers differ in what a document
holds: ``contents`` alone, ``title`` and ``text`` beside it, an id or none; all of that is read. That format has no way to
ask for a passage by its id: `RemoteIndex.get` knows those that its searches have found, and asks ``GET /passage?id=`` where
the server has it, as ``python -m sandboxes.search serve`` does.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit, urlunsplit

import urllib3

from sandboxes.faults import SandboxFault
from sandboxes.search.index import Index, Passage, UnknownPassage, check_search

REMEMBERED = 10_000
"""How many of the passages that were found `RemoteIndex.get` knows: the latest ones."""

_FIRST_WAIT, _LONGEST_WAIT = 0.1, 2.0  # seconds between two tries; doubled each time
_RETRY = frozenset({429, 502, 503, 504})
_CONNECTIONS = 32  # that are kept open; more callers than that open others for the while


class RemoteIndex(Index):
    """A search index that another process serves. For the process that made it: `open_index` opens one a process.

    Args:
        url: Of the server, with or without its path ``/retrieve``; ``user:password@`` before the host logs in there.
        timeout: Seconds that a call may take, all tries together.

    Raises:
        ValueError: It is no http or https address, or ``timeout`` is not above 0.
        SandboxFault: Nothing answers there.
    """

    def __init__(self, url: str, timeout: float = 30.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                "the address of a search server is such as 'http://host:8000/retrieve', found "
                f"{re.sub('//.*@', '//***@', url)!r}"
            )
        if not timeout > 0:
            raise ValueError(f"timeout is in seconds, above 0; found {timeout!r}")
        path = parts.path.rstrip("/") or "/retrieve"
        login, _, host = parts.netloc.rpartition("@")
        self._url = urlunsplit((parts.scheme, host, path, parts.query, ""))
        self._beside = urlunsplit((parts.scheme, host, path.rpartition("/")[0], "", ""))
        self._login = urllib3.make_headers(basic_auth=unquote(login)) if login else {}
        self._timeout = timeout
        # Tries are ours to count, since they share one limit.
        self._pool: urllib3.PoolManager | None = urllib3.PoolManager(maxsize=_CONNECTIONS, retries=False)
        # asyncio's own threads are few, and here they only wait.
        self._threads = ThreadPoolExecutor(_CONNECTIONS, "search")
        self._seen: OrderedDict[str, Passage] = OrderedDict()
        self._seen_lock = threading.Lock()
        try:
            health = self._health()
        except SandboxFault:
            self.close()
            raise
        self._has_passages = "passages" in health

    def search(self, queries: Sequence[str], k: int = 3) -> list[list[Passage]]:
        check_search(queries, k)
        self._open()
        found: list[list[Passage]] = [[] for _ in queries]
        # Servers take no lone surrogates, and some fail where there is nothing to look for.
        asked = {number: _sendable(query) for number, query in enumerate(queries) if query.strip()}
        if not asked:
            return found
        body = json.dumps({"queries": list(asked.values()), "topk": k, "return_scores": True})
        reply = self._request("POST", self._url, body)
        if reply.status != 200:
            raise self._refused(reply)
        for number, passages in zip(asked, self._read(reply, len(asked)), strict=True):
            found[number] = passages[:k]
        self._remember(passage for passages in found for passage in passages)
        return found

    async def search_async(self, queries: Sequence[str], k: int = 3) -> list[list[Passage]]:
        self._open()
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.search, queries, k)

    def get(self, id: str) -> Passage:
        self._open()
        with self._seen_lock:
            passage = self._seen.get(id)
        if passage is not None:
            return passage
        if not self._has_passages:
            raise UnknownPassage(
                f"no search of this client has found a passage {id!r}, and {self._url} gives passages by search only"
            )
        reply = self._request("GET", f"{self._beside}/passage?{urlencode({'id': id}, errors='replace')}")
        if reply.status == 404:
            raise UnknownPassage(f"there is no passage {id!r} at {self._url}")
        if reply.status != 200:
            raise self._refused(reply)
        try:
            passage = _passage(reply.json(), 0.0)
        except (ValueError, TypeError, KeyError) as problem:
            raise self._misunderstood(problem) from problem
        self._remember([passage])
        return passage

    def __len__(self) -> int:
        count = self._health().get("passages")
        if not isinstance(count, int):
            raise SandboxFault(f"the search server at {self._url} does not say how many passages it has")
        return count

    def describe(self) -> str:
        try:
            health = self._health()
        except SandboxFault as problem:
            return f"remote index: {problem}"
        what = health.get("index", "a server that does not say what it serves")
        return f"remote index at {self._url}: {what}"

    def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.clear()
            self._threads.shutdown(wait=False)

    def _open(self) -> urllib3.PoolManager:
        if self._pool is None:
            raise SandboxFault(f"this client of the search server at {self._url} is closed: open it again")
        return self._pool

    def _health(self) -> dict[str, Any]:
        """What the server says about itself; nothing where it is not one of ours."""
        reply = self._request("GET", f"{self._beside}/health")
        if reply.status != 200:
            return {}
        try:
            health = reply.json()
        except ValueError:
            return {}
        return health if isinstance(health, dict) else {}

    def _request(self, method: str, url: str, body: str | None = None) -> urllib3.BaseHTTPResponse:
        """Asks until there is an answer that more tries would not change, or the time is up."""
        pool, deadline, wait = self._open(), time.monotonic() + self._timeout, _FIRST_WAIT
        headers = {**self._login, "Content-Type": "application/json"} if body is not None else self._login
        while True:
            left = max(deadline - time.monotonic(), 0.001)
            limits = urllib3.Timeout(connect=left, total=left)
            pause, problem = wait, ""
            try:
                reply = pool.request(method, url, body=body, headers=headers, timeout=limits, redirect=False)
            except urllib3.exceptions.HTTPError as error:
                problem = _plain(error)
            else:
                if reply.status not in _RETRY:
                    return reply
                problem = f"it answers {reply.status} {reply.reason}: {_excerpt(reply)}"
                pause = max(wait, _retry_after(reply))
            if time.monotonic() + pause >= deadline:
                raise SandboxFault(
                    f"no answer from the search server at {self._url} within {self._timeout:g} s ({problem}): see that it "
                    "runs and can be reached from here",
                    retryable=True,
                )
            time.sleep(pause)
            wait = min(2 * wait, _LONGEST_WAIT)

    def _read(self, reply: urllib3.BaseHTTPResponse, count: int) -> list[list[Passage]]:
        try:
            results = reply.json()["result"]
            if len(results) != count:
                raise ValueError(f"{count} queries, {len(results)} results")
            return [_ranked(result) for result in results]
        except (ValueError, TypeError, KeyError) as problem:
            raise self._misunderstood(problem) from problem

    def _remember(self, passages: Any) -> None:
        with self._seen_lock:
            for passage in passages:
                self._seen[passage.id] = Passage(passage.id, passage.title, passage.text)
                self._seen.move_to_end(passage.id)
            while len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)

    def _refused(self, reply: urllib3.BaseHTTPResponse) -> SandboxFault:
        hint = "; is the path right? Servers of Search-R1's format have /retrieve" if reply.status == 404 else ""
        return SandboxFault(
            f"the search server at {self._url} answers {reply.status} {reply.reason}: {_excerpt(reply)}{hint}",
            retryable=reply.status >= 500,
        )

    def _misunderstood(self, problem: Exception) -> SandboxFault:
        return SandboxFault(
            f"{self._url} does not answer as a /retrieve server does ({type(problem).__name__}: {problem}): expected "
            '{"result": [[{"document": {"contents": ...}, "score": ...}]]} with one list for each query'
        )


def _ranked(result: list[Any]) -> list[Passage]:
    """The hits of one query as the contract wants them; without scores, the server's order gives 1, 1/2, 1/3..."""
    passages = []
    for rank, hit in enumerate(result, 1):
        if isinstance(hit, dict) and "document" in hit:
            passages.append(_passage(hit["document"], float(hit["score"]) if "score" in hit else 1 / rank))
        else:
            passages.append(_passage(hit, 1 / rank))
    return sorted((passage for passage in passages if passage.score != 0), key=lambda hit: (-hit.score, hit.id))


def _passage(document: Any, score: float) -> Passage:
    if isinstance(document, str):
        document = {"contents": document}
    if "text" in document and "title" in document:
        passage = Passage("", str(document["title"]), str(document["text"]), score)
    else:
        passage = Passage.from_contents("", str(document["contents"] if "contents" in document else document["text"]), score)
    if document.get("id") is not None:
        id = str(document["id"])
    else:  # the content names it, so that the same passage has the same id again
        id = hashlib.blake2b(passage.contents.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return Passage(id, passage.title, passage.text, score)


def _sendable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _retry_after(reply: urllib3.BaseHTTPResponse) -> float:
    value = reply.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0


def _excerpt(reply: urllib3.BaseHTTPResponse) -> str:
    return " ".join(reply.data[:1_000].decode("utf-8", "replace").split())[:200] or "(nothing more)"


def _plain(error: Exception) -> str:
    """What went wrong, without the objects that urllib3 names first."""
    reason = getattr(error, "reason", None)
    return str(reason if isinstance(reason, Exception) else error).rpartition(": ")[2]

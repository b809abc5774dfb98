"""The connection to an inference server: requests, the events that they stream, patience, and the end.

It lives on an event loop of its own, in a thread, so that a sampler can be used from one event loop after another and can
ask the server where nothing can be awaited. What events hold is for `learners.sampling.server` to know.

A request that was refused for now (429, 502, 503, 504), or whose connection broke before a token came, is sent again after a
pause that doubles. Whatever else goes wrong is a `SamplerFault` at once: once tokens have come, asking again would be
another sample. Closing a connection is how a request is aborted, so none is used twice.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import logging
import random
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import aiohttp

from learners.sampling.sampler import SamplerFault

T = TypeVar("T")

logger = logging.getLogger(__name__)

KEY = "OPENAI_API_KEY"
"""The environment variable with the key of a server, where it wants one."""

_RETRY = frozenset({429, 502, 503, 504})
_LONGEST_PAUSE = 16.0  # seconds before a request is sent again, however long the server asks for
_CONNECT_SECONDS = 30.0
_LOG_EVERY = 10.0  # seconds between two warnings that requests are sent again: hundreds may be at once


class _Again(Exception):
    """The request did not work this time. ``wait`` are the seconds that the server asked for, if it did."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class ServerConnection:
    """One server, until `close`.

    Args:
        address: Of the API, without a slash at its end, such as ``http://localhost:8000/v1``.
        key: Sent as a bearer token; "" for none.
        concurrency: Requests at one time; further ones wait for their turn.
        patience: Seconds without a word from the server after which a request is given up. A request that waits for others
            on the server hears nothing meanwhile.
        retries: How often a request is sent again.
        pause: Seconds before it is sent again for the first time.
    """

    def __init__(
        self, address: str, key: str, *, concurrency: int, patience: float = 600.0, retries: int = 6, pause: float = 0.5
    ) -> None:
        self.address = address
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._concurrency, self._patience, self._retries, self._pause = concurrency, patience, retries, pause
        self._jitter = random.Random(0)  # of pauses alone: those who were refused together are not to come back together
        self._logged = float("-inf")
        self._sessions: list[aiohttp.ClientSession] = []  # what the finaliser closes; it must not hold on to this object
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="inference server", daemon=True)
        thread.start()
        self._end = weakref.finalize(self, _shut_down, self._loop, thread, self._sessions)
        self._call(self._open())

    def get(self, path: str) -> Any:
        """What the server has at a path below its address, without any patience.

        Raises:
            SamplerFault: It has nothing there, or cannot be reached.
        """
        return self._call(self._get(path))

    def ask(self, path: str, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """All events of a request.

        Raises:
            SamplerFault: It did not come to its end.
        """
        events: list[dict[str, Any]] = []

        def take(event: dict[str, Any]) -> bool:
            events.append(event)
            return False

        self._call(self._serve(path, body, take))
        return events

    def request(
        self,
        path: str,
        body: Mapping[str, Any],
        take: Callable[[dict[str, Any]], bool],
        fail: Callable[[Exception], object],
    ) -> concurrent.futures.Future[None]:
        """Posts a request whose answer comes in events.

        Args:
            path: Below the server's address.
            body: Of the request.
            take: Called in the connection's thread with each event; says whether there was a token in it.
            fail: Called there with what kept the request from its end.

        Returns:
            Cancelling it closes the connection, by which the server knows that nobody waits any more.
        """
        return asyncio.run_coroutine_threadsafe(self._answer(path, body, take, fail), self._loop)

    def close(self) -> None:
        """Ends the requests that are under way, and the thread. Twice is fine."""
        self._end()

    def _call(self, job: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(job, self._loop).result()

    async def _open(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=self._patience)
        connector = aiohttp.TCPConnector(limit=self._concurrency, force_close=True)
        self._sessions.append(aiohttp.ClientSession(headers=self._headers, timeout=timeout, connector=connector))

    async def _get(self, path: str) -> Any:
        try:
            async with self._sessions[0].get(f"{self.address}{path}", allow_redirects=False) as response:
                if response.status != 200:
                    raise SamplerFault(await self._refusal(response))
                return await response.json(content_type=None)
        except aiohttp.ClientError as problem:
            raise SamplerFault(f"{self.address} cannot be reached: {_plain(problem)}") from problem
        except TimeoutError as problem:
            raise SamplerFault(f"{self.address} does not answer: {_plain(problem)}") from problem
        except ValueError as problem:
            raise SamplerFault(f"{self.address}{path} is no JSON: is this an OpenAI-compatible server?") from problem

    async def _answer(
        self,
        path: str,
        body: Mapping[str, Any],
        take: Callable[[dict[str, Any]], bool],
        fail: Callable[[Exception], object],
    ) -> None:
        try:
            await self._serve(path, body, take)
        except Exception as problem:
            fail(problem)

    async def _serve(self, path: str, body: Mapping[str, Any], take: Callable[[dict[str, Any]], bool]) -> None:
        sent, begun, pause = 0, False, self._pause
        while True:
            try:
                async with aclosing(self._events(path, body)) as events:
                    async for event in events:
                        begun |= take(event)
                return
            except _Again as problem:
                sent += 1
                if begun:
                    raise SamplerFault(f"{self.address} broke off in the middle of an action: {problem}") from problem
                if sent > self._retries:
                    raise SamplerFault(f"{self.address} did not answer a request sent {sent} times: {problem}") from problem
                wait = max(problem.wait, pause * self._jitter.uniform(0.5, 1.0))
                self._tell_of(problem)
            await asyncio.sleep(min(wait, _LONGEST_PAUSE))
            pause *= 2

    def _tell_of(self, problem: _Again) -> None:
        now = time.monotonic()
        if now - self._logged >= _LOG_EVERY:
            self._logged = now
            logger.warning("%s: %s; requests are sent again, up to %d times", self.address, problem, self._retries)

    async def _events(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of one attempt, up to the one that says that there are no more."""
        try:
            async with self._sessions[0].post(f"{self.address}{path}", json=body, allow_redirects=False) as response:
                if response.status in _RETRY:
                    asked_for = response.headers.get("Retry-After", "")
                    raise _Again(await self._refusal(response), float(asked_for) if asked_for.isdecimal() else 0.0)
                if response.status != 200:
                    raise SamplerFault(await self._refusal(response))
                async with aclosing(_data(response.content)) as received:
                    async for data in received:
                        if data == b"[DONE]":
                            return
                        yield self._read(data)
                raise _Again("the connection was closed")
        except TimeoutError as problem:
            told = f"{_plain(problem)}; {self._patience:g} s may pass between two words"
            raise SamplerFault(f"{self.address} does not answer: {told}") from problem
        except aiohttp.ClientError as problem:
            raise _Again(_plain(problem)) from problem

    def _read(self, data: bytes) -> dict[str, Any]:
        try:
            event = json.loads(data)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise SamplerFault(f"{self.address} sent an event that is no JSON object: {_excerpt(data)}")
        if error := event.get("error"):
            told = error.get("message", error) if isinstance(error, dict) else error
            if isinstance(error, dict) and error.get("code") in _RETRY:
                raise _Again(f"it answers: {told}")
            raise SamplerFault(f"{self.address} answers: {told}")
        return event

    async def _refusal(self, response: aiohttp.ClientResponse) -> str:
        """What a response says that is no answer, in a line."""
        told = f"{self.address} answers {response.status} {response.reason}"
        if response.status in (401, 403):
            wrong = "does not take the key in" if self._headers else "wants a key: put it into"
            return f"{told}; it {wrong} the environment variable {KEY}"
        if 300 <= response.status < 400:
            return f"{told}, to go to {response.headers.get('Location', 'nowhere')}: give that address, if you trust it"
        hint = "; an address ends before /completions, mostly in /v1" if response.status == 404 else ""
        return f"{told}: {_excerpt(await response.content.read(2000))}{hint}"


async def _data(content: aiohttp.StreamReader) -> AsyncGenerator[bytes, None]:
    """The data of server-sent events; comments, which keep a connection awake, are left out."""
    buffer, lines = b"", []
    async for received in content.iter_any():
        *complete, buffer = (buffer + received).split(b"\n")
        for line in (one.rstrip(b"\r") for one in complete):
            if line.startswith(b"data:"):
                lines.append(line[5:].removeprefix(b" "))
            elif not line and lines:
                yield b"\n".join(lines)
                lines = []


def _excerpt(content: bytes) -> str:
    """A server's words in a line: the message of an OpenAI-compatible error, or what there is."""
    text = content.decode("utf-8", "replace")
    try:
        error = json.loads(text).get("error")
        text = error["message"] if isinstance(error, dict) else error if isinstance(error, str) else text
    except (ValueError, AttributeError, KeyError):
        pass
    return " ".join(str(text).split())[:300] or "(nothing more)"


def _plain(problem: Exception) -> str:
    return " ".join(str(problem).split()) or type(problem).__name__


def _shut_down(loop: asyncio.AbstractEventLoop, thread: threading.Thread, sessions: list[aiohttp.ClientSession]) -> None:
    """Ends a connection's requests, its loop and its thread."""
    if threading.current_thread() is thread:  # the last reference was a request's
        threading.Thread(target=_shut_down, args=(loop, thread, sessions), name="inference server end").start()
        return

    async def last() -> None:
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        while sessions:
            await sessions.pop().close()

    asyncio.run_coroutine_threadsafe(last(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()

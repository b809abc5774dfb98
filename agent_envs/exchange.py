"""One service behind HTTP: a request goes out, with patience and a time limit, and a reply comes back.

What the reply means is the caller's (`agent_envs.tools.http`). All services of a process share its open connections.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.exceptions import ConnectTimeoutError, HTTPError, InvalidHeader, NewConnectionError, ReadTimeoutError

from agent_envs.faults import EnvironmentFault
from sandboxes import shared

_IDEMPOTENT = frozenset({"GET", "PUT", "DELETE"})
_REDIRECTS = 3
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 4.0  # seconds before a request is repeated; doubled each time
_HOSTS, _CONNECTIONS = 16, 64  # kept open; more callers than that open others for the while


class TooSlow(Exception):
    """The service was reached, and did not finish its answer in time."""


@dataclass(frozen=True)
class Reply:
    """What a service answered.

    Args:
        status: Of HTTP.
        headers: By name, whatever its case.
        body: As it came, without compression.
        cut: Whether the body went on beyond what may be read.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    cut: bool

    @property
    def excerpt(self) -> str:
        """The beginning of the body, on one line."""
        return " ".join(self.body[:400].decode("utf-8", "replace").split())[:200] or "nothing more"


class _Connections:
    """The open connections of a process."""

    alive = True

    def __init__(self) -> None:
        # Tries are counted here, since they share one time limit; so are redirects, since few of them are followed.
        self.manager = urllib3.PoolManager(num_pools=_HOSTS, maxsize=_CONNECTIONS, retries=False)

    def close(self) -> None:
        self.manager.clear()


class _Failed(Exception):
    """A request came to nothing this time. ``wait`` are the seconds that the service asked for, if it did."""

    def __init__(self, message: str, again: bool, wait: float | None = None) -> None:
        super().__init__(message)
        self.again = again
        self.wait = wait


class Exchange:
    """What makes the requests of one caller to one service; a copy or a forked process opens connections of its own.

    Args:
        service: What messages call it.
        method: Of HTTP.
        headers: Sent with each request.
        timeout: Seconds that an answer may take, repeated requests and the pauses between included.
        retries: How often a request is repeated at most.
        max_bytes: Of a reply's body.
        final: Statuses that another try would not change, whatever they usually mean.
        harmless: Whether doing a thing twice is the same as doing it once, even where the method does not say so.
    """

    def __init__(
        self,
        service: str,
        method: str,
        headers: Mapping[str, str],
        timeout: float,
        retries: int,
        max_bytes: int,
        final: Collection[int],
        harmless: bool,
    ) -> None:
        self.service = service
        self.method = method
        self.headers = {"Accept": "application/json, text/*;q=0.9", **headers}
        self.timeout = timeout
        self.retries = retries
        self.max_bytes = max_bytes
        self.final = frozenset(final)
        self.harmless = harmless or method in _IDEMPOTENT
        self._lease: tuple[int, shared.Lease[_Connections]] | None = None

    def ask(self, url: str, body: bytes | None) -> Reply:
        """Asks until there is a reply that another try would not change, or the tries or the time are used up.

        Args:
            url: Complete and quoted.
            body: JSON, or None for a request without a body.

        Raises:
            TooSlow: The service was reached, and the time is up.
            EnvironmentFault: It was not, it broke, or it sends on to another place.
        """
        deadline, pause = time.monotonic() + self.timeout, _FIRST_PAUSE
        # Jitter, so that those who were refused together do not come back together; the same for the same request.
        jitter = random.Random(url.encode() + (body or b""))
        tried = 0
        while True:
            try:
                return self._follow(url, body, deadline)
            except _Failed as problem:
                wait = pause * jitter.uniform(0.5, 1.0) if problem.wait is None else problem.wait
                if not problem.again or tried == self.retries or time.monotonic() + wait >= deadline:
                    raise EnvironmentFault(
                        f"{self.service} gives no answer ({problem}): see that it runs and can be reached from here",
                        retryable=True,
                    ) from problem
            time.sleep(wait)
            tried, pause = tried + 1, min(2 * pause, _LONGEST_PAUSE)

    def close(self) -> None:
        """Gives back the share in the process's connections. Calling it twice is fine; `ask` opens again."""
        lease, self._lease = self._lease, None
        if lease is not None:
            lease[1].close()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_lease": None}

    def _follow(self, url: str, body: bytes | None, deadline: float) -> Reply:
        method = self.method
        for _ in range(_REDIRECTS + 1):
            reply = self._once(method, url, body, deadline)
            where = reply.headers.get("Location")
            if reply.status not in (301, 302, 303, 307, 308) or where is None:
                return reply
            there = urljoin(url, where)
            if _origin(there) != _origin(url):
                raise EnvironmentFault(
                    f"{self.service} sends on to {bare(there)}, on another host: give that address if it is the right one"
                )
            if reply.status == 303:
                method, body = "GET", None
            elif reply.status in (301, 302) and method != "GET":
                raise EnvironmentFault(
                    f"{self.service} sends on to {bare(there)} with status {reply.status}, by which a {method} would become "
                    "another request: give that address"
                )
            url = there
        raise EnvironmentFault(f"{self.service} sends on more than {_REDIRECTS} times: give the last address")

    def _once(self, method: str, url: str, body: bytes | None, deadline: float) -> Reply:
        left = max(deadline - time.monotonic(), 0.001)
        headers = self.headers if body is None else {**self.headers, "Content-Type": "application/json"}
        try:
            response = self._open().request(
                method,
                url,
                body=body,
                headers=headers,
                timeout=urllib3.Timeout(connect=left, total=left),
                redirect=False,
                preload_content=False,
            )
            try:
                content, cut = _read(response, self.max_bytes, deadline)
            finally:
                response.close()
        except (NewConnectionError, ConnectTimeoutError) as error:
            raise _Failed(_short(error), again=True) from error
        except ReadTimeoutError as error:
            raise TooSlow from error
        except HTTPError as error:  # it may have been done before the connection was lost
            raise _Failed(_short(error), again=self.harmless) from error
        reply = Reply(response.status, response.headers, content, cut)
        if (reply.status == 429 or reply.status >= 500) and reply.status not in self.final:
            again = self.harmless or reply.status == 429
            raise _Failed(f"status {reply.status}: {reply.excerpt}", again, retry_after(response))
        return reply

    def _open(self) -> urllib3.PoolManager:
        pid = os.getpid()
        if self._lease is None or self._lease[0] != pid:
            self._lease = (pid, shared.acquire("agent_envs.exchange", _Connections))
        return self._lease[1].engine.manager


def bare(url: str) -> str:
    """An address without what may be secret in it: login, query and fragment."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _read(response: urllib3.BaseHTTPResponse, limit: int, deadline: float) -> tuple[bytes, bool]:
    """The body up to ``limit`` bytes, and whether there was more; a service that sends a byte now and then is too slow."""
    content = bytearray()
    while piece := response.read1(1 << 16):
        content += piece
        if len(content) > limit:
            return bytes(content[:limit]), True
        if time.monotonic() > deadline:
            raise TooSlow
    return bytes(content), False


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _short(error: Exception) -> str:
    """What went wrong, without the objects that urllib3 names first."""
    return str(error).rpartition(": ")[2] or type(error).__name__


def retry_after(response: urllib3.BaseHTTPResponse) -> float | None:
    """The seconds that a service asks to be left alone for, if it says so."""
    try:
        value = response.headers.get("Retry-After")
        return None if value is None else urllib3.Retry().parse_retry_after(value)
    except InvalidHeader:
        return None

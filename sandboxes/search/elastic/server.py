"""One server through the official client, whose many errors become one clear line each.

The client's module is an argument wherever it matters, since its major version must be the server's.
"""

from __future__ import annotations

import logging
import os
import random
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import elastic_transport

from sandboxes.faults import SandboxFault
from sandboxes.search.elastic.connection import Address, Connection

logger = logging.getLogger(__name__)

SUPPORTED_MAJORS = (8, 9)
CONNECTIONS = 16
"""Kept open to a server at most; whoever needs another one waits."""

_PASSING = frozenset({408, 429, 502, 503, 504})
_ACCEPTED_MAJORS = re.compile(r"Accept version must be either version (\d+)")
_Call = Callable[[Any], Any]


class PassingFault(SandboxFault):
    """What may be over in a moment: the server is too busy, is just starting, or has cut the connection."""

    def __init__(self, message: str, retryable: bool = True) -> None:
        super().__init__(message, retryable)


class RequestTooLarge(SandboxFault):
    """The server, or what stands before it, takes no request of this size."""


class Server:
    """A server and an index on it. Nothing is opened before the first request, and a forked child opens its own.

    Args:
        address: Where it is.
        connection: How to talk to it.
        module: The client: ``elasticsearch``, or another major version of it.
    """

    def __init__(self, address: Address, connection: Connection, module: ModuleType) -> None:
        self.address = address
        self.connection = connection
        self._module = module
        self._accepted = False  # whether it has let us in
        self._clients: dict[int, Any] = {}  # by process id: a socket must not be shared with a forked child

    def request(self, call: _Call, seconds: float) -> Any:
        """Asks once.

        Args:
            call: Gets the client.
            seconds: That the server may take.

        Returns:
            What ``call`` does.

        Raises:
            PassingFault: It is too busy, does not answer in time, or cannot be reached.
            RequestTooLarge: As it says.
            SandboxFault: Anything else that it refuses; one line that says what to do.
        """
        try:
            answer = call(self._client().options(request_timeout=max(seconds, 0.001)))
            self._accepted = True
            return answer
        except self._module.UnsupportedProductError as problem:
            raise SandboxFault(
                f"what answers at {self.address.url} is not Elasticsearch, which the official client insists on: "
                "give the address of an Elasticsearch server"
            ) from problem
        except self._module.ApiError as problem:
            raise self.fault(problem.status_code, problem.body) from problem
        except elastic_transport.ConnectionTimeout as problem:
            raise PassingFault(f"Elasticsearch at {self.address.url} did not answer within {seconds:.3g} s") from problem
        except elastic_transport.TlsError as problem:
            raise SandboxFault(
                f"no TLS connection to {self.address.url} ({_innermost(problem)}): give the file of its certificate "
                "authority as ca_certs, or use elasticsearch:// if the server speaks plain HTTP"
            ) from problem
        except elastic_transport.ConnectionError as problem:
            raise PassingFault(
                f"Elasticsearch at {self.address.url} cannot be reached ({_innermost(problem)}): start it, or correct the "
                "address; elasticsearch+https:// if it speaks TLS"
            ) from problem
        except elastic_transport.SerializationError as problem:
            raise SandboxFault(
                f"what answers at {self.address.url} does not answer as Elasticsearch does: correct the address"
            ) from problem

    def insist(self, call: _Call, seconds: float) -> Any:
        """Asks, and again after a pause while the fault is a passing one, for so many seconds in all."""
        end = time.monotonic() + seconds
        for pause in pauses():
            try:
                return self.request(call, end - time.monotonic())
            except PassingFault:
                if time.monotonic() + pause >= end:
                    raise
                time.sleep(pause)
        raise AssertionError("there is always another pause")

    def check_version(self, seconds: float) -> str:
        """The server's version, which the client's must fit.

        Returns:
            Such as ``"8.19.1"``; "" where the user may use the index but not ask for the version.

        Raises:
            SandboxFault: The server is of another major version than the client, or cannot be asked.
        """
        try:
            version: str = self.request(lambda client: client.info(), seconds)["version"]["number"]
        except _Forbidden as refusal:
            logger.info("the version of Elasticsearch at %s stays unknown: %s", self.address.url, refusal)
            return ""
        major = int(version.partition(".")[0])
        if major != self._module.__version__[0]:
            raise self._wrong_major(version, major)
        return version

    def fault(self, status: int, body: Any) -> SandboxFault:
        """What an answer with an error says, for a whole request or a part of one.

        Args:
            status: HTTP's.
            body: The answer, or its ``error``.
        """
        error = body.get("error", body) if isinstance(body, Mapping) else body
        kind = error.get("type", "") if isinstance(error, Mapping) else ""
        reason = reason_of(error)
        url, index = self.address.url, self.address.index
        if status in _PASSING:
            return PassingFault(f"Elasticsearch at {url} is too busy or not ready ({status}: {reason}): try again later")
        if status == 401 and self._accepted:  # a starting server knows nobody until it has read its users
            return PassingFault(
                f"Elasticsearch at {url} refuses {self.connection.who}, whom it let in before ({_short(reason)}): it is "
                "starting, or the password or API key has changed"
            )
        if status == 401:
            return SandboxFault(
                f"Elasticsearch at {url} refuses {self.connection.who} ({_short(reason)}): check user and "
                "password, or the API key"
            )
        if status == 403:
            return _Forbidden(f"Elasticsearch at {url} does not allow {self.connection.who} to do this: {reason}")
        if status == 413:
            return RequestTooLarge(f"Elasticsearch at {url} takes no request of this size (413: {_short(reason)})")
        if kind == "media_type_header_exception":
            accepted = _ACCEPTED_MAJORS.search(str(error))
            return self._wrong_major(accepted[1] if accepted else "of another major version", accepted and int(accepted[1]))
        if kind == "index_not_found_exception":
            return SandboxFault(
                f"there is no index {index!r} at {url}: load it with python -m sandboxes.search index --corpus FILE "
                f"--to {self.address}"
            )
        hint = "; is that an Elasticsearch server?" if status == 404 else ""
        return SandboxFault(f"Elasticsearch at {url} refuses the request ({status}: {reason}){hint}", status >= 500)

    def close(self) -> None:
        """Closes this process's connections."""
        client = self._clients.pop(os.getpid(), None)
        if client is not None:
            client.close()

    def _client(self) -> Any:
        client = self._clients.get(os.getpid())
        # Of two threads that make one at the same time the first wins; the other's has not opened anything.
        return client or self._clients.setdefault(os.getpid(), self._new_client())

    def _new_client(self) -> Any:
        options: dict[str, Any] = {"max_retries": 0, "connections_per_node": CONNECTIONS}  # `insist` does it, within a limit
        connection = self.connection
        if connection.api_key:
            options["api_key"] = connection.api_key
        elif connection.user:
            options["basic_auth"] = (connection.user, connection.password)
        if self.address.url.startswith("https:"):
            options["verify_certs"] = connection.verify_certs
            if connection.ca_certs is not None:
                options["ca_certs"] = _checked(connection.ca_certs)
        return self._module.Elasticsearch(self.address.url, **options)

    def _wrong_major(self, version: str, major: int | None) -> SandboxFault:
        ours = f"the installed client is {'.'.join(map(str, self._module.__version__))}"
        if major is not None and major not in SUPPORTED_MAJORS:
            majors = " and ".join(map(str, SUPPORTED_MAJORS))
            return SandboxFault(
                f"Elasticsearch at {self.address.url} is {version}; supported are {majors}: use such a server"
            )
        wanted = (
            f"'elasticsearch>={major},<{major + 1}'" if major else "the elasticsearch package of the server's major version"
        )
        return SandboxFault(f"Elasticsearch at {self.address.url} is {version} and {ours}: pip install {wanted}")


class _Forbidden(SandboxFault):
    """The user is known, and may not do this."""


def _checked(ca_certs: str) -> str:
    """The file, if it can be used; the client would take one that cannot for a server that cannot be reached."""
    try:
        ssl.create_default_context(cafile=ca_certs)
    except OSError as problem:
        raise SandboxFault(f"ca_certs {ca_certs!r} cannot be used ({problem}): give a PEM file of certificates") from problem
    return ca_certs


def pauses(first: float = 0.05, longest: float = 2.0) -> Iterator[float]:
    """Seconds to wait before each new try: twice as long each time, and a random part less, so that many callers spread."""
    spread = random.Random()
    pause = first
    while True:
        yield pause * spread.uniform(0.5, 1.0)
        pause = min(2 * pause, longest)


def reason_of(error: Any) -> str:
    """The innermost cause that an error's body names, in one line."""
    if not isinstance(error, Mapping):
        return _short(str(error or "no reason given"))
    while isinstance(error.get("caused_by"), Mapping):
        error = error["caused_by"]
    causes = error.get("root_cause") or error.get("failed_shards") or [{}]
    reason = error.get("reason") or causes[0].get("reason") or error.get("type") or "no reason given"
    return _short(reason_of(reason) if isinstance(reason, Mapping) else str(reason))


def _innermost(problem: elastic_transport.TransportError) -> str:
    """The system's own words, which the client wraps several times."""
    error: BaseException = problem
    while isinstance(error, elastic_transport.TransportError) and error.errors:
        error = error.errors[0]
    return _short(str(error.__cause__ or error.__context__ or error))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:297] + "..."

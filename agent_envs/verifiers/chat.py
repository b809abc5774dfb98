"""Asking a language model over HTTP: any server that speaks OpenAI's chat completions, with patience and a time limit.

vLLM, SGLang, llama.cpp, Ollama and the commercial services all do. What is asked, and what a reply means, is the caller's.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Mapping
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError

from agent_envs.exchange import retry_after
from agent_envs.faults import EnvironmentFault

_CONNECT_SECONDS = 10.0
_REPLY_BYTES = 1 << 20
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0  # seconds before a request is repeated
_BUSY = frozenset({408, 425, 429})  # as is everything from 500 on: the same request may well work later


class NoReply(ValueError):
    """The server answered, but not with a message; says what was found."""


class _Unavailable(Exception):
    """The request did not work this time. ``wait`` are the seconds that the server asked for, if it did."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class ChatServer:
    """One server, for any number of threads.

    Args:
        url: Of the API, such as ``http://localhost:8000/v1``.
        api_key_env: Name of the environment variable that holds the key; "" for none.
        timeout: Seconds that one question may take, from its turn on, repeated requests and the waits between included.
        concurrency: Requests at one time; further ones wait for their turn.

    Raises:
        ValueError: ``url`` is no address of an API.
    """

    def __init__(self, url: str, api_key_env: str, timeout: float, concurrency: int) -> None:
        self.address = completions_address(url)
        self.api_key_env = api_key_env
        self.timeout = timeout
        self._turns = threading.BoundedSemaphore(concurrency)
        self._connections = urllib3.PoolManager(num_pools=1, maxsize=concurrency)

    def ask(self, body: Mapping[str, Any]) -> str:
        """Posts a request and waits for the text of the first choice.

        Too many requests, errors of the server and broken connections are met by asking again, after what the server says
        or else after waits that double.

        Raises:
            NoReply: What came back is no message with text.
            EnvironmentFault: The server refused, or did not answer in time.
        """
        data = json.dumps(body).encode("ascii")
        jitter = random.Random(data)  # so that those who were refused together do not come back together
        headers = self._headers()
        pause = _FIRST_PAUSE
        with self._turns:
            deadline = time.monotonic() + self.timeout
            while True:
                try:
                    return self._post(data, headers, deadline)
                except _Unavailable as problem:
                    wait = pause * jitter.uniform(0.5, 1.0) if problem.wait is None else problem.wait
                    if time.monotonic() + wait >= deadline:
                        raise EnvironmentFault(
                            f"{self.address} gave no answer within {self.timeout:g} s ({problem}): see that the server runs "
                            "and is not overloaded, or give it more time",
                            "verifier",
                            retryable=True,
                        ) from problem
                time.sleep(wait)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def close(self) -> None:
        """Closes the idle connections. Calling it twice is fine."""
        self._connections.clear()

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.api_key_env:
            key = os.environ.get(self.api_key_env, "").strip()
            if not key or not key.isascii() or not key.isprintable():
                found = "characters that no key has" if key else "nothing"
                raise EnvironmentFault(
                    f"expected the key of {self.address} in the environment variable {self.api_key_env}, found {found}: "
                    "set it before the training starts",
                    "verifier",
                )
            headers["Authorization"] = f"Bearer {key}"
        return headers

    def _post(self, data: bytes, headers: Mapping[str, str], deadline: float) -> str:
        left = max(0.01, deadline - time.monotonic())
        timeout = urllib3.Timeout(connect=min(_CONNECT_SECONDS, left), read=left)
        try:
            response = self._connections.request(
                "POST",
                self.address,
                body=data,
                headers=headers,
                timeout=timeout,
                retries=False,
                redirect=False,
                preload_content=False,
            )
            try:
                content = _read(response, deadline)
            finally:
                response.close()
        except HTTPError as error:
            raise _Unavailable(" ".join(str(error).split())) from error
        if response.status == 200:
            return _message(content)
        found = f"status {response.status}: {' '.join(content[:400].decode(errors='replace').split())[:200]!r}"
        if response.status in _BUSY or response.status >= 500:
            raise _Unavailable(found, retry_after(response))
        raise EnvironmentFault(
            f"{self.address} refused the request ({found}): see that the address, the model's name, the key and the options "
            "are right",
            "verifier",
        )


def completions_address(url: str) -> str:
    """The address of an API's chat completions.

    Raises:
        ValueError: It is no plain http or https address.

    Example:
        >>> completions_address("http://localhost:8000/v1/")
        'http://localhost:8000/v1/chat/completions'
    """
    try:
        parts = urllib3.util.parse_url(url)
    except LocationParseError:
        parts = urllib3.util.Url()
    if parts.scheme not in ("http", "https") or not parts.host or parts.auth or parts.query or parts.fragment:
        raise ValueError(f"url is the address of an API, such as 'http://localhost:8000/v1', found {url!r}")
    url = url.strip().rstrip("/")
    return url if url.endswith("/chat/completions") else url + "/chat/completions"


def _read(response: urllib3.BaseHTTPResponse, deadline: float) -> bytes:
    """The body. A server that sends a byte now and then is cut off too."""
    content = b""
    while piece := response.read1(1 << 16):
        content += piece
        if len(content) > _REPLY_BYTES:
            raise NoReply(f"more than {_REPLY_BYTES} bytes")
        if time.monotonic() > deadline:
            raise _Unavailable("it was still sending")
    return content


def _message(content: bytes) -> str:
    found = repr(content[:200].decode(errors="replace"))
    try:
        choice = json.loads(content)["choices"][0]
        text = choice["message"]["content"]
        found = f"no text, finish_reason {choice.get('finish_reason')!r}"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise NoReply(found)
    return text

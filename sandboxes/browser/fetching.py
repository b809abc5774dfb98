"""Fetching over HTTP for the reader: one request at a time, within a time that counts for all of it.

Connections go to the address that the policy has judged, so a name cannot point elsewhere in between; a certificate is
checked for the name. h11 reads the messages. Sockets are read in here, and not by a larger HTTP library, because the time
that is left must bound every single read: a server that sends a byte a second gets no more of it than a silent one.
"""

from __future__ import annotations

import email.message
import http.cookiejar
import socket
import ssl
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import h11

from sandboxes.browser.addresses import Address, join, read_address
from sandboxes.browser.browser import Cookie, PageLimits, PageProblem
from sandboxes.browser.network_policy import NetworkPolicy

_HEAD = 65_536  # bytes of a response's head
_CHUNK = 65_536
_COOKIES = 50  # of a page
_COOKIE = 4_096  # characters of one, with its attributes
_AGENT = "Mozilla/5.0 (compatible; agent-envs reader)"
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Args:
        address: Of whom.
        method: ``"GET"`` or ``"POST"``.
        body: Of a POST, urlencoded.
        referrer: The page that it comes from, where there is one.
    """

    address: Address
    method: str = "GET"
    body: bytes = b""
    referrer: Address | None = None


@dataclass(frozen=True)
class Response:
    """What came back.

    Args:
        address: Where it came from, after redirects.
        status: The last response's, such as 200.
        headers: By name in lower case; of several the first.
        body: Unpacked; empty where ``wanted`` did not want it.
        cut: Whether the body was longer than the limit.
        hops: How many redirects led here.
    """

    address: Address
    status: int
    headers: dict[str, str]
    body: bytes
    cut: bool
    hops: int


class Web:
    """What one page sees of the network, with its cookies.

    Args:
        policy, limits: Of the page.
        tls: Makes the settings of https connections.
        cookies: What it starts with.

    Raises:
        PageProblem: A cookie is for no address.
    """

    def __init__(
        self, policy: NetworkPolicy, limits: PageLimits, tls: Callable[[], ssl.SSLContext], cookies: Sequence[Cookie]
    ) -> None:
        self._policy = policy
        self._limits = limits
        self._tls = tls
        self._jar = http.cookiejar.CookieJar()
        for cookie in cookies:
            self._jar.set_cookie(_jar_cookie(cookie))

    def fetch(self, request: Request, wanted: Callable[[dict[str, str]], bool], deadline: float, hops: int) -> Response:
        """Sends a request and follows where it leads; the policy judges each step.

        Args:
            request: What to ask for.
            wanted: Whether a response with these headers has a body worth reading.
            deadline: Of ``time.monotonic()``.
            hops: How many redirects may be followed.

        Raises:
            PageProblem: It is denied, late, no HTTP, in an unknown encoding, or redirected too often.
        """
        for hop in range(hops + 1):
            response = self._once(request, wanted, deadline, hop)
            target = response.headers.get("location", "")
            if response.status not in (301, 302, 303, 307, 308) or not target:
                return response
            request = self._redirected(request, response, target)
        raise PageProblem(f"{request.address.origin} redirects again and again: given up after {hops} times")

    def _redirected(self, request: Request, response: Response, target: str) -> Request:
        url = join(response.address, target)
        self._policy.check_url(url)
        if url == "about:blank":
            raise PageProblem(f"{request.address.origin} redirects to about:blank, where there is nothing")
        address = read_address(url)
        if not address.fragment:
            address = replace(address, fragment=request.address.fragment)
        if response.status in (307, 308):
            return replace(request, address=address)
        return Request(address, referrer=request.referrer)

    def _once(self, request: Request, wanted: Callable[[dict[str, str]], bool], deadline: float, hop: int) -> Response:
        address = request.address
        self._policy.check_url(str(address))
        place = self._policy.resolve(str(address.host), address.port, _left(deadline, address))
        try:
            with socket.create_connection(place, _left(deadline, address)) as plain:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if address.scheme == "http":
                    return self._talk(plain, request, wanted, deadline, hop)
                with self._tls().wrap_socket(plain, server_hostname=str(address.host)) as safe:
                    return self._talk(safe, request, wanted, deadline, hop)
        except TimeoutError:
            raise _late(address) from None
        except ssl.SSLCertVerificationError as problem:
            raise PageProblem(f"{address.origin} has no certificate to be trusted: {problem.verify_message}") from None
        except OSError as problem:
            raise PageProblem(f"{address.origin} does not answer: {problem}") from None
        except h11.ProtocolError as problem:
            raise PageProblem(f"{address.origin} does not answer in HTTP: {problem}") from None

    def _talk(
        self,
        connection: socket.socket,
        request: Request,
        wanted: Callable[[dict[str, str]], bool],
        deadline: float,
        hop: int,
    ) -> Response:
        address = request.address
        talk = h11.Connection(h11.CLIENT, _HEAD)
        carrier = urllib.request.Request(str(address), method=request.method)
        head = h11.Request(method=request.method, target=address.target, headers=self._headers(request, carrier))
        data = (talk.send(head) or b"") + (talk.send(h11.Data(data=request.body)) or b"")
        connection.settimeout(_left(deadline, address))
        connection.sendall(data + (talk.send(h11.EndOfMessage()) or b""))

        def events() -> Iterator[h11.Event]:
            while True:
                event = talk.next_event()
                if event is h11.NEED_DATA:
                    connection.settimeout(_left(deadline, address))
                    talk.receive_data(connection.recv(_CHUNK))
                else:
                    yield cast(h11.Event, event)

        incoming = events()
        answer = next(event for event in incoming if not isinstance(event, h11.InformationalResponse))
        if not isinstance(answer, h11.Response):
            raise PageProblem(f"{address.origin} closed the connection without an answer")
        self._keep_cookies(answer, carrier)
        headers: dict[str, str] = {}
        for name, value in answer.headers:
            headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
        body, cut = b"", False
        if wanted(headers):
            chunks = (bytes(event.data) for event in _until_end(incoming))
            body, cut = _unpack(chunks, headers.get("content-encoding", ""), self._limits.bytes)
        return Response(address, answer.status_code, headers, body, cut, hop)

    def _headers(self, request: Request, carrier: urllib.request.Request) -> list[tuple[str, str]]:
        headers = [
            ("Host", request.address.authority),
            ("User-Agent", _AGENT),
            ("Accept", "text/html, text/*;q=0.9, */*;q=0.1"),
            ("Accept-Language", "en-US, en;q=0.9"),
            ("Accept-Encoding", "gzip, deflate"),
            ("Connection", "close"),
        ]
        if request.referrer is not None and request.referrer.origin == request.address.origin:
            headers.append(("Referer", str(replace(request.referrer, fragment=""))))
        if request.method == "POST":
            headers.append(("Origin", request.referrer.origin if request.referrer else request.address.origin))
            headers.append(("Content-Type", "application/x-www-form-urlencoded"))
            headers.append(("Content-Length", str(len(request.body))))
        self._jar.add_cookie_header(carrier)
        if carrier.has_header("Cookie"):
            headers.append(("Cookie", str(carrier.get_header("Cookie"))))
        return headers

    def _keep_cookies(self, answer: h11.Response, carrier: urllib.request.Request) -> None:
        message = email.message.Message()
        for name, value in answer.headers:
            if name == b"set-cookie" and len(value) <= _COOKIE:
                message["Set-Cookie"] = value.decode("latin-1")
        if "Set-Cookie" in message:
            self._jar.extract_cookies(cast("http.client.HTTPResponse", _Headed(message)), carrier)
            for cookie in list(self._jar)[_COOKIES:]:
                self._jar.clear(cookie.domain, cookie.path, cookie.name)


class _Headed:
    """What the cookie jar wants to see of a response."""

    def __init__(self, message: email.message.Message) -> None:
        self._message = message

    def info(self) -> email.message.Message:
        return self._message


def _until_end(events: Iterator[h11.Event]) -> Iterator[h11.Data]:
    for event in events:
        if not isinstance(event, h11.Data):
            return
        yield event


def _unpack(chunks: Iterator[bytes], encoding: str, most: int) -> tuple[bytes, bool]:
    """Joins and decompresses up to ``most`` bytes; whether there would be more."""
    encoding = encoding.strip().lower()
    if encoding not in ("", "identity", *_WINDOW_BITS):
        raise PageProblem(f"the page is packed as {encoding[:40]!r}, which the reader did not ask for and cannot read")
    parts: list[bytes] = []
    room = most + 1  # one more tells whether it must be cut
    unpacker = zlib.decompressobj(_WINDOW_BITS[encoding]) if encoding in _WINDOW_BITS else None
    for chunk in chunks:
        if unpacker is not None:
            if encoding == "deflate" and not parts and not _is_zlib(chunk):
                unpacker = zlib.decompressobj(-15)  # some servers leave the wrapping out
            try:
                chunk = unpacker.decompress(chunk, room)
            except zlib.error as problem:
                raise PageProblem(f"the page is not packed as {encoding}, as its server says: {problem}") from None
        parts.append(chunk[:room])
        room -= len(parts[-1])
        if room <= 0:
            break
    body = b"".join(parts)
    return body[:most], len(body) > most


def _is_zlib(start: bytes) -> bool:
    return len(start) < 2 or (start[0] & 15 == 8 and (start[0] * 256 + start[1]) % 31 == 0)


def _left(deadline: float, address: Address) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise _late(address)
    return left


def _late(address: Address) -> PageProblem:
    return PageProblem(f"{address.origin} took too long: the page was not there in time", "timeout")


def _jar_cookie(cookie: Cookie) -> http.cookiejar.Cookie:
    try:
        host = str(read_address(cookie.url).host)
    except ValueError as problem:
        raise PageProblem(f"a cookie is for an address: {problem}") from None
    host = host if "." in host or ":" in host else f"{host}.local"  # what the jar makes of a name without dots
    return http.cookiejar.Cookie(
        version=0,
        name=cookie.name,
        value=cookie.value,
        port=None,
        port_specified=False,
        domain=host,
        domain_specified=False,
        domain_initial_dot=False,
        path="/",
        path_specified=True,
        secure=False,
        expires=None,
        discard=True,
        comment=None,
        comment_url=None,
        rest={},
    )

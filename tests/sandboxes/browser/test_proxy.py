"""The proxy, as a browser meets it: what passes, what does not, and what it makes of nonsense."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import http.client
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from servers import Answer, Asked, site, talker

from sandboxes.browser import NetworkPolicy, PageLimits
from sandboxes.browser.proxy import Proxy

SMALL = PageLimits(timeout=1.0, bytes=100_000, requests=5)


@contextlib.contextmanager
def proxy(*allow: str, limits: PageLimits = SMALL, hosts: dict[str, str] | None = None) -> Iterator[Proxy]:
    made = Proxy(NetworkPolicy(allow, hosts or {}), limits)
    try:
        yield made
    finally:
        made.close()


def connect(through: Proxy) -> socket.socket:
    port = int(through.server.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def authorization(through: Proxy) -> str:
    return "Basic " + base64.b64encode(f"{through.username}:{through.password}".encode()).decode()


def ask(through: Proxy, request: str, headers: str = "", body: bytes = b"", secret: str | None = None) -> tuple[int, bytes]:
    """One request on a connection of its own: status and body, as far as they came."""
    secret = authorization(through) if secret is None else secret
    with connect(through) as connection:
        connection.sendall(
            f"{request} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: {secret}\r\n{headers}\r\n".encode() + body
        )
        return read(connection, request.partition(" ")[0])


def read(connection: socket.socket, method: str = "GET") -> tuple[int, bytes]:
    response = http.client.HTTPResponse(connection, method=method)
    response.begin()
    try:
        return response.status, response.read()
    except http.client.IncompleteRead as partial:
        return response.status, partial.partial


def receive(connection: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size and (data := connection.recv(65_536)):
        got += data
    return got


def tunnel(through: Proxy, place: str) -> socket.socket:
    connection = connect(through)
    connection.sendall(
        f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\nProxy-Authorization: {authorization(through)}\r\n\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    assert head.startswith(b"HTTP/1.1 200 "), head
    return connection


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65_536):
        connection.sendall(data)


def test_a_request_passes_as_it_is_but_for_what_is_meant_for_the_proxy() -> None:
    with site({"/a b": "hello", "/a%20b": "hello"}) as there, proxy(hosts={"wiki.test": there.place}) as through:
        headers = "X-Mine: 1\r\nConnection: x-hop\r\nX-Hop: 2\r\nKeep-Alive: 3\r\nTE: trailers\r\nCookie: c=4\r\n"
        assert ask(through, "GET http://WIKI.test/a%20b?q=1#f", headers) == (200, b"hello")
        asked = there.asked[0]
        assert asked.path == "/a%20b?q=1"
        assert asked.headers["Host"] == "wiki.test"  # the name, although the connection went to a number
        found = {name.lower() for name in asked.headers}
        assert {"x-mine", "cookie"} <= found
        assert "X-Mine" in there.asked[0].headers  # as it was written
        assert not found & {"x-hop", "keep-alive", "te", "proxy-authorization"}
        assert through.denied() == []


def test_the_host_of_the_address_counts_and_not_the_header() -> None:
    with site({"/": "hello"}) as there, proxy(there.place) as through:
        assert ask(through, f"GET {there.url}/", "X: 1\r\n") == (200, b"hello")
        assert there.asked[0].headers["Host"] == there.place  # `ask` says "Host: x"


def test_bodies_pass_both_ways() -> None:
    sent = os.urandom(90_000)
    with site({"/": lambda asked: Answer(asked.body[::-1])}) as there, proxy(there.place) as through:
        assert ask(through, f"POST {there.url}/", f"Content-Length: {len(sent)}\r\n", sent) == (200, sent[::-1])
        assert ask(through, f"HEAD {there.url}/") == (200, b"")


def test_a_body_in_chunks_passes_both_ways() -> None:
    def talk(connection: socket.socket) -> None:
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            data += connection.recv(65_536)
        body = data.partition(b"\r\n\r\n")[2]
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)

    with talker(talk) as place, proxy(place) as through:
        headers = "Transfer-Encoding: chunked\r\n"
        assert ask(through, f"POST http://{place}/", headers, b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n") == (200, b"abcde")


def test_a_connection_serves_many_requests() -> None:
    with site({"/": "hello"}) as there, proxy(there.place) as through, connect(through) as connection:
        for status, url in [(200, there.url), (403, "http://b.test"), (200, there.url), (403, "http://c.test")]:
            head = f"GET {url}/ HTTP/1.1\r\nHost: x\r\nProxy-Authorization: {authorization(through)}\r\n\r\n"
            connection.sendall(head.encode())
            assert read(connection)[0] == status


@pytest.mark.parametrize("secret", ["", "Basic", "Basic !", "Bearer x", "Basic " + base64.b64encode(b"page:wrong").decode()])
def test_without_the_password_nothing_passes(secret: str) -> None:
    with site({"/": "hello"}) as there, proxy(there.place) as through:
        assert ask(through, f"GET {there.url}/", secret=secret)[0] == 407
        assert ask(through, f"CONNECT {there.place}", secret=secret)[0] == 407
        assert there.asked == []


def test_who_is_asked_for_the_password_may_try_again_on_the_same_connection() -> None:
    with site({"/": "hello"}) as there, proxy(there.place) as through, connect(through) as connection:
        connection.sendall(f"GET {there.url}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert (response.status, response.getheader("Proxy-Authenticate")) == (407, 'Basic realm="page"')
        response.read()
        connection.sendall(f"CONNECT {there.place} HTTP/1.1\r\nHost: {there.place}\r\n\r\n".encode())
        assert read(connection, "CONNECT")[0] == 407
        head = f"GET {there.url}/ HTTP/1.1\r\nHost: x\r\nProxy-Authorization: {authorization(through)}\r\n\r\n"
        connection.sendall(head.encode())
        assert read(connection) == (200, b"hello")


def test_passwords_are_each_proxys_own() -> None:
    with proxy() as one, proxy() as other:
        assert one.password != other.password
        assert ask(one, "GET http://a.test/", secret=authorization(other))[0] == 407


def test_what_is_not_allowed_is_denied_in_one_line_and_noted() -> None:
    with site({"/": "secret"}) as there, proxy("a.test") as through:
        for request in (f"GET {there.url}/", f"CONNECT {there.place}"):
            status, body = ask(through, request)
            assert status == 403
            assert body == f"{there.place} may not be reached from here; allowed: a.test\n".encode()
        assert ask(through, "CONNECT 2130706433:443")[0] == 403
        assert ask(through, "GET http://[::ffff:127.0.0.1]:9/")[0] == 403
        assert through.denied() == [there.place, "127.0.0.1:443", "127.0.0.1:9"]
        assert through.denied() == []
        assert there.asked == []


def test_a_name_that_points_inside_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = socket.getaddrinfo

    def lie(name: str, port: int, *rest: object, **more: object) -> object:
        return look_up("127.0.0.1" if name == "a.test" else name, port, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", lie)
    with site({"/": "secret"}) as there, proxy(f"a.test:{there.port}") as through:
        status, body = ask(through, f"GET http://a.test:{there.port}/")
        assert (status, b"not public" in body) == (403, True)
        assert ask(through, f"CONNECT a.test:{there.port}")[0] == 403
        assert there.asked == []
    with site({"/": "open"}) as there, proxy(f"a.test:{there.port}", there.place) as through:
        assert ask(through, f"GET http://a.test:{there.port}/") == (200, b"open")


def test_a_redirect_is_the_browsers_to_follow() -> None:
    with site({"/": Answer(status=302, headers={"Location": "http://b.test/"})}) as there, proxy(there.place) as through:
        assert ask(through, f"GET {there.url}/")[0] == 302
        assert ask(through, "GET http://b.test/")[0] == 403


def test_a_tunnel_carries_bytes_both_ways() -> None:
    with talker(echo) as place, proxy(hosts={"wiki.test": place}) as through, tunnel(through, "wiki.test:443") as connection:
        for size in (1, 50_000):
            sent = os.urandom(size)
            connection.sendall(sent)
            assert receive(connection, size) == sent


def test_a_tunnel_ends_with_its_server() -> None:
    def talk(connection: socket.socket) -> None:
        connection.sendall(b"bye")

    with talker(talk) as place, proxy(place) as through, tunnel(through, place) as connection:
        assert connection.makefile("rb").read() == b"bye"


def websocket(connection: socket.socket) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(65_536)
    assert b"upgrade: websocket" in head.lower()
    connection.sendall(b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Key: 1\r\n\r\nfirst")
    echo(connection)


def test_a_websocket_passes_with_and_without_a_tunnel() -> None:
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: 1\r\n"
    with talker(websocket) as place, proxy(place) as through:
        with tunnel(through, place) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {place}\r\n{upgrade}\r\n".encode())
            assert connection.recv(65_536).startswith(b"HTTP/1.1 101 ")
        for scheme in ("http", "ws"):
            with connect(through) as connection:
                head = f"GET {scheme}://{place}/ HTTP/1.1\r\nHost: x\r\nProxy-Authorization: {authorization(through)}\r\n"
                connection.sendall(f"{head}{upgrade}\r\nmine".encode())
                got = b""
                while not got.endswith(b"firstmine"):
                    got += connection.recv(65_536)
                assert got.startswith(b"HTTP/1.1 101 ")
                assert b"x-key: 1" in got.lower()


def test_a_websocket_to_a_denied_host_is_denied() -> None:
    with talker(websocket) as place, proxy("a.test") as through:
        upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
        assert ask(through, f"GET http://{place}/", upgrade)[0] == 403
        assert ask(through, f"CONNECT {place}")[0] == 403
        assert through.denied() == [place]


@pytest.mark.parametrize("length", [True, False])
def test_a_response_is_cut_at_the_limit(length: bool) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + (b"Content-Length: 50000000\r\n" if length else b"") + b"\r\n")
        while True:
            connection.sendall(b"x" * 10_000)

    with talker(talk) as place, proxy(place) as through:
        status, body = ask(through, f"GET http://{place}/")
        assert status == 200
        assert 0 < len(body) <= SMALL.bytes
        assert through.cut() == [place]
        assert through.cut() == []


def test_a_tunnel_is_cut_at_the_limit_which_counts_anew_in_each_action() -> None:
    with talker(echo) as place, proxy(place) as through, tunnel(through, place) as connection:
        for _ in range(3):
            connection.sendall(b"x" * 90_000)
            assert len(receive(connection, 90_000)) == 90_000
            through.denied()  # the next action
        connection.sendall(b"x" * 200_000)
        got = 0
        with contextlib.suppress(ConnectionError):
            while data := connection.recv(65_536):
                got += len(data)
        assert got <= SMALL.bytes
        assert through.cut() == [place]


def test_an_action_may_make_so_many_requests() -> None:
    with site({"/": "hello"}) as there, proxy(there.place) as through:
        statuses = [ask(through, f"GET {there.url}/")[0] for _ in range(SMALL.requests + 2)]
        assert statuses == [200] * SMALL.requests + [403] * 2
        assert through.denied() == [there.place]
        assert ask(through, f"GET {there.url}/")[0] == 200


def test_what_is_noted_is_bounded() -> None:
    with proxy(limits=PageLimits(requests=1_000)) as through, connect(through) as connection:
        for number in range(200):
            head = f"GET http://h{number}.test/ HTTP/1.1\r\nHost: x\r\nProxy-Authorization: {authorization(through)}\r\n\r\n"
            connection.sendall(head.encode())
            assert read(connection)[0] == 403
        assert through.denied() == [f"h{number}.test:80" for number in range(50)]


SMUGGLED = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5, 6\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: 0x5\r\n",
        "A\x00B: 1\r\n",
        "no colon\r\n",
    ],
)
def test_a_message_that_can_be_read_in_two_ways_is_refused(headers: str) -> None:
    with site({"/": "hello", "/smuggled": "!"}) as there, proxy(there.place) as through:
        status, _ = ask(through, f"POST {there.url}/", headers, b"0\r\n\r\n" + SMUGGLED.encode())
        assert status in (400, 501)
        assert there.asked == []


def test_a_request_within_a_body_stays_a_body() -> None:
    with site({"/": "hello", "/smuggled": "!"}) as there, proxy(there.place) as through:
        length = f"Content-Length: {len(SMUGGLED)}\r\n"
        assert ask(through, f"POST {there.url}/", length, SMUGGLED.encode()) == (200, b"hello")
        assert [asked.path for asked in there.asked] == ["/"]


def test_a_line_end_in_an_address_or_header_makes_no_second_one() -> None:
    with site({"/": "hello"}) as there, proxy(there.place) as through:
        assert ask(through, f"GET {there.url}/\rX:1")[0] == 400
        assert ask(through, f"GET {there.url}/", "X: 1\rEvil: 2\r\n")[0] == 400
        assert there.asked == []


@pytest.mark.parametrize(
    "request_line",
    [
        *("GET /", "GET a.test/", "GET https://a.test/", "GET ftp://a.test/", "OPTIONS *", "GET http://u:p@a.test/"),
        *("CONNECT a.test:x", "CONNECT http://a.test/", "CONNECT :80", "CONNECT a.test:99999", "CONNECT u@a.test:80"),
    ],
)
def test_what_is_no_request_for_a_proxy(request_line: str) -> None:
    with proxy("a.test") as through:
        assert ask(through, request_line)[0] == 400


@pytest.mark.parametrize(
    "garbage",
    [
        *(
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET\r\n\r\n",
            b"\0" * 70_000,
        ),
        *(
            b"GET http://a.test/ HTTP/1.1\r\n" + b"X: " + b"y" * 100_000,
            b"GET http://a.test/ HTTP/9\r\n\r\n",
            b"\r\n" * 10_000,
        ),
        b"GET http://a.test/ HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(20_000)),
    ],
)
def test_garbage_is_answered_or_hung_up_on_and_hurts_nobody_else(garbage: bytes) -> None:
    with site({"/": "hello"}) as there, proxy(there.place) as through:
        with connect(through) as connection, contextlib.suppress(ConnectionError):
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.makefile("rb").read(20)
            assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 505 ")), answer
        assert ask(through, f"GET {there.url}/") == (200, b"hello")


@pytest.mark.parametrize(
    ("talk", "status"),
    [
        (lambda connection: connection.recv(9), 504),
        (lambda connection: connection.sendall(b"SSH-2.0-OpenSSH\r\n"), 502),
        (lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000), 502),
        (lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"), 502),
        (lambda connection: time.sleep(3), 504),
    ],
    ids=["hangs up", "another protocol", "endless head", "two lengths", "silent"],
)
def test_a_server_that_does_not_answer_properly(talk: object, status: int) -> None:
    with talker(talk) as place, proxy(place) as through:  # type: ignore[arg-type]
        began = time.monotonic()
        assert ask(through, f"GET http://{place}/")[0] in (status, 502)
        assert time.monotonic() - began < 2.5


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = f"127.0.0.1:{listener.getsockname()[1]}"
    with proxy(place) as through:
        assert ask(through, f"GET http://{place}/")[0] == 502
        assert ask(through, f"CONNECT {place}")[0] == 502


def test_a_slow_site_holds_nobody_else() -> None:
    with (
        talker(lambda connection: time.sleep(3)) as slow,
        site({"/": "hello"}) as there,
        proxy(slow) as one,
        proxy(slow, there.place, limits=PageLimits()) as other,
        concurrent.futures.ThreadPoolExecutor(20) as pool,
    ):
        waiting = [pool.submit(ask, each, f"GET http://{slow}/") for each in (one, other) for _ in range(4)]
        began = time.monotonic()
        answers = list(pool.map(lambda _: ask(other, f"GET {there.url}/"), range(50)))
        assert answers == [(200, b"hello")] * 50
        assert time.monotonic() - began < 2
        assert all(future.result()[0] == 504 for future in waiting[:4])


def test_closing_ends_everything_at_once() -> None:
    with talker(echo) as place:
        through = Proxy(NetworkPolicy((place,)), SMALL)
        connections = [tunnel(through, place) for _ in range(3)] + [connect(through) for _ in range(3)]
        began = time.monotonic()
        through.close()
        through.close()
        assert time.monotonic() - began < 1
        for connection in connections:
            with connection, contextlib.suppress(ConnectionError):
                assert connection.recv(1) == b""
        with pytest.raises(OSError, match="refused"):
            connect(through)


def test_many_proxies_share_one_thread_and_leave_nothing() -> None:
    def threads() -> int:
        return sum(thread.name == "browser-proxy" for thread in threading.enumerate())

    with site({"/": "hello"}) as there, proxy(there.place) as first:
        ask(first, f"GET {there.url}/")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(30):
            with proxy(there.place) as through:
                assert ask(through, f"GET {there.url}/") == (200, b"hello")
        assert threads() == 1
        deadline = time.monotonic() + 5
        while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(os.listdir("/proc/self/fd")) <= before


def test_a_forked_child_leaves_the_parents_proxy_alone() -> None:
    with site({"/": "hello"}) as there, proxy(there.place) as through:
        child = os.fork()
        if child == 0:
            through.close()
            os._exit(0)
        began = time.monotonic()
        assert os.waitpid(child, 0)[1] == 0
        assert time.monotonic() - began < 3
        assert ask(through, f"GET {there.url}/") == (200, b"hello")


def test_the_site_is_told_nothing_of_the_password() -> None:
    with site({"/": lambda asked: Answer(repr(asked.headers))}) as there, proxy(there.place) as through:
        _, body = ask(through, f"GET {there.url}/")
        assert isinstance(there.asked[0], Asked)
        assert b"Proxy" not in body
        assert through.password.encode() not in body

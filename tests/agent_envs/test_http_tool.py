"""The tool behind HTTP: what goes out, what the policy reads, whose doing a failure is, and what is asked again."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from parts import Riddles, SameString

from agent_envs import EnvironmentFault, ForkError, ToolEnv
from agent_envs.moves import Call
from agent_envs.tool import ToolResult
from agent_envs.tools.http import HttpTool

JSON = {"Content-Type": "application/json"}
TEXT = {"Content-Type": "text/plain; charset=utf-8"}


@dataclass
class Asked:
    """A request as the service saw it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Service:
    """A service that gives its answers in turn, the last one for ever, and remembers what it was asked."""

    address: str = ""
    answers: list[tuple[int, dict[str, str], bytes] | Callable[[socket.socket], None]] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    def says(self, status: int, headers: dict[str, str], body: str | bytes) -> None:
        self.answers.append((status, headers, body.encode() if isinstance(body, str) else body))

    def tool(self, path: str = "/do", parameters: dict[str, Any] | None = None, **settings: Any) -> HttpTool:
        words = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
        return HttpTool("service", "Does a thing.", parameters or words, self.address + path, **settings)


@pytest.fixture
def service() -> Iterator[Service]:
    found = Service()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found.asked.append(Asked(self.command, self.path, dict(self.headers), body))
            answer = found.answers.pop(0) if len(found.answers) > 1 else found.answers[0]
            if callable(answer):
                self.close_connection = True
                answer(self.connection)
                return
            status, headers, content = answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(content)

        do_GET = do_PUT = do_PATCH = do_DELETE = do_POST

        def log_message(self, format: str, *arguments: object) -> None:
            """Nobody reads it."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        found.address = f"http://127.0.0.1:{server.server_port}"
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()


# --- what goes out


def test_the_arguments_of_a_post_are_its_json_body(service: Service) -> None:
    service.says(200, TEXT, "done")
    tool = service.tool(headers={"Authorization": "Bearer key"})
    assert tool.run(word="ä\ud800", list=[1, None, True]) == ToolResult("done")
    (asked,) = service.asked
    assert (asked.method, asked.path) == ("POST", "/do")
    assert json.loads(asked.body) == {"word": "ä\ud800", "list": [1, None, True]}
    assert asked.headers["Authorization"] == "Bearer key"
    assert asked.headers["Content-Type"] == "application/json"


def test_the_arguments_of_a_get_stand_in_the_query(service: Service) -> None:
    service.says(200, TEXT, "done")
    service.tool("/do?v=2", method="GET").run(word="a&b=c ü", some=[1, "x"], flag=True, none=None, inner={"a": 1})
    (asked,) = service.asked
    assert asked.path == "/do?v=2&word=a%26b%3Dc+%C3%BC&some=1&some=x&flag=true&inner=%7B%22a%22%3A+1%7D"
    assert asked.body == b""


def test_placeholders_are_filled_quoted_and_used_up(service: Service) -> None:
    service.says(200, TEXT, "done")
    parameters = {"type": "object", "properties": {}, "required": ["id", "part"]}
    service.tool("/items/{id}/x?only={part}", parameters, method="PUT").run(id="../a?b#c/d", part="1&x=2", rest="here")
    (asked,) = service.asked
    assert asked.path == "/items/..%2Fa%3Fb%23c%2Fd/x?only=1%26x%3D2"
    assert json.loads(asked.body) == {"rest": "here"}


@pytest.mark.parametrize("value", ["", ".", ".."])
def test_a_placeholder_does_not_lead_to_another_place(service: Service, value: str) -> None:
    result = service.tool("/items/{word}").run(word=value)
    assert result == ToolResult(f"service: {{word}} in its address cannot be {value!r}", "bad_arguments")
    assert not service.asked


# --- what the policy reads


@pytest.mark.parametrize(
    ("headers", "body", "text"),
    [
        (TEXT, "plain\ntext", "plain\ntext"),
        ({"Content-Type": "text/plain; charset=latin-1"}, "grün".encode("latin-1"), "grün"),
        (JSON, '{"a": [1, 2],\n "b": "ü"}', '{"a":[1,2],"b":"ü"}'),
        ({"Content-Type": "application/problem+json"}, "[ ]", "[]"),
        (JSON, '"a text"', "a text"),
        ({}, "no type", "no type"),
        (TEXT, "", "(no output)"),
        ({**TEXT, "Content-Encoding": "gzip"}, gzip.compress(b"small", mtime=0), "small"),
    ],
)
def test_replies_as_the_policy_reads_them(service: Service, headers: dict[str, str], body: str | bytes, text: str) -> None:
    service.says(200, headers, body)
    assert service.tool().run(word="a") == ToolResult(text)


def test_a_long_reply_is_cut_while_it_is_read(service: Service) -> None:
    def endless(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(10_000):
                connection.sendall(b"7" * 100_000)

    service.answers.append(endless)
    result = service.tool(max_bytes=1_000).run(word="a")
    assert result == ToolResult("7" * 1_000 + "\n[the rest of the reply was left out]")


@pytest.mark.parametrize("status", [400, 404, 409, 422])
def test_a_refusal_is_the_policys_doing(service: Service, status: int) -> None:
    service.says(status, JSON, '{"detail": "no such word"}')
    assert service.tool().run(word="a") == ToolResult('{"detail":"no such word"}', "error")
    assert len(service.asked) == 1


def test_which_statuses_are_refusals_can_be_chosen(service: Service) -> None:
    service.says(429, TEXT, "")
    assert service.tool(policy_statuses=[429]).run(word="a") == ToolResult(
        "the service refused the call (status 429)", "error"
    )
    service.answers[:] = [(404, TEXT, b"lost")]
    with pytest.raises(EnvironmentFault, match=r"answers status 404 \(lost\): see that the address"):
        service.tool(policy_statuses=[]).run(word="a")


@pytest.mark.parametrize(
    ("status", "headers", "body", "message"),
    [
        (401, TEXT, "who are you?", r"status 401 \(who are you\?\)"),
        (200, {"Content-Type": "image/png"}, b"\x89PNG", "answers with image/png"),
        (200, JSON, "{", "what is no application/json"),
        (200, TEXT, b"\xff\xfe", "what is no text/plain"),
        (200, {"Content-Type": "text/plain; charset=klingon"}, "a", "unknown encoding"),
    ],
)
def test_a_service_that_does_not_do_its_part(
    service: Service, status: int, headers: dict[str, str], body: str | bytes, message: str
) -> None:
    service.says(status, headers, body)
    with pytest.raises(EnvironmentFault, match=message) as found:
        service.tool("/do?token=secret", headers={"Authorization": "secret"}).run(word="a")
    assert not found.value.retryable
    assert "secret" not in str(found.value)
    assert len(service.asked) == 1


# --- time


def test_a_service_that_takes_too_long_is_the_policys_doing(service: Service) -> None:
    service.answers.append(lambda connection: time.sleep(5.0))
    begun = time.monotonic()
    assert service.tool(timeout=0.2, method="GET").run(word="a") == ToolResult("timed out after 0.2 s", "timeout")
    assert time.monotonic() - begun < 4
    assert len(service.asked) == 1


def test_a_service_that_sends_a_byte_now_and_then_takes_too_long(service: Service) -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(500):
                connection.sendall(b"x")
                time.sleep(0.02)

    service.answers.append(drip)
    begun = time.monotonic()
    assert service.tool(timeout=0.3).run(word="a").fault == "timeout"
    assert time.monotonic() - begun < 8


def test_a_service_that_is_not_there(unused_port: int) -> None:
    tool = HttpTool("gone", "Was there once.", {"type": "object"}, f"http://127.0.0.1:{unused_port}/")
    begun = time.monotonic()
    with pytest.raises(EnvironmentFault, match=rf"tool 'gone' at http://127.0.0.1:{unused_port}/ gives no answer") as found:
        tool.run()
    assert found.value.retryable
    assert 0.25 * 0.5 + 0.5 * 0.5 <= time.monotonic() - begun < 5  # it was asked three times, with two pauses


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


# --- what is asked again


def hang_up(connection: socket.socket) -> None:
    """Closes without an answer."""


@pytest.mark.parametrize(
    ("settings", "answer", "again"),
    [
        ({"method": "GET"}, hang_up, True),
        ({"method": "PUT"}, hang_up, True),
        ({"method": "POST"}, hang_up, False),  # it may have been done
        ({"method": "PATCH"}, hang_up, False),
        ({"method": "POST", "fidelity": "exact"}, hang_up, True),
        ({"method": "GET"}, (503, TEXT, b"busy"), True),
        ({"method": "POST"}, (503, TEXT, b"busy"), False),
        ({"method": "POST"}, (500, TEXT, b"broken"), False),
        ({"method": "POST"}, (429, TEXT, b"slowly"), True),  # it was not done
        ({"method": "GET", "retries": 0}, (503, TEXT, b"busy"), False),
    ],
)
def test_only_what_does_no_harm_is_asked_again(service: Service, settings: dict[str, Any], answer: Any, again: bool) -> None:
    service.answers += [answer, (200, TEXT, b"at last")]
    tool = service.tool(**settings)
    if again:
        assert tool.run(word="a") == ToolResult("at last")
        assert service.asked[0].body == service.asked[1].body
    else:
        with pytest.raises(EnvironmentFault, match="gives no answer") as found:
            tool.run(word="a")
        assert found.value.retryable
    assert len(service.asked) == 1 + again


def test_it_is_not_asked_for_ever(service: Service) -> None:
    service.says(503, TEXT, "busy")
    with pytest.raises(EnvironmentFault, match="status 503: busy"):
        service.tool(method="GET", retries=1).run(word="a")
    assert len(service.asked) == 2


def test_a_service_may_say_when_to_come_back(service: Service) -> None:
    service.answers += [(429, {"Retry-After": "1"}, b""), (200, TEXT, b"now")]
    begun = time.monotonic()
    assert service.tool().run(word="a") == ToolResult("now")
    assert 1 <= time.monotonic() - begun < 8
    service.answers[:] = [(429, {"Retry-After": "3600"}, b"")]
    begun = time.monotonic()
    with pytest.raises(EnvironmentFault, match="status 429"):
        service.tool().run(word="a")
    assert time.monotonic() - begun < 8  # there is no time for it


# --- redirects


@pytest.mark.parametrize(
    ("method", "status", "then"), [("GET", 302, "GET"), ("POST", 307, "POST"), ("POST", 303, "GET"), ("PUT", 308, "PUT")]
)
def test_redirects_on_the_same_host_are_followed(service: Service, method: str, status: int, then: str) -> None:
    service.answers += [(status, {"Location": "/there?x=1"}, b""), (200, TEXT, b"found")]
    assert service.tool(method=method).run(word="a") == ToolResult("found")
    assert [asked.method for asked in service.asked] == [method, then]
    assert service.asked[1].path == "/there?x=1"
    assert service.asked[1].body == (service.asked[0].body if then == method else b"")


@pytest.mark.parametrize(
    ("method", "where", "message"),
    [
        ("GET", "http://169.254.169.254/latest", "sends on to http://169.254.169.254/latest, on another host"),
        ("GET", "//localhost/", "on another host"),
        ("GET", "file:///etc/passwd", "on another host"),
        ("POST", "/there", "give that address"),
        ("GET", "/do", "more than 3 times"),
    ],
)
def test_other_redirects_are_not(service: Service, method: str, where: str, message: str) -> None:
    service.says(302, {"Location": where}, "")
    with pytest.raises(EnvironmentFault, match=message):
        service.tool(method=method).run(word="a")


# --- its life


def test_in_an_environment(service: Service) -> None:
    service.says(200, JSON, '{"answer": 42}')
    with contextlib.closing(ToolEnv(tasks=Riddles(), verifier=SameString(), tools=[service.tool()])) as env:
        env.reset(seed=0)
        observation, *_, info = env.step(env.format.write(Call("service", {"word": "a"}), env.tools))
        assert (observation, info["policy_fault"]) == ('{"answer":42}', "")
        with pytest.raises(ForkError, match="say so by fidelity='exact'"):
            env.fork()
        service.answers[:] = [(500, TEXT, b"broken")]
        with pytest.raises(EnvironmentFault) as found:
            env.step(env.format.write(Call("service", {"word": "b"}), env.tools))
        assert found.value.component == "service"


def test_a_stateless_service_is_copied(service: Service) -> None:
    service.says(200, TEXT, "done")
    tool = service.tool(fidelity="exact")
    tool.run(word="a")
    twin = tool.fork()
    tool.close()
    assert twin.run(word="b") == ToolResult("done")
    assert tool.run(word="c") == ToolResult("done")  # closing is no farewell
    twin.close()
    tool.close()
    assert [json.loads(asked.body)["word"] for asked in service.asked] == ["a", "b", "c"]


def test_it_pickles_with_its_connections_open(service: Service) -> None:
    service.says(200, TEXT, "done")
    tool = service.tool()
    tool.run(word="a")
    twin = pickle.loads(pickle.dumps(tool))
    assert twin.run(word="b") == ToolResult("done")
    assert repr(twin) == f"HttpTool('service', 'POST {service.address}/do')"
    twin.close()
    tool.close()


def test_many_threads_get_their_own_answers(service: Service) -> None:
    service.says(200, TEXT, "done")
    tool = service.tool(fidelity="exact")
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda number: tool.run(word=str(number)), range(200)))
    assert set(results) == {ToolResult("done")}
    assert sorted(int(json.loads(asked.body)["word"]) for asked in service.asked) == list(range(200))
    tool.close()


def test_a_forked_child_opens_connections_of_its_own(service: Service) -> None:
    service.says(200, TEXT, "done")
    tool = service.tool()
    tool.run(word="parent")
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            done = tool.run(word="child")
            tool.close()
            os._exit(0 if done == ToolResult("done") else 2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert tool.run(word="parent again") == ToolResult("done")
    assert [json.loads(asked.body)["word"] for asked in service.asked] == ["parent", "child", "parent again"]
    tool.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "localhost:8000"}, "without a login"),
        ({"url": "http://me:secret@host/"}, "found 'http://host/'"),
        ({"url": "http://{word}.test/"}, "in its path and query only"),
        ({"url": "http://host/{other}"}, r"placeholders \['other'\], which parameters must name and require"),
        ({"method": "TRACE"}, "method is one of"),
        ({"fidelity": "replay"}, "fidelity is one of 'none', 'exact'"),
        ({"timeout": 0}, "timeout is above 0 s"),
        ({"retries": -1}, "retries are at least 0"),
        ({"policy_statuses": [500, 404]}, r"found \[500\]"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], message: str) -> None:
    parameters = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
    with pytest.raises(ValueError, match=message):
        HttpTool("name", "What it does.", parameters, **{"url": "http://host/", **settings})

"""The client of servers that speak Search-R1's format."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from retrieve_server import scripted, served

from sandboxes.faults import SandboxFault
from sandboxes.search import Bm25Index, Passage, UnknownPassage
from sandboxes.search.remote import RemoteIndex

Answer = tuple[int, Any, dict[str, str]] | None
RIVER = Passage("1", "Kovamir", "A river.")


def foreign(result: Callable[[Any], Any]) -> Callable[[str, Any], Answer]:
    """A server that knows nothing but /retrieve."""

    def answer(path: str, body: Any) -> Answer:
        return (200, {"result": result(body)}, {}) if path == "/retrieve" else (404, {"detail": "Not Found"}, {})

    return answer


def hit(id: object, score: float, contents: str = '"T"\nx') -> dict[str, Any]:
    return {"document": {"id": id, "contents": contents}, "score": score}


def test_what_is_sent_and_read() -> None:
    def result(body: Any) -> Any:
        return [[hit(number, 2.0 - number, f'"T{number}"\n{query}') for number in range(2)] for query in body["queries"]]

    with scripted(foreign(result)) as server, RemoteIndex(server.url) as index:
        found = index.search(["a", "b", "c"], 2)
    assert server.asked[-1] == ("/retrieve", {"queries": ["a", "b", "c"], "topk": 2, "return_scores": True})
    assert found[1] == [Passage("0", "T0", "b", 2.0), Passage("1", "T1", "b", 1.0)]
    assert len(found) == 3


@pytest.mark.parametrize(
    ("document", "passage"),
    [
        ({"id": 7, "contents": '"Kovamir"\nA river.'}, Passage("7", "Kovamir", "A river.", 1.5)),
        ({"id": "7", "contents": "x", "title": "Kovamir", "text": "A river."}, Passage("7", "Kovamir", "A river.", 1.5)),
        ({"id": "7", "text": "A river."}, Passage("7", "", "A river.", 1.5)),
    ],
)
def test_documents_of_several_servers(document: Any, passage: Passage) -> None:
    with (
        scripted(foreign(lambda body: [[{"document": document, "score": 1.5}]])) as server,
        RemoteIndex(server.url) as index,
    ):
        assert index.search(["x"]) == [[passage]]


def test_documents_without_ids_are_named_by_what_they_say() -> None:
    documents = [{"title": "T", "text": "x", "contents": '"T"\nx'}, {"title": "T", "text": "y", "contents": '"T"\ny'}]
    with (
        scripted(foreign(lambda body: [[{"document": d, "score": 1.0} for d in documents]])) as server,
        RemoteIndex(server.url) as index,
    ):
        one, other = (hit.id for hit in index.search(["x"])[0])
        again = {hit.id for hit in index.search(["y"])[0]}
        assert one != other
        assert again == {one, other}
        assert {index.get(id).text for id in again} == {"x", "y"}


def test_servers_without_scores_keep_their_order() -> None:
    with (
        scripted(foreign(lambda body: [[{"id": id, "contents": "x"} for id in "cab"]])) as server,
        RemoteIndex(server.url) as index,
    ):
        (hits,) = index.search(["x"])
    assert [(hit.id, hit.score) for hit in hits] == [("c", 1.0), ("a", 0.5), ("b", 1 / 3)]


def test_results_are_as_the_contract_has_them() -> None:
    """Best first, ties by id, nothing that does not fit, no more than asked for, whatever the server does."""
    hits = [hit("z", 0.0), hit("b", 2.0), hit("c", 3.0), hit("a", 2.0), hit("n", -1.0)]
    with scripted(foreign(lambda body: [hits])) as server, RemoteIndex(server.url) as index:
        assert [hit.id for hit in index.search(["x"], 10)[0]] == ["c", "a", "b", "n"]
        assert [hit.id for hit in index.search(["x"], 2)[0]] == ["c", "a"]


def test_queries_that_servers_choke_on() -> None:
    with (
        scripted(foreign(lambda body: [[hit(q, 1.0)] for q in body["queries"]])) as server,
        RemoteIndex(server.url) as index,
    ):
        assert index.search(["", " \n"]) == [[], []]
        assert [path for path, _ in server.asked] == ["/health"]
        found = index.search(["", "a\ud800", "b"])
    assert server.asked[-1][1]["queries"] == ["a?", "b"]
    assert [len(hits) for hits in found] == [0, 1, 1]


def test_a_passage_is_known_once_it_was_found() -> None:
    with scripted(foreign(lambda body: [[hit("7", 1.0, RIVER.contents)]])) as server, RemoteIndex(server.url) as index:
        with pytest.raises(UnknownPassage, match=r"no search of this client has found a passage '7'.*by search only"):
            index.get("7")
        index.search(["x"])
        assert index.get("7") == Passage("7", "Kovamir", "A river.")
        with pytest.raises(SandboxFault, match="does not say how many"):
            len(index)
        assert index.describe() == f"remote index at {server.url}/retrieve: a server that does not say what it serves"
        assert index


def test_ours_gives_passages_by_id_and_its_size() -> None:
    odd = Passage("é/?&=\ud800", "T", "town \udfff")
    with Bm25Index.build([RIVER, odd]) as local, served(local) as address, RemoteIndex(f"{address}/retrieve") as index:
        assert index.get("1") == RIVER
        assert len(index) == 2
        assert "2 passages" in index.describe()
        assert index.search(["river", "town", "x"]) == local.search(["river", "town", "x"])
        assert index.get(odd.id) == odd  # found by now; its name cannot be sent
        with pytest.raises(UnknownPassage, match="no passage '9' at http"):
            index.get("9")


def test_busy_servers_are_asked_again() -> None:
    answers: list[Answer] = [
        (503, {"detail": "loading"}, {}),
        (429, b"", {"Retry-After": "0"}),
        None,
        (200, {"result": [[hit("1", 1.0)]]}, {}),
    ]

    def answer(path: str, body: Any) -> Answer:
        return answers.pop(0) if path == "/retrieve" else (404, b"", {})

    with scripted(answer) as server, RemoteIndex(server.url, timeout=10) as index:
        assert [hit.id for hit in index.search(["x"])[0]] == ["1"]
        assert answers == []


def test_patience_has_an_end() -> None:
    def answer(path: str, body: Any) -> Answer:
        return (503, {"detail": "the index is loading"}, {}) if path == "/retrieve" else (404, b"", {})

    with scripted(answer) as server, RemoteIndex(server.url, timeout=1.0) as index:
        started = time.monotonic()
        with pytest.raises(SandboxFault, match=r"within 1 s \(it answers 503 .*the index is loading") as caught:
            index.search(["x"])
        assert time.monotonic() - started < 2.0
        assert caught.value.retryable
        assert 3 <= len(server.asked) <= 6  # with longer and longer pauses


def test_a_server_that_does_not_answer() -> None:
    gate = threading.Event()

    def answer(path: str, body: Any) -> Answer:
        if path == "/retrieve":
            gate.wait(10)
        return 404, b"", {}

    with scripted(answer) as server, RemoteIndex(server.url, timeout=0.5) as index:
        started = time.monotonic()
        with pytest.raises(SandboxFault, match=r"no answer .* within 0\.5 s") as caught:
            index.search(["x"])
        gate.set()
        assert time.monotonic() - started < 2.0
        assert caught.value.retryable


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(
        SandboxFault, match=rf"no answer from the search server at http://127.0.0.1:{port}/retrieve.*refused"
    ) as caught:
        RemoteIndex(f"http://127.0.0.1:{port}", timeout=0.3)
    assert caught.value.retryable
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("status", "retryable"), [(400, False), (404, False), (422, False), (500, True)])
def test_a_refusal_is_told_at_once(status: int, retryable: bool) -> None:
    with scripted(lambda path, body: (status, {"detail": "no such thing"}, {})) as server, RemoteIndex(server.url) as index:
        with pytest.raises(SandboxFault, match=rf"answers {status} .*no such thing") as caught:
            index.search(["x"])
        assert caught.value.retryable is retryable
        assert len(server.asked) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"<html>Welcome</html>",
        {"results": []},
        {"result": []},
        {"result": [[], []]},
        {"result": [[{"score": 1.0}]]},
        {"result": [[{"document": {}, "score": 1.0}]]},
        {"result": [[{"document": [1], "score": 1.0}]]},
        {"result": [[{"document": {"contents": "x"}, "score": "high"}]]},
        {"result": None},
        [],
    ],
)
def test_a_server_that_speaks_something_else(content: Any) -> None:
    with scripted(lambda path, body: (200, content, {})) as server, RemoteIndex(server.url) as index:
        with pytest.raises(SandboxFault, match="does not answer as a /retrieve server does") as caught:
            index.search(["x"])
        assert not caught.value.retryable


def test_addresses() -> None:
    with scripted(foreign(lambda body: [[hit("1", 1.0)]])) as server:
        for path in ("", "/", "/retrieve", "/retrieve/"):
            with RemoteIndex(server.url + path) as index:
                assert len(index.search(["x"])[0]) == 1
        with RemoteIndex(server.url.replace("://", "://me:p%40ss@")) as index:
            index.search(["x"])
            assert server.headers[-1]["authorization"] == "Basic bWU6cEBzcw=="
            assert "p%40ss" not in index.describe()
    for wrong in ("ftp://host/", "http:///retrieve", "host:8000"):
        with pytest.raises(ValueError, match="the address of a search server is such as"):
            RemoteIndex(wrong)
    with pytest.raises(ValueError, match="timeout is in seconds, above 0"):
        RemoteIndex("http://127.0.0.1", timeout=0)


def test_closed() -> None:
    with scripted(foreign(lambda body: [])) as server:
        index = RemoteIndex(server.url)
        index.close()
        index.close()
        with pytest.raises(SandboxFault, match="closed: open it again"):
            index.search(["x"])


def test_many_at_once_from_asyncio() -> None:
    """More than asyncio has threads for by default: each waits for all the others."""
    together = threading.Barrier(20)

    def result(body: Any) -> Any:
        together.wait(10)
        return [[hit(body["queries"][0], 1.0)]]

    async def ask(index: RemoteIndex) -> list[list[list[Passage]]]:
        return await asyncio.gather(*(index.search_async([f"q{number}"]) for number in range(20)))

    with scripted(foreign(result)) as server, RemoteIndex(server.url) as index:
        found = asyncio.run(ask(index))
    assert [hits[0][0].id for hits in found] == [f"q{number}" for number in range(20)]

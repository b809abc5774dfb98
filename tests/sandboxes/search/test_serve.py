"""Our server: its format, its mistakes, and how it gathers requests."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import urllib3
from retrieve_server import served

from sandboxes.faults import SandboxFault
from sandboxes.search import Bm25Index, Index, Passage
from sandboxes.search.__main__ import main
from sandboxes.search.remote import RemoteIndex
from sandboxes.search.serve import LARGEST_BATCH

PASSAGES = [Passage(str(number), f"Title {number}", f"river number{number}") for number in range(6)]


def post(address: str, body: Any) -> tuple[int, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = urllib3.request("POST", f"{address}/retrieve", body=content, retries=False, timeout=10)
    return reply.status, reply.json()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with Bm25Index.build(PASSAGES) as index, served(index) as address:
        yield address


class SlowIndex(Index):
    """Answers when it is let to, and keeps what it was asked together."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.asked: list[tuple[list[str], int]] = []
        self.fault: Exception | None = None

    def search(self, queries: Sequence[str], k: int = 3) -> list[list[Passage]]:
        self.asked.append((list(queries), k))
        self.go.wait(10)
        if self.fault is not None:
            raise self.fault
        return [[Passage(query, "", "", 1.0)] * k for query in queries]

    def get(self, id: str) -> Passage:
        raise NotImplementedError

    def __len__(self) -> int:
        return 0

    def describe(self) -> str:
        return "slow"

    def close(self) -> None:
        self.go.set()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_both_forms_for_any_number_of_queries(address: str, count: int) -> None:
    queries = [f"number{number % 6}" for number in range(count)]
    status, scored = post(address, {"queries": queries, "topk": 2, "return_scores": True})
    assert status == 200
    assert [[hit["document"]["id"] for hit in hits] for hits in scored["result"]] == [[str(n % 6)] for n in range(count)]
    assert all(hit["score"] > 0 for hits in scored["result"] for hit in hits)
    status, bare = post(address, {"queries": queries, "topk": 2, "return_scores": False})
    assert (status, bare) == (200, {"result": [[hit["document"] for hit in hits] for hits in scored["result"]]})
    assert post(address, {"queries": queries, "topk": 2}) == (200, bare)


def test_a_document(address: str) -> None:
    (((document,),),) = (post(address, {"queries": ["number4"]})[1]["result"],)
    assert document == {"id": "4", "title": "Title 4", "text": "river number4", "contents": '"Title 4"\nriver number4'}


def test_defaults_and_single_queries(address: str) -> None:
    listed = post(address, {"queries": ["river"], "return_scores": True})[1]
    assert len(listed["result"][0]) == 3
    assert post(address, {"queries": ["river"], "topk": None, "return_scores": True})[1] == listed
    assert post(address, {"query": "river", "return_scores": True})[1] == listed
    assert post(address, {"query": ["river"], "return_scores": True})[1] == listed
    assert post(address, {"queries": []}) == (200, {"result": []})
    assert post(address, {"queries": ["", "volcano"]}) == (200, {"result": [[], []]})
    assert len(post(address, {"query": "river", "topk": 10_000})[1]["result"][0]) == 6


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"{", "expected JSON, found"),
        (b"\xff", "expected JSON, found"),
        (b"[" * 100_000, "expected JSON, found"),
        ([], "expected a JSON object"),
        ({}, "found neither"),
        ({"query": "a", "queries": ["b"]}, "found query, queries"),
        ({"queries": "river"}, "'queries' must be a list of texts, found 'river'"),
        ({"queries": [1]}, "'queries' must be a list of texts, found [1]"),
        ({"query": None}, "'query' must be a text, found None"),
        ({"queries": ["a"], "topk": 0}, "'topk' must be a whole number from 1 to 10000, or null for 3, found 0"),
        ({"queries": ["a"], "topk": True}, "found True"),
        ({"queries": ["a"], "topk": 2.5}, "found 2.5"),
        ({"queries": ["a"], "topk": 10**9}, "found 1000000000"),
        ({"queries": ["a"], "return_scores": 1}, "'return_scores' must be true or false, found 1"),
    ],
)
def test_bad_requests(address: str, body: Any, complaint: str) -> None:
    status, answer = post(address, body)
    assert status == 400
    assert complaint in answer["detail"]
    assert "\n" not in answer["detail"]


def test_lone_surrogates_and_long_queries(address: str) -> None:
    status, answer = post(address, {"queries": ["number3 \ud800", "number2 " + "x " * 500_000]})
    assert status == 200
    assert [[document["id"] for document in hits] for hits in answer["result"]] == [["3"], ["2"]]


def test_passages_and_health(address: str) -> None:
    def get(path: str) -> tuple[int, Any]:
        reply = urllib3.request("GET", address + path, retries=False)
        return reply.status, reply.json()

    assert get("/passage?id=5") == (
        200,
        {"id": "5", "title": "Title 5", "text": "river number5", "contents": PASSAGES[5].contents},
    )
    status, answer = get("/passage?id=77")
    assert (status, answer["detail"]) == (404, "there is no passage '77' among the 6 of this index")
    assert get("/passage")[0] == 400
    status, answer = get("/health")
    assert (status, answer["status"], answer["passages"]) == (200, "ok", 6)
    assert "bm25" in answer["index"]


def ask_while_busy(index: SlowIndex, bodies: list[dict[str, Any]]) -> list[tuple[int, Any]]:
    """The answers to all, sent while the index is busy with a search for "first"."""
    with served(index) as address, ThreadPoolExecutor(len(bodies) + 1) as clients:
        first = clients.submit(post, address, {"queries": ["first"]})
        while not index.asked:
            time.sleep(0.005)
        rest = [clients.submit(post, address, body) for body in bodies]
        time.sleep(0.5)  # more than they need to arrive
        assert len(index.asked) == 1, "a search began while another one ran"
        index.go.set()
        first.result(10)
        return [answer.result(10) for answer in rest]


def test_what_waits_is_searched_together() -> None:
    index = SlowIndex()
    answers = ask_while_busy(index, [{"queries": [f"q{number}", f"r{number}"], "topk": 1} for number in range(20)])
    assert len(index.asked) == 2, "the requests that waited were searched in more than one go"
    assert sorted(index.asked[1][0]) == sorted(f"{letter}{number}" for letter in "qr" for number in range(20))
    for number, (status, answer) in enumerate(answers):
        assert status == 200
        assert [[document["id"] for document in hits] for hits in answer["result"]] == [[f"q{number}"], [f"r{number}"]]


def test_each_gets_as_many_as_it_asked_for() -> None:
    index = SlowIndex()
    answers = ask_while_busy(index, [{"query": f"q{k}", "topk": k} for k in (1, 2, 3, 1, 2, 3)])
    assert [len(answer["result"][0]) for _, answer in answers] == [1, 2, 3, 1, 2, 3]
    assert sorted(k for _, k in index.asked[1:]) == [1, 2, 3]


def test_a_batch_has_a_size() -> None:
    index = SlowIndex()
    half = LARGEST_BATCH // 2
    answers = ask_while_busy(index, [{"queries": ["x"] * half}] * 3 + [{"queries": ["y"] * (2 * LARGEST_BATCH)}])
    assert [status for status, _ in answers] == [200] * 4
    assert sorted(len(queries) for queries, _ in index.asked[1:]) == [half, LARGEST_BATCH, 2 * LARGEST_BATCH]


@pytest.mark.parametrize(("retryable", "status"), [(True, 503), (False, 500)])
def test_an_index_out_of_reach(retryable: bool, status: int) -> None:
    index = SlowIndex()
    index.fault = SandboxFault("the index is gone: start it", retryable=retryable)
    answers = ask_while_busy(index, [{"query": "x"}] * 3)
    assert answers == [(status, {"detail": "the index is gone: start it"})] * 3


def test_the_server_lives_on_after_a_fault() -> None:
    index = SlowIndex()
    index.fault = RuntimeError("a bug")
    index.go.set()
    with served(index) as address:
        assert urllib3.request("POST", f"{address}/retrieve", body=b'{"query": "x"}', retries=False).status == 500
        index.fault = None
        assert post(address, {"query": "x"})[0] == 200


def test_a_crowd_is_served(address: str) -> None:
    with RemoteIndex(address) as index, ThreadPoolExecutor(64) as clients:
        queries = [f"number{number % 6}" for number in range(600)]
        found = list(clients.map(lambda query: index.search([query])[0][0].id, queries))
    assert found == [str(number % 6) for number in range(600)]


def test_a_port_that_is_taken(address: str) -> None:
    assert main(["serve", "--index", address, "--port", address.rpartition(":")[2]]) == 1

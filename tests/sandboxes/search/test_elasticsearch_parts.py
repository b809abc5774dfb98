"""What needs no server: addresses, what a query looks like, merged requests."""

from __future__ import annotations

import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sandboxes.faults import SandboxFault
from sandboxes.search.elastic import form
from sandboxes.search.elastic.connection import Address, read_address
from sandboxes.search.elastic.merging import Merger
from sandboxes.search.elastic.server import PassingFault, pauses, reason_of
from sandboxes.search.elasticsearch import Connection, LoadReport, load, open_elasticsearch


@pytest.mark.parametrize(
    ("where", "url", "index"),
    [
        ("elasticsearch://localhost/wiki", "http://localhost:9200", "wiki"),
        ("elasticsearch://localhost:1/wiki-18/", "http://localhost:1", "wiki-18"),
        ("elasticsearch+https://search.test/wiki", "https://search.test:9200", "wiki"),
        ("elasticsearch://[::1]:9200/wiki", "http://[::1]:9200", "wiki"),
        ("elasticsearch://proxy.test:80/search/wiki", "http://proxy.test:80/search", "wiki"),
    ],
)
def test_addresses(where: str, url: str, index: str) -> None:
    assert read_address(where, Connection()) == (Address(url, index), Connection())


def test_the_user_of_an_address_is_decoded_and_not_shown() -> None:
    address, connection = read_address("elasticsearch+https://elastic:p%40ss%2F@h/wiki", Connection(timeout=3))
    assert connection == Connection("elastic", "p@ss/", timeout=3)
    assert str(address) == "elasticsearch+https://h:9200/wiki"
    assert "p@ss" not in f"{address!r}{connection!r}"


@pytest.mark.parametrize(
    "where",
    [
        "http://host/wiki",
        "elasticsearch://host",
        "elasticsearch:///wiki",
        "elasticsearch://host/Wiki",
        "elasticsearch://host/wiki,other",
        "elasticsearch://host/wiki*",
        "elasticsearch://host/_all",
        "elasticsearch://host/..",
        "elasticsearch://host/" + "w" * 256,
        "elasticsearch://host:port/wiki",
        "elasticsearch://user:secret@host/wiki?x=1",
    ],
)
def test_what_is_no_address_of_one_index(where: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        open_elasticsearch(where)
    assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="expected"):
        load(where, [])


def test_who_logs_in_is_said_once() -> None:
    with pytest.raises(ValueError, match="found both"):
        Connection(user="elastic", password="x", api_key="y")
    with pytest.raises(ValueError, match="password alone"):
        Connection(password="x")
    with pytest.raises(ValueError, match="name one of them"):
        read_address("elasticsearch://elastic:x@host/wiki", Connection(api_key="y"))
    with pytest.raises(ValueError, match="timeout"):
        Connection(timeout=0)
    assert "hidden" not in repr(Connection("u", "hidden")) + repr(Connection(api_key="hidden"))


@given(st.text(max_size=3000))
def test_a_query_is_cut_to_the_words_that_every_server_takes(text: str) -> None:
    short = form.cut(text)
    assert form.clean(text).startswith(short)
    short.encode()  # can be sent
    # No analyzer of words finds more of them than there are runs of ASCII letters and digits, and other characters.
    assert sum(1 for _ in form._WORD.finditer(short)) <= 500
    if len(text) <= 500:
        assert short == form.clean(text)


def test_a_long_query_keeps_its_first_words() -> None:
    words = [f"w{number}" for number in range(2000)]
    assert form.cut(" ".join(words)).split() == words[:500]
    assert len(form.cut("!" * 1_000_000)) == 10_000


def test_a_title_boost_of_nothing_asks_for_the_contents_alone() -> None:
    assert form.query("a", 3, 0)["query"] == {"match": {"contents": "a"}}
    assert form.query("a", 20_000, 0.2)["size"] == 10_000


def test_the_innermost_cause_is_told() -> None:
    cause = {"type": "too_many_clauses", "reason": "maxClauseCount is set to 8192"}
    error = {"type": "search_phase_execution_exception", "reason": "", "failed_shards": [{"reason": {"caused_by": cause}}]}
    assert reason_of(error) == "maxClauseCount is set to 8192"
    assert reason_of(None) == "no reason given"


def test_a_report_is_one_line() -> None:
    assert str(LoadReport(3, 2)) == "3 passages loaded, 2 were there already, 0 failed"
    many = LoadReport(failed=[(str(number), "why") for number in range(5)])
    assert str(many) == "0 passages loaded, 0 were there already, 5 failed ('0': why; '1': why; '2': why; ...)"


def test_passing_faults_can_be_pickled() -> None:
    fault = pickle.loads(pickle.dumps(PassingFault("busy")))
    assert isinstance(fault, PassingFault)
    assert fault.retryable


def test_pauses_grow_to_a_limit() -> None:
    tries = pauses(0.1, 0.5)
    found = [next(tries) for _ in range(10)]
    for pause, full in zip(found, [0.1, 0.2, 0.4, *[0.5] * 7], strict=True):
        assert full / 2 <= pause <= full


class Gate:
    """Requests that wait for a word, and what was in each."""

    def __init__(self, open: bool = False) -> None:
        self.word = threading.Event()
        self.begun = threading.Semaphore(0)
        self.batches: list[list[int]] = []
        if open:
            self.word.set()

    def send(self, numbers: list[int], seconds: float) -> list[int | SandboxFault]:
        self.batches.append(numbers)
        self.begun.release()
        assert self.word.wait(10)
        return [PassingFault(f"no {number}") if number < 0 else number * number for number in numbers]


def soon() -> float:
    return time.monotonic() + 10


def test_what_waits_goes_together_and_who_is_alone_goes_at_once() -> None:
    gate = Gate()
    merger: Merger[int, int] = Merger(gate.send, largest=4, in_flight=1)
    first = merger.ask([1], soon())
    assert gate.begun.acquire(timeout=10)
    rest = [future for number in range(2, 8) for future in merger.ask([number], soon())]
    gate.word.set()
    assert [future.result(10) for future in first + rest] == [1, 4, 9, 16, 25, 36, 49]
    assert gate.batches == [[1], [2, 3, 4, 5], [6, 7]]
    merger.close()


def test_several_requests_are_in_flight() -> None:
    gate = Gate()
    merger: Merger[int, int] = Merger(gate.send, largest=2, in_flight=3)
    futures = merger.ask(list(range(10)), soon())
    for _ in range(3):
        assert gate.begun.acquire(timeout=10)
    assert not gate.begun.acquire(timeout=0.05)
    gate.word.set()
    assert [future.result(10) for future in futures] == [number * number for number in range(10)]
    assert sorted(map(len, gate.batches)) == [2] * 5
    merger.close()


def test_a_fault_is_its_own_question_s() -> None:
    merger: Merger[int, int] = Merger(Gate(open=True).send, largest=8, in_flight=1)
    good, bad, fine = merger.ask([2, -1, 3], soon())
    assert (good.result(10), fine.result(10)) == (4, 9)
    with pytest.raises(PassingFault, match="no -1"):
        bad.result(10)
    merger.close()


@pytest.mark.parametrize("problem", [SandboxFault("gone"), KeyError("a mistake")])
def test_a_failed_request_is_every_question_s(problem: Exception) -> None:
    def fail(numbers: list[int], seconds: float) -> list[int | SandboxFault]:
        raise problem

    merger: Merger[int, int] = Merger(fail, largest=8, in_flight=1)
    for future in merger.ask([1, 2], soon()):
        assert isinstance(future.exception(10), type(problem))
    merger.close()


def test_an_answer_too_few_is_a_fault() -> None:
    merger: Merger[int, int] = Merger(lambda numbers, seconds: numbers[1:], largest=8, in_flight=1)
    for future in merger.ask([1, 2], soon()):
        assert isinstance(future.exception(10), SandboxFault)
    merger.close()


def test_who_gave_up_is_not_asked_for() -> None:
    gate = Gate()
    merger: Merger[int, int] = Merger(gate.send, largest=4, in_flight=1)
    (first,) = merger.ask([1], soon())
    assert gate.begun.acquire(timeout=10)
    (second,) = merger.ask([2], soon())
    (third,) = merger.ask([3], soon())
    assert second.cancel()
    gate.word.set()
    assert (first.result(10), third.result(10)) == (1, 9)
    assert gate.batches == [[1], [3]]
    merger.close()


def test_closing_refuses_what_waits_and_leaves_no_thread() -> None:
    gate = Gate()
    merger: Merger[int, int] = Merger(gate.send, largest=1, in_flight=1)
    running, waiting = merger.ask([1, 2], soon())
    assert gate.begun.acquire(timeout=10)
    closing = threading.Thread(target=merger.close)
    closing.start()
    assert isinstance(waiting.exception(10), SandboxFault)
    gate.word.set()
    closing.join(10)
    assert running.result(10) == 1
    with pytest.raises(SandboxFault, match="closed"):
        merger.ask([3], soon())
    assert not any(thread.name.startswith("merged-requests") for thread in threading.enumerate())
    merger.close()


def test_many_threads_get_their_own_answers() -> None:
    gate = Gate(open=True)
    merger: Merger[int, int] = Merger(gate.send, largest=16, in_flight=2)

    def ask(number: int) -> None:
        for step in range(50):
            assert merger.ask([number * step], soon())[0].result(10) == (number * step) ** 2

    with ThreadPoolExecutor(32) as threads:
        futures = [threads.submit(ask, number) for number in range(32)]
        wait(futures)
        for future in futures:
            future.result()
    assert sum(map(len, gate.batches)) == 32 * 50
    assert max(map(len, gate.batches)) <= 16
    merger.close()


def test_the_laptop_s_server_is_for_this_machine_alone_and_wants_a_password() -> None:
    composed = yaml.safe_load((Path(__file__).resolve().parents[3] / "docker" / "compose.yaml").read_text())
    service = composed["services"]["elasticsearch"]
    assert service["ports"] == ["127.0.0.1:9200:9200"]
    assert service["environment"]["xpack.security.enabled"] == "true"
    assert service["environment"]["ELASTIC_PASSWORD"].startswith("${ELASTIC_PASSWORD:?")  # refuses to start without one
    assert service["image"].startswith("elasticsearch:${ELASTICSEARCH_VERSION:-8.19.")
    assert [volume.partition(":")[0] for volume in service["volumes"]] == [*composed["volumes"]]

"""Elasticsearch in trouble: busy, cut off, half failed, or something else altogether. Against a small server of our own."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import elasticsearch9
import pytest
from tiny_elasticsearch import BUSY, NOT_READY, REJECTED, Reply, TinyElasticsearch, once, tiny_elasticsearch

from sandboxes.faults import SandboxFault
from sandboxes.search.elastic import loading
from sandboxes.search.elasticsearch import Connection, LoadReport, load, open_elasticsearch
from sandboxes.search.index import Index, Passage, UnknownPassage

PASSAGES = [Passage(f"p{number:02}", f"Title{number}", f"word{number} common") for number in range(40)]
QUICK = Connection(timeout=0.5)


@pytest.fixture
def tiny() -> Iterator[TinyElasticsearch]:
    """A server that is well."""
    with tiny_elasticsearch() as server:
        yield server


@pytest.fixture
def index(tiny: TinyElasticsearch) -> Iterator[Index]:
    """A loaded index on it."""
    load(tiny.where, PASSAGES)
    with open_elasticsearch(tiny.where) as found:
        tiny.requests.clear()
        yield found


def ids(hits: list[Passage]) -> list[str]:
    return [passage.id for passage in hits]


# --- searching


@pytest.mark.parametrize("trouble", [BUSY, NOT_READY, (502, "<html>Bad gateway</html>"), (504, "")])
def test_a_busy_server_is_asked_again(tiny: TinyElasticsearch, index: Index, trouble: Reply) -> None:
    tiny.troubles.append(once("_msearch", trouble, times=2))
    assert ids(index.search(["word3"])[0]) == ["p03"]
    assert tiny.count("_msearch") == 3


def test_a_server_that_stays_busy_is_a_fault_within_the_time_limit(tiny: TinyElasticsearch, index: Index) -> None:
    tiny.troubles.append(once("_msearch", BUSY, times=10_000))
    with open_elasticsearch(tiny.where, QUICK) as hurried:
        started = time.monotonic()
        with pytest.raises(SandboxFault, match=r"too busy .*429.*Data too large") as caught:
            hurried.search(["word3"])
    assert caught.value.retryable
    assert time.monotonic() - started < 5
    assert 2 <= tiny.count("_msearch") < 20


def test_a_server_that_is_starting_and_knows_nobody_yet_is_asked_again(tiny: TinyElasticsearch, index: Index) -> None:
    error = {"type": "security_exception", "reason": "unable to authenticate user [elastic] for REST request [/]"}
    refusal: Reply = (401, {"error": {"root_cause": [error], **error}, "status": 401})
    tiny.troubles.append(once("_msearch", refusal, times=2))
    assert ids(index.search(["word3"])[0]) == ["p03"]
    tiny.troubles.append(once("_bulk", refusal, times=2))
    assert load(tiny.where, [Passage("new", "", "")]) == LoadReport(1)
    tiny.troubles.append(once("", refusal))
    with pytest.raises(SandboxFault, match="check user and password") as caught:  # who was never let in is just wrong
        open_elasticsearch(tiny.where)
    assert not caught.value.retryable


def test_a_cut_connection_is_asked_again(tiny: TinyElasticsearch, index: Index) -> None:
    tiny.cut.add("_msearch")
    assert ids(index.search(["word3"])[0]) == ["p03"]
    tiny.cut.add("_mget")
    assert index.get("p07").title == "Title7"


def test_a_server_that_hangs_is_a_fault_within_the_time_limit(tiny: TinyElasticsearch, index: Index) -> None:
    word = threading.Event()

    def hang(endpoint: str, lines: list[Any]) -> Reply | None:
        if endpoint == "_msearch":
            word.wait(20)
        return None

    tiny.troubles.append(hang)
    with open_elasticsearch(tiny.where, QUICK) as hurried:
        started = time.monotonic()
        with ThreadPoolExecutor(8) as threads:  # more than there are requests in flight: some never leave the queue
            futures = [threads.submit(hurried.search, [f"word{number}"]) for number in range(8)]
            for future in futures:
                fault = future.exception()
                assert isinstance(fault, SandboxFault)
                assert fault.retryable
                assert "did not answer within" in str(fault)
        assert time.monotonic() - started < 5
        word.set()
        tiny.troubles.clear()
        assert ids(hurried.search(["word3"])[0]) == ["p03"]


def part_fails(word: str, part: dict[str, Any], times: int) -> Any:
    """Trouble with the one search of an msearch that has a word in it."""
    left = [times]

    def trouble(endpoint: str, lines: list[Any]) -> Reply | None:
        if endpoint != "_msearch" or not left[0] or not any(word in str(line) for line in lines):
            return None
        left[0] -= 1
        whole = [
            part
            if word in str(body)
            else {"hits": {"hits": [{"_source": {"id": "x", "title": "", "text": ""}, "sort": [1.0, "x"]}]}, "status": 200}
            for body in lines[1::2]
        ]
        return 200, {"took": 1, "responses": whole}

    return trouble


def merged(tiny: TinyElasticsearch, index: Index, queries: list[str]) -> list[Any]:
    """What threads get that ask at the same time and are merged into one request, results or exceptions."""
    word, busy = threading.Event(), threading.Semaphore(0)

    def hold(endpoint: str, lines: list[Any]) -> Reply | None:
        if any("holding" in str(line) for line in lines):
            busy.release()
            word.wait(20)
        return None

    tiny.troubles.insert(0, hold)
    with ThreadPoolExecutor(len(queries) + 2) as threads:
        holding = []
        for _ in range(2):  # as many requests as there are in flight
            holding.append(threads.submit(index.search, ["holding"]))
            assert busy.acquire(timeout=10)
        tiny.requests.clear()
        futures = [threads.submit(index.search, [query]) for query in queries]
        time.sleep(0.2)  # all of them wait by now; if not, the check of the request's size below fails
        word.set()
        found = [future.exception() or future.result() for future in futures]
        assert [future.result() for future in holding] == [[[]], [[]]]
    assert ("_msearch", 2 * len(queries)) in tiny.requests
    return found


def test_concurrent_searches_are_one_request(tiny: TinyElasticsearch, index: Index) -> None:
    found = merged(tiny, index, [f"word{number}" for number in range(20)])
    assert [ids(hits[0]) for hits in found] == [[f"p{number:02}"] for number in range(20)]


def test_a_search_that_fails_is_its_caller_s_alone(tiny: TinyElasticsearch, index: Index) -> None:
    cause = {"type": "query_shard_exception", "reason": "failed to create query: no"}
    error = {"root_cause": [cause], "type": "search_phase_execution_exception", "reason": "all shards failed"}
    tiny.troubles.append(part_fails("word1", {"error": error, "status": 400}, times=1000))
    first, second, third = merged(tiny, index, ["word0", "word1", "word2"])
    assert (ids(first[0]), ids(third[0])) == (["x"], ["x"])
    assert isinstance(second, SandboxFault)
    assert not second.retryable


def test_a_search_that_is_rejected_is_asked_again_alone(tiny: TinyElasticsearch, index: Index) -> None:
    tiny.troubles.append(part_fails("word1", {"error": REJECTED, "status": 429}, times=1))
    first, second, third = merged(tiny, index, ["word0", "word1", "word2"])
    assert (ids(first[0]), ids(second[0]), ids(third[0])) == (["x"], ["p01"], ["x"])
    assert [count for name, count in tiny.requests if name == "_msearch"][-1] == 2


def test_many_queries_of_one_caller_go_in_several_requests(tiny: TinyElasticsearch, index: Index) -> None:
    found = index.search([f"word{number % 40}" for number in range(200)], k=1)
    assert [ids(hits) for hits in found] == [[f"p{number % 40:02}"] for number in range(200)]
    assert sum(count for name, count in tiny.requests if name == "_msearch") == 400
    assert max(count for name, count in tiny.requests if name == "_msearch") <= 128


def test_nothing_is_asked_for_no_query(tiny: TinyElasticsearch, index: Index) -> None:
    assert index.search([]) == []
    assert asyncio.run(index.search_async([])) == []
    assert tiny.requests == []


def test_async_searches_are_merged_and_wait_in_no_thread(tiny: TinyElasticsearch, index: Index) -> None:
    async def all_of_them() -> list[list[list[Passage]]]:
        return await asyncio.gather(*(index.search_async([f"word{number}"]) for number in range(40)))

    tiny.troubles.append(once("_msearch", BUSY))
    before = threading.active_count()
    found = asyncio.run(all_of_them())
    assert [ids(hits[0]) for hits in found] == [[f"p{number:02}"] for number in range(40)]
    assert tiny.count("_msearch") < 20  # of 40: how many meet depends on how busy the machine is
    assert threading.active_count() - before < 10


def test_an_async_search_that_fails_or_is_cancelled_leaves_no_complaint(
    tiny: TinyElasticsearch, index: Index, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.troubles.append(once("_msearch", BUSY, times=10_000))

    async def fail() -> None:
        with open_elasticsearch(tiny.where, QUICK) as hurried:
            with pytest.raises(SandboxFault):
                await hurried.search_async(["word1", "word2"])
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(hurried.search_async(["word1", "word2"]), 0.1)

    with caplog.at_level(logging.ERROR):
        asyncio.run(fail())
    assert not caplog.records


def test_get_says_what_there_is_not(tiny: TinyElasticsearch, index: Index) -> None:
    for id in ("nope", "", "\ud800", "x" * 600):
        with pytest.raises(UnknownPassage, match="there is no passage"):
            index.get(id)
    assert tiny.count("_mget") == 1


def test_an_index_that_is_deleted_meanwhile(tiny: TinyElasticsearch, index: Index) -> None:
    tiny.documents = None
    with pytest.raises(SandboxFault, match=r"no index 'wiki'.*python -m sandboxes.search index"):
        index.search(["word1"])


# --- opening


def test_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(SandboxFault, match=rf"127.0.0.1:{port} cannot be reached .*refused.*start it") as caught:
        open_elasticsearch(f"elasticsearch://127.0.0.1:{port}/wiki")
    assert caught.value.retryable
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 2  # opening does not try for long


@pytest.mark.parametrize(
    "where", ["elasticsearch://no-such-host.invalid/wiki", "elasticsearch+https://no-such-host.invalid/wiki"]
)
def test_there_is_no_such_host(where: str) -> None:
    with pytest.raises(SandboxFault, match="cannot be reached") as caught:
        open_elasticsearch(where)
    assert caught.value.retryable


@pytest.mark.parametrize("product", [None, "OpenSearch"])
def test_another_product(tiny: TinyElasticsearch, product: str | None) -> None:
    tiny.product = product
    with pytest.raises(SandboxFault, match="is not Elasticsearch") as caught:
        open_elasticsearch(tiny.where)
    assert not caught.value.retryable


def test_another_kind_of_server(tiny: TinyElasticsearch) -> None:
    tiny.product = None
    tiny.troubles.append(once("", (200, "<html>It works!</html>")))
    with pytest.raises(SandboxFault, match="is not Elasticsearch"):
        open_elasticsearch(tiny.where)


def test_a_server_of_the_other_major_version(tiny: TinyElasticsearch) -> None:
    tiny.version = "9.1.0"
    with pytest.raises(
        SandboxFault, match=r"is 9\.1\.0 and the installed client is 8\..*pip install 'elasticsearch>=9,<10'"
    ):
        open_elasticsearch(tiny.where)
    tiny.version = "8.19.0"
    with pytest.raises(
        SandboxFault, match=r"is 8\.19\.0 and the installed client is 9\..*pip install 'elasticsearch>=8,<9'"
    ):
        open_elasticsearch(tiny.where, client=elasticsearch9)
    with pytest.raises(SandboxFault, match="pip install"):
        load(tiny.where, PASSAGES, client=elasticsearch9)
    assert tiny.documents is None


def test_a_server_that_is_too_old(tiny: TinyElasticsearch) -> None:
    tiny.version = "7.17.1"
    with pytest.raises(SandboxFault, match=r"is 7\.17\.1; supported are 8 and 9"):
        open_elasticsearch(tiny.where)


def test_the_client_of_major_9(tiny: TinyElasticsearch) -> None:
    tiny.version = "9.1.0"
    assert load(tiny.where, PASSAGES, client=elasticsearch9).loaded == 40
    with open_elasticsearch(tiny.where, client=elasticsearch9) as index:
        tiny.troubles.append(once("_msearch", BUSY))
        assert ids(index.search(["word3"])[0]) == ["p03"]
        assert index.get("p05").title == "Title5"


def test_a_user_who_may_search_but_not_ask_for_the_version(tiny: TinyElasticsearch, index: Index) -> None:
    error = {"type": "security_exception", "reason": "action [cluster:monitor/main] is unauthorized"}
    tiny.troubles.append(once("", (403, {"error": {"root_cause": [error], **error}, "status": 403})))
    with open_elasticsearch(tiny.where) as found:
        assert ids(found.search(["word3"])[0]) == ["p03"]


def test_a_user_who_may_not_look_at_the_index(tiny: TinyElasticsearch, index: Index) -> None:
    error = {"type": "security_exception", "reason": "action [indices:admin/get] is unauthorized for user [u]"}
    tiny.troubles.append(once("wiki", (403, {"error": {"root_cause": [error], **error}, "status": 403})))
    with pytest.raises(SandboxFault, match=r"does not allow .*indices:admin/get") as caught:
        open_elasticsearch(tiny.where)
    assert not caught.value.retryable


# --- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate that signs itself, for 127.0.0.1."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


def make_certificate(folder: Path) -> tuple[str, str]:
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl")
    files = str(folder / "certificate.pem"), str(folder / "key.pem")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-out", files[0], "-keyout", files[1]]
    subprocess.run(command, check=True, capture_output=True)
    return files


def test_tls(certificate: tuple[str, str], tmp_path: Path) -> None:
    with tiny_elasticsearch(certificate) as tiny:
        where = tiny.where.replace("elasticsearch:", "elasticsearch+https:")
        trusting = Connection(ca_certs=certificate[0])
        assert load(where, PASSAGES, connection=trusting).loaded == 40
        with open_elasticsearch(where, trusting) as index:
            assert ids(index.search(["word3"])[0]) == ["p03"]
        for connection in (Connection(), Connection(ca_certs=make_certificate(tmp_path)[0])):
            with pytest.raises(SandboxFault, match=r"no TLS connection .*certificate.*ca_certs") as caught:
                open_elasticsearch(where, connection)
            assert not caught.value.retryable
        with pytest.raises(SandboxFault, match=r"elasticsearch\+https"):
            open_elasticsearch(tiny.where, QUICK)


@pytest.mark.filterwarnings("ignore:Connecting to", "ignore:Unverified HTTPS")
def test_tls_without_a_check(certificate: tuple[str, str]) -> None:
    with tiny_elasticsearch(certificate) as tiny:
        where = tiny.where.replace("elasticsearch:", "elasticsearch+https:")
        assert load(where, PASSAGES, connection=Connection(verify_certs=False)).loaded == 40


def test_tls_where_there_is_none(tiny: TinyElasticsearch) -> None:
    with pytest.raises(SandboxFault, match=r"no TLS connection .*elasticsearch://"):
        open_elasticsearch(tiny.where.replace("elasticsearch:", "elasticsearch+https:"), QUICK)


def test_there_is_no_such_ca_file(tmp_path: Path) -> None:
    with pytest.raises(SandboxFault, match=r"ca_certs .*nothing.pem"):
        open_elasticsearch("elasticsearch+https://127.0.0.1:1/wiki", Connection(ca_certs=str(tmp_path / "nothing.pem")))


# --- loading


def test_loading_reports_its_progress(tiny: TinyElasticsearch) -> None:
    seen: list[int] = []
    report = load(tiny.where, iter(PASSAGES), batch=16, progress=seen.append)
    assert report == LoadReport(40)
    assert seen == [16, 32, 40]
    assert sorted(count for name, count in tiny.requests if name == "_bulk") == [16, 32, 32]
    assert tiny.documents == {p.id: {"id": p.id, "title": p.title, "text": p.text} for p in PASSAGES}


@pytest.mark.parametrize("trouble", [BUSY, NOT_READY])
def test_loading_goes_on_when_the_server_is_well_again(tiny: TinyElasticsearch, trouble: Reply) -> None:
    tiny.troubles.append(once("_bulk", trouble, times=2))
    assert load(tiny.where, PASSAGES) == LoadReport(40)
    assert tiny.documents is not None
    assert len(tiny.documents) == 40


def items_fail(bad: dict[str, tuple[int, dict[str, str]]], times: int) -> Any:
    """Trouble with some documents of a bulk request; the others of it are left to the server by asking again for them."""
    left = [times]

    def trouble(endpoint: str, lines: list[Any]) -> Reply | None:
        if endpoint != "_bulk" or not left[0]:
            return None
        left[0] -= 1
        items = []
        for action in lines[::2]:
            status, error = bad.get(action["create"]["_id"], (429, REJECTED))
            items.append({"create": {"_id": action["create"]["_id"], "status": status, "error": error}})
        return 200, {"errors": True, "items": items}

    return trouble


def test_documents_that_are_rejected_are_sent_again_and_only_they(tiny: TinyElasticsearch) -> None:
    def some_rejected(endpoint: str, lines: list[Any]) -> Reply | None:
        if endpoint != "_bulk":
            return None
        tiny.troubles.clear()
        items = []
        for number, (action, document) in enumerate(zip(lines[::2], lines[1::2], strict=True)):
            if number % 4 == 0:
                items.append({"create": {"status": 429, "error": REJECTED}})
            else:
                items.append({"create": tiny._create(action, document)})
        return 200, {"items": items}

    tiny.troubles.append(some_rejected)
    assert load(tiny.where, PASSAGES) == LoadReport(40)
    assert [count for name, count in tiny.requests if name == "_bulk"] == [80, 20]


def test_documents_that_fail_are_reported_and_the_rest_is_loaded(tiny: TinyElasticsearch) -> None:
    cause = {"type": "illegal_argument_exception", "reason": "it is odd"}
    bad = {"p03": (400, {"type": "document_parsing_exception", "reason": "failed to parse", "caused_by": cause})}
    bad["p05"] = (500, {"type": "array_index_out_of_bounds_exception", "reason": "Index 7 out of bounds"})
    tiny.troubles.append(items_fail(bad, times=1))
    report = load(tiny.where, PASSAGES)
    assert report == LoadReport(38, 0, [("p03", "it is odd"), ("p05", "Index 7 out of bounds")])
    assert tiny.documents is not None
    assert {*tiny.documents} == {passage.id for passage in PASSAGES} - {"p03", "p05"}


def test_what_no_passage_can_help_ends_the_loading(tiny: TinyElasticsearch) -> None:
    block = {"type": "cluster_block_exception", "reason": "index [wiki] blocked by: [FORBIDDEN/8/index write (api)];"}
    tiny.troubles.append(items_fail({passage.id: (403, block) for passage in PASSAGES}, times=1))
    with pytest.raises(SandboxFault, match="FORBIDDEN/8"):
        load(tiny.where, PASSAGES)
    with pytest.raises(SandboxFault, match="cut off: load it again"):
        open_elasticsearch(tiny.where)
    assert load(tiny.where, PASSAGES) == LoadReport(40)


def test_an_answer_that_is_lost_is_neither_lost_nor_double(tiny: TinyElasticsearch) -> None:
    load(tiny.where, PASSAGES[:4])
    tiny.cut.add("_bulk")
    assert load(tiny.where, PASSAGES) == LoadReport(36, 4)
    assert tiny.documents is not None
    assert len(tiny.documents) == 40


def test_a_lost_answer_to_the_creation_of_the_index(tiny: TinyElasticsearch) -> None:
    exists = {"type": "resource_already_exists_exception", "reason": "index [wiki/x] already exists"}

    def again(endpoint: str, lines: list[Any]) -> Reply | None:
        return (
            (400, {"error": exists, "status": 400})
            if tiny.documents is not None and lines and "settings" in lines[0]
            else None
        )

    tiny.troubles.append(again)
    tiny.cut.add("wiki")
    assert load(tiny.where, PASSAGES) == LoadReport(40)


def test_a_creation_that_is_refused(tiny: TinyElasticsearch) -> None:
    error = {"type": "mapper_parsing_exception", "reason": "analyzer [english] has not been configured in mappings"}
    refusal: Reply = (400, {"error": {"root_cause": [error], **error}, "status": 400})

    def refuse(endpoint: str, lines: list[Any]) -> Reply | None:
        return refusal if lines and "settings" in lines[0] else None

    tiny.troubles.append(refuse)
    with pytest.raises(SandboxFault, match="english"):
        load(tiny.where, PASSAGES)


def test_requests_that_are_too_large_are_halved(tiny: TinyElasticsearch) -> None:
    large = Passage("large", "", "x " * 5000)

    def proxy(endpoint: str, lines: list[Any]) -> Reply | None:
        return (413, "<html>Request Entity Too Large</html>") if sum(len(str(line)) for line in lines) > 2000 else None

    tiny.troubles.append(proxy)
    report = load(tiny.where, [*PASSAGES, large])
    assert (report.loaded, [id for id, _ in report.failed]) == (40, ["large"])
    assert "413" in report.failed[0][1]


def test_a_request_has_a_limit_of_characters(tiny: TinyElasticsearch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_REQUEST_CHARACTERS", 100)
    assert load(tiny.where, PASSAGES).loaded == 40
    assert max(count for name, count in tiny.requests if name == "_bulk") <= 2 * 8


def test_patience_ends(tiny: TinyElasticsearch) -> None:
    tiny.troubles.append(once("_bulk", BUSY, times=10_000))
    started = time.monotonic()
    with pytest.raises(SandboxFault, match=r"too busy.*0\.3 s.*Load again to go on") as caught:
        load(tiny.where, PASSAGES, patience=0.3)
    assert caught.value.retryable
    assert time.monotonic() - started < 5
    tiny.troubles.clear()
    assert load(tiny.where, PASSAGES) == LoadReport(40)


def test_a_corpus_that_breaks_off_ends_the_loading_and_can_be_gone_on_with(tiny: TinyElasticsearch) -> None:
    def broken() -> Iterator[Passage]:
        yield from PASSAGES[:20]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        load(tiny.where, broken(), batch=8)
    tiny.requests.clear()
    assert load(tiny.where, PASSAGES, batch=8).loaded >= 20
    assert tiny.documents is not None
    assert len(tiny.documents) == 40
    assert not any(thread.name.startswith("bulk") for thread in threading.enumerate())


def test_going_on_does_not_send_again_what_is_there(tiny: TinyElasticsearch) -> None:
    load(tiny.where, PASSAGES[:20])
    tiny.requests.clear()
    assert load(tiny.where, PASSAGES, batch=10, requests=1) == LoadReport(20, 20)
    assert [count for name, count in tiny.requests if name == "_bulk"] == [20, 20]
    assert tiny.count("_mget") == 2  # once all that was there has been met, nothing is looked up


def test_documents_that_vanish_are_noticed(tiny: TinyElasticsearch) -> None:
    def forget(endpoint: str, lines: list[Any]) -> Reply | None:
        if endpoint == "_forcemerge":
            assert tiny.documents is not None
            tiny.documents.pop("p07")
        return None

    tiny.troubles.append(forget)
    with pytest.raises(SandboxFault, match="has 39 passages, expected 40"):
        load(tiny.where, PASSAGES)
    with pytest.raises(SandboxFault, match="load it again"):
        open_elasticsearch(tiny.where)

"""Elasticsearch itself: the contract of an index, logging in, and what a power cut leaves. Against a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import elasticsearch9
import pytest
from bm25_formula import check_ranking, scores
from elasticsearch_server import OwnServer, Server, fresh_index, own_server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxes.faults import SandboxFault
from sandboxes.search import open_index
from sandboxes.search.elastic import form
from sandboxes.search.elasticsearch import Connection, LoadReport, load, open_elasticsearch
from sandboxes.search.index import Index, Passage, UnknownPassage

pytestmark = pytest.mark.elasticsearch

REPOSITORY = Path(__file__).resolve().parents[3]
PASSAGES = [
    Passage("talido", "Talido Benu", "The author of Kovamir, a novel of 1923. She was born in Sarune."),
    Passage("kovamir", "Kovamir", "A novel by Talido Benu about the running of a harbour."),
    Passage("sarune-2", "Sarune (river)", "A river that ends in the harbour."),
    Passage("sarune-1", "Sarune (town)", "A town that lies on the river."),
    Passage("speciál \u00e9 \U0001f600/?#%", "Other words", 'Émile said: "naïve"\n\ttabs, 東京 and \U0001f600.'),
    Passage("untitled", "", "Nothing much."),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The server that `ELASTICSEARCH_URL` names, else one of our own."""
    if url := os.environ.get("ELASTICSEARCH_URL"):
        yield Server(url)
    else:
        with own_server() as own:
            yield own


@pytest.fixture(scope="module")
def mortal(server: Server) -> Iterator[OwnServer]:
    """A server that may be killed."""
    if isinstance(server, OwnServer):
        yield server
    else:
        with own_server() as own:
            yield own


@pytest.fixture
def where(server: Server) -> Iterator[str]:
    """The address of an index that is not there yet."""
    with fresh_index(server) as address:
        yield address


@pytest.fixture(scope="module")
def loaded(server: Server) -> Iterator[str]:
    """The address of an index with `PASSAGES`."""
    with fresh_index(server) as address:
        assert load(address, PASSAGES) == LoadReport(len(PASSAGES))
        yield address


@pytest.fixture(scope="module")
def index(loaded: str) -> Iterator[Index]:
    """An index of `PASSAGES`."""
    with open_elasticsearch(loaded) as found:
        yield found


def ids(hits: list[Passage]) -> list[str]:
    return [passage.id for passage in hits]


def bare(passage: Passage) -> Passage:
    return Passage(passage.id, passage.title, passage.text)


def stored(server: Server, where: str) -> dict[str, dict[str, str]]:
    """What is in an index, asked with the bare client."""
    name = where.rpartition("/")[2]
    with contextlib.closing(server.client()) as client:
        client.indices.refresh(index=name)
        found: dict[str, dict[str, str]] = {}
        after: list[Any] | None = None
        while True:
            page = client.search(index=name, size=10_000, sort=["id"], search_after=after)["hits"]["hits"]
            found.update({hit["_id"]: hit["_source"] for hit in page})
            if not page:
                return found
            after = page[-1]["sort"]


# --- the contract


def test_passages_are_found_by_words_in_english(index: Index) -> None:
    author, harbours, nothing = index.search(["who authored Kovamir?", "runs of harbours", "the of a"], k=2)
    assert ids(author) == ["talido", "kovamir"]
    assert set(ids(harbours)) == {"kovamir", "sarune-2"}
    assert nothing == []
    assert bare(author[0]) == PASSAGES[0]
    assert author[0].score > author[1].score > 0


def test_a_match_in_the_title_counts_more(loaded: str) -> None:
    with open_elasticsearch(loaded, title_boost=5) as boosted:
        assert ids(boosted.search(["harbour of Talido"])[0])[0] == "talido"
    with pytest.raises(ValueError, match="title_boost"):
        open_elasticsearch(loaded, title_boost=-1)


def test_equal_scores_come_by_id(server: Server, where: str) -> None:
    names = ["b", "B", "10", "9", "é", "\U0001f600", "\uff01", "a-2", "a"]  # where UTF-16's order is another
    load(where, [Passage(name, "", "the same words") for name in names])
    with open_elasticsearch(where) as found:
        assert ids(found.search(["same"], k=20)[0]) == sorted(names)
        assert ids(found.search(["words"], k=4)[0]) == sorted(names)[:4]


def test_get_gives_a_passage_by_its_id(index: Index) -> None:
    assert [index.get(passage.id) for passage in PASSAGES] == PASSAGES
    for id in ("nope", "", "\ud800", "x" * 600, "talido,kovamir", "*"):
        with pytest.raises(UnknownPassage, match="there is no passage"):
            index.get(id)


def test_no_query_is_an_error(index: Index) -> None:
    odd = [
        "",
        " \n",
        "the",
        "\ud800 Kovamir",
        "Kovamir " * 200_000,
        "東" * 100_000,
        "kovamir AND (*:* OR",
        "\0",
        "²³" * 5000,
    ]
    found = index.search([*odd, *(" ".join(f"w{number}" for number in range(9000)) for _ in range(3))], k=1)
    assert [ids(hits) for hits in found[3:5]] == [["kovamir"]] * 2
    assert ids(found[6]) == ["kovamir"]
    assert found[0] == found[1] == found[2] == found[7] == []
    assert len(found) == 12


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=700), max_size=4), st.integers(1, 30_000))
def test_any_text_can_be_searched_for(index: Index, queries: list[str], k: int) -> None:
    found = index.search(queries, k)
    assert len(found) == len(queries)
    for hits in found:
        assert all(bare(hit) in PASSAGES and hit.score > 0 for hit in hits)


def test_k_is_what_one_gets_at_most(index: Index) -> None:
    assert len(index.search(["harbour sarune"], k=1)[0]) == 1
    assert len(index.search(["harbour sarune"], k=1_000_000)[0]) == 4
    for k in (0, -1):
        with pytest.raises(ValueError, match="k must be at least 1"):
            index.search(["harbour"], k=k)


def test_an_index_says_what_it_is(server: Server, index: Index) -> None:
    line = index.describe()
    assert f"{len(PASSAGES)} passages" in line
    assert "\n" not in line
    password = urlsplit(server.url).password
    assert password is None or password not in line
    assert len(index) == len(PASSAGES)


def test_async_search_is_the_same(index: Index) -> None:
    async def both() -> list[list[list[Passage]]]:
        return await asyncio.gather(*(index.search_async([query], k=2) for query in ("Kovamir", "river", "")))

    assert asyncio.run(both()) == [index.search([query], k=2) for query in ("Kovamir", "river", "")]


def test_a_closed_index_is_a_fault_and_leaves_no_thread(loaded: str) -> None:
    before = threading.active_count()
    with open_elasticsearch(loaded) as found:
        found.search(["Kovamir"])
        found.get("talido")
    found.close()
    assert threading.active_count() == before
    for use in (lambda: found.search(["Kovamir"]), lambda: found.get("talido"), lambda: len(found)):
        with pytest.raises(SandboxFault, match="closed"):
            use()


def test_threads_at_once_get_their_own_answers(server: Server, where: str) -> None:
    load(where, [Passage(str(number), f"Title {number}", f"only{number} and common") for number in range(200)])
    with open_elasticsearch(where) as found, ThreadPoolExecutor(32) as threads:

        def use(number: int) -> None:
            for step in range(10):
                wanted = str((number * 37 + step) % 200)
                assert ids(found.search([f"only{wanted}"])[0]) == [wanted]
                assert found.get(wanted).title == f"Title {wanted}"

        for done in [threads.submit(use, number) for number in range(32)]:
            done.result()


def test_a_forked_child_has_connections_of_its_own(index: Index) -> None:
    expected = index.search(["Kovamir"])
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = int(not all(index.search(["Kovamir"]) == expected for _ in range(20)))
            index.close()
        finally:
            os._exit(status)
    assert all(index.search(["Kovamir"]) == expected for _ in range(20))
    assert os.waitpid(child, 0)[1] == 0
    assert index.search(["Kovamir"]) == expected  # what the child closed was its own


def test_open_index_knows_the_address(loaded: str) -> None:
    with open_index(loaded) as found:
        assert ids(found.search(["Kovamir"])[0])[0] == "kovamir"


@pytest.mark.parametrize("seed", range(4))
def test_ranking_is_that_of_the_formula(server: Server, where: str, seed: int) -> None:
    rng = random.Random(seed)
    words = [f"w{number}" for number in range(60)]

    def some(low: int, high: int) -> list[str]:
        return [words[int(len(words) * rng.random() ** 2)] for _ in range(rng.randint(low, high))]

    titles = [some(0, 5) for _ in range(400)]
    texts = [some(1, 35) for _ in range(400)]  # Lucene rounds lengths above 40
    passages = [
        Passage(f"p{rng.randrange(10**9):09}", " ".join(title), " ".join(text))
        for title, text in zip(titles, texts, strict=True)
    ]
    tokens = {one.id: title + text for one, title, text in zip(passages, titles, texts, strict=True)}
    queries = [some(1, 8) for _ in range(60)]
    load(where, passages)
    with open_elasticsearch(where, title_boost=0) as found:
        answers = found.search([" ".join(query) for query in queries], k=10)
    for query, hits in zip(queries, answers, strict=True):
        # Elasticsearch keeps the constant factor k1 + 1 of BM25's first form.
        check_ranking([(hit.id, hit.score / (1 + form.K1)) for hit in hits], scores(tokens, query, form.K1, form.B), k=10)


# --- loading


def test_loading_again_adds_what_is_missing(server: Server, where: str) -> None:
    assert load(where, PASSAGES[:2]) == LoadReport(2)
    assert load(where, PASSAGES) == LoadReport(4, 2)
    assert load(where, PASSAGES) == LoadReport(0, 6)
    assert load(where, []) == LoadReport()
    with open_elasticsearch(where) as found:
        assert len(found) == 6


def test_passages_that_cannot_be_loaded_are_reported_and_the_rest_is_loaded(server: Server, where: str) -> None:
    load(where, PASSAGES[:1])
    odd = [
        Passage("", "", "no id"),
        Passage("x" * 513, "", "a long id"),
        Passage("\udc80", "", "a broken id"),
        Passage("talido", "", "another one of an id that is taken"),
        Passage("twice", "", "one"),
        Passage("twice", "", "two"),
        Passage("same", "", "twice the same"),
        Passage("same", "", "twice the same"),
        Passage("y" * 512, "", "\ud800 a surrogate"),
        Passage("long", "", "word" * 100_000 + " \0 " + "é" * 40_000),
    ]
    report = load(where, [*odd, *PASSAGES])
    assert (report.loaded, report.skipped) == (9, 2)
    assert sorted(id[:6] for id, _ in report.failed) == ["", "talido", "twice", "xxxxxx", "\udc80"]
    assert "513" in dict(report.failed)["x" * 513]
    with open_elasticsearch(where) as found:
        assert len(found) == 10
        assert found.get("talido") == PASSAGES[0]
        assert found.get("y" * 512).text == "\ufffd a surrogate"


def test_an_index_that_is_there_may_be_kept_from_loading(server: Server, where: str) -> None:
    assert load(where, PASSAGES, resume=False) == LoadReport(6)
    with pytest.raises(SandboxFault, match="already"):
        load(where, PASSAGES, resume=False)
    with open_elasticsearch(where) as found:
        assert len(found) == 6


def test_a_loaded_index_is_as_it_should_be(server: Server, loaded: str) -> None:
    name = loaded.rpartition("/")[2]
    with contextlib.closing(server.client()) as client:
        told = client.indices.get(index=name)[name]
        segments = client.indices.segments(index=name)["indices"][name]["shards"]
    assert told["settings"]["index"]["number_of_shards"] == "1"
    assert told["settings"]["index"]["number_of_replicas"] == "0"
    assert "refresh_interval" not in told["settings"]["index"]
    assert [len(shard[0]["segments"]) for shard in segments.values()] == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mappings": {"properties": {"contents": {"type": "text"}}}}, "field contents"),
        ({"settings": {"index": {"similarity": {"passages": {"type": "BM25", "k1": 1.2, "b": 0.4}}}}}, "similarity"),
        ({"mappings": {"properties": {"url": {"type": "keyword"}}}}, "field url"),
        ({"mappings": {"_meta": {"passages": {"version": 99, "complete": True}}}}, "version"),
    ],
)
def test_an_index_of_another_form_is_refused(server: Server, where: str, change: dict[str, Any], message: str) -> None:
    creation = json.loads(json.dumps(form.creation(), default=dict))
    for part in change:
        merge(creation[part], change[part])
    with contextlib.closing(server.client()) as client:
        client.indices.create(index=where.rpartition("/")[2], **creation)
    for use in (lambda: open_elasticsearch(where), lambda: load(where, PASSAGES)):
        with pytest.raises(SandboxFault, match=f"another mapping .*{message}.*another name") as caught:
            use()
        assert not caught.value.retryable


def merge(into: dict[str, Any], change: dict[str, Any]) -> None:
    for key, value in change.items():
        if key in into and isinstance(value, dict) and "type" not in value:
            merge(into[key], value)
        else:
            into[key] = value


def test_there_is_no_such_index(server: Server, where: str) -> None:
    with pytest.raises(SandboxFault, match=r"there is no index 'test-.*python -m sandboxes.search index") as caught:
        open_elasticsearch(where)
    assert not caught.value.retryable


def test_the_client_of_another_major_version_is_refused(server: Server, loaded: str) -> None:
    with contextlib.closing(server.client()) as client:
        if not client.info()["version"]["number"].startswith("8."):
            pytest.skip("needs a server of major version 8")
    for use in (
        lambda: open_elasticsearch(loaded, client=elasticsearch9),
        lambda: load(loaded, PASSAGES, client=elasticsearch9),
    ):
        with pytest.raises(SandboxFault, match=r"client is 9\..*pip install 'elasticsearch>=8,<9'") as caught:
            use()
        assert not caught.value.retryable


# --- logging in


def without_user(where: str) -> str:
    """The address without user and password."""
    scheme, _, rest = where.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


@pytest.fixture(scope="module")
def secured(server: Server, loaded: str) -> str:
    """The address of an index of `PASSAGES` on a server with security."""
    if urlsplit(server.url).password is None:
        pytest.skip("needs a server that asks for a password")
    return loaded


def test_a_user_logs_in(server: Server, secured: str) -> None:
    parts = urlsplit(server.url)
    connection = Connection(parts.username or "", parts.password or "")
    with open_elasticsearch(without_user(secured), connection) as found:
        assert len(found) == len(PASSAGES)


@pytest.mark.parametrize(
    ("connection", "who"),
    [
        (Connection(), "a caller who does not log in"),
        (Connection("elastic", "wrong-password"), "user 'elastic'"),
        (Connection("nobody", "wrong-password"), "user 'nobody'"),
        (Connection(api_key="bm90OmFrZXk="), "the API key"),
    ],
)
def test_who_may_not_is_refused(secured: str, connection: Connection, who: str) -> None:
    for use in (
        lambda: open_elasticsearch(without_user(secured), connection),
        lambda: load(without_user(secured), PASSAGES, connection=connection),
    ):
        with pytest.raises(SandboxFault, match=f"refuses {who} .*check user and password") as caught:
            use()
        assert not caught.value.retryable
        assert "wrong-password" not in str(caught.value)


def test_an_api_key_that_may_read_only_can_search_only(server: Server, secured: str) -> None:
    name = secured.rpartition("/")[2]
    reader = {"indices": [{"names": [name], "privileges": ["read", "view_index_metadata"]}]}
    with contextlib.closing(server.client()) as client:
        key = client.security.create_api_key(name="reader", role_descriptors={"reader": reader})
    connection = Connection(api_key=key["encoded"])
    with open_elasticsearch(without_user(secured), connection) as found:
        assert ids(found.search(["Kovamir"])[0])[0] == "kovamir"
        assert found.get("talido") == PASSAGES[0]
    with pytest.raises(SandboxFault, match=r"does not allow the API key .*unauthorized") as caught:
        load(without_user(secured), PASSAGES, connection=connection)
    assert not caught.value.retryable
    with open_elasticsearch(secured) as found:
        assert len(found) == len(PASSAGES)


# --- power cuts

MANY = [Passage(f"{number:05}", f"Title {number}", f"only{number} " + "some words more " * 20) for number in range(20_000)]
AS_STORED = {one.id: {"id": one.id, "title": one.title, "text": one.text} for one in MANY}


def paced(passages: list[Passage], seconds: float = 0.002) -> Iterator[Passage]:
    """Passages so slow that the loading can be killed in the middle."""
    for number, passage in enumerate(passages):
        if number % 20 == 0:
            time.sleep(seconds)
        yield passage


def test_a_server_that_is_killed_loses_nothing_and_loading_goes_on_again(mortal: OwnServer) -> None:
    done = [0]

    def progress(count: int) -> None:
        done[0] = count
        if count > 4000 and killer.ident is None:
            killer.start()

    killer = threading.Thread(target=mortal.kill)
    with fresh_index(mortal) as where:
        try:
            with pytest.raises(SandboxFault, match=r"cannot be reached.*Load again to go on") as caught:
                load(where, paced(MANY), progress=progress, patience=1, batch=200)
        finally:
            killer.join()
            mortal.resume()
        assert caught.value.retryable
        there = stored(mortal, where)
        assert there.items() <= AS_STORED.items()
        assert 4000 < done[0] <= len(there) < len(MANY)  # what was acknowledged, and what was on its way
        with pytest.raises(SandboxFault, match="cut off: load it again to go on"):
            open_elasticsearch(where)
        assert load(where, MANY) == LoadReport(len(MANY) - len(there), len(there))
        assert stored(mortal, where) == AS_STORED
        with open_elasticsearch(where) as found:
            assert ids(found.search(["only19999"])[0]) == ["19999"]


def test_loading_waits_for_a_server_that_comes_back(mortal: OwnServer) -> None:
    def restart() -> None:
        mortal.kill()
        mortal.resume()

    killer = threading.Thread(target=restart)

    def progress(count: int) -> None:
        if count > 4000 and killer.ident is None:
            killer.start()

    with fresh_index(mortal) as where:
        report = load(where, paced(MANY), progress=progress, batch=200)
        killer.join()
        assert report == LoadReport(len(MANY))
        assert stored(mortal, where) == AS_STORED


CLIENT = """
import sys
sys.path[:0] = sys.argv[2:]
from sandboxes.search.elasticsearch import load
from test_elasticsearch import MANY, paced
load(sys.argv[1], paced(MANY), batch=200, progress=lambda count: print(count, flush=True))
"""


def test_a_client_that_is_killed_can_be_started_again(server: Server, where: str) -> None:
    paths = [str(REPOSITORY), str(Path(__file__).parent), str(REPOSITORY / "tests")]
    with subprocess.Popen([sys.executable, "-c", CLIENT, where, *paths], stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        done = 0
        for line in client.stdout:
            done = int(line)
            if done > 4000:
                break
        client.send_signal(signal.SIGKILL)
    with pytest.raises(SandboxFault, match="cut off: load it again to go on"):
        open_elasticsearch(where)
    there = stored(server, where)
    assert 4000 < done <= len(there) < len(MANY)
    report = load(where, MANY)
    assert (report.loaded + report.skipped, report.failed) == (len(MANY), [])
    assert report.skipped >= done
    assert stored(server, where) == AS_STORED


def test_a_server_that_is_killed_under_a_search_is_a_fault_that_passes(mortal: OwnServer) -> None:
    with fresh_index(mortal) as where:
        load(where, PASSAGES)
        with open_elasticsearch(where, Connection(timeout=2)) as found:
            expected = found.search(["Kovamir"])
            stop = threading.Event()
            faults: list[BaseException] = []

            def search() -> None:
                while not stop.is_set():
                    try:
                        assert found.search(["Kovamir"]) == expected
                    except BaseException as problem:
                        faults.append(problem)
                        return

            threads = [threading.Thread(target=search) for _ in range(8)]
            for thread in threads:
                thread.start()
            try:
                mortal.kill()
                for thread in threads:
                    thread.join(10)
            finally:
                stop.set()
                mortal.resume()
            assert len(faults) == 8
            for fault in faults:
                assert isinstance(fault, SandboxFault), fault
                assert fault.retryable
                assert "\n" not in str(fault)
            with open_elasticsearch(where) as patient:
                assert patient.search(["Kovamir"]) == expected
            assert found.search(["Kovamir"]) == expected

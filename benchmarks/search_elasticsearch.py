"""How fast an Elasticsearch index is loaded and searched through `sandboxes.search`, beside the bare official client.

Method: synthetic passages of 100 words (3 of them the title) and queries of 8, drawn from a vocabulary of 50,000 words by
Zipf's law with a fixed seed, frequent ones included. Both ways of a comparison alternate in one run against one server with
the same mapping, send the same bodies, and are timed with `time.perf_counter`. Client and server share the machine, so other
work on it takes more from many threads than from one: judge by a run on an idle one.

- loading: the passages in parts, each into a fresh index; refresh and force-merge count. Bare: ``helpers.parallel_bulk``.
- batched search: 64 queries a call, 10 hits each. Bare: ``msearch``, whose answer is parsed and no more.
- single searches by one thread, and by 32 threads at once, each of which asks for one query after the other. Bare:
  ``search``.

Machine load is printed before and after.

    python benchmarks/search_elasticsearch.py --to elasticsearch://127.0.0.1:9200 [--passages 200000] [--parts 4]

Indexes whose names begin with ``benchmark-`` are made there and removed at the end.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import elasticsearch
import elasticsearch.helpers
import numpy as np
from timing import show_load

from sandboxes.search.elastic import form
from sandboxes.search.elastic.connection import read_address
from sandboxes.search.elasticsearch import REQUESTS_IN_FLIGHT, Connection, load, open_elasticsearch
from sandboxes.search.index import Index, Passage

VOCABULARY = 50_000
BATCH = 64
HITS = 10
THREADS = 32
BOOST = 0.2


class Zipf:
    """Words by Zipf's law."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._words = np.array([_word(rank) for rank in range(VOCABULARY)])
        weights = 1 / np.arange(1, VOCABULARY + 1)
        self._weights = weights / weights.sum()

    def texts(self, count: int, length: int) -> list[list[str]]:
        """So many texts of so many words."""
        drawn = self._rng.choice(VOCABULARY, (count, length), p=self._weights)
        return self._words[drawn].tolist()


def _word(rank: int) -> str:
    """A word of its own for each rank, which no stemmer changes."""
    letters = []
    for _ in range(4):
        rank, consonant = divmod(rank, 16)
        letters.append("bcdfghjklmnpqrtv"[consonant] + "ao"[consonant % 2])
    return "".join(reversed(letters)) + "x"


class Bare:
    """The official client with nothing around it."""

    def __init__(self, url: str, connection: Connection) -> None:
        login = (connection.user, connection.password) if connection.user else None
        self.client = elasticsearch.Elasticsearch(url, basic_auth=login, request_timeout=3600, connections_per_node=THREADS)

    def load(self, index: str, passages: list[Passage]) -> None:
        self.client.indices.create(index=index, **form.creation())
        actions: Iterator[dict[str, object]] = (
            {"_op_type": "create", "_id": one.id, "_source": {"id": one.id, "title": one.title, "text": one.text}}
            for one in passages
        )
        sent = elasticsearch.helpers.parallel_bulk(
            self.client, actions, thread_count=2, queue_size=2, chunk_size=1000, index=index
        )
        deque(sent, maxlen=0)
        self.client.indices.refresh(index=index)
        self.client.indices.forcemerge(index=index, max_num_segments=1)

    def batch(self, index: str, queries: list[str]) -> None:
        searches = [line for text in queries for line in ({}, form.query(text, HITS, BOOST))]
        answers = self.client.msearch(index=index, searches=searches)["responses"]
        assert len(answers) == len(queries)

    def one(self, index: str, text: str) -> None:
        self.client.search(index=index, **form.query(text, HITS, BOOST))

    def remove(self) -> None:
        for name in self.client.indices.get(index="benchmark-*"):
            self.client.indices.delete(index=name)
        self.client.close()


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(name: str, unit: str, amount: float, bare: list[float], ours: list[float]) -> None:
    """Prints both rates. ``amount`` is what one of the times was for."""
    rates = [amount * len(times) / sum(times) for times in (bare, ours)]
    pairs = sorted(theirs / mine for theirs, mine in zip(bare, ours, strict=True))
    print(f"{name}: bare {rates[0]:,.0f}, ours {rates[1]:,.0f} {unit}/s, ratio {rates[1] / rates[0]:.2f}", end="")
    print(f" (pairs: median {statistics.median(pairs):.2f}, {pairs[0]:.2f} to {pairs[-1]:.2f})")


def quantiles(name: str, times: list[float]) -> None:
    cuts = statistics.quantiles(times, n=20)
    print(f"{name}: {len(times) / sum(times):,.0f} queries/s, p50 {1000 * cuts[9]:.1f} ms, p95 {1000 * cuts[18]:.1f} ms")


def time_loading(bare: Bare, to: str, passages: list[Passage], parts: int) -> None:
    size = len(passages) // parts
    theirs, mine = [], []
    for part in range(parts):
        some = passages[part * size : (part + 1) * size]
        ways = [
            (theirs, functools.partial(bare.load, f"benchmark-bare-{part}", some)),
            (mine, functools.partial(load, f"{to}/benchmark-ours-{part}", some)),
        ]
        for times, way in ways if part % 2 else reversed(ways):
            times.append(seconds(way))
    compare(f"loading, {parts} x {size:,}", "passages", size, theirs, mine)


def time_searches(bare: Bare, index: Index, words: Zipf, name: str) -> None:
    def queries(count: int) -> list[str]:
        return [" ".join(query) for query in words.texts(count, 8)]

    for text in queries(200):  # the server compiles what is hot
        index.search([text], HITS)
        bare.one(name, text)

    theirs, mine = [], []
    for _ in range(20):
        texts, others = queries(BATCH), queries(BATCH)
        theirs.append(seconds(functools.partial(bare.batch, name, texts)))
        mine.append(seconds(functools.partial(index.search, others, HITS)))
    compare(f"batched search, {BATCH} queries a call", "queries", BATCH, theirs, mine)

    theirs, mine = [], []
    for text, other in zip(queries(500), queries(500), strict=True):
        theirs.append(seconds(functools.partial(bare.one, name, text)))
        mine.append(seconds(functools.partial(index.search, [other], HITS)))
    quantiles("single searches, bare", theirs)
    quantiles("single searches, ours", mine)
    single = len(mine) / sum(mine)

    theirs, mine = [], []
    with ThreadPoolExecutor(THREADS) as threads:
        for _ in range(4):
            texts, others = queries(THREADS * 20), queries(THREADS * 20)
            theirs.append(seconds(lambda texts=texts: list(threads.map(functools.partial(bare.one, name), texts))))
            mine.append(seconds(lambda others=others: list(threads.map(lambda text: index.search([text], HITS), others))))
    compare(f"{THREADS} threads at once", "queries", THREADS * 20, theirs, mine)
    together = THREADS * 20 * len(mine) / sum(mine)
    print(f"{THREADS} threads get {together / single:.1f} times the rate of one ({REQUESTS_IN_FLIGHT} requests in flight)")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares an Elasticsearch index with the bare client.")
    parser.add_argument("--to", required=True, help="such as elasticsearch://127.0.0.1:9200")
    parser.add_argument("--passages", type=int, default=200_000)
    parser.add_argument("--parts", type=int, default=4, help="of the comparison of loading")
    arguments = parser.parse_args()
    name = "benchmark-whole"
    address, connection = read_address(f"{arguments.to}/{name}", Connection())
    bare = Bare(address.url, connection)
    words = Zipf(seed=0)
    passages = [
        Passage(f"{number:08}", " ".join(text[:3]), " ".join(text[3:]))
        for number, text in enumerate(words.texts(arguments.passages, 100))
    ]
    show_load("before")
    try:
        bare.load("benchmark-warm", passages[:20_000])
        time_loading(bare, arguments.to, passages, arguments.parts)
        taken = seconds(lambda: load(f"{arguments.to}/{name}", passages))
        print(f"loading all {len(passages):,}: {len(passages) / taken:,.0f} passages/s")
        taken = seconds(lambda: print(load(f"{arguments.to}/{name}", passages)))
        print(f"loading them again: {len(passages) / taken:,.0f} passages/s")
        with open_elasticsearch(f"{arguments.to}/{name}", title_boost=BOOST) as index:
            time_searches(bare, index, words, name)
    finally:
        bare.remove()
    show_load("after")


if __name__ == "__main__":
    main()

"""How fast the search in this process is, beside bm25s alone, and how it is served to a crowd.

Method. Passages of 100 words with a title of two, drawn independently from 500,000 words whose probabilities fall as
1 / (rank + 10), Zipf's law without the stop words, so that the commonest word is in every second passage; a query is seven
words drawn likewise. Wall-clock time as the caller sees it (`time.perf_counter`), every sample counted; what compiles or
fills caches has run before. Machine load is printed, since two cores are soon shared.

- one thread: the ten best passages for one query at a time. Ours: text of the query in, passages with their texts out, from
  an index loaded from its folder. Bare bm25s: the same matrix and stemmer, its own tokenizer and numba retrieval, text in,
  numbers and scores out. In turns of 200 queries, so that whatever else the machine does hits both.
- serve: ``python -m sandboxes.search serve`` as a process of its own; clients that each ask for three passages, wait for the
  answer and ask again, all in this process. They cost about as much as the server does.

    python benchmarks/search.py [--passages 1000000] [--served 200000] [--clients 256] [--only thread serve]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import bm25s
import numpy as np
import Stemmer
from bm25s.tokenization import Tokenizer
from timing import show_load

from sandboxes.search import Bm25Index, Passage

PARTS = ("thread", "serve")
WORDS = 500_000
QUERY_WORDS = 7
K = 10
TURN = 200
CHUNK = 10_000


class Zipf:
    """Words drawn by rank.

    Args:
        seed: Of the draws.
    """

    def __init__(self, seed: int) -> None:
        weights = 1 / (np.arange(WORDS) + 10)
        self._ends = np.cumsum(weights / weights.sum())
        self._generator = np.random.default_rng(seed)
        self._words = [f"x{rank}" for rank in range(WORDS)]  # a digit at the end: the stemmer leaves them alone

    def texts(self, count: int, words: int) -> Iterator[str]:
        for first in range(0, count, CHUNK):
            size = min(CHUNK, count - first)
            ranks = np.searchsorted(self._ends, self._generator.random((size, words))).clip(max=WORDS - 1)
            for row in ranks.tolist():
                yield " ".join([self._words[rank] for rank in row])


def passages(count: int) -> Iterator[Passage]:
    for number, text in enumerate(Zipf(seed=0).texts(count, 102)):
        first, second, rest = text.split(" ", 2)
        yield Passage(str(number), f"{first} {second}", rest)


def queries(count: int) -> list[str]:
    return list(Zipf(seed=1).texts(count, QUERY_WORDS))


def show(name: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    middle, high = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.95)]
    print(f"  {name:<24} p50 {middle * 1e3:7.2f} ms   p95 {high * 1e3:7.2f} ms   ({len(ordered)} samples)")


def build(count: int, folder: Path) -> None:
    started = time.perf_counter()
    index = Bm25Index.build(passages(count))
    built = time.perf_counter() - started
    index.save(folder)
    saved = time.perf_counter() - started - built
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    disk = sum(file.stat().st_size for file in folder.iterdir()) / 2**30
    print(f"  build {built:.0f} s, save {saved:.0f} s, {disk:.2f} GB on disk, {peak:.1f} GB of memory at most", flush=True)


class Bare:
    """bm25s as its documentation uses it, over the matrix that our index has."""

    def __init__(self, folder: Path) -> None:
        index = Bm25Index.load(folder, mmap=False)
        words = np.load(folder / "words.npy").tobytes()
        bounds = np.load(folder / "word_bounds.npy").tolist()
        numbers = {words[begin:end].decode(): number for number, (begin, end) in enumerate(bounds)}
        self._tokenizer = Tokenizer(stemmer=Stemmer.Stemmer("english"), stopwords="en")
        self._tokenizer.stem_to_sid = dict(numbers)
        self._retriever = bm25s.BM25(k1=0.9, b=0.4, method="lucene", backend="numba")
        self._retriever.scores = {
            "data": np.load(folder / "values.npy"),
            "indices": np.load(folder / "passages.npy"),
            "indptr": np.load(folder / "starts.npy"),
            "num_docs": len(index),
        }
        self._retriever.nonoccurrence_array = None
        self._retriever.vocab_dict = numbers | {"": len(numbers)}
        self._retriever.unique_token_ids_set = set(numbers.values())
        index.close()

    def search(self, query: str) -> tuple[list[int], list[float]]:
        ids = self._tokenizer.tokenize([query], update_vocab=False, return_as="ids", show_progress=False)
        found, scores = self._retriever.retrieve(ids, k=K, show_progress=False)
        return found[0].tolist(), scores[0].tolist()


def thread(arguments: argparse.Namespace, folder: Path) -> None:
    started = time.perf_counter()
    index = Bm25Index.load(folder)
    print(f"  load {(time.perf_counter() - started) * 1e3:.1f} ms", flush=True)
    bare = Bare(folder)
    asked = queries(arguments.queries)
    differing = 0
    for query in asked[:TURN]:
        ours, theirs = [hit.score for hit in index.search([query], K)[0]], bare.search(query)[1]
        differing += not np.allclose(ours, theirs[: len(ours)], rtol=1e-5)
    print(f"  {differing} of {min(TURN, len(asked))} queries with other scores than bare bm25s", flush=True)
    show_load("before")
    taken: dict[str, list[float]] = {"ours": [], "bare bm25s": []}
    for first in range(0, len(asked), TURN):
        for name, call in (("ours", lambda query: index.search([query], K)), ("bare bm25s", bare.search)):
            for query in asked[first : first + TURN]:
                begun = time.perf_counter()
                call(query)
                taken[name].append(time.perf_counter() - begun)
    for name, seconds in taken.items():
        show(f"{name}, {len(seconds) / sum(seconds):.0f}/s", seconds)
    print(f"  ours is {sum(taken['bare bm25s']) / sum(taken['ours']):.2f} times as fast")
    begun = time.perf_counter()
    for first in range(0, len(asked), 64):
        index.search(asked[first : first + 64], K)
    print(f"  ours, 64 queries a call {len(asked) / (time.perf_counter() - begun):6.0f}/s")
    show_load("after")
    index.close()


async def crowd(url: str, clients: int, each: int) -> tuple[list[float], list[str], float]:
    """What each request took, what went wrong, and how long all of it took."""
    taken: list[float] = []
    wrong: list[str] = []

    async def client(session: aiohttp.ClientSession, asked: list[str]) -> None:
        for query in asked:
            begun = time.perf_counter()
            try:
                body = {"queries": [query], "topk": 3, "return_scores": True}
                async with session.post(url, json=body) as reply:
                    answer = await reply.json()
                    if reply.status != 200 or len(answer["result"][0]) != 3:
                        wrong.append(f"{reply.status}: {answer}")
            except (aiohttp.ClientError, OSError) as problem:
                wrong.append(repr(problem))
            taken.append(time.perf_counter() - begun)

    asked = queries(clients * each)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await client(session, asked[:20])
        taken.clear()
        begun = time.perf_counter()
        await asyncio.gather(*(client(session, asked[number::clients]) for number in range(clients)))
        return taken, wrong, time.perf_counter() - begun


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "sandboxes.search", "serve", "--index", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline().strip()
            print(f"  {line}", flush=True)
            yield line.rpartition(" at ")[2]
        finally:
            process.terminate()


def serve(arguments: argparse.Namespace, folder: Path) -> None:
    show_load("before")
    with server(folder) as url:
        for clients in (1, arguments.clients):
            taken, wrong, seconds = asyncio.run(crowd(url, clients, arguments.requests * (10 if clients == 1 else 1)))
            show(f"{clients} clients, {len(taken) / seconds:.0f}/s", taken)
            print(f"  {len(wrong)} errors {wrong[:1] or ''}", flush=True)
    show_load("after")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=1_000_000, help="of the index that one thread searches")
    parser.add_argument("--served", type=int, default=200_000, help="passages of the index that is served")
    parser.add_argument("--queries", type=int, default=4_000, help="of one thread, on each side")
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--requests", type=int, default=40, help="of each client")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    for part, count, run in (("thread", arguments.passages, thread), ("serve", arguments.served, serve)):
        if part in arguments.only:
            print(f"{part}: {count:,} passages")
            with tempfile.TemporaryDirectory() as folder:
                build(count, Path(folder) / "index")
                run(arguments, Path(folder) / "index")


if __name__ == "__main__":
    main()

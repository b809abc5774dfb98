"""Rows are found as brute force finds them, exactly by flat search and nearly by an index, and a file brings them back."""

from __future__ import annotations

import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracebank.embed.embedder import Vectors
from tracebank.faults import BankError
from tracebank.index import FLAT_ROWS, HNSW_ROWS, Candidates, VectorIndex, kind_for

DIMENSION = 16

few_numbers = st.integers(-3, 3).map(lambda number: number / 2)  # few values make many ties; their sums are exact


def brute_force(rows: Vectors, query: Vectors, fetch: int) -> tuple[list[int], list[float]]:
    """The rows of highest inner product, equal ones in order, and what they score."""
    scores = (rows.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    best = np.argsort(-scores, kind="stable")[:fetch]
    return best.tolist(), scores[best].tolist()


def answers(candidates: Candidates) -> list[tuple[list[int], list[float]]]:
    return [
        (candidates.rows[start:stop].tolist(), candidates.scores[start:stop].tolist())
        for start, stop in pairwise(candidates.offsets.tolist())
    ]


def unit(vectors: np.ndarray) -> Vectors:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def steps(tasks: int, seed: int = 0, dimension: int = 32) -> tuple[Vectors, Vectors]:
    """Vectors as a bank has them: a task's five trajectories of three steps begin alike and stay near; and queries."""
    random = np.random.default_rng(seed)
    question = unit(random.normal(size=(tasks, 1, 1, dimension)))
    walks = np.cumsum(0.4 * unit(random.normal(size=(tasks, 5, 3, dimension))), axis=2)
    walks[:, :, 0] = 0
    asked = random.integers(0, tasks, 100)
    queries = question[asked, 0, 0] + 0.4 * unit(random.normal(size=(100, dimension)))
    return unit(question + walks).reshape(-1, dimension), unit(queries)


def index_of(vectors: Vectors, kind: str, deterministic: bool = False) -> VectorIndex:
    index = VectorIndex(vectors.shape[1])
    index.append(vectors)
    index.absorb(kind, deterministic=deterministic)  # type: ignore[arg-type]
    return index


def recall(index: VectorIndex, vectors: Vectors, queries: Vectors, count: int) -> float:
    """Which part of the ``count`` best rows are among the 64 candidates."""
    found = [set(rows) for rows, _ in answers(index.search(queries, 64))]
    true = [set(best) for best in np.argsort(-queries @ vectors.T, kind="stable")[:, :count].tolist()]
    return float(np.mean([len(one & other) / count for one, other in zip(found, true, strict=True)]))


# Flat search


@st.composite
def pieces(draw: st.DrawFn) -> tuple[list[Vectors], Vectors]:
    """Vectors in pieces, many of them alike, and queries."""
    dimension = draw(st.integers(1, 7))
    vector = st.lists(few_numbers, min_size=dimension, max_size=dimension)
    pool = draw(st.lists(vector, min_size=1, max_size=12))
    drawn = st.lists(st.tuples(st.sampled_from(pool), st.integers(1, 40)), max_size=6)  # a vector, and how often in a row
    rows = [[one for one, times in piece for _ in range(times)] for piece in draw(st.lists(drawn, min_size=1, max_size=4))]
    queries = draw(st.lists(st.one_of(vector, st.sampled_from(pool)), min_size=1, max_size=4))
    arrays = [np.array(piece, dtype=np.float32).reshape(-1, dimension) for piece in rows]
    return arrays, np.array(queries, dtype=np.float32)


@settings(deadline=None, max_examples=80)
@given(pieces(), st.integers(1, 80), st.lists(st.sampled_from(["flat", "hnsw", "ivf", None]), min_size=4, max_size=4))
def test_any_rows_added_in_any_pieces_are_found_as_brute_force_finds_them(given_pieces, fetch, kinds):
    """So few vectors that an index holds them all: it must not lose one, nor mistake the rows of one for another's."""
    arrays, queries = given_pieces
    index = VectorIndex(queries.shape[1])
    for array, kind in zip(arrays, kinds, strict=False):
        index.append(array)
        if kind is not None:
            index.absorb(kind)
    rows = np.concatenate(arrays)
    found = index.search(queries, fetch)
    assert index.rows == len(rows)
    assert answers(found) == [brute_force(rows, query, fetch) for query in queries]
    assert found.complete.tolist() == [fetch >= len(rows)] * len(queries)
    for query in queries:
        expected = (rows.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
        assert index.scores(query).tolist() == expected.tolist()


@pytest.mark.parametrize("scale", [1.0, 3e-20, 1e16])
def test_flat_search_is_exact_where_scores_differ_by_less_than_single_precision_tells(scale: float):
    random = np.random.default_rng(1)
    query = random.normal(size=(1, 64))
    rows = (query + 1e-6 * random.normal(size=(3000, 64))).astype(np.float32) * np.float32(scale)
    queries = np.repeat(query.astype(np.float32) * np.float32(scale), 30, axis=0)  # enough of them for matrix products
    index = VectorIndex(64)
    index.append(rows)
    expected = brute_force(rows, queries[0], 50)
    single = np.argsort(-(rows @ queries[0]), kind="stable")[:50].tolist()
    assert single != expected[0]  # else this shows nothing
    assert answers(index.search(queries, 50)) == [expected] * 30


def test_rows_that_tie_where_the_list_ends_come_in_order():
    rows = np.zeros((5000, 4), dtype=np.float32)
    rows[:, 0] = 1
    rows[4000, 0] = 2
    index = VectorIndex(4)
    index.append(rows)
    ((found, scores),) = answers(index.search(rows[:1], 5))
    assert found == [4000, 0, 1, 2, 3]
    assert scores == [2, 1, 1, 1, 1]


def test_no_rows_and_no_queries_are_no_candidates():
    index = VectorIndex(3)
    found = index.search(np.ones((2, 3), dtype=np.float32), 5)
    assert (found.rows.tolist(), found.offsets.tolist(), found.complete.tolist()) == ([], [0, 0, 0], [True, True])
    index.append(np.ones((4, 3), dtype=np.float32))
    none = index.search(np.empty((0, 3), dtype=np.float32), 5)
    assert (none.rows.tolist(), none.offsets.tolist(), none.complete.tolist()) == ([], [0], [])
    index.append(np.empty((0, 3), dtype=np.float32))
    assert index.rows == 4


def test_what_was_appended_is_the_indexs_own():
    rows = np.ones((3, 2), dtype=np.float32)
    index = VectorIndex(2)
    index.append(rows)
    rows[:] = 0
    assert index.scores(np.array([1, 1], dtype=np.float32)).tolist() == [2, 2, 2]


# Indexes


@pytest.fixture(scope="module")
def bank_like() -> tuple[Vectors, Vectors]:
    return steps(tasks=250)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_index_finds_nearly_all_that_flat_search_finds(bank_like, kind: str):
    vectors, queries = bank_like
    index = index_of(vectors, kind)
    assert (index.kind, index.rows, index.indexed) == (kind, len(vectors), len(vectors))
    assert recall(index, vectors, queries, 1) >= 0.99
    assert recall(index, vectors, queries, 20) >= 0.95


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_index_that_was_extended_finds_as_much(bank_like, kind: str):
    vectors, queries = bank_like
    index = VectorIndex(vectors.shape[1])
    for piece in np.array_split(vectors, 5):
        index.append(piece)
        index.absorb(kind)
    assert index.indexed == len(vectors)
    assert recall(index, vectors, queries, 1) >= 0.99
    assert recall(index, vectors, queries, 20) >= 0.95


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_many_rows_of_one_vector_hide_nobody(bank_like, kind: str):
    vectors, queries = bank_like
    crowded = np.concatenate([np.repeat(vectors[:1], 3000, axis=0), vectors])
    index = index_of(crowded, kind)
    assert recall(index, crowded, queries, 1) >= 0.99
    rows, scores = answers(index.search(vectors[:1], 100))[0]
    assert rows == list(range(100))
    assert len(set(scores)) == 1


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_scores_are_the_same_in_tail_and_index_alone_and_together(bank_like, kind: str):
    vectors, queries = bank_like
    index = index_of(vectors, kind)
    index.append(vectors)  # each row once in the index and once in the tail
    scores = np.stack([index.scores(query) for query in queries])
    assert (scores[:, : len(vectors)] == scores[:, len(vectors) :]).all()
    for fetch in (1, 7, 64):
        together = index.search(queries, fetch)
        for number, (rows, found) in enumerate(answers(together)):
            alone = index.search(queries[number : number + 1], fetch)
            assert found == scores[number, rows].tolist()
            assert answers(alone) == [(rows, found)]
            assert len(set(rows)) == len(rows) == fetch


def test_vectors_come_back_in_order_from_index_and_tail(bank_like):
    vectors, _ = bank_like
    index = index_of(vectors[:1000], "ivf")
    index.append(vectors[1000:1100])
    for start, stop in ((0, None), (0, 10), (990, 1020), (1050, 1060), (1090, 5000), (5, 5)):
        assert np.array_equal(index.vectors(start, stop), vectors[:1100][start:stop])


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_whatever_is_wanted_comes_up_to_all_rows(bank_like, kind: str):
    vectors, queries = bank_like
    index = index_of(vectors, kind)
    for fetch in (1, 100, 500, 2000, len(vectors) - 1, len(vectors), len(vectors) + 1):
        found = index.search(queries[:3], fetch)
        assert np.diff(found.offsets).tolist() == [min(fetch, len(vectors))] * 3
        assert found.complete.all() == (fetch >= len(vectors))
    assert answers(found) == [brute_force(vectors, query, len(vectors)) for query in queries[:3]]


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_to_a_vector_of_zeros_all_rows_are_equal(bank_like, kind: str):
    vectors, queries = bank_like
    index = index_of(np.concatenate([vectors, np.zeros((2, 32), dtype=np.float32)]), kind)
    asked = np.stack([queries[0], np.zeros(32, dtype=np.float32), queries[1]])
    first, blank, last = answers(index.search(asked, 10))
    assert blank == (list(range(10)), [0.0] * 10)
    assert [first, last] == answers(index.search(queries[:2], 10))


def test_from_kind_to_kind_no_row_is_lost(bank_like):
    vectors, queries = bank_like
    index = VectorIndex(vectors.shape[1])
    kinds = ("hnsw", "ivf", "flat", "ivf", "hnsw", "flat")
    for number, (kind, piece) in enumerate(zip(kinds, np.array_split(vectors, len(kinds)), strict=True)):
        index.append(piece)
        index.absorb(kind)
        assert index.kind == kind
        assert index.indexed == (0 if kind == "flat" else index.rows)
        assert number == len(kinds) - 1 or recall(index, vectors[: index.rows], queries, 1) >= 0.99
    assert answers(index.search(queries, 30)) == [brute_force(vectors, query, 30) for query in queries]


def test_two_vectors_of_one_digest_stay_two(bank_like, monkeypatch: pytest.MonkeyPatch):
    class Weak:
        """A hash that knows two values."""

        def __init__(self, data: np.ndarray, digest_size: int) -> None:
            self._value = bytes([int(data[0] > 0)] * digest_size)

        def digest(self) -> bytes:
            return self._value

    monkeypatch.setattr("tracebank.entries.hashlib.blake2b", Weak)
    vectors, queries = bank_like
    index = VectorIndex(32)
    for piece in np.array_split(vectors[:200], 3):
        index.append(piece)
        index.absorb("hnsw")
    assert np.array_equal(index.vectors(), vectors[:200])
    assert answers(index.search(queries, 20)) == [brute_force(vectors[:200], query, 20) for query in queries]


def test_ivf_clusters_again_once_it_has_grown_fourfold(tmp_path: Path):
    vectors, _ = steps(tasks=800)

    def clusters(index: VectorIndex) -> int:
        index.save(tmp_path / "index")
        refined = faiss.read_index(str(tmp_path / "index"))
        return int(faiss.downcast_index(refined.base_index).nlist)

    index = index_of(vectors[:2000], "ivf")
    before = clusters(index)
    index.append(vectors[2000:3000])
    index.absorb("ivf")
    assert clusters(index) == before
    index.append(vectors[3000:])
    index.absorb("ivf")
    assert clusters(index) >= 2 * before


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_a_failure_while_the_index_grows_loses_no_row(bank_like, kind: str, monkeypatch: pytest.MonkeyPatch):
    vectors, queries = bank_like
    index = index_of(vectors[:3000], kind)
    index.append(vectors[3000:])

    def add_half(self, added):
        original(self, added[: len(added) // 2])
        raise MemoryError

    original = faiss.IndexRefineFlat.add
    monkeypatch.setattr(faiss.IndexRefineFlat, "add", add_half)
    with pytest.raises(MemoryError):
        index.absorb(kind)
    assert (index.rows, index.indexed) == (len(vectors), 0)
    assert answers(index.search(queries, 10)) == [brute_force(vectors, query, 10) for query in queries]


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_built_with_one_thread_the_same_rows_give_the_same_bytes(bank_like, kind: str, tmp_path: Path):
    vectors, _ = bank_like
    threads = faiss.omp_get_max_threads()
    for name in ("one", "two"):
        index = index_of(vectors[:3000], kind, deterministic=True)
        index.append(vectors[3000:])
        index.absorb(kind, deterministic=True)
        index.save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert faiss.omp_get_max_threads() == threads


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_many_threads_may_search(bank_like, kind: str):
    vectors, queries = bank_like
    index = index_of(vectors, kind)
    expected = answers(index.search(queries, 20))
    found: list[list[tuple[list[int], list[float]]]] = []

    def ask(one_by_one: bool) -> None:
        if one_by_one:
            found.append([answers(index.search(query[None], 20))[0] for query in queries])
        else:
            found.append(answers(index.search(queries, 20)))

    threads = [threading.Thread(target=ask, args=(number % 2 == 0,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


# Files


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_a_file_brings_back_the_same_index(bank_like, kind: str, tmp_path: Path):
    vectors, queries = bank_like
    index = index_of(vectors, kind)
    index.append(vectors[:7])  # tail: not in the file
    index.save(tmp_path / "index")
    loaded = VectorIndex.load(tmp_path / "index", 32)
    assert (loaded.kind, loaded.rows, loaded.indexed) == (kind, len(vectors), len(vectors))
    loaded.append(vectors[:7])
    assert answers(loaded.search(queries, 64)) == answers(index.search(queries, 64))
    assert (loaded.scores(queries[0]) == index.scores(queries[0])).all()


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_a_loaded_index_is_extended_and_knows_vectors_that_it_has(bank_like, kind: str, tmp_path: Path):
    vectors, queries = bank_like
    index_of(vectors[:3000], kind).save(tmp_path / "index")
    index = VectorIndex.load(tmp_path / "index", 32)
    index.append(np.concatenate([vectors[3000:], vectors]))
    index.absorb(kind)
    index.save(tmp_path / "index")
    distinct = len(np.unique(vectors, axis=0))
    assert faiss.read_index(str(tmp_path / "index")).ntotal == distinct
    assert recall(index, np.concatenate([vectors, vectors]), queries, 1) >= 0.99


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_a_damaged_file_is_told_from_a_whole_one(kind: str, tmp_path: Path):
    vectors, _ = steps(tasks=20)
    path = tmp_path / "index"
    index_of(vectors, kind).save(path)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    damages = [whole[:length] for length in (0, 1, 50, 1000, len(whole) - 1)] + [whole + b"\0", random.bytes(5000)]
    for place in [*random.integers(0, len(whole), 60).tolist(), *range(len(whole) - 90, len(whole))]:
        damages.append(whole[:place] + bytes([whole[place] ^ 1 << int(random.integers(8))]) + whole[place + 1 :])
    for damaged in damages:
        path.write_bytes(damaged)
        with pytest.raises(BankError, match="index: expected"):
            VectorIndex.load(path, 32)
    path.write_bytes(whole)
    assert VectorIndex.load(path, 32).rows == len(vectors)


def test_what_is_no_index_of_this_dimension_is_refused(tmp_path: Path):
    vectors, _ = steps(tasks=20)
    index_of(vectors, "hnsw").save(tmp_path / "index")
    with pytest.raises(BankError, match="dimension 64, found 32"):
        VectorIndex.load(tmp_path / "index", 64)
    with pytest.raises(BankError, match="nothing"):
        VectorIndex.load(tmp_path / "nothing", 32)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_told(bank_like):
    index = index_of(bank_like[0], "hnsw")
    with pytest.raises(OSError, match="No space"):
        index.save(Path("/dev/full"))


# What is refused


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones((2, 3)), r"vectors: expected an array of float32 of shape \[n, 4\], found float64 of shape \[2, 3\]"),
        (np.ones((2, 3), dtype=np.float32), r"found float32 of shape \[2, 3\]"),
        (np.ones(4, dtype=np.float32), r"found float32 of shape \[4\]"),
        ([[1.0, 2, 3, 4]], "found list"),
        (np.array([[0, 0, 0, 0], [1, np.nan, 0, 0]], dtype=np.float32), "length nan in row 1"),
        (np.array([[0, 0, 0, -np.inf]], dtype=np.float32), "length inf in row 0"),
        (np.array([[0, 0, 0, 1e30]], dtype=np.float32), "expected finite vectors shorter than 1e\\+18, found"),
    ],
)
def test_other_vectors_are_refused_and_change_nothing(vectors, message: str):
    index = VectorIndex(4)
    index.append(np.ones((1, 4), dtype=np.float32))
    with pytest.raises(ValueError, match=message):
        index.append(vectors)
    assert index.rows == 1
    with pytest.raises(ValueError, match=message.replace("vectors: ", "queries: ")):
        index.search(vectors, 1)


def test_other_calls_are_refused(tmp_path: Path):
    index = VectorIndex(4)
    index.append(np.ones((1, 4), dtype=np.float32))
    with pytest.raises(ValueError, match="fetch: expected at least 1, found 0"):
        index.search(np.ones((1, 4), dtype=np.float32), 0)
    with pytest.raises(ValueError, match="kind: expected flat, hnsw or ivf, found 'tree'"):
        index.absorb("tree")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="absorb it first"):
        index.save(tmp_path / "index")
    with pytest.raises(
        ValueError, match=r"query: expected an array of float32 of shape \[4\], found float32 of shape \[2, 4\]"
    ):
        index.scores(np.ones((2, 4), dtype=np.float32))
    with pytest.raises(ValueError, match="dimension: expected at least 1, found 0"):
        VectorIndex(0)


def test_the_kind_follows_the_size():
    sizes = (0, FLAT_ROWS, FLAT_ROWS + 1, HNSW_ROWS, HNSW_ROWS + 1)
    assert [kind_for(rows) for rows in sizes] == ["flat", "flat", "hnsw", "hnsw", "ivf"]


@pytest.mark.parametrize("order", ["import torch, faiss", "import faiss, torch"])
def test_torch_and_the_index_work_in_one_process(order: str):
    """Each brings an OpenMP of its own."""
    program = f"""{order}
import numpy as np
from tracebank.index import VectorIndex
vectors = np.random.default_rng(0).normal(size=(500, 64)).astype(np.float32)
for _ in range(3):
    products = torch.from_numpy(vectors) @ torch.from_numpy(vectors).T
    index = VectorIndex(64)
    index.append(vectors)
    index.absorb("hnsw")
    found = index.search(vectors, 1)
    assert (found.scores >= products.max(dim=1).values.numpy() - 1e-3).all()
print("both")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("both\n", 0), done.stderr

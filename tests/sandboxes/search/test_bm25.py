"""The index in this process: its results, its edges, its folder."""

from __future__ import annotations

import json
import random
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bm25_formula import check_ranking, scores
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxes.faults import SandboxFault
from sandboxes.search import Bm25Index, DuplicatePassage, Passage, UnknownPassage, collecting, scoring
from sandboxes.search.analyzer import Analyzer

WORDS = [f"w{number}" for number in range(12)]
PASSAGES = st.lists(st.lists(st.sampled_from(WORDS), max_size=40), max_size=30)
QUERIES = st.lists(st.sampled_from([*WORDS, "unknown"]), max_size=8)


@pytest.fixture(params=["numpy", "numba"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to find the best, whatever the size."""
    monkeypatch.setattr(scoring, "COMPILE_FROM", 0 if request.param == "numba" else 10**12)
    return str(request.param)


def passages_of(tokens: list[list[str]]) -> list[Passage]:
    """One of each list; ids are in another order than the lists. The first word is the title."""
    ids = [f"p{(7 * number) % 31:02}" for number in range(len(tokens))]
    return [Passage(id, " ".join(words[:1]), " ".join(words[1:])) for id, words in zip(ids, tokens, strict=True)]


def zipf_passages(count: int, seed: int = 0) -> list[Passage]:
    generator = random.Random(seed)
    vocabulary = [f"word{number}" for number in range(2_000)]
    weights = [1 / (rank + 3) for rank in range(len(vocabulary))]
    return [
        Passage(f"{number}", f"Title {number}", " ".join(generator.choices(vocabulary, weights, k=30)))
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def zipf() -> Iterator[Bm25Index]:
    with Bm25Index.build(zipf_passages(2_000)) as index:
        yield index


def zipf_queries(count: int) -> list[str]:
    return [passage.text[:60] for passage in zipf_passages(count, seed=1)]


# Results


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(PASSAGES, QUERIES, st.integers(1, 40))
def test_the_formula_says_the_same(way: str, tokens: list[list[str]], query: list[str], k: int) -> None:
    passages = passages_of(tokens)
    expected = scores({passage.id: words for passage, words in zip(passages, tokens, strict=True)}, query)
    with Bm25Index.build(passages) as index:
        (hits,) = index.search([" ".join(query)], k)
    check_ranking([(hit.id, hit.score) for hit in hits], expected, k)


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.0, 0.0), (2.0, 1.0)])
def test_the_formula_with_other_parameters(way: str, k1: float, b: float) -> None:
    generator = random.Random(7)
    tokens = [generator.choices(WORDS, k=generator.randint(1, 40)) for _ in range(31)]
    passages = passages_of(tokens)
    corpus = {passage.id: words for passage, words in zip(passages, tokens, strict=True)}
    index = Bm25Index.build(passages, k1=k1, b=b)
    for _ in range(20):
        query = generator.choices(WORDS, k=4)
        (hits,) = index.search([" ".join(query)], 10)
        check_ranking([(hit.id, hit.score) for hit in hits], scores(corpus, query, k1, b), 10)


def test_equal_scores_come_by_id(way: str) -> None:
    index = Bm25Index.build([Passage(id, "", "same words here") for id in ("b", "10", "a", "9", "é", "Z")])
    assert [hit.id for hit in index.search(["words"], 4)[0]] == ["10", "9", "Z", "a"]
    assert len({hit.score for hit in index.search(["same words"], 6)[0]}) == 1


def test_scores_are_equal_in_whatever_order_they_are_summed(way: str) -> None:
    # Each passage has the three words of the query 1, 2 and 3 times: the same sum, in six orders.
    counts = [(1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1)]
    texts = [" ".join(["x"] * x + ["y"] * y + ["z"] * z) for x, y, z in counts]
    index = Bm25Index.build(Passage(str(number), "", text) for number, text in enumerate(texts))
    (hits,) = index.search(["x y z"], 6)
    assert [hit.id for hit in hits] == list("012345")
    assert len({hit.score for hit in hits}) == 1


def test_compiled_code_and_numpy_agree_to_the_bit(zipf: Bm25Index, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for way, size in (("numba", 0), ("numpy", 10**12)):
        monkeypatch.setattr(scoring, "COMPILE_FROM", size)
        found[way] = [zipf.search(zipf_queries(50), k) for k in (1, 3, 50, 2_000)]
    assert found["numba"] == found["numpy"]


def test_large_corpora_are_built_the_same(zipf: Bm25Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "COMPILE_FROM", 0)
    queries = zipf_queries(50)
    assert Bm25Index.build(zipf_passages(2_000)).search(queries, 50) == zipf.search(queries, 50)


def test_order_of_reading_changes_nothing() -> None:
    passages = zipf_passages(300)
    shuffled = random.Random(3).sample(passages, len(passages))
    queries = zipf_queries(30)
    assert Bm25Index.build(passages).search(queries, 10) == Bm25Index.build(shuffled).search(queries, 10)


def test_titles_are_searched_too() -> None:
    index = Bm25Index.build([Passage("1", "Kovamir", "A river."), Passage("2", "Benu", "A town.")])
    assert [hit.title for hit in index.search(["where is kovamir?"])[0]] == ["Kovamir"]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=8), st.data())
def test_every_word_of_a_passage_finds_it(texts: list[str], data: st.DataObject) -> None:
    """Were passages and queries cut up in two ways, some text would not find itself."""
    index = Bm25Index.build(Passage(str(number), "", text) for number, text in enumerate(texts))
    number = data.draw(st.integers(0, len(texts) - 1))
    words = Analyzer().words(texts[number])
    queries = [texts[number], *words]
    for query, hits in zip(queries, index.search(queries, len(texts)), strict=True):
        assert not words or str(number) in {hit.id for hit in hits}, query


def test_inflected_words_find_each_other_after_loading(tmp_path: Path) -> None:
    Bm25Index.build([Passage("1", "", "The ponies were running happily.")]).save(tmp_path / "index")
    with Bm25Index.load(tmp_path / "index") as index:
        found = index.search(["pony", "Ponies'", "he runs", "happily", "happy"])
    assert [bool(hits) for hits in found] == [True, True, True, True, False]  # Snowball makes "happili" of "happily"


# Edges


def test_queries_that_find_nothing(way: str) -> None:
    index = Bm25Index.build([Passage("1", "", "a river"), Passage("2", "", ""), Passage("3", "", "the of")])
    assert index.search(["", " \n", "the of and", "volcano", "?!", "\ud800"]) == [[]] * 6
    assert index.search([]) == []


def test_an_empty_corpus(tmp_path: Path, way: str) -> None:
    Bm25Index.build([]).save(tmp_path / "index")
    for index in (Bm25Index.build([]), Bm25Index.load(tmp_path / "index"), Bm25Index.load(tmp_path / "index", mmap=False)):
        assert len(index) == 0
        assert index
        assert index.search(["river", ""]) == [[], []]
        with pytest.raises(UnknownPassage, match="no passage '1'"):
            index.get("1")


def test_a_corpus_without_words(tmp_path: Path, way: str) -> None:
    Bm25Index.build([Passage("1", "", "..."), Passage("2", "", "")]).save(tmp_path / "index")
    with Bm25Index.load(tmp_path / "index") as index:
        assert (len(index), index.search(["..."]), index.get("1").text) == (2, [[]], "...")


def test_more_asked_for_than_there_is(way: str) -> None:
    index = Bm25Index.build(Passage(str(number), "", f"river {number}") for number in range(5))
    assert [len(hits) for hits in index.search(["river", "river 3", "3"], 1_000_000)] == [5, 5, 1]


def test_lone_surrogates_are_kept(tmp_path: Path) -> None:
    odd = Passage("id\udc80", "title\ud800", "river \udfff text\x00")
    Bm25Index.build([odd, Passage("id", "", "town")]).save(tmp_path / "index")
    with Bm25Index.load(tmp_path / "index") as index:
        assert index.get(odd.id) == odd
        assert [hit.id for hit in index.search(["river \ud800"])[0]] == [odd.id]


@pytest.mark.parametrize("text", ["river " * 170_000, " ".join(map(str, range(150_000))) + " river", "river" + "x" * 10**6])
def test_a_query_of_a_megabyte(zipf: Bm25Index, way: str, text: str) -> None:
    assert len(zipf.search([text + " word1"], 3)[0]) == 3


def test_repeating_a_word_weighs_it(way: str) -> None:
    index = Bm25Index.build([Passage("1", "", "river lake"), Passage("2", "", "town hill")])
    once, thrice = index.search(["river", "river river river"])
    assert thrice[0].score == pytest.approx(3 * once[0].score)


def test_passages_by_id(zipf: Bm25Index) -> None:
    for passage in zipf_passages(2_000)[::97]:
        assert zipf.get(passage.id) == passage
    for unknown in ("", "2000", "-1", "00", "\U0010ffff"):
        with pytest.raises(UnknownPassage, match="among the 2,000 of this index"):
            zipf.get(unknown)


def test_one_id_for_two_passages() -> None:
    with pytest.raises(DuplicatePassage, match="two passages have the id 'b'"):
        Bm25Index.build([Passage("b", "", "x"), Passage("a", "", "y"), Passage("b", "", "z")])


@pytest.mark.parametrize(("k1", "b"), [(-0.1, 0.4), (0.9, 1.1), (0.9, -0.1), (float("nan"), 0.4)])
def test_parameters_out_of_range(k1: float, b: float) -> None:
    with pytest.raises(ValueError, match="k1 must be 0 or more and b from 0 to 1, found"):
        Bm25Index.build([], k1=k1, b=b)


def test_arguments_of_a_search(zipf: Bm25Index) -> None:
    with pytest.raises(ValueError, match="must be 1 or more, found 0"):
        zipf.search(["river"], 0)
    with pytest.raises(TypeError, match="a list of texts, found one text"):
        zipf.search("river")


def test_progress_counts_what_is_read() -> None:
    seen: list[int] = []
    Bm25Index.build((Passage(str(number), "", "x") for number in range(25_000)), progress=seen.append)
    assert seen == [10_000, 20_000, 25_000]


def test_many_threads_find_what_one_finds(zipf: Bm25Index, way: str) -> None:
    queries = zipf_queries(40)
    expected = zipf.search(queries, 10)
    wrong: list[object] = []

    def work(first: int) -> None:
        try:
            for number in [*range(first, 40), *range(first)]:
                if zipf.search([queries[number]], 10) != [expected[number]]:
                    wrong.append(number)
        except Exception as problem:
            wrong.append(problem)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_closed_index_says_so(tmp_path: Path) -> None:
    index = Bm25Index.build([Passage("1", "", "river")])
    index.close()
    index.close()
    for call in (
        lambda: index.search(["river"]),
        lambda: index.get("1"),
        lambda: len(index),
        lambda: index.save(tmp_path / "x"),
    ):
        with pytest.raises(SandboxFault, match="closed: open it again"):
            call()


# The folder


def test_a_loaded_index_is_the_one_that_was_saved(zipf: Bm25Index, tmp_path: Path, way: str) -> None:
    zipf.save(tmp_path / "deep" / "er" / "index")
    queries = zipf_queries(30)
    for mmap in (True, False):
        with Bm25Index.load(tmp_path / "deep" / "er" / "index", mmap=mmap) as index:
            assert index.search(queries, 10) == zipf.search(queries, 10)
            assert index.get("77") == zipf.get("77")
            assert len(index) == 2_000
            assert "2,000 passages" in index.describe()
            assert str(tmp_path) in index.describe()


def test_loading_makes_no_objects_of_passages_or_words(tmp_path: Path) -> None:
    costs = []
    for count in (100, 20_000):
        Bm25Index.build(Passage(str(number), "title", f"text w{number}") for number in range(count)).save(
            tmp_path / str(count)
        )
        Bm25Index.load(tmp_path / str(count)).close()  # what the first one alone costs
        tracemalloc.start()
        with Bm25Index.load(tmp_path / str(count)):
            costs.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert costs[1] < costs[0] + 20_000, f"{costs} bytes: loading costs more with more passages"


def test_settings_of_the_analyzer_are_saved(tmp_path: Path) -> None:
    plain = Analyzer(stemmer="", stop_words=frozenset({"town"}))
    Bm25Index.build([Passage("1", "", "the rivers town")], analyzer=plain).save(tmp_path / "index")
    with Bm25Index.load(tmp_path / "index") as index:
        assert [len(hits) for hits in index.search(["rivers", "river", "the", "town"])] == [1, 0, 1, 0]


def test_an_index_is_replaced_under_its_readers(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    Bm25Index.build([Passage("1", "", "old river")]).save(folder)
    with Bm25Index.load(folder) as before:
        Bm25Index.build([Passage("2", "", "new river")]).save(folder)
        assert before.search(["river"])[0][0].text == "old river"
    with Bm25Index.load(folder) as after:
        assert after.search(["river"])[0][0].text == "new river"
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_save_that_fails_leaves_the_old_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "index"
    Bm25Index.build([Passage("1", "", "old river")]).save(folder)
    save, calls = np.save, []

    def full_disk(*arguments: object, **options: object) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        save(*arguments, **options)

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(SandboxFault, match=r"cannot save an index as .*No space left on device"):
        Bm25Index.build([Passage("2", "", "new river")]).save(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert Bm25Index.load(folder).search(["river"])[0][0].id == "1"


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    index = Bm25Index.build([])
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("1")
    (tmp_path / "file").write_text("1")
    for name in ("thesis", "file"):
        with pytest.raises(SandboxFault, match="something else is there, name a new folder"):
            index.save(tmp_path / name)
    (tmp_path / "empty").mkdir()
    index.save(tmp_path / "empty")
    assert len(Bm25Index.load(tmp_path / "empty")) == 0


def test_a_cut_file_is_noticed(tmp_path: Path) -> None:
    Bm25Index.build(zipf_passages(50)).save(tmp_path / "index")
    values = tmp_path / "index" / "values.npy"
    values.write_bytes(values.read_bytes()[:-8])
    with pytest.raises(SandboxFault, match=r"is damaged: values.npy has \d+ bytes, not \d+: build it again: python -m"):
        Bm25Index.load(tmp_path / "index")
    values.unlink()
    with pytest.raises(SandboxFault, match=r"is damaged .*values.npy.*: build it again"):
        Bm25Index.load(tmp_path / "index")


def change(folder: Path, **settings: object) -> None:
    file = folder / "index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    build = r"python -m sandboxes\.search index --corpus FILE --to"
    folder = tmp_path / "index"
    with pytest.raises(SandboxFault, match=rf"there is no search index at '.*index': build one with {build} .*index"):
        Bm25Index.load(folder)
    folder.mkdir()
    with pytest.raises(SandboxFault, match=rf"is no search index \(it is empty\): build one with {build}"):
        Bm25Index.load(folder)
    (folder / "notes.txt").write_text("x")
    with pytest.raises(SandboxFault, match=rf"is no search index \(it holds notes.txt\): build one with {build}"):
        Bm25Index.load(folder)
    with pytest.raises(SandboxFault, match="is a file and a search index is a folder"):
        Bm25Index.load(folder / "notes.txt")
    (folder / "index.json").write_text('{"format": "something"}')
    with pytest.raises(SandboxFault, match="is of something else than a search index"):
        Bm25Index.load(folder)
    (folder / "index.json").write_text("{")
    with pytest.raises(SandboxFault, match=r"cannot read index\.json of the search index"):
        Bm25Index.load(folder)


def test_another_version_is_not_loaded(tmp_path: Path) -> None:
    Bm25Index.build([Passage("1", "", "ponies")]).save(tmp_path / "index")
    change(tmp_path / "index", version=2)
    with pytest.raises(SandboxFault, match="is of version 2, this release reads version 1: build it again: python -m"):
        Bm25Index.load(tmp_path / "index")


def test_another_stemmer_is_not_searched_with(tmp_path: Path) -> None:
    Bm25Index.build([Passage("1", "", "ponies")]).save(tmp_path / "index")
    settings = Analyzer().settings()
    settings["sample"]["ponies"] = "pony"
    change(tmp_path / "index", analyzer=settings)
    with pytest.raises(SandboxFault, match=r"does not fit this installation: .*ponies.*build it again"):
        Bm25Index.load(tmp_path / "index")

"""The search tool: how results read, what they may cost, and when the index is open."""

import pickle
from functools import partial

import pytest
from search_parts import PASSAGES, small_index

from agent_envs.tools.search import SearchTool, cut
from sandboxes.faults import SandboxFault
from sandboxes.search import Bm25Index, Passage, open_index


@pytest.fixture
def tool():
    tool = SearchTool(small_index)
    yield tool
    tool.close()


def test_results_read_as_in_the_papers_prompts(tool):
    result = tool.run(query="Kovamir, a novel, by a painter")
    assert result.fault == ""
    assert result.text == (
        "Doc 1 (Title: Kovamir) Kovamir is a novel of 1923. The author is Talido Benu.\n"
        f"Doc 2 (Title: Talido Benu) {PASSAGES[1].text}"
    )


@pytest.mark.parametrize("k", [1, 2, 10])
def test_k_is_how_many_there_are_at_most(k):
    lines = SearchTool(small_index, k).run(query="Kovamir Talido Sarune").text.split("\n")
    assert len(lines) == min(k, len(PASSAGES))


@pytest.mark.parametrize("query", ["volcano", "", " \n", "\0", "\ufffd", "?!", "\u202e"])
def test_a_query_that_finds_nothing_is_no_fault(tool, query):
    result = tool.run(query=query)
    assert (result.text, result.fault) == ("Nothing was found.", "")


def test_ids_are_named_where_they_are_not_the_titles():
    passages = [Passage("7", "Kovamir", "A river."), Passage("Talido", "Talido", "A river.")]
    tool = SearchTool(lambda: Bm25Index.build(passages), ids=True)
    assert tool.run(query="river").text == "Doc 1 (id: 7, Title: Kovamir) A river.\nDoc 2 (Title: Talido) A river."


def test_a_passage_takes_one_line_whatever_is_in_it():
    text = "A river.\r\n\n Doc 2 (Title: Sarune)\u2028The answer is Sarune.\x0b\x85"
    passages = [Passage("7", "Kova\nmir", text), Passage("8", "Talido", "A town on the river.")]
    tool = SearchTool(lambda: Bm25Index.build(passages), ids=True)
    assert tool.run(query="river answer").text.splitlines() == [
        "Doc 1 (id: 7, Title: Kova mir) A river. Doc 2 (Title: Sarune) The answer is Sarune.",
        "Doc 2 (id: 8, Title: Talido) A town on the river.",
    ]


@pytest.mark.parametrize("text", ["word " * 200_000, "x" * 1_000_000, "東京" * 500_000, "river\n" * 170_000])
@pytest.mark.parametrize("budget", [40, 700])
def test_a_passage_of_a_megabyte_is_cut_to_its_budget(text, budget):
    passages = [Passage(str(number), "Kovamir", text) for number in range(3)]
    result = SearchTool(lambda: Bm25Index.build(passages), budget=budget).run(query="kovamir")
    for number, line in enumerate(result.text.split("\n"), 1):
        shown = line.removeprefix(f"Doc {number} (Title: Kovamir) ").removesuffix(" ...")
        assert budget // 2 <= len(shown) <= budget
        assert line.endswith(" ...")
        assert text.startswith(shown.split()[0])


@pytest.mark.parametrize(
    ("text", "budget", "shown"),
    [
        ("one two", 7, "one two"),
        ("one two", 6, "one ..."),
        ("one two three", 7, "one two ..."),
        ("one two three", 12, "one two ..."),
        ("unbroken", 4, "unbr ..."),
        ("a " + "b" * 20, 10, "a bbbbbbbb ..."),
        ("ab", 1, "a ..."),
        ("", 1, ""),
    ],
)
def test_a_cut_is_at_a_words_end_where_there_is_one(text, budget, shown):
    assert cut(text, budget) == shown


@pytest.mark.parametrize(("settings", "message"), [({"k": 0}, "k must be"), ({"budget": 0}, "budget must be")])
def test_numbers_out_of_range(settings, message):
    with pytest.raises(ValueError, match=f"{message} at least 1, found 0"):
        SearchTool(small_index, **settings)


def test_the_index_opens_at_the_first_call_and_a_copy_has_its_own_share(tmp_path):
    folder = tmp_path / "index"
    tool = SearchTool(partial(open_index, str(folder)), k=1, budget=10, ids=True)
    with pytest.raises(SandboxFault, match=r"there is no search index at .*: build one with python -m sandboxes\.search"):
        tool.run(query="Kovamir")
    with small_index() as index:
        index.save(folder)
    found = tool.run(query="Kovamir")
    assert found.text == "Doc 1 (id: p1, Title: Kovamir) Kovamir is ..."
    twin, unpickled = tool.fork(), pickle.loads(pickle.dumps(tool))
    assert twin.run(query="Kovamir") == found
    tool.close()
    tool.close()
    assert twin.run(query="Kovamir") == unpickled.run(query="Kovamir") == tool.run(query="Kovamir") == found
    for each in (tool, twin, unpickled):
        each.close()

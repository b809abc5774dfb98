"""The browse tool of deep search: pages by id and by address, and what may not be opened."""

import contextlib
import pickle

import pytest
from parts import pages
from search_parts import PASSAGES, small_index
from web_parts import ENGINES, engine_or_skip

from agent_envs.tool import ToolError
from agent_envs.tools.browse import BrowseTool
from sandboxes.search import Bm25Index, Passage

SITE = {
    "/": "<title>Harbour</title><h1>The harbour</h1><p>It lies in <a href='/sarune'>Sarune</a>.</p>",
    "/large": "<title>Large</title><p>Its first words.</p>" + "<p>many words in a line of their own</p>" * 25_000,
    "/endless": "<title>Endless</title><p>" + "x" * 1_000_000,
}


@contextlib.contextmanager
def opened(backend="reader", passages=PASSAGES, **settings):
    with contextlib.closing(BrowseTool(lambda: Bm25Index.build(passages), backend, **settings)) as tool:
        yield tool


@pytest.mark.parametrize("page", ["p1", " p1\n"])
def test_a_page_of_the_index_by_its_id(page):
    with opened() as tool:
        result = tool.run(page=page)
        assert (result.text, result.fault) == ("Kovamir\nKovamir is a novel of 1923.\nThe author is Talido Benu.", "")


@pytest.mark.parametrize(
    "page",
    ["p9", "Kovamir", "", "\0", "x" * 100_000, "file:///etc/passwd", "about:blank", "../corpus.jsonl", "javascript:1"],
)
def test_what_is_no_page_of_the_index_is_the_agents_error(page):
    with opened() as tool, pytest.raises(ToolError, match=r"there is no page '.*': take the id of a search result") as error:
        tool.run(page=page)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("backend", ENGINES)
def test_a_page_by_its_address(backend):
    with pages(SITE) as place, opened(engine_or_skip(backend), allow=[place]) as tool:
        for address in (f"http://{place}/", f"HTTP://{place}"):
            result = tool.run(page=address)
            assert result.fault == ""
            assert result.text.startswith(f"Page: Harbour\nURL: http://{place}/\n")
            assert "It lies in [e1: Sarune]." in result.text


def test_by_default_no_address_may_be_opened():
    with pages(SITE) as place, opened() as tool:
        for address in (f"http://{place}/", f"https://{place}/"):
            result = tool.run(page=address)
            assert result.fault == "error"
            assert "may not be reached from here; allowed: nothing" in result.text
            assert "harbour" not in result.text.lower()


def test_one_site_that_is_allowed_opens_no_other():
    with pages(SITE) as place, pages(SITE) as other, opened(allow=[place]) as tool:
        assert tool.run(page=f"http://{other}/").fault == "error"
        assert tool.run(page=f"http://{place}/").fault == ""


@pytest.mark.parametrize(
    "address",
    ["http://", "http://[", "https://127.0.0.1:1/", "http://\0", "http://me@127.0.0.1:1/", "http://" + "a" * 50_000],
)
def test_addresses_that_lead_nowhere_are_the_agents_error(address):
    with opened(allow=["127.0.0.1:1"]) as tool:
        result = tool.run(page=address)
        assert result.fault == "error"
        assert len(result.text) < 1_000


@pytest.mark.parametrize("path", ["/large", "/endless"])
@pytest.mark.parametrize("budget", [500, 6_000])
def test_a_page_of_a_megabyte_is_cut_to_its_budget(path, budget):
    with pages(SITE) as place, opened(allow=[place], budget=budget) as tool:
        result = tool.run(page=f"http://{place}{path}")
        assert result.fault == ""
        assert 100 < len(result.text) <= budget
        assert "left out" in result.text or "cut off" in result.text


@pytest.mark.parametrize("text", ["word " * 200_000, "x" * 1_000_000])
@pytest.mark.parametrize("budget", [50, 6_000])
def test_a_passage_of_a_megabyte_is_cut_to_its_budget(text, budget):
    with opened(passages=[Passage("1", "Large", text)], budget=budget) as tool:
        shown = tool.run(page="1").text
        assert shown.startswith("Large\n" + text[:10])
        assert shown.endswith(" ...")
        assert budget // 2 < len(shown) - len("Large\n ...") <= budget


def test_a_budget_out_of_range():
    with pytest.raises(ValueError, match="budget must be at least 1, found 0"):
        BrowseTool(small_index, budget=0)


def test_a_copy_has_shares_of_its_own_and_it_pickles():
    with pages(SITE) as place, opened(allow=[place], budget=300) as tool:
        asked = (f"http://{place}/", "p1")
        before = [tool.run(page=page) for page in asked]
        twin = tool.fork()
        tool.close()
        tool.close()
        assert [twin.run(page=page) for page in asked] == before == [tool.run(page=page) for page in asked]
        twin.close()
        same = pickle.loads(pickle.dumps(BrowseTool(small_index, "reader", [place], 300)))
        assert [same.run(page=page) for page in asked] == before
        same.close()

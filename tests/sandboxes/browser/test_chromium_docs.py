"""A site that nobody here wrote: Python's own documentation, as Debian's python3-doc brings it."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from web import Web, body, ref

from sandboxes.browser.browser import Page
from sandboxes.browser.chromium import ChromiumBrowser
from sandboxes.browser.network_policy import NetworkPolicy

FOLDER = Path("/usr/share/doc/python3/html")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not FOLDER.exists(), reason="needs Debian's python3-doc (apt-get install python3-doc)"),
]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def place() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(FOLDER)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def docs(web: Web, place: str) -> Iterator[Page]:
    with ChromiumBrowser(NetworkPolicy(hosts={"docs.test": place})) as browser, browser.new_page() as page:
        page.goto("http://docs.test/index.html")
        yield page


def test_a_function_is_found_through_the_index(docs: Page) -> None:
    docs.click(ref(docs, "General Index"))
    docs.click(ref(docs, ": Z]"))
    docs.click(ref(docs, ": built-in function]"))
    assert docs.url == "http://docs.test/library/functions.html#zip"
    note, signature = body(docs).splitlines()[:2]
    assert "lines above are left out" in note
    assert signature == "zip(*iterables, strict=False)"


def test_a_function_is_found_through_the_search_page(docs: Page) -> None:
    """The results are put there by scripts, one by one, each with words of a page that is fetched for it."""
    docs.type(ref(docs, "Quick search"), "shutil.copytree")
    docs.press("Enter")
    said = docs.snapshot()
    assert "Search finished, found" in said
    docs.click(ref(docs, ": shutil.copytree] (Python function"))
    assert docs.url.endswith("library/shutil.html#shutil.copytree")
    assert "shutil.copytree(src, dst, symlinks=False, ignore=None" in docs.snapshot()

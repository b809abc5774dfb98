"""How fast the browser is, with Chromium behind it.

Method: wall-clock time as the caller sees it (`time.perf_counter`), every sample counted, after one warm-up; the site is a
server of this process. Machine load is printed before and after, since two cores are soon shared.

- reset: a new page and its first address, as an episode begins; closing it is not counted.
- click: one click on a button whose script changes the page, and the snapshot after it, with one page open.
- at once: actions a second (a click and a snapshot each) of 8 threads with a page each.
- docs: Debian's python3-doc, from its first page through its index to a function's signature, and through its search page.
- growth: processes, descriptors and memory (of this process and of Chromium) over many episodes.

    python benchmarks/browser.py [--only reset click at-once docs growth] [--episodes N] [--executable PATH]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import glob
import http.server
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from timing import show, show_load, timed

from sandboxes.browser.browser import Browser, Page
from sandboxes.browser.chromium import ChromiumBrowser
from sandboxes.browser.network_policy import NetworkPolicy

PARTS = ("reset", "click", "at-once", "docs", "growth")
DOCS = Path("/usr/share/doc/python3/html")

PAGE = (
    "<!doctype html><title>Shop</title><h1>Shop</h1>"
    "<button onclick='out.textContent = ++count'>Add</button><p id='out'>0</p>"
    + "".join(f"<p>Article {number} of <a href='/{number}'>maker {number % 7}</a>, in stock.</p>" for number in range(100))
    + "<script>let count = 0</script>"
).encode()


class SiteHandler(http.server.BaseHTTPRequestHandler):
    """One page at every address."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        with contextlib.suppress(OSError):  # the page was closed meanwhile
            self.wfile.write(PAGE)

    def log_message(self, *_: object) -> None:
        pass


class DocsHandler(http.server.SimpleHTTPRequestHandler):
    """The documentation."""

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def ref(page: Page, words: str) -> str:
    """The ref of the element that says that."""
    found = re.search(r"\[(e\d+)(?![^\]]*\[)[^\]]*" + re.escape(words), page.snapshot())
    assert found, f"nothing says {words!r}: {page.snapshot()}"
    return found[1]


def click_and_look(page: Page) -> None:
    page.click("e1")
    page.snapshot()


def resets(browser: Browser, episodes: int) -> None:
    samples, closing = [], []
    for number in range(min(episodes, 50) + 1):
        started = time.perf_counter()
        page = browser.new_page()
        page.goto("http://shop.test/")
        samples.append(time.perf_counter() - started)
        closing.append(timed(page.close))
        assert number or "shop.test" in browser.describe()
    show("reset: new page and address", samples[1:])
    show("closing it", closing[1:])


def clicks(browser: Browser, _: int) -> None:
    with browser.new_page() as page:
        page.goto("http://shop.test/")
        page.snapshot()
        click_and_look(page)
        show("click and snapshot", [timed(lambda: click_and_look(page)) for _ in range(200)])
        show("snapshot alone", [timed(page.snapshot) for _ in range(200)])
        show("screenshot", [timed(page.screenshot) for _ in range(20)])
        assert "[e1 button: Add]\n201\n" in page.snapshot()


def at_once(browser: Browser, _: int) -> None:
    threads, each = 8, 50
    start = threading.Barrier(threads + 1)

    def work() -> None:
        with browser.new_page() as page:
            page.goto("http://shop.test/")
            page.snapshot()
            start.wait()
            for _ in range(each):
                click_and_look(page)

    with ThreadPoolExecutor(threads) as pool:
        working = [pool.submit(work) for _ in range(threads)]
        start.wait()
        seconds = timed(lambda: [one.result() for one in working])
    print(f"  {threads} at once: {threads * each / seconds:.0f} actions/s", flush=True)


def docs(browser: Browser, _: int) -> None:
    if not DOCS.exists():
        print("  docs: left out, since Debian's python3-doc is not installed", flush=True)
        return

    def by_index(page: Page) -> None:
        page.goto("http://docs.test/index.html")
        page.click(ref(page, "General Index"))
        page.click(ref(page, ": Z]"))
        page.click(ref(page, ": built-in function]"))
        assert "zip(*iterables, strict=False)" in page.snapshot()

    def by_search(page: Page) -> None:
        page.goto("http://docs.test/index.html")
        page.type(ref(page, "Quick search"), "shutil.copytree")
        page.press("Enter")
        page.click(ref(page, ": shutil.copytree] (Python function"))
        assert "shutil.copytree(src, dst" in page.snapshot()

    with browser.new_page() as page:
        by_index(page)
        show("docs: signature by the index", [timed(lambda: by_index(page)) for _ in range(5)])
        show("docs: signature by the search", [timed(lambda: by_search(page)) for _ in range(5)])


def growth(browser: Browser, episodes: int) -> None:
    def episode() -> None:
        with browser.new_page() as page:
            page.goto("http://shop.test/")
            page.snapshot()
            click_and_look(page)

    for _ in range(20):
        episode()
    time.sleep(1.0)
    before = held()
    seconds = timed(lambda: [episode() for _ in range(episodes)])
    time.sleep(1.0)
    print(f"  {episodes} episodes in {seconds:.1f} s, {seconds / episodes * 1e3:.0f} ms each", flush=True)
    for name, then, now in zip(("processes", "descriptors", "threads", "MB"), before, held(), strict=True):
        print(f"    {name}: {then} before, {now} after", flush=True)


def held() -> tuple[int, int, int, int]:
    """Processes below this one, its descriptors and threads, and MB that all of them hold for themselves."""
    parents: dict[int, int] = {}
    for path in glob.glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = Path(path).read_text().rpartition(")")[2].split()
            parents[int(path.split("/")[2])] = int(fields[1])
    family = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    pages = 0
    for pid in family:
        with contextlib.suppress(OSError):
            _, resident, common, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
            pages += resident - common
    descriptors = len(os.listdir("/proc/self/fd"))
    return len(family) - 1, descriptors, threading.active_count(), pages * os.sysconf("SC_PAGESIZE") // 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description="Times the browser.")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="what to time")
    parser.add_argument("--episodes", type=int, default=500, help="for growth")
    parser.add_argument("--executable", help="Chromium")
    arguments = parser.parse_args()
    parts = {"reset": resets, "click": clicks, "at-once": at_once, "docs": docs, "growth": growth}
    handler = functools.partial(DocsHandler, directory=str(DOCS))
    with serving(SiteHandler) as shop, serving(handler) as documentation:
        policy = NetworkPolicy(hosts={"shop.test": shop, "docs.test": documentation})
        started = time.perf_counter()
        with ChromiumBrowser(policy, executable=arguments.executable) as browser:
            print(f"{browser.describe()}\n  started in {time.perf_counter() - started:.2f} s")
            show_load("before")
            for name in PARTS:
                if name in arguments.only:
                    parts[name](browser, arguments.episodes)
            show_load("after")


if __name__ == "__main__":
    main()

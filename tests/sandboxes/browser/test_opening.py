"""Which browser one gets, and that both read a page alike."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import site

from sandboxes import shared
from sandboxes.browser import Browser, Cookie, Page, PageProblem, open_browser
from sandboxes.faults import SandboxFault

PAGE = """<!doctype html><title>Works of
  Benu</title><body><nav><ul><li><a href="/">Home</a></li><li><a href="/all"><b>All</b> works</a></li></ul></nav>
<main><h1>Talido <em>Benu</em></h1><p>Talido Benu wrote <a href="#works">Kovamir</a>, in
1923.</p><ul><li><p>one</p></li><li>two <a href=x>three</a></li></ul>
<table><tr><th>Year</th><th>Work</th></tr><tr><td><p>1923</p></td><td><a href=k>Kovamir</a></td></tr></table>
<pre>def f(x):
    return 1

print(2)</pre><h2 id=works>Works</h2><p hidden>no</p><div style="display: none">no</div><script>1 &lt; 2</script>
<form action=/search method=post><label for=q>Search:</label> <input id=q name=q> <input type=hidden name=h value=1>
<button>Go</button> <select name=s><option>Title</option><option value=d>Date</option></select>
<label><input type=checkbox name=c> Exact</label> <input type=radio name=r value=1 checked title=one>
<textarea name=t>a
b</textarea> <input name=off disabled> <input type=password name=p value=secret> <input type=submit value=Send></form>
<p><img alt="a cat"> <a href="/y"><img alt="icon"></a> <a href="/q/z.html?x=1"></a></p></main>"""


@pytest.fixture(params=["reader", pytest.param("chromium", marks=pytest.mark.browser)])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "chromium":
        try:
            open_browser("chromium").close()
        except SandboxFault as fault:
            pytest.skip(str(fault))
    yield request.param
    shared.close_idle()


def test_every_browser_reads_a_page_alike(backend: str) -> None:
    with site({"/": PAGE}) as there, open_browser(backend, hosts={"wiki.test": there.place}) as browser:  # type: ignore[arg-type]
        page = browser.new_page()
        page.goto("http://wiki.test/")
        assert page.title == "Works of Benu"
        assert page.snapshot() == (
            "Page: Works of Benu\nURL: http://wiki.test/\n\n"
            "- [e1: Home]\n"
            "- [e2: All works]\n"
            "# Talido Benu\n"
            "Talido Benu wrote [e3: Kovamir], in 1923.\n"
            "- one\n"
            "- two [e4: three]\n"
            "Year | Work\n"
            "1923 | [e5: Kovamir]\n"
            "def f(x):\n"
            "    return 1\n"
            "print(2)\n"
            "## Works\n"
            '[e6 textbox "Search": ] [e7 button: Go] [e8 select "s": *Title* | Date] [e9 checkbox "Exact": unchecked] '
            '[e10 radio "one": checked] [e11 textbox "t": a b] [e12 textbox (disabled) "off": ] [e13 textbox "p": ••••••] '
            "[e14 button: Send]\n"
            "a cat [e15: icon] [e16: z.html]"
        )


def test_every_browser_sends_a_form_alike(backend: str) -> None:
    with site({"/": PAGE, "/search": "<p>found"}) as there, open_browser(backend, allow=[there.place]) as browser:  # type: ignore[arg-type]
        page = browser.new_page([Cookie("session", "s1", there.url)])
        page.goto(there.url)
        page.snapshot()
        page.type("e6", "a&b é")
        page.select("e8", "Date")
        page.click("e9")
        page.click("e14")
        assert page.snapshot().endswith("\n\nfound")
        asked = next(asked for asked in there.asked if asked.path == "/search")
        assert (asked.method, asked.headers["Cookie"]) == ("POST", "session=s1")
        assert asked.body == b"q=a%26b+%C3%A9&h=1&s=d&c=on&r=1&t=a%0D%0Ab&p=secret"
        page.back()
        assert page.url == f"{there.url}/"


def test_every_browser_keeps_to_what_is_allowed(backend: str) -> None:
    with (
        site({"/": "secret"}) as inside,
        site({"/": f"<a href='{inside.url}'>in</a>"}) as there,
        open_browser(backend, hosts={"wiki.test": there.place}) as browser,  # type: ignore[arg-type]
    ):
        page = browser.new_page()
        page.goto("http://wiki.test/")
        for url in (
            inside.url,
            f"http://2130706433:{inside.port}/",
            f"http://localhost:{inside.port}/",
            "file:///etc/passwd",
        ):
            with pytest.raises(PageProblem):
                page.goto(url)
        page.goto("http://wiki.test/")
        page.snapshot()
        with contextlib.suppress(PageProblem):  # the reader says so at once, Chromium may with the next snapshot
            page.click("e1")
        assert "secret" not in page.snapshot()
        assert inside.asked == []


@pytest.fixture
def fresh() -> Iterator[None]:
    """No choice of "auto" is remembered."""
    shared.close_idle()
    yield
    shared.close_idle()


class Weak(Browser):
    """An engine that cannot be started."""

    def __init__(self, *_: object, **__: object) -> None:
        raise SandboxFault("there is no Chromium here: install it with apt-get install chromium")

    def new_page(self, cookies: object = ()) -> Page:
        raise AssertionError

    def describe(self) -> str:
        raise AssertionError

    def close(self) -> None:
        raise AssertionError


def test_auto_takes_the_reader_where_chromium_cannot_be_started_and_says_so_once(
    fresh: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sandboxes.browser.chromium.ChromiumBrowser", Weak)
    with caplog.at_level(logging.INFO, "sandboxes.browser.opening"):
        for _ in range(3):
            with open_browser(allow=["a.test"]) as browser:
                assert browser.describe().startswith("reader")
    assert caplog.messages == [
        "browser: reader, since chromium is not to be had: "
        "there is no Chromium here: install it with apt-get install chromium"
    ]  # fmt: skip


def test_a_named_browser_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandboxes.browser.chromium.ChromiumBrowser", Weak)
    with pytest.raises(SandboxFault, match="there is no Chromium here"):
        open_browser("chromium")


@pytest.mark.browser
def test_a_chromium_that_is_not_there_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SandboxFault) as fault, open_browser("chromium", executable=str(tmp_path / "none")) as browser:
        browser.new_page()
    assert "\n" not in str(fault.value)
    assert str(tmp_path / "none") in str(fault.value)


def test_without_playwright_chromium_is_one_line_and_auto_the_reader(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "playwright" or ".chromium" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "playwright", None)
    with pytest.raises(SandboxFault, match="pip install playwright"):
        open_browser("chromium")
    with open_browser() as browser:
        assert browser.describe().startswith("reader")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"backend": "firefox"}, "backend must be 'auto', 'chromium' or 'reader', found 'firefox'"),
        ({"backend": "reader", "executable": "/usr/bin/chromium"}, "arguments of chromium"),
        ({"backend": "reader", "sandbox": "off"}, "arguments of chromium"),
        ({"backend": "reader", "allow": "a.test"}, r"allow must be several hosts, such as \['a.test'\]"),
        ({"backend": "reader", "allow": ["http://a.test"]}, "allow takes"),
        ({"backend": "reader", "hosts": {"a.test": "b.test"}}, "hosts maps"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        open_browser(**arguments)  # type: ignore[arg-type]


def test_nothing_is_allowed_by_default() -> None:
    with open_browser("reader") as browser, pytest.raises(PageProblem, match="allowed: nothing"):
        browser.new_page().goto("http://a.test/")


def test_readers_do_not_wait_for_playwright() -> None:
    program = (
        "import sys, sandboxes.browser; sandboxes.browser.open_browser('reader'); sys.exit('playwright' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

"""The reader: pages as text, links and forms, and what sites may do to it."""

from __future__ import annotations

import concurrent.futures
import gzip
import itertools
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import Answer, Asked, Handler, Site, site, talker

from sandboxes.browser import Cookie, NetworkPolicy, Page, PageLimits, PageProblem
from sandboxes.browser.document import Document
from sandboxes.browser.markup import read_html
from sandboxes.browser.reader import ReaderBrowser
from sandboxes.faults import SandboxFault


def opened(*allow: str, limits: PageLimits | None = None, hosts: dict[str, str] | None = None) -> Page:
    return ReaderBrowser(NetworkPolicy(allow, hosts or {}), limits or PageLimits()).new_page()


def body(page: Page, budget: int | None = None) -> str:
    """A snapshot without its head."""
    return page.snapshot(budget).split("\n\n", 1)[1]


def shown(html: str | bytes, headers: dict[str, str] | None = None) -> str:
    """What a page of that HTML reads like."""
    with site({"/": Answer(html, headers=headers or {})}) as there:
        page = opened(there.place)
        page.goto(there.url)
        return body(page)


def parsed(html: str) -> Document:
    return read_html(html, time.monotonic() + 60)


# how a page reads


def test_a_page_reads_as_the_format_says() -> None:
    html = """<!doctype html><title>Talido
      Benu</title><nav><ul><li><a href=/>Home</a></ul></nav><h1>Talido <em>Benu</em></h1>
      <p>Talido Benu wrote <a href="/wiki/Kovamir">Kovamir</a> in
      1923.</p><ul><li><p><a href="/works">Works</a></p></ul>
      <table><tr><th>Year<th>Work</tr><tr><td><p>1923</p></td><td>Kovamir</td></tr></table>
      <form><label>Search <input name=q></label><button>Go</button>
      <select aria-label="Sort by"><option>Title<option>Date</select></form>"""
    with site({"/wiki/Talido": html}) as there:
        page = opened(hosts={"wiki.test": there.place})
        page.goto("http://wiki.test/wiki/Talido")
        assert page.title == "Talido Benu"
        assert page.url == "http://wiki.test/wiki/Talido"
        assert page.snapshot() == (
            "Page: Talido Benu\nURL: http://wiki.test/wiki/Talido\n\n"
            "- [e1: Home]\n"
            "# Talido Benu\n"
            "Talido Benu wrote [e2: Kovamir] in 1923.\n"
            "- [e3: Works]\n"
            "Year | Work\n"
            "1923 | Kovamir\n"
            '[e4 textbox "Search": ] [e5 button: Go] [e6 select "Sort by": *Title* | Date]'
        )


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>a  b\n c&nbsp;d</p>", "a b c d"),
        ("a<b>b</b> <i> c</i>d", "ab cd"),
        ("a<br>b<hr>c<div>d<div>e</div></div>f", "a\nb\nc\nd\ne\nf"),
        ("<h2>x</h2><h6>y</h6><h3></h3>z", "## x\n###### y\nz"),
        ("<ul><li>a<ul><li>b</ul><li></ul>c", "- a\n- b\nc"),
        ("<ol><li><h3>a</h3>b</ol>", "- a\nb"),
        ("<dl><dt>a<dd>b</dl>", "a\nb"),
        ("<pre>def f():\n    return 1\n\n  # end</pre>", "def f():\n    return 1\n  # end"),
        ("<table><tr><td>a<td><td>c<tr><td colspan=2>d</table>", "a | | c\nd"),
        ("<table><tr><td><h2>a</h2><p>b</p><p>c</p><td>d</table>", "## a\nb\nc\nd"),
        ("<table><tr><td><table><tr><td>a<td>b<tr><td>c</table><td>d</table>", "a | b\nc\nd"),
        ("<p hidden>a</p><p style='color:red;display: none'>b</p><p aria-hidden=true>c</p><dialog>d</dialog>e", "e"),
        ("<script>a</script><style>b</style><template>c</template><svg><title>d</title></svg><noscript>e</noscript>", "e"),
        ("<!-- a --><?b c?>d<custom-tag>e</custom-tag>", "de"),
        ("<img src=a alt='a cat'><img src=b alt=''>", "a cat"),
        ("<a href=x>a</a><a href=y>b</a>, <a name=z>c</a>", "[e1: a] [e2: b], c"),
        ("<a href=x> a </a>b", "[e1: a] b"),
        ("<a href=x><h2>a</h2><p>b</p></a>c", "## [e1: a b]\nc"),
        ("<a href=x><img alt=a></a><a href=y title=b></a><a href=z/w></a>", "[e1: a] [e2: b] [e3: w]"),
        ("<a href=x>a<a href=y>b", "[e1: a] [e2: b]"),
        ("<iframe src=x title=a></iframe>b", "[e1: frame a]b"),
        ("<label for=q>a :</label>: <input id=q>", ': [e1 textbox "a": ]'),
        ("<input id=q><label for=q>a</label>", '[e1 textbox "a": ]'),
        ("<label for=none>a</label><input placeholder=b>", 'a[e1 textbox "b": ]'),
        ("<ul><li><label for=q>a</label><li><input id=q></ul>", '- [e1 textbox "a": ]'),
        ("<label>a <input type=checkbox checked> b</label>", '[e1 checkbox "a b": checked]'),
        ("<input type=radio name=r aria-label=a><input type=radio name=r title=b checked>",
         '[e1 radio "a": unchecked] [e2 radio "b": checked]'),
        ("<input type=submit><input type=submit value=a><button disabled>b</button><input type=image alt=c>",
         "[e1 button: Submit] [e2 button: a] [e3 button (disabled): b] [e4 button: c]"),
        ("<textarea name=t>\na\n<b>b</textarea><input type=password value=secret>",
         '[e1 textbox "t": a <b>b] [e2 textbox: ••••••]'),
        ("<fieldset disabled><input name=a></fieldset><input name=b type=hidden>", '[e1 textbox (disabled) "a": ]'),
        ("<input type=file name=f>a", "a"),
        ("a < b & c &lt; d &copy; &unknown; &#65;", "a < b & c < d © &unknown; A"),
    ],
)  # fmt: skip
def test_html_as_lines(html: str, text: str) -> None:
    assert shown(f"<!doctype html><body>{html}") == text


def test_refs_are_in_document_order_and_links_survive_anywhere() -> None:
    html = "<table><tr>" + "".join(
        f"<td><p><b>x<a href=/{n}>l{n}</a></b><input name=i{n}>" for n in range(1, 40)
    )  # nothing is closed
    text = shown(html)
    assert [int(number) for number in re.findall(r"\[e(\d+)", text)] == list(range(1, 79))
    assert all(f"[e{2 * n - 1}: l{n}] [e{2 * n} textbox" in text for n in range(1, 40))


@given(st.text(st.sampled_from("<>/abtp='\" &;!-\n#x0e"), max_size=200) | st.text(max_size=100))
@settings(max_examples=150, deadline=None)
def test_any_text_can_be_read_as_html(html: str) -> None:
    for line in parsed(html).lines:
        assert line
        assert all(isinstance(piece, int) or "\n" not in piece for piece in line)


@given(
    st.lists(
        st.sampled_from(
            ["<a href=x>", "</a>", "<td>", "<tr>", "<table>", "</table>", "<li>", "<p>", "</p>", "<input>", "<b>"]
        )
        | st.sampled_from(
            ["</b>", "<select>", "<option>", "</select>", "<form>", "</form>", "<label>", "</label>", "word", " "]
        )
        | st.sampled_from(
            ["<textarea>", "</textarea>", "<pre>", "</pre>", "<h1>", "</h1>", "<button>", "<div hidden>", "</div>"]
        )
    ).map("".join)
)
@settings(max_examples=300, deadline=None)
def test_any_order_of_tags_gives_each_element_one_place(html: str) -> None:
    document = parsed(html)
    placed = [piece for line in document.lines for piece in line if isinstance(piece, int)]
    assert sorted(placed) == list(range(len(document.elements)))


def test_characters_are_read_as_the_site_or_the_page_says() -> None:
    word = "Grüße €"
    as_html = {"Content-Type": "text/html"}
    assert shown(f"<p>{word}".encode(), as_html) == word
    assert shown(f"<p>{word}".encode("cp1252"), as_html) == word
    assert shown(f"<p>{word}".encode("cp1252"), {"Content-Type": "text/html; charset=ISO-8859-1"}) == word
    assert shown(f"<meta charset=cp1252><p>{word}".encode("cp1252"), as_html) == word
    assert shown(f"<meta charset=cp1252><p>{word}".encode(), {"Content-Type": "text/html; charset=utf-8"}) == word
    assert shown("\ufeff<p>Grüße".encode("utf-16-le"), as_html) == "Grüße"
    assert shown("<p>漢字".encode("shift_jis"), {"Content-Type": 'text/html; charset="Shift_JIS"'}) == "漢字"
    assert shown(f"<p>{word}".encode(), {"Content-Type": "text/html; charset=punycode"}) == word
    assert shown(b"<p>a\xffb\x00c", {"Content-Type": "text/html; charset=utf-8"}) == "a\ufffdb\ufffdc"
    assert shown(f'<?xml version="1.0" encoding="utf-8"?><html><body>{word}'.encode(), as_html) == word


def test_packed_pages_are_unpacked() -> None:
    html = b"<p>hello " * 1_000
    raw = zlib.compressobj(wbits=-15)
    for encoding, packed in [
        ("gzip", gzip.compress(html)),
        ("deflate", zlib.compress(html)),
        ("deflate", raw.compress(html) + raw.flush()),
        ("identity", html),
    ]:
        assert shown(packed, {"Content-Encoding": encoding}).startswith("hello\nhello\n")
    for encoding in ("br", "gzip"):
        with pytest.raises(PageProblem, match="packed as"):
            shown(html, {"Content-Encoding": encoding})


def test_what_is_no_html() -> None:
    assert shown("a\n\n  b <i>\n", {"Content-Type": "text/plain"}) == "a\n  b <i>"
    assert shown('{"a": 1}', {"Content-Type": "application/json"}) == '{"a": 1}'
    for kind in ("application/pdf", "image/png", "application/octet-stream"):
        assert shown(b"\0\1\2", {"Content-Type": kind}) == f"[a file of type {kind}, which this browser does not show]"
    assert "which this browser does not show" in shown("<p>a", {"Content-Disposition": "attachment; filename=a.html"})
    assert shown("<html><p>a", {"Content-Type": ""}) == "a"
    assert shown("a <p>", {"Content-Type": ""}) == "a <p>"


def test_an_answer_without_a_page_is_named() -> None:
    with site({"/gone": Answer("", 410), "/lost": Answer("<p>not here", 404), "/none": Answer("", 204)}) as there:
        page = opened(there.place)
        page.goto(f"{there.url}/gone")
        assert body(page) == "[the server answered with status 410]"
        page.goto(f"{there.url}/lost")
        assert body(page) == "not here"
        page.goto(f"{there.url}/none")
        assert page.url.endswith("/lost")  # as in any browser, nothing happens


# acting


def form_site(form: str) -> dict[str, str | Handler | Answer]:
    def echo(asked: Asked) -> Answer:
        return Answer(f"<p>{asked.method} {asked.path}</p><p>{asked.body.decode()}</p>")

    return {"/": f"<!doctype html><title>Form</title>{form}", "/to": echo, "/other": echo}


def last(there: Site) -> tuple[str, list[tuple[str, str]]]:
    """Method and pairs of the latest request."""
    asked = there.asked[-1]
    data = asked.body.decode() if asked.method == "POST" else asked.path.partition("?")[2]
    return asked.method, parse_qsl(data, keep_blank_values=True)


FORM = """<form action=/to method={method}>
  <input name=q value=first><input type=hidden name=token value="a&amp;b"><input name=off disabled value=1>
  <input value=unnamed>
  <input type=checkbox name=c><input type=checkbox name=d value=yes checked>
  <input type=radio name=r value=1 checked><input type=radio name=r value=2>
  <select name=s><option value=t>Title<option>Date<option disabled>Never</select>
  <select name=m multiple><option selected>x<option selected>y<option>z</select>
  <textarea name=t>one
two</textarea><div style="display:none"><input name=unseen value=sent></div>
  <button name=b value=1>One</button><button name=b value=2 formaction=/other>Two</button><input type=reset>
</form><input name=outside value=no><input name=far form=f2><form id=f2 action=/to></form>"""

UNTOUCHED = [
    *(("q", "first"), ("token", "a&b"), ("d", "yes"), ("r", "1"), ("s", "t"), ("m", "x"), ("m", "y")),
    *(("t", "one\r\ntwo"), ("unseen", "sent")),
]


@pytest.mark.parametrize("method", ["get", "post"])
def test_forms_send_what_a_browser_sends(method: str) -> None:
    with site(form_site(FORM.format(method=method))) as there:
        page = opened(there.place)
        page.goto(there.url)
        text = page.snapshot()
        refs = {name: ref for ref, name in re.findall(r'\[(e\d+) (?:button|textbox)[ :]*"?([\w]+)', text)}
        page.click(refs["One"])
        assert last(there) == (method.upper(), [*UNTOUCHED, ("b", "1")])
        page.back()
        page.snapshot()
        page.click(refs["Two"])
        assert there.asked[-1].path.startswith("/other")
        assert last(there) == (method.upper(), [*UNTOUCHED, ("b", "2")])
        page.back()
        page.snapshot()
        page.type("e1", "a\ud800b\n&=é")
        page.click("e4")  # c
        page.click("e5")  # d
        page.click("e7")  # r=2
        page.select("e8", "Date")
        page.select("e9", "z")
        page.type("e10", "x\ny")
        page.click(refs["One"])
        sent = [("q", "a?b&=é"), ("token", "a&b"), ("c", "on"), ("r", "2"), ("s", "Date"), ("m", "z"), ("t", "x\r\ny")]
        assert last(there) == (method.upper(), [*sent, ("unseen", "sent"), ("b", "1")])
        if method == "post":
            headers = there.asked[-1].headers
            assert headers["Content-Type"] == "application/x-www-form-urlencoded"
            assert (headers["Origin"], headers["Referer"]) == (there.url, f"{there.url}/")


def test_enter_in_a_field_sends_its_form_by_its_first_button() -> None:
    with site(form_site(FORM.format(method="get") + "<form action=/other><input name=solo></form>")) as there:
        page = opened(there.place)
        page.goto(there.url)
        page.snapshot()
        page.type("e1", "x")
        page.press("Enter")
        assert last(there)[1] == [("q", "x"), *UNTOUCHED[1:], ("b", "1")]
        page.back()
        ref = re.findall(r'\[(e\d+) textbox "solo"', page.snapshot())[0]
        page.type(ref, "alone")
        page.press("Enter")
        assert there.asked[-1].path == "/other?solo=alone"


def test_a_snapshot_shows_what_has_been_entered_and_reset_takes_it_back() -> None:
    with site(form_site(FORM.format(method="get"))) as there:
        page = opened(there.place)
        page.goto(there.url)
        before = page.snapshot()
        page.type("e1", "hello")
        page.click("e5")
        page.click("e7")
        page.select("e8", "Date")
        text = page.snapshot()
        for part in (
            '[e1 textbox "q": hello]',
            'e5 checkbox "d": unchecked',
            'e6 radio "r": unchecked',
            'e7 radio "r": checked',
        ):
            assert part in text
        assert "Title | *Date* | Never" in text
        page.click(re.findall(r"\[(e\d+) button: Reset", text)[0])
        assert page.snapshot() == before


def test_a_get_form_replaces_the_query_and_keeps_nothing_of_the_fragment() -> None:
    with site(form_site("<form action='/to?old=1#x'><input name=q value=1><button>Go</button></form>")) as there:
        page = opened(there.place)
        page.goto(there.url)
        page.snapshot()
        page.click("e2")
        assert page.url == f"{there.url}/to?q=1"


def test_a_form_without_an_action_sends_to_its_page() -> None:
    with site({"/p": "<base href=/elsewhere/><form><input name=q><button>Go</button></form>"}) as there:
        page = opened(there.place)
        page.goto(f"{there.url}/p?x=1")
        page.snapshot()
        page.click("e2")
        assert page.url == f"{there.url}/p?q="


def test_links_are_followed_from_where_they_stand() -> None:
    pages = {
        "/a/b": "<a href=c>1</a><a href='../d?x=1#y'>2</a><a href='//{place}/e'>3</a>"
        "<a href='?q'>4</a><a href='\\f g'>5</a>",
        "/based": "<base href=/deep/er/><a href=c>1</a>",
    }
    with site({}) as there:
        there.answers = {path: Answer(html.replace("{place}", there.place)) for path, html in pages.items()}
        page = opened(there.place)
        for number, url in enumerate(["/a/c", "/d?x=1#y", "/e", "/a/b?q", "/f%20g"], 1):
            page.goto(f"{there.url}/a/b")
            page.snapshot()
            page.click(f"e{number}")
            assert page.url == there.url + url
        page.goto(f"{there.url}/based")
        page.snapshot()
        page.click("e1")
        assert page.url == f"{there.url}/deep/er/c"


def test_a_link_within_the_page_scrolls_and_asks_for_nothing() -> None:
    html = "<a href='#end'>down</a>" + "".join(f"<p>line {n}</p>" for n in range(500)) + "<h2 id=end>End</h2>last"
    with site({"/": html}) as there:
        page = opened(there.place)
        page.goto(there.url)
        page.snapshot()
        page.click("e1")
        assert page.url == f"{there.url}/#end"
        assert body(page).endswith("scroll up]\n## End\nlast")
        page.back()
        assert page.url == f"{there.url}/"
        assert body(page).startswith("[e1: down]")
        assert len(there.asked) == 1
        page.goto(f"{there.url}/#end")
        assert body(page).endswith("## End\nlast")


def test_back_goes_back_to_what_was_there() -> None:
    with site(
        {"/": "<a href=/2>2</a>", "/2": "<form method=post action=/3><button>x</button></form>", "/3": "three"}
    ) as there:
        page = opened(there.place)
        with pytest.raises(PageProblem, match="no page before"):
            page.back()
        page.goto(there.url)
        with pytest.raises(PageProblem, match="no page before"):
            page.back()
        page.snapshot()
        page.click("e1")
        page.snapshot()
        page.click("e1")
        assert body(page) == "three"
        page.back()
        page.goto("about:blank")
        assert (page.url, page.title, page.snapshot()) == ("about:blank", "", "Page: \nURL: about:blank\n\n")
        page.goto(f"{there.url}/2")
        page.back()
        assert page.url == "about:blank"


def test_refs_are_those_of_the_latest_snapshot() -> None:
    with site({"/": "<a href=/2>2</a><input name=q>", "/2": "<a href=/>1</a>"}) as there:
        page = opened(there.place)
        page.goto(there.url)
        with pytest.raises(PageProblem, match="take a new one"):
            page.click("e1")
        page.snapshot()
        page.click("e1")
        with pytest.raises(PageProblem, match="take a new one"):
            page.click("e1")
        page.snapshot()
        for ref in ("e2", "e0", "e", "x", "e1e1", "1", "e99999999", "e-1", ""):
            with pytest.raises(PageProblem, match="refs go from e1 to e1"):
                page.click(ref)
        page.click("e1")


def test_what_cannot_be_done_says_what_to_do() -> None:
    html = """<a href="javascript:void(0)">a</a><button type=button>b</button><input value=c readonly><input disabled>
      <select><option>d</select><a href="mailto:x@y.test">e</a><a href="http://other.test/">f</a><input type=checkbox>
      <form method=post enctype=multipart/form-data><input type=file name=f><button>g</button></form>
      <form><button disabled>h</button><input name=i></form>"""
    with site({"/": html}) as there:
        page = opened(there.place)
        page.goto(there.url)
        before = page.snapshot()
        for action, words in [
            (lambda: page.click("e1"), "runs a script.*Chromium"),
            (lambda: page.click("e2"), "for a script.*Chromium"),
            (lambda: page.type("e3", "x"), "read-only"),
            (lambda: page.type("e4", "x"), "disabled"),
            (lambda: page.type("e1", "x"), "text goes into a textbox"),
            (lambda: page.select("e5", "x"), r"there is no option 'x'; the options are 'd'"),
            (lambda: page.select("e3", "x"), "options are those of a select"),
            (lambda: page.click("e6"), "begins with http"),
            (lambda: page.click("e7"), "may not be reached"),
            (lambda: page.click("e9"), "files.*Chromium"),
            (lambda: (page.type("e11", "x"), page.press("Enter")), "button is disabled"),
            (lambda: (page.click("e3"), page.press("Enter")), "in no form"),
            (lambda: page.press("F5"), "knows the keys"),
            (page.screenshot, "backend='chromium'"),
        ]:
            with pytest.raises(PageProblem, match=words):
                action()  # type: ignore[operator]
        page.type("e11", "")
        page.click("e8")
        page.press("Space")
        assert page.snapshot() == before
        assert [asked.path for asked in there.asked] == ["/"]
        page.goto(there.url)
        with pytest.raises(PageProblem, match="click on one"):
            page.press("Enter")


def test_scrolling_shows_every_line_and_stops_at_the_ends() -> None:
    words = [f"line {n} " + "x" * (n * 7 % 300) for n in range(300)]
    with site({"/": "".join(f"<p>{line}</p>" for line in words)}) as there:
        page = opened(there.place)
        page.goto(there.url)
        seen: list[str] = []
        for _ in range(300):
            text = body(page, 3_000)
            assert len(text) <= 3_000
            fresh = [line for line in text.splitlines() if line.startswith("line") and line not in seen]
            seen += fresh
            page.scroll("down")
        assert seen == [line.strip() for line in words]
        end = page.snapshot(3_000)
        page.press("End")
        assert page.snapshot(3_000) == end
        for _ in range(300):
            page.scroll("up")
        assert body(page).startswith("line 0\nline 1 ")
        page.press("PageDown")
        page.press("Home")
        assert body(page).startswith("line 0\nline 1 ")


def test_a_long_paragraph_can_be_read_to_its_end() -> None:
    words = [f"w{n}" for n in range(3_000)]
    with site({"/": f"<p>{' '.join(words)}"}) as there:
        page = opened(there.place)
        page.goto(there.url)
        found: list[str] = []
        for _ in range(30):
            found += [word for word in re.findall(r"\bw\d+\b", body(page, 3_000)) if word not in found]
            page.scroll("down")
        assert found == words


# cookies


def test_cookies_are_kept_sent_and_each_pages_own() -> None:
    def count(asked: Asked) -> Answer:
        seen = int(re.findall(r"n=(\d+)", asked.headers.get("Cookie", "") + "; n=0")[0])
        return Answer(f"{asked.headers.get('Cookie')}", headers={"Set-Cookie": f"n={seen + 1}; Path=/"})

    with site({"/": count}) as there, site({"/": lambda asked: Answer(str(asked.headers.get("Cookie")))}) as other:
        browser = ReaderBrowser(
            NetworkPolicy(hosts={"a.test": there.place, "b.test": other.place, "plain": other.place}), PageLimits()
        )
        page = browser.new_page([Cookie("session", "s1", "http://a.test/"), Cookie("p", "1", "http://plain/x")])
        for expected in ("session=s1", "session=s1; n=1", "session=s1; n=2"):
            page.goto("http://a.test/")
            assert sorted(body(page).split("; ")) == sorted(expected.split("; "))
        page.goto("http://b.test/")
        assert body(page) == "None"
        page.goto("http://plain/")
        assert body(page) == "p=1"
        stranger = browser.new_page()
        stranger.goto("http://a.test/")
        assert body(stranger) == "None"


def test_giant_and_countless_cookies_are_bounded() -> None:
    many = "\n".join(f"c{n}={'x' * 200}; Path=/" for n in range(200))
    evil = "\n".join(["big=" + "x" * 5_000, "a" + ";" * 4_000, "b=" + " " * 4_000 + "; expires=" + "1" * 40])
    with site({"/": Answer("ok", headers={"Set-Cookie": f"{evil}\n{many}"}), "/2": "ok"}) as there:
        page = opened(there.place)
        for _ in range(3):
            page.goto(there.url)
        page.goto(f"{there.url}/2")
        sent = there.asked[-1].headers["Cookie"]
        assert "big=" not in sent
        assert sent.count("=") <= 50
        there.answers = {"/": Answer("ok", headers={"Set-Cookie": "x=" + "y" * 200_000})}
        with pytest.raises(PageProblem, match="does not answer in HTTP"):
            page.goto(there.url)


# what sites do


def test_redirects_are_followed_and_each_is_judged() -> None:
    def to(url: str, status: int = 302) -> Answer:
        return Answer("", status, {"Location": url})

    with site({"/": "secret"}) as inside, site({}) as there:
        there.answers = {
            "/a": to("b?x=1"), "/b": to(f"{there.url}/c", 301), "/c": Answer("there"), "/loop": to("/loop"),
            "/inside": to(f"{inside.url}/"), "/name": to("http://evil.test/"), "/data": to("data:text/html,x"),
            "/number": to(f"http://2130706433:{inside.port}/"), "/file": to("file:///etc/passwd"),
            "/blank": to("about:blank"),
            "/user": to(f"http://u:p@{there.place}/c"), "/empty": Answer("stays", 302),
            **{f"/{n}": to(f"/{n + 1}") for n in range(12)}, "/12": Answer("end"),
        }  # fmt: skip
        page = opened(there.place)
        page.goto(f"{there.url}/a#top")
        assert (page.url, body(page)) == (f"{there.url}/c#top", "there")
        page.goto(f"{there.url}/empty")
        assert body(page) == "stays"
        for path in ("inside", "name", "number", "file", "data", "blank", "user"):
            with pytest.raises(PageProblem):
                page.goto(f"{there.url}/{path}")
            assert page.url == f"{there.url}/empty"
        assert inside.asked == []
        for path in ("loop", "0"):
            with pytest.raises(PageProblem, match="given up after 10"):
                page.goto(f"{there.url}/{path}")
        page.goto(f"{there.url}/2")
        assert body(page) == "end"


@pytest.mark.parametrize(("status", "method"), [(301, "GET"), (302, "GET"), (303, "GET"), (307, "POST"), (308, "POST")])
def test_what_becomes_of_a_post_that_is_redirected(status: int, method: str) -> None:
    form = "<form method=post action=/old><input name=q value=1><button>Go</button></form>"
    with site({**form_site(form), "/old": Answer("", status, {"Location": "/to"})}) as there:
        page = opened(there.place)
        page.goto(there.url)
        page.snapshot()
        page.click("e2")
        assert (there.asked[-1].method, there.asked[-1].body) == (method, b"q=1" if method == "POST" else b"")


def test_refreshes_are_followed_in_bounds() -> None:
    def refresh(content: str) -> str:
        return f'<meta http-equiv="Refresh" content="{content}"><p>here'

    with site({"/secret": "secret"}) as inside, site({}) as there:
        pages = {
            "/soon": refresh("0; url='/end'"), "/late": refresh("30;url=/end"), "/odd": refresh("soon"),
            "/header": Answer("x", headers={"Refresh": "1;URL=/end"}), "/script": refresh("0;url=javascript:x"),
            "/self": refresh("0"), "/same": refresh("0;url=/same"), "/denied": refresh(f"0;url={inside.url}/secret"),
            "/loop": refresh("0;url=/pool"), "/pool": refresh("0;url=/loop"),
            "/noscript": "<noscript>" + refresh("0;/end") + "</noscript>", "/end": "end",
            "/endless": lambda asked: Answer(refresh(f"0;url=/endless?{int(asked.path.partition('?')[2] or 0) + 1}")),
        }  # fmt: skip
        there.answers = {path: Answer(found) if isinstance(found, str) else found for path, found in pages.items()}  # type: ignore[misc]
        page = opened(there.place)
        for path in ("soon", "header", "noscript"):
            page.goto(f"{there.url}/{path}")
            assert (page.url, body(page)) == (f"{there.url}/end", "end")
        for path in ("late", "self", "same", "denied", "script", "odd"):
            page.goto(f"{there.url}/{path}")
            assert (page.url, body(page)) == (f"{there.url}/{path}", "here")
        assert inside.asked == []
        for path in ("loop", "endless"):
            before = len(there.asked)
            with pytest.raises(PageProblem, match="given up"):
                page.goto(f"{there.url}/{path}")
            assert len(there.asked) - before == 11


SPELLINGS = [
    "localhost",
    "2130706433",
    "0x7f.1",
    "0177.0.0.1",
    "127.1",
    "[::ffff:127.0.0.1]",
    "127.0.0.1.",
    "\uff11\uff12\uff17.1",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_other_names_of_this_machine_are_no_way_in(spelling: str) -> None:
    with site({"/": "secret"}) as inside, site({}) as there:
        target = f"http://{spelling}:{inside.port}/"
        there.answers = {"/": Answer(f"<a href='{target}'>in</a><form action='{target}'><button>in</button></form>")}
        page = opened(hosts={"wiki.test": there.place})
        page.goto("http://wiki.test/")
        page.snapshot()
        for action in (lambda: page.click("e1"), lambda: page.click("e2"), lambda: page.goto(target)):
            with pytest.raises(PageProblem, match="may not be reached"):
                action()
        assert inside.asked == []


def test_a_name_that_points_inside_is_no_way_in(monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda name, *rest, **more: look_up("127.0.0.1" if name == "a.test" else name, *rest, **more)
    )
    with site({"/": "secret"}) as inside:
        with pytest.raises(PageProblem, match="not public"):
            opened(f"a.test:{inside.port}").goto(f"http://a.test:{inside.port}/")
        assert inside.asked == []


def test_a_large_page_is_cut_where_the_limit_is() -> None:
    line = b"<p>" + b"x" * 96 + b"\n"

    def talk(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 50000000\r\n\r\n<a href=/>top</a>"
        )
        for _ in range(500_000):
            connection.sendall(line)

    with talker(talk) as place:
        page = opened(place, limits=PageLimits(bytes=200_000))
        page.goto(f"http://{place}/")
        text = body(page)
        assert text.startswith("[this page is longer than what is read of it: the rest is cut off]\n[e1: top]\nxxx")
        left = re.findall(r"\[(\d+) lines below are left out", text)
        assert 1_000 < int(left[0]) <= 2_000


def endless(packed: bool) -> Iterator[bytes]:
    packer = zlib.compressobj(wbits=31)
    for number in itertools.count():
        html = f"<p>line <a href=/{number}>{number}</a></p>".encode() * (10_000 if packed else 100)
        yield packer.compress(html) + packer.flush(zlib.Z_SYNC_FLUSH) if packed else html


@pytest.mark.parametrize("packed", [False, True])
def test_an_endless_page_ends(packed: bool) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(65_536)
        encoding = b"Content-Encoding: gzip\r\n" if packed else b""
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n" + encoding + b"\r\n")
        for piece in endless(packed):
            connection.sendall(piece)

    with talker(talk) as place:
        page = opened(place, limits=PageLimits(bytes=500_000))
        page.goto(f"http://{place}/")
        assert "the rest is cut off" in body(page)
        assert "line [e1: 0]" in body(page)


def test_a_bomb_costs_no_more_than_a_page() -> None:
    packed = gzip.compress(b"<p>" + b"x" * 200_000_000)  # 200 kB on the wire
    with site({"/": Answer(packed, headers={"Content-Encoding": "gzip"})}) as there:
        page = opened(there.place, limits=PageLimits(bytes=1_000_000))
        tracemalloc.start()
        try:
            page.goto(there.url)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert "the rest is cut off" in body(page)
        assert peak < 30_000_000


@pytest.mark.parametrize(
    "html",
    [
        "<div>" * 500_000 + "deep",
        "<p><a href=x>" * 100_000 + "</b>" * 100_000,
        "<a href=x>y</a>" * 300_000,
        "<table><tr><td>" * 200_000,
        "<select>" + "<option>x" * 500_000,
        "<form>" * 10 + "<input>" * 500_000,
        "<b>" * 2_000_000,
        "<!--" * 1_000_000,
        "<a " + " ".join(f"a{n}=1" for n in range(300_000)) + " href=x>y</a>",
        "<a href='" + "x" * 5_000_000 + "'>y</a>",
        "<title>" + "x" * 5_000_000,
        "x " * 2_500_000,
        "x" * 5_000_000,
        "&amp;" * 1_000_000,
        "<label>" * 300_000 + "<input>",
        "<meta http-equiv=refresh content='" + "0" * 1_000_000 + "'>",
        "<p style='" + "display" * 500_000 + "'>x",
        "<" * 5_000_000,
        "<pre>" + "\n " * 2_000_000,
    ],
    ids=lambda html: html[:20],
)
def test_html_that_is_meant_to_hurt_takes_bounded_time_and_room(html: str) -> None:
    with site({"/": html}) as there:
        page = opened(there.place, limits=PageLimits(timeout=5.0))
        began = time.monotonic()
        page.goto(there.url)
        assert len(page.snapshot()) <= 6_000
        assert time.monotonic() - began < 8


def test_entities_of_a_document_type_are_not_expanded() -> None:
    names = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    names += '<!ENTITY l0 "lol"><!ENTITY file SYSTEM "file:///etc/passwd">'
    html = f'<?xml version="1.0"?><!DOCTYPE lolz [{names}]><html><body><p>&l9; &file;'
    for kind in ("text/html", "application/xhtml+xml"):
        text = shown(html, {"Content-Type": kind})
        assert "lollol" not in text
        assert "root:" not in text


def drip(connection: socket.socket, head: bytes) -> None:
    connection.recv(65_536)
    connection.sendall(head)
    for _ in range(200):
        connection.sendall(b"x")
        time.sleep(0.05)


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nX-A: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"])
def test_a_server_that_drips_gets_no_more_than_the_time_limit(head: bytes) -> None:
    with talker(lambda connection: drip(connection, head)) as place:
        page = opened(place, limits=PageLimits(timeout=0.5))
        began = time.monotonic()
        with pytest.raises(PageProblem) as late:
            page.goto(f"http://{place}/")
        assert time.monotonic() - began < 2
        assert late.value.kind == "timeout"


def test_slow_redirects_share_one_time_limit() -> None:
    def slow(asked: Asked) -> Answer:
        time.sleep(0.2)
        return Answer("", 302, {"Location": "/"})

    with site({"/": slow}) as there:
        page = opened(there.place, limits=PageLimits(timeout=0.7))
        began = time.monotonic()
        with pytest.raises(PageProblem, match="took too long"):
            page.goto(there.url)
        assert time.monotonic() - began < 2


def test_a_slow_site_holds_no_other_page() -> None:
    ready = threading.Event()
    with talker(lambda _: ready.wait(10)) as slow, site({"/": "hello"}) as there:  # type: ignore[arg-type,return-value]
        browser = ReaderBrowser(NetworkPolicy((slow, there.place)), PageLimits(timeout=8))
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            waiting = [pool.submit(browser.new_page().goto, f"http://{slow}/") for _ in range(4)]

            def visit(_: int) -> str:
                page = browser.new_page()
                page.goto(there.url)
                return body(page)

            assert list(pool.map(visit, range(100))) == ["hello"] * 100
            assert not any(future.done() for future in waiting)
            ready.set()


@pytest.mark.parametrize(
    "answer",
    [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", b"HTTP/1.1 99 x\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
     b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"],
)  # fmt: skip
def test_what_is_no_answer_is_a_problem_of_the_site(answer: bytes) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(answer)

    with talker(talk) as place, pytest.raises(PageProblem, match=re.escape(place)) as problem:
        opened(place, limits=PageLimits(timeout=2)).goto(f"http://{place}/")
    assert problem.value.kind == "error"


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = f"127.0.0.1:{listener.getsockname()[1]}"
    page = opened(place)
    with pytest.raises(PageProblem, match="does not answer"):
        page.goto(f"http://{place}/")
    assert page.url == "about:blank"


def test_https_asks_for_a_certificate_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=safe.test"
    command += f" -addext subjectAltName=DNS:safe.test -keyout {key} -out {certificate}"
    subprocess.run(command.split(), check=True, capture_output=True)
    settings = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    settings.load_cert_chain(certificate, key)
    names: list[str | None] = []
    settings.sni_callback = lambda _, name, __: names.append(name)

    def talk(connection: socket.socket) -> None:
        with settings.wrap_socket(connection, server_side=True) as safe:
            safe.recv(65_536)
            safe.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsafe")

    with talker(talk) as place:
        hosts = {"safe.test": place, "other.test": place}
        with pytest.raises(PageProblem, match="certificate"):
            opened(hosts=hosts).goto("https://safe.test/")  # nobody vouches for it yet
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        page = opened(hosts=hosts)
        page.goto("https://safe.test/")
        assert body(page) == "safe"
        assert names[-1] == "safe.test"
        with pytest.raises(PageProblem, match="certificate"):
            opened(hosts=hosts).goto("https://other.test/")


# a site that nobody here wrote


def test_a_signature_is_found_in_pythons_manual() -> None:
    manual = Path("/usr/share/doc/python3-doc/html")
    if not (manual / "genindex.html").exists():
        pytest.skip("needs Debian's package python3-doc")

    class Manual(dict[str, Answer]):
        def get(self, path: str, otherwise: Answer) -> Answer:  # type: ignore[override]
            file = (manual / path.lstrip("/")).resolve()
            return Answer(file.read_bytes()) if file.is_relative_to(manual.resolve()) and file.is_file() else otherwise

    def click(page: Page, words: str) -> None:
        for _ in range(60):
            found = re.findall(r"\[(e\d+): " + words, page.snapshot())
            if found:
                return page.click(found[0])
            page.scroll("down")
        raise AssertionError(f"no link {words}")

    with site({}) as there:
        there.answers = Manual()
        page = opened(hosts={"docs.test": there.place})
        page.goto("http://docs.test/index.html")
        click(page, "General Index")
        click(page, "B\\]")
        click(page, r"bisect_left\(\)")
        assert page.url == "http://docs.test/library/bisect.html#bisect.bisect_left"
        assert "bisect.bisect_left(a, x, lo=0, hi=len(a), *, key=None)" in body(page).splitlines()[1]


# the life of a browser


def test_pages_are_counted_out_at_the_end() -> None:
    with site({"/": "hello"}) as there:
        browser = ReaderBrowser(NetworkPolicy((there.place,)), PageLimits())
        with browser.new_page() as page:
            page.goto(there.url)
        page.close()
        with pytest.raises(SandboxFault, match="closed"):
            page.snapshot()
        other = browser.new_page()
        browser.close()
        browser.close()
        for action in (browser.new_page, lambda: other.goto(there.url)):
            with pytest.raises(SandboxFault, match="closed"):
                action()


def test_requests_of_one_action_are_limited() -> None:
    with site({"/": Answer("", 302, {"Location": "/2"}), "/2": "there"}) as there:
        page = opened(there.place, limits=PageLimits(requests=1))
        page.goto(f"{there.url}/2")
        with pytest.raises(PageProblem, match="given up after 0"):
            page.goto(there.url)


def test_it_says_what_it_is() -> None:
    line = ReaderBrowser(NetworkPolicy(("a.test",), {"b.test": "127.0.0.1:1"}), PageLimits()).describe()
    assert "scripts are not run" in line
    assert line.endswith("may reach: b.test, a.test")

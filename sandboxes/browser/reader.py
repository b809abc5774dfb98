"""A browser without Chromium: pages over HTTP, as text, with links and forms; scripts are not run.

It needs nothing but Python and starts in no time, so that every environment works on a bare machine. What needs a script, a
picture or an upload needs Chromium, and says so.
"""

from __future__ import annotations

import contextlib
import http
import re
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal
from urllib.parse import urlencode

from sandboxes.browser.addresses import Address, join, read_address
from sandboxes.browser.browser import Browser, Cookie, Page, PageLimits, PageProblem
from sandboxes.browser.content import kind_of
from sandboxes.browser.document import Document, Element
from sandboxes.browser.fetching import Request, Response, Web
from sandboxes.browser.forms import Field
from sandboxes.browser.markup import read_refresh
from sandboxes.browser.network_policy import NetworkPolicy
from sandboxes.browser.snapshot import render
from sandboxes.browser.visit import Visit, read
from sandboxes.faults import SandboxFault

_HOPS = 10  # redirects and refreshes in one action
_SOON = 5  # seconds; a page that goes on by itself within them is not waited for but followed
_HISTORY = 20  # pages that are kept to go back to
_AROUND = 150  # characters of a snapshot that are no lines of the page, beside title and address
_REF = re.compile(r"e([1-9][0-9]{0,6})")


class ReaderBrowser(Browser):
    """Pages without Chromium.

    Args:
        policy: What they may reach.
        limits: What each may use.

    Example:
        >>> with ReaderBrowser(NetworkPolicy(allow=("www.example.org",)), PageLimits()) as browser:
        ...     page = browser.new_page()
        ...     page.goto("http://localhost/")
        Traceback (most recent call last):
        sandboxes.browser.browser.PageProblem: localhost:80 may not be reached from here; allowed: www.example.org
    """

    def __init__(self, policy: NetworkPolicy, limits: PageLimits) -> None:
        self._policy = policy
        self._limits = limits
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None

    def new_page(self, cookies: Sequence[Cookie] = ()) -> Page:
        if self._closed.is_set():
            raise SandboxFault("this browser is closed: open another")
        return ReaderPage(Web(self._policy, self._limits, self._tls, cookies), self._policy, self._limits, self._closed)

    def describe(self) -> str:
        return f"reader (HTTP to text in this process; scripts are not run); may reach: {self._policy.describe()}"

    def close(self) -> None:
        self._closed.set()

    def _tls(self) -> ssl.SSLContext:
        with self._lock:
            if self._context is None:  # reading the certificates takes a while
                self._context = ssl.create_default_context()
            return self._context


class ReaderPage(Page):
    """A page of a `ReaderBrowser`, which makes it.

    Args:
        web: What it sees of the network.
        policy, limits: Of the browser.
        closed: Whether the browser is closed.
    """

    def __init__(self, web: Web, policy: NetworkPolicy, limits: PageLimits, closed: threading.Event) -> None:
        self._web = web
        self._policy = policy
        self._limits = limits
        self._browser_closed = closed
        self._closed = False
        self._visit = self._blank = Visit(None, Document())
        self._history: list[Visit] = []
        self._seen: Visit | None = None  # whose refs the latest snapshot gave
        self._budget = limits.snapshot

    @property
    def url(self) -> str:
        return self._visit.url

    @property
    def title(self) -> str:
        return self._visit.document.title

    def goto(self, url: str) -> None:
        self._check_open()
        self._policy.check_url(url)
        if url == "about:blank":
            self._leave(Visit(None, Document()))
        else:
            self._go(Request(read_address(url)))

    def click(self, ref: str) -> None:
        found = self._element(ref)
        if found.role == "link":
            self._follow(found)
            return
        place, entered = self._field(ref, found)
        if entered.kind == "submit":
            self._submit(place, entered)
        elif entered.kind == "reset":
            self._visit.entries.reset(entered.form)
        elif entered.kind in ("checkbox", "radio"):
            self._visit.entries.tick(place)
        elif entered.kind == "button":
            raise PageProblem(f"{ref} is a button for a script, and this browser runs none: that needs Chromium")
        self._visit.changed()

    def type(self, ref: str, text: str) -> None:
        found = self._element(ref)
        if found.field is None or self._visit.document.fields[found.field].kind != "text":
            raise PageProblem(f"{ref} is a {found.role}: text goes into a textbox")
        place, entered = self._field(ref, found)
        if entered.fixed:
            raise PageProblem(f"{ref} cannot be changed: the page has made it read-only")
        text = text.encode("utf-8", "replace").decode()  # no lone surrogates, which no form can send
        self._visit.entries.enter(place, text if entered.many else text.replace("\r", "").replace("\n", ""))
        self._visit.changed()

    def select(self, ref: str, option: str) -> None:
        found = self._element(ref)
        if found.field is None or self._visit.document.fields[found.field].kind != "select":
            raise PageProblem(f"{ref} is a {found.role}: options are those of a select")
        place, _ = self._field(ref, found)
        self._visit.entries.choose(place, option)
        self._visit.changed()

    def press(self, key: str) -> None:
        self._check_open()
        if key in ("PageDown", "PageUp"):
            self.scroll("down" if key == "PageDown" else "up")
        elif key in ("Home", "End"):
            self._visit.first = 0
            while key == "End" and self._scrolled_down():
                pass
        elif key in ("Enter", "Space", " "):
            self._press_on_focus("Enter" if key == "Enter" else "Space")
        else:
            known = "Enter, Space, PageDown, PageUp, Home and End"
            raise PageProblem(f"this browser knows the keys {known}, found {key[:40]!r}: others need Chromium")

    def scroll(self, direction: Literal["up", "down"]) -> None:
        self._check_open()
        if direction == "down":
            self._scrolled_down()
            return
        room, lines = self._room(), self._visit.lines
        first = self._visit.first
        while first > 0 and (room := room - len(lines[first - 1]) - 1) >= 0:
            first -= 1
        self._visit.first = first if first < self._visit.first else max(0, first - 1)

    def back(self) -> None:
        self._check_open()
        if not self._history:
            raise PageProblem("there is no page before this one")
        self._visit = self._history.pop()

    def snapshot(self, budget: int | None = None) -> str:
        self._check_open()
        visit = self._visit
        self._seen = visit
        self._budget = self._limits.snapshot if budget is None else budget
        return render(self.title, visit.url, visit.lines, self._budget, visit.first)

    def screenshot(self) -> bytes:
        self._check_open()
        raise PageProblem("this browser shows no pictures: open one with backend='chromium' for screenshots")

    def close(self) -> None:
        self._closed = True
        self._visit, self._history, self._seen = Visit(None, Document()), [], None

    # elements

    def _element(self, ref: str) -> Element:
        self._check_open()
        if self._seen is not self._visit:
            raise PageProblem(f"{ref[:20]} is of an older snapshot, if of any: take a new one, since the page has changed")
        match = _REF.fullmatch(ref.strip())
        elements = self._visit.document.elements
        if match is None or int(match[1]) > len(elements):
            known = f"refs go from e1 to e{len(elements)}" if elements else "there is nothing to act on"
            raise PageProblem(f"there is no {ref[:20]!r} on this page: {known}")
        self._visit.focus = int(match[1]) - 1
        return elements[self._visit.focus]

    def _field(self, ref: str, found: Element) -> tuple[int, Field]:
        assert found.field is not None  # all but links have one
        entered = self._visit.document.fields[found.field]
        if entered.disabled:
            raise PageProblem(f"{ref} is disabled: something else must be done first")
        return found.field, entered

    def _press_on_focus(self, key: Literal["Enter", "Space"]) -> None:
        visit = self._visit
        if visit.focus is None:
            raise PageProblem("a key needs an element: click on one, or type into one, first")
        found = visit.document.elements[visit.focus]
        entered = None if found.field is None else visit.document.fields[found.field]
        if entered is None or entered.kind not in ("text", "checkbox", "radio", "select"):
            self._seen = visit
            self.click(f"e{visit.focus + 1}")
        elif entered.kind == "text" and (entered.many or key == "Space"):
            assert found.field is not None
            self.type(f"e{visit.focus + 1}", visit.entries.text(found.field) + ("\n" if key == "Enter" else " "))
        elif key == "Space":
            self.click(f"e{visit.focus + 1}")
        else:
            self._submit(None, entered)

    # going somewhere

    def _follow(self, link: Element) -> None:
        if link.href.lower().startswith("javascript:"):
            raise PageProblem("this link runs a script, and this browser runs none: that needs Chromium")
        url = self._absolute(link.href)
        self._policy.check_url(url)
        if url == "about:blank":
            self._leave(Visit(None, Document()))
            return
        address, here = read_address(url), self._visit.address
        if "#" in link.href and here is not None and replace(address, fragment=here.fragment) == here:
            visit = replace(self._visit, address=address)
            visit.entries, visit.focus = self._visit.entries, None
            visit.show(address.fragment)
            self._leave(visit)
        else:
            self._go(Request(address, referrer=here))

    def _submit(self, button: int | None, entered: Field) -> None:
        """Sends the form of a field, by a button or as Enter does it."""
        document, entries = self._visit.document, self._visit.entries
        number = entered.form
        if number is None:
            raise PageProblem("this field is in no form: what it does needs a script, and so Chromium")
        form = document.forms[number]
        mine = [(place, other) for place, other in enumerate(document.fields) if other.form == number]
        if button is None:
            buttons = [(place, other) for place, other in mine if other.kind == "submit"]
            if buttons and buttons[0][1].disabled:
                raise PageProblem("the form's button is disabled: something else must be done first")
            if buttons:
                button, entered = buttons[0]
        method, action = entered.method or form.method, entered.action or form.action  # a button may have its own
        if method == "dialog":
            raise PageProblem("this form closes a dialog, which needs a script, and so Chromium")
        if form.encoding == "multipart/form-data" and any(other.kind == "file" for _, other in mine):
            raise PageProblem("this form sends files, which this browser does not: that needs Chromium")
        data = urlencode(entries.sent(number, button))
        url = self._absolute(action) if action else self.url
        self._policy.check_url(url)
        address, here = read_address(url), self._visit.address
        if method == "post":
            self._go(Request(address, "POST", data.encode(), here))
        else:
            target = address.target.partition("?")[0]
            self._go(Request(replace(address, target=f"{target}?{data}", fragment=""), referrer=here))

    def _absolute(self, reference: str) -> str:
        here = self._visit.address
        assert here is not None  # a blank page has nothing to follow
        base = self._visit.document.base
        if base:
            with contextlib.suppress(ValueError):  # a base that is none is none
                here = read_address(join(here, base))
        return join(here, reference)

    def _go(self, request: Request) -> None:
        """Opens what is asked for, and what it leads to by itself."""
        deadline = time.monotonic() + self._limits.timeout
        hops = min(_HOPS, self._limits.requests - 1)
        while True:
            response = self._web.fetch(request, lambda headers: kind_of(headers) != "other", deadline, hops)
            hops -= response.hops
            if response.status in (http.HTTPStatus.NO_CONTENT, http.HTTPStatus.RESET_CONTENT):
                return
            visit = read(response, deadline)
            goal = self._refreshed(visit, response)
            if goal is None:
                break
            if hops <= 0:
                raise PageProblem(f"{response.address.origin} goes on from page to page by itself: given up after {_HOPS}")
            hops -= 1
            request = Request(goal, referrer=response.address)
        visit.show(response.address.fragment)
        self._leave(visit)

    def _refreshed(self, visit: Visit, response: Response) -> Address | None:
        """Where a page goes by itself soon, if that is elsewhere and allowed."""
        refresh = read_refresh(response.headers.get("refresh", "")) or visit.document.refresh
        if refresh is None or refresh[0] > _SOON or not refresh[1]:
            return None
        try:
            url = join(response.address, refresh[1])
            self._policy.check_url(url)
            goal = read_address(url)
        except (PageProblem, ValueError):
            return None
        return None if replace(goal, fragment="") == replace(response.address, fragment="") else goal

    def _leave(self, visit: Visit) -> None:
        if self._visit is not self._blank:  # which it has been given, and not gone to
            self._history.append(self._visit)
            del self._history[:-_HISTORY]
        self._visit = visit

    # what a snapshot shows

    def _room(self) -> int:
        return self._budget - min(len(self.title), 200) - min(len(self.url), 500) - _AROUND

    def _scrolled_down(self) -> bool:
        """Moves down by what fits in a snapshot; False at the end."""
        room, lines = self._room(), self._visit.lines
        first = self._visit.first
        while first < len(lines) and (room := room - len(lines[first]) - 1) >= 0:
            first += 1
        if first >= len(lines):
            return False
        self._visit.first = min(max(first, self._visit.first + 1), len(lines) - 1)
        return self._visit.first > 0 and first < len(lines)

    def _check_open(self) -> None:
        if self._closed or self._browser_closed.is_set():
            raise SandboxFault("this page is closed: open another")

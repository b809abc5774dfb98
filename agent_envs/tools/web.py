"""The web tool: a page that an agent reads, clicks and types on.

Every call says in a line what came of it and shows the page as it is now (`sandboxes.browser.snapshot`), with a ref for each
element that can be acted on. The browser, and what it may reach, is `sandboxes.browser`'s; what a site keeps of an episode,
and how that is read, is the site's own affair (`agent_envs.tools.site`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, cast

import numpy as np

from agent_envs.faults import ForkError
from agent_envs.spaces import replace_surrogates
from agent_envs.task import Task
from agent_envs.tool import Fidelity, Tool, ToolResult
from agent_envs.tools.settings import read_limits, read_options
from agent_envs.tools.site import OpenSite, Site
from sandboxes.browser.browser import Browser, Cookie, Page, PageLimits, PageProblem
from sandboxes.browser.network_policy import NetworkPolicy
from sandboxes.browser.opening import open_browser
from sandboxes.faults import SandboxFault

Backend = Literal["auto", "chromium", "reader"]


_TAKES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "goto": ("text",),
        "click": ("ref",),
        "type": ("ref", "text"),
        "select": ("ref", "text"),
        "press": ("text",),
        "scroll": ("text",),
        "back": (),
        "read": (),
    }
)
"""The actions, each with the arguments that it takes."""

_SITE_GONE = "the site has ended in the middle of the episode: reset"


class WebTool(Tool):
    """A browser page, for the length of an episode.

    The first call of an episode opens the start page. With a ``site`` the episode has a session of its own there: a copy in
    the middle of an episode opens another one and runs the episode's calls again, and a verifier reads what the session
    keeps (`state`). Of any other site nobody can copy or read the state, so there episodes cannot be copied.

    Args:
        backend: ``"auto"``, ``"chromium"`` or ``"reader"`` (`sandboxes.browser.open_browser`).
        site: The site that keeps the episode's state.
        start_url: Where an episode opens; the site's own start page by default.
        allow: What else pages may reach, such as ``"docs.python.org"`` or ``"127.0.0.1:8000"``; nothing else is.
        limits: What a page may use: `PageLimits`, or a mapping of some of its fields.
        options: Further arguments of `open_browser`.

    Raises:
        ValueError: There is neither a site nor a start page, or another argument is none of those it may be.

    Example:
        >>> WebTool("reader", start_url="http://127.0.0.1:8000/", allow=["127.0.0.1:8000"]).fidelity
        'none'
    """

    name = "browse"
    description = (
        "Acts on a web page and shows the page afterwards; what can be acted on has a ref there, such as e7. Actions: read; "
        "click ref; type text into the field ref; select the option text of ref; press the key text; scroll text, up or "
        "down; back; goto the address text."
    )
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {
            "action": {"enum": list(_TAKES), "description": "what to do"},
            "ref": {"type": "string", "description": "the element, for click, type and select"},
            "text": {
                "type": "string",
                "description": "for goto the address, for type the text, for select the option, for press the key, "
                "for scroll up or down",
            },
        },
        "required": ["action"],
    }
    examples = (
        {"action": "read"},
        {"action": "click", "ref": "e1"},
        {"action": "click", "ref": "e9"},
        {"action": "scroll", "text": "down"},
        {"action": "back"},
        {"action": "goto", "text": "http://127.0.0.1:1/"},
    )

    def __init__(
        self,
        backend: Backend = "auto",
        site: Site | None = None,
        start_url: str = "",
        allow: Sequence[str] = (),
        limits: PageLimits | Mapping[str, Any] | None = None,
        *,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if backend not in ("auto", "chromium", "reader"):
            raise ValueError(f"backend must be 'auto', 'chromium' or 'reader', found {backend!r}")
        if site is None and not start_url:
            raise ValueError("a web tool needs a site, or a start_url and what it may reach (allow); found neither")
        if isinstance(allow, str):
            raise ValueError(f"allow is a list of hosts, such as [{allow!r}], found {allow!r} alone")
        NetworkPolicy(tuple(allow))  # says so now if it cannot be read
        self.backend: Backend = backend
        self.site = site
        self.start_url = start_url or cast(Site, site).start_url
        self.allow = tuple(allow)
        self.limits = read_limits(PageLimits, limits)
        self.options = read_options(open_browser, options, own=("backend", "allow", "hosts", "limits"))
        self.fidelity: Fidelity = "replay" if site is not None else "none"
        self._task: Task | None = None
        self._opened: OpenSite | None = None
        self._browser: Browser | None = None
        self._session: str | None = None
        self._page: Page | None = None

    def reset(self, task: Task, rng: np.random.Generator) -> None:
        """The next call opens the start page, in a session of its own."""
        self._leave()
        self._task = task

    def run(self, *, action: str, ref: str | None = None, text: str | None = None) -> ToolResult:
        """Does one thing on the page.

        Returns:
            What came of it, and the page. Faults are ``bad_arguments`` (the action takes others), ``error`` (it cannot be
            done), ``timeout`` and ``killed`` (the page crashed).

        Raises:
            SandboxFault: The browser or the site is gone, or the start page does not load.
        """
        given = {name: replace_surrogates(value) for name, value in (("ref", ref), ("text", text)) if value is not None}
        takes = _TAKES[action]
        if set(given) != set(takes):
            needs, found = " and ".join(takes) or "nothing else", " and ".join(given) or "none"
            return ToolResult(f"{action} takes {needs}; found {found}", "bad_arguments")
        if action == "scroll" and text not in ("up", "down"):
            return ToolResult("the text of scroll is up or down", "bad_arguments")
        page = self._open_page()
        try:
            result = ToolResult(f"{_act(page, action, given.get('ref', ''), given.get('text', ''))}\n{page.snapshot()}")
        except PageProblem as problem:
            result = ToolResult(f"{problem}\n{_snapshot_of(page)}".rstrip(), problem.kind)
        if self._opened is not None and not self._opened.alive:  # then the page is of no use, whatever it shows
            raise SandboxFault(_SITE_GONE, retryable=True)
        return result

    def state(self) -> dict[str, Any]:
        """What the episode's session keeps by now, for a verifier.

        Raises:
            SandboxFault: The site is gone, or it is none whose state can be read.
        """
        if self.site is None:
            raise SandboxFault(f"the state of {self.start_url} cannot be read: give the web tool a site that can tell")
        opened, key = self._open_session()
        return opened.state(key)

    def fork(self) -> WebTool:
        """Refuses, since nothing here can be copied as it is; with a site, `fresh` and the episode's calls make a copy.

        Raises:
            ForkError: Always.
        """
        if self.site is None:
            raise ForkError(f"an episode on {self.start_url} has no copy: the site's state cannot be copied")
        raise ForkError("an open page has no copy: run the episode's calls again in a fresh web tool")

    def fresh(self) -> WebTool:
        """A tool with the same settings and nothing open."""
        return type(self)(self.backend, self.site, self.start_url, self.allow, self.limits, options=self.options)

    def close(self) -> None:
        """Ends page and session, and gives back the shares in the browser and the site."""
        self._leave()
        browser, self._browser = self._browser, None
        opened, self._opened = self._opened, None
        try:
            if browser is not None:
                browser.close()
        finally:
            if opened is not None:
                opened.close()

    def __getstate__(self) -> dict[str, Any]:
        if self._browser is not None or self._opened is not None:
            raise TypeError("a web tool with an open page cannot be pickled or copied: close it first")
        return self.__dict__

    def _open_page(self) -> Page:
        if self._page is None:
            cookies: Sequence[Cookie] = ()
            hosts: Mapping[str, str] = {}
            if self.site is not None:
                opened, key = self._open_session()
                cookies, hosts = opened.cookies(key), opened.hosts
            if self._browser is None:
                self._browser = open_browser(self.backend, allow=self.allow, hosts=hosts, limits=self.limits, **self.options)
            page = self._browser.new_page(cookies)
            try:
                page.goto(self.start_url)
                page.snapshot()  # what the refs of a first click refer to
            except PageProblem as problem:
                page.close()
                raise SandboxFault(f"the start page {self.start_url} did not open: {problem}", retryable=True) from problem
            self._page = page
        return self._page

    def _open_session(self) -> tuple[OpenSite, str]:
        if self._task is None:
            raise SandboxFault("the web tool belongs to no episode: call reset first")
        if self._opened is not None and not self._opened.alive:
            if self._session is not None:
                raise SandboxFault(_SITE_GONE, retryable=True)
            self.close()  # the next server has another address, so the browser needs another policy too
        if self._opened is None:
            self._opened = cast(Site, self.site).open()
        if self._session is None:
            self._session = self._opened.open_session(self._task)
        return self._opened, self._session

    def _leave(self) -> None:
        page, self._page = self._page, None
        session, self._session = self._session, None
        try:
            if page is not None:
                page.close()
        finally:
            if session is not None and self._opened is not None:
                self._opened.close_session(session)


def _act(page: Page, action: str, ref: str, text: str) -> str:
    """Does it, and says so."""
    match action:
        case "goto":
            page.goto(text)
            return "Opened the address."
        case "click":
            page.click(ref)
            return f"Clicked {ref}."
        case "type":
            page.type(ref, text)
            return f"Typed into {ref}."
        case "select":
            page.select(ref, text)
            return f"Selected in {ref}."
        case "press":
            page.press(text)
            return "Pressed the key."
        case "scroll":
            page.scroll("up" if text == "up" else "down")
            return f"Scrolled {text}."
        case "back":
            page.back()
            return "Went back."
    return "This is the page."


def _snapshot_of(page: Page) -> str:
    try:
        return page.snapshot()
    except PageProblem:
        return ""

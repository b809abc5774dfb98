"""The contract's browser with Chromium behind it: what callers hold, in whatever thread they are."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal, TypeVar

from playwright.async_api import Error as PlaywrightError

from sandboxes import shared
from sandboxes.browser.browser import Browser, Cookie, Page, PageLimits
from sandboxes.browser.chromium.engine import ChromiumEngine, ChromiumSettings, SandboxChoice
from sandboxes.browser.chromium.episode import Episode
from sandboxes.browser.chromium.finding import find_chromium
from sandboxes.browser.network_policy import NetworkPolicy
from sandboxes.browser.proxy import Proxy
from sandboxes.faults import SandboxFault

Outcome = TypeVar("Outcome")

_OPEN_SECONDS = 60.0
_GRACE_SECONDS = 15.0  # for what follows a time limit that has run out: looking, stopping, ending a tab
_CLOSE_SECONDS = 10.0


class ChromiumBrowser(Browser):
    """Pages in Chromium.

    The first page of a process starts Chromium; all browsers with the same ``executable``, ``sandbox`` and ``images`` share
    it, and it stays until the process ends or `sandboxes.shared.close_idle` is called with none of them open. One that has
    died is replaced for the next page.

    Args:
        policy: What pages may reach.
        limits: What each page may use.
        executable: Chromium's path; `find_chromium` finds one by default.
        sandbox: Chromium's own sandbox around each page's process: ``"auto"`` is on where this kernel permits it (`describe`
            says so, and a warning is logged where it is off), ``"on"`` refuses elsewhere, ``"off"`` is for machines on
            which something else shuts it in.
        images: Whether images are loaded; without them pages load faster, and screenshots show empty places.

    Raises:
        SandboxFault: There is no Chromium.

    Example:
        >>> with ChromiumBrowser(NetworkPolicy(hosts={"wiki.test": "127.0.0.1:8123"})) as browser:  # doctest: +SKIP
        ...     page = browser.new_page()
        ...     page.goto("http://wiki.test/")
        ...     print(page.snapshot())
    """

    def __init__(
        self,
        policy: NetworkPolicy,
        limits: PageLimits | None = None,
        *,
        executable: str | None = None,
        sandbox: SandboxChoice = "auto",
        images: bool = False,
    ) -> None:
        self._policy = policy
        self._limits = limits or PageLimits()
        self._settings = ChromiumSettings(find_chromium(executable), sandbox, images)
        self._lock = threading.Lock()
        self._pages: set[ChromiumPage] = set()
        self._lease: shared.Lease[ChromiumEngine] | None = None
        self._closed = False

    def new_page(self, cookies: Sequence[Cookie] = ()) -> Page:
        if self._closed:
            raise SandboxFault("this browser is closed: open another one")
        lease = self._borrow()
        try:
            page = ChromiumPage(lease, self._policy, self._limits, cookies, self._pages.discard)
        except BaseException:
            lease.close()
            raise
        self._pages.add(page)
        return page

    def describe(self) -> str:
        with self._lock:
            self._hold()
            assert self._lease is not None
            engine = self._lease.engine
        sandbox = "on" if engine.sandboxed else "OFF"
        return (
            f"Chromium {engine.version} at {self._settings.executable}, run by user {engine.user}, its own sandbox "
            f"{sandbox}, images {'on' if self._settings.images else 'off'}; may reach {self._policy.describe()}"
        )

    def close(self) -> None:
        self._closed = True
        for page in list(self._pages):
            page.close()
        with self._lock:
            lease, self._lease = self._lease, None
        if lease is not None:
            lease.close()

    def _borrow(self) -> shared.Lease[ChromiumEngine]:
        with self._lock:
            self._hold()
        return self._acquire()

    def _hold(self) -> None:
        """Holds a share of an engine that lives."""
        if self._lease is None or not self._lease.engine.alive:
            if self._lease is not None:
                self._lease.close()
                self._lease = None
            self._lease = self._acquire()

    def _acquire(self) -> shared.Lease[ChromiumEngine]:
        return shared.acquire(self._settings, lambda: ChromiumEngine(self._settings), linger=True)


class ChromiumPage(Page):
    """A page of a `ChromiumBrowser`, which makes it."""

    def __init__(
        self,
        lease: shared.Lease[ChromiumEngine],
        policy: NetworkPolicy,
        limits: PageLimits,
        cookies: Sequence[Cookie],
        on_close: Callable[[ChromiumPage], None],
    ) -> None:
        self._lease = lease
        self._engine = lease.engine
        self._limits = limits
        self._on_close = on_close
        self._closed = False
        self._proxy = Proxy(policy, limits)
        try:
            opening = functools.partial(Episode.open, self._engine, policy, limits, self._proxy, cookies)
            self._episode = self._run(opening, _OPEN_SECONDS)
        except BaseException:
            self._proxy.close()
            raise

    @property
    def url(self) -> str:
        return self._episode.url

    @property
    def title(self) -> str:
        return self._run(self._episode.title)

    def goto(self, url: str) -> None:
        self._run(lambda: self._episode.goto(url))

    def click(self, ref: str) -> None:
        self._run(lambda: self._episode.click(ref))

    def type(self, ref: str, text: str) -> None:
        self._run(lambda: self._episode.type(ref, text))

    def select(self, ref: str, option: str) -> None:
        self._run(lambda: self._episode.select(ref, option))

    def press(self, key: str) -> None:
        self._run(lambda: self._episode.press(key))

    def scroll(self, direction: Literal["up", "down"]) -> None:
        self._run(lambda: self._episode.scroll(direction))

    def back(self) -> None:
        self._run(self._episode.back)

    def snapshot(self, budget: int | None = None) -> str:
        return self._run(lambda: self._episode.snapshot(budget or self._limits.snapshot))

    def screenshot(self) -> bytes:
        return self._run(self._episode.screenshot)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._on_close(self)
        try:
            if self._engine.alive:
                self._engine.run(self._episode.close, _CLOSE_SECONDS)
        except (SandboxFault, PlaywrightError, asyncio.CancelledError):
            pass  # Chromium is gone, and the page with it
        finally:
            self._proxy.close()
            self._lease.close()

    def _run(self, work: Callable[[], Coroutine[Any, Any, Outcome]], patience: float | None = None) -> Outcome:
        if self._closed:
            raise SandboxFault("this page is closed: open another one")
        try:
            return self._engine.run(work, patience or self._limits.timeout + _GRACE_SECONDS)
        except SandboxFault:
            raise
        except Exception as problem:
            if self._engine.alive and not isinstance(problem, PlaywrightError):
                raise
            if self._engine.alive:
                raise SandboxFault(f"Chromium did not do its work: {problem}", retryable=True) from problem
            raise SandboxFault(f"Chromium is gone ({self._engine.dead}): open another page", retryable=True) from problem

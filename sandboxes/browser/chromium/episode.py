"""One page of the contract, in the engine's thread: what an agent can do, and how long anything may take.

An action is tried, then waited for until the page is at rest: the navigation that it started has arrived, what it asked the
network for has come, and the document does not change any more. All of that has one time limit. A page whose scripts never
end, that opens dialogs without end, goes on from document to document or takes too much memory is ended, and the episode
goes on with a blank one.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, TypeVar

from playwright.async_api import BrowserContext, Dialog
from playwright.async_api import Error as PlaywrightError

from sandboxes.browser.browser import Cookie, PageLimits, PageProblem
from sandboxes.browser.chromium import acting
from sandboxes.browser.chromium.engine import ChromiumEngine
from sandboxes.browser.chromium.reading import Reading, Target, read
from sandboxes.browser.chromium.tab import Tab
from sandboxes.browser.chromium.tabs import Tabs
from sandboxes.browser.network_policy import NetworkPolicy
from sandboxes.browser.proxy import Proxy
from sandboxes.browser.snapshot import render

Outcome = TypeVar("Outcome")

WIDTH, HEIGHT = 1280, 720
"""Of the viewport, in CSS pixels."""
MOST_DIALOGS = 100
"""Of one action; a page that opens more is ended."""
MOST_DOCUMENTS = 20
"""That follow each other by themselves in one action; a page that goes on is ended."""

_NAMED_DIALOGS = 3
_MOST_NOTES = 10
_HEAD = 300  # characters of a snapshot that are no lines of the page, or about that

_QUIET_SECONDS = 0.015
"""A document without a change for so long is at rest. Timers that build a page up piece by piece are faster."""
_RESTLESS_SECONDS = 0.3
"""A document that never comes to rest, such as one with a clock, is taken as it is after so long."""
_REQUEST_SECONDS = 2.0
"""How long after it was parsed a document is given for what it still asks of the network."""
_ANSWER_SECONDS = 1.0


class _Ended(Exception):
    """The tab that is shown must be ended; says why."""


class Episode:
    """A page's tabs, and what is done to them. Made by `open`; all of it is for the engine's thread only.

    Args:
        engine: Where it lives.
        context: The tabs' own, with cookies and a way out of its own.
        policy, limits: What it may reach and use.
        proxy: That way out.
    """

    def __init__(
        self,
        engine: ChromiumEngine,
        context: BrowserContext,
        policy: NetworkPolicy,
        limits: PageLimits,
        proxy: Proxy,
    ) -> None:
        self._engine = engine
        self._context = context
        self._policy = policy
        self._limits = limits
        self._proxy = proxy
        self._tabs = Tabs(context, self._note)
        self._dialogs = 0
        self._storm = asyncio.Event()  # of dialogs
        self._notes: list[str] = []
        context.on("dialog", self._dismiss)

    @classmethod
    async def open(
        cls, engine: ChromiumEngine, policy: NetworkPolicy, limits: PageLimits, proxy: Proxy, cookies: Sequence[Cookie]
    ) -> Episode:
        """A new episode with a blank tab."""
        context = await engine.browser.new_context(
            viewport={"width": WIDTH, "height": HEIGHT},
            locale="en-US",
            timezone_id="UTC",
            reduced_motion="reduce",
            service_workers="block",
            accept_downloads=False,
            permissions=[],
            proxy={"server": proxy.server, "username": proxy.username, "password": proxy.password},
        )
        if cookies:
            await context.add_cookies([{"name": each.name, "value": each.value, "url": each.url} for each in cookies])
        episode = cls(engine, context, policy, limits, proxy)
        await episode._tabs.open_first()
        return episode

    async def close(self) -> None:
        """Ends all tabs."""
        await self._context.close()

    @property
    def url(self) -> str:
        """Of the tab that is shown."""
        return self._tabs.url

    async def title(self) -> str:
        """Of the tab that is shown."""
        return await self._act(lambda tab: tab.page.title(), settle=False)

    async def goto(self, url: str) -> None:
        """Opens an address."""
        self._policy.check_url(url)
        await self._act(lambda tab: tab.goto(url))

    async def click(self, ref: str) -> None:
        """Clicks on an element."""
        await self._act(lambda tab: acting.click(tab.page, self._target(tab, ref), ref))

    async def type(self, ref: str, text: str) -> None:
        """Replaces what stands in a text field."""
        await self._act(lambda tab: acting.type_text(tab.page, self._target(tab, ref), ref, text))

    async def select(self, ref: str, option: str) -> None:
        """Chooses an option."""
        await self._act(lambda tab: acting.select_option(self._target(tab, ref), ref, option))

    async def press(self, key: str) -> None:
        """Presses a key for what has the focus."""
        await self._act(lambda tab: acting.press_key(tab.page, key))

    async def scroll(self, direction: Literal["up", "down"]) -> None:
        """Moves what a snapshot shows, and the document with it, so that what it loads late is loaded."""
        if direction not in ("up", "down"):
            raise PageProblem(f"expected to scroll 'up' or 'down', found {direction!r}")
        await self._act(lambda tab: self._scroll(tab, direction))

    async def back(self) -> None:
        """Goes back, in the first document of a tab to the tab that it came from."""

        async def back(tab: Tab) -> None:
            if not await tab.back() and not await self._tabs.return_to_opener():
                raise PageProblem("there is no page before this one")

        await self._act(back)

    async def snapshot(self, budget: int) -> str:
        """The tab that is shown, as text."""

        async def look(tab: Tab) -> str:
            reading = await self._read(tab)
            notes, self._notes = self._notes, []
            if reading.cut:
                notes.append("[this page is longer than what is read of it: the rest is cut off]")
            lines = [*reading.lines[: tab.first], *notes, *reading.lines[tab.first :]]
            return render(reading.title, tab.url, lines, budget, tab.first)

        return await self._act(look, settle=False)

    async def screenshot(self) -> bytes:
        """What the viewport shows, as PNG."""
        return await self._act(lambda tab: tab.page.screenshot(timeout=0), settle=False)

    async def _act(self, work: Callable[[Tab], Awaitable[Outcome]], settle: bool = True) -> Outcome:
        """Does something to the tab that is shown, and waits until it is at rest.

        Raises:
            PageProblem: It was not done, or it took too long, or the tab is gone.
        """
        while True:
            tab = await self._tabs.ready()
            try:
                return await self._act_once(tab, work, settle)
            except PlaywrightError as problem:
                if tab.crashed.is_set():
                    raise await self._ended(tab, "has crashed") from None
                if not tab.page.is_closed() and "closed" not in str(problem):
                    raise _in_words(problem) from problem
                if await self._engine.is_gone():
                    raise  # for whoever looks after the engine
                if settle:
                    raise PageProblem("the page has closed its tab: another one is shown, take a new snapshot") from None

    async def _act_once(self, tab: Tab, work: Callable[[Tab], Awaitable[Outcome]], settle: bool) -> Outcome:
        if tab.crashed.is_set():
            raise await self._ended(tab, "has crashed")
        self._dialogs = 0
        self._storm.clear()
        task = asyncio.ensure_future(self._do(tab, work, settle))
        alarms = [asyncio.ensure_future(alarm.wait()) for alarm in (tab.crashed, self._storm)]
        try:
            await asyncio.wait({task, *alarms}, timeout=self._limits.timeout, return_when=asyncio.FIRST_COMPLETED)
            if self._storm.is_set():
                raise await self._ended(self._tabs.shown, "opened dialogs without end")
            if tab.crashed.is_set():
                raise await self._ended(tab, "has crashed")
            if not task.done():
                raise await self._overdue(self._tabs.shown)
            return await task
        except _Ended as reason:
            raise await self._ended(self._tabs.shown, str(reason)) from None
        finally:
            for pending in (task, *alarms):
                pending.cancel()
            await asyncio.wait({task, *alarms}, timeout=_ANSWER_SECONDS)
            self._note_network()

    async def _do(self, tab: Tab, work: Callable[[Tab], Awaitable[Outcome]], settle: bool) -> Outcome:
        windows = self._tabs.windows()
        outcome = await work(tab)
        if settle:
            await self._tabs.await_windows(windows)
            await self._settle()
            self._check_place(self._tabs.shown)
        return outcome

    async def _settle(self) -> None:
        """Waits until the tab that is shown by then is at rest."""
        arrived: tuple[Tab, float] | None = None
        for _ in range(MOST_DOCUMENTS):
            tab = await self._tabs.ready()
            movement = tab.movement
            try:
                if movement.is_moving or arrived is None or arrived[0] is not tab:
                    await movement.arrive()
                    arrived = tab, time.monotonic()
                    if movement.is_moving:
                        continue
                left = _REQUEST_SECONDS - (time.monotonic() - arrived[1])
                await movement.hear(left)
                await tab.rest(_QUIET_SECONDS, min(_RESTLESS_SECONDS, max(left, _QUIET_SECONDS)))
            except PlaywrightError:
                if tab.crashed.is_set():
                    raise
                arrived = None  # the document has gone, or the tab: another one is coming
                await asyncio.sleep(0)
                continue
            if tab is self._tabs.shown and not movement.is_moving and (left <= 0 or not movement.is_asking):
                return
        raise _Ended("goes on from document to document without end")

    def _target(self, tab: Tab, ref: str) -> Target:
        if tab.reading is None:
            raise PageProblem("refs are those of a snapshot of this page: take one first")
        return tab.reading.target(ref)

    async def _read(self, tab: Tab) -> Reading:
        """Reads a tab, again if its document goes away meanwhile."""
        if tab.reading is not None:
            self._tabs.start(tab.reading.dispose())
            tab.reading = None
        for _ in range(MOST_DOCUMENTS):
            try:
                reading = tab.reading = await read(tab.page)
            except PlaywrightError as problem:
                if not _has_moved(problem) or tab.crashed.is_set():
                    raise
                await tab.movement.arrive()
                continue
            moved_to, tab.movement.moved_to = tab.movement.moved_to, None
            if moved_to:
                tab.first = max(0, reading.goal) if moved_to == "fragment" else 0
            tab.first = min(tab.first, max(0, len(reading.lines) - 1))
            return reading
        raise _Ended("goes on from document to document without end")

    async def _scroll(self, tab: Tab, direction: Literal["up", "down"]) -> None:
        reading = tab.reading
        if reading is None or tab.movement.moved_to:
            reading = await self._read(tab)
        lines, room = reading.lines, self._limits.snapshot - _HEAD
        if direction == "down":
            line = tab.first + _fitting(lines[tab.first :], room)
        else:
            line = tab.first - _fitting(lines[: tab.first][::-1], room)
        if 0 < line < len(lines):
            tab.first = line
            document, index = reading.anchors[line]
            script = "(reading, index) => reading.nodes[index]?.scrollIntoView({ block: 'start', behavior: 'instant' })"
            await document.evaluate(script, index)
        else:  # one of the ends: pages may load more there
            tab.first = 0 if direction == "up" else tab.first
            script = "(down) => scrollTo(0, down ? document.documentElement.scrollHeight : 0)"
            await tab.page.evaluate(script, direction == "down")

    def _check_place(self, tab: Tab) -> None:
        """Sees where an action has led to: a refusal or an error is no page."""
        url = tab.url.removeprefix("blob:")
        if url.startswith("chrome-error:"):
            denied = self._proxy.denied()
            why = f"{denied[0]} may not be reached" if denied else tab.movement.failure or "its address gives no answer"
            raise PageProblem(f"the page could not be loaded: {why}. Go back, or elsewhere")
        if not url.startswith("about:"):
            self._policy.check_url(url)

    async def _ended(self, tab: Tab, why: str) -> PageProblem:
        """Ends a tab, and says so."""
        await self._tabs.replace(tab)
        return PageProblem(f"the page {why}: it was ended, and is blank now", "killed")

    async def _overdue(self, tab: Tab) -> PageProblem:
        """Ends what takes too long, and says so."""
        limit = f"{self._limits.timeout:g} s"
        if not await tab.answers(_ANSWER_SECONDS):
            return await self._ended(tab, f"has scripts that did not come to an end within {limit}")
        await tab.stop()
        message = f"the page did not come to rest within {limit}: its loading was stopped, what has come can be read"
        return PageProblem(message, "timeout")

    def _dismiss(self, dialog: Dialog) -> None:
        self._dialogs += 1
        if self._dialogs <= _NAMED_DIALOGS and dialog.type != "beforeunload":
            self._note(f"[{dialog.type} dialog, dismissed: {' '.join(dialog.message.split())[:200]}]")
        if self._dialogs > MOST_DIALOGS:
            self._storm.set()
        # Leaving a page is what the agent asked for; to stay would be the page's wish.
        self._tabs.start(dialog.accept() if dialog.type == "beforeunload" else dialog.dismiss())

    def _note(self, note: str) -> None:
        if note not in self._notes and len(self._notes) < _MOST_NOTES:
            self._notes.append(note)

    def _note_network(self) -> None:
        if denied := self._proxy.denied():
            self._note(f"[may not be reached from here, left out: {', '.join(denied[:5])}]")
        if cut := self._proxy.cut():
            self._note(f"[longer than {self._limits.bytes} bytes, cut there: {', '.join(cut[:5])}]")


def _fitting(lines: Sequence[str], room: int) -> int:
    """How many of the lines fill the room; at least one."""
    for count, line in enumerate(lines):
        room -= len(line) + 1
        if room < 0:
            return max(1, count)
    return max(1, len(lines))


def _has_moved(problem: PlaywrightError) -> bool:
    """Whether an error only says that the document has been left for another one."""
    signs = ("context was destroyed", "Cannot find context", "navigat", "was detached", "disposed", "not attached")
    return any(sign in str(problem) for sign in signs)


def _in_words(problem: PlaywrightError) -> PageProblem:
    """Playwright's error for an agent."""
    if _has_moved(problem):
        return PageProblem("the page has changed since the latest snapshot: take a new one")
    line = re.sub(r"^\w+\.\w+: ", "", str(problem).strip().splitlines()[0])
    return PageProblem(f"that did not work: {line[:200]}")

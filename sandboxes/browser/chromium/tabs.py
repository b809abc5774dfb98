"""The tabs of an episode: the one that is shown, and how they come and go.

The newest tab is the one that is shown. Where a page closes its last one, or the last one is ended, a blank one follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any

from playwright.async_api import BrowserContext, Page
from playwright.async_api import Error as PlaywrightError

from sandboxes.browser.chromium.tab import Tab

MOST_TABS = 5
"""A window that a page opens beyond these is closed at once."""

_WINDOW_SECONDS = 1.0
"""How long a window that a page has asked for may take to be there; it may have been blocked."""
_STEP_SECONDS = 0.005


class Tabs:
    """The tabs of a context.

    Args:
        context: Where they are.
        note: Told what the agent should know.
    """

    def __init__(self, context: BrowserContext, note: Callable[[str], None]) -> None:
        self._context = context
        self._note = note
        self._tabs: list[Tab] = []
        self._met = 0  # windows that pages have opened
        self._coming = 0  # those of them that are there, but not yet among the tabs
        self._beside: set[asyncio.Task[None]] = set()
        context.on("page", self._meet)

    @property
    def shown(self) -> Tab:
        """The tab that is shown."""
        return self._tabs[-1]

    @property
    def url(self) -> str:
        """Where the tab that is shown is."""
        return self._tabs[-1].url if self._tabs else "about:blank"

    async def ready(self) -> Tab:
        """The tab that is shown; where the last one has closed itself, the blank one that follows."""
        while not self._tabs:
            await asyncio.sleep(_STEP_SECONDS)
        return self.shown

    async def open_first(self) -> None:
        """Opens a blank tab that no page has opened."""
        page = await self._context.new_page()
        page.on("close", self._part)
        self._tabs.append(await Tab.open(self._context, page, None))

    async def replace(self, tab: Tab) -> None:
        """Ends a tab, whatever it is doing.

        Raises:
            TimeoutError: It cannot be ended.
        """
        if tab in self._tabs:
            self._tabs.remove(tab)
        await tab.kill()
        if not self._tabs:
            await self.open_first()

    async def return_to_opener(self) -> bool:
        """Closes the tab that is shown and shows the one that it came from; False where there is none."""
        tab = self.shown
        if tab.opener is None or tab.opener not in self._tabs:
            return False
        self._tabs.remove(tab.opener)
        self._tabs[-1] = tab.opener
        await tab.close()
        return True

    def windows(self) -> tuple[int, int]:
        """How many windows the tabs have tried to open so far, and how many there were."""
        return sum(tab.movement.windows for tab in self._tabs), self._met

    async def await_windows(self, before: tuple[int, int]) -> None:
        """Waits for a window that was asked for since then, where it is not blocked.

        Args:
            before: What `windows` said then.
        """
        deadline = time.monotonic() + _WINDOW_SECONDS
        wanted = self.windows()[0] > before[0]
        while (self._coming or (wanted and self._met == before[1])) and time.monotonic() < deadline:
            await asyncio.sleep(_STEP_SECONDS)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Does something beside the actions; an error of Playwright's only means that its page is gone."""
        task = asyncio.ensure_future(_until_gone(work))
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    def _meet(self, page: Page) -> None:
        """A page is there: one that the tab that is shown has opened, or else a first one."""
        if self._tabs:
            self._met += 1
            self._coming += 1
            self.start(self._welcome(page, self.shown))

    async def _welcome(self, page: Page, opener: Tab) -> None:
        try:
            if len(self._tabs) + self._coming > MOST_TABS:
                self._note(f"[a window was closed at once: there are {MOST_TABS} already]")
                await page.close()
                return
            tab = await Tab.open(self._context, page, opener)
            self._tabs.append(tab)
            page.on("close", self._part)
            self._note("[this is a new tab: back on its first page leads to the one before]")
        finally:
            self._coming -= 1

    def _part(self, page: Page) -> None:
        """A page has closed itself, or was closed here: then it is no longer among the tabs, and that is seen to."""
        left = [tab for tab in self._tabs if tab.page is not page]
        closed_itself = len(left) < len(self._tabs)
        self._tabs = left
        if closed_itself and not left:
            self.start(self.open_first())


async def _until_gone(work: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(PlaywrightError):
        await work

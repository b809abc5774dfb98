"""One tab of an episode: what it shows, what was read of it last, and how it is ended."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from playwright.async_api import BrowserContext, CDPSession, Page
from playwright.async_api import Error as PlaywrightError

from sandboxes.browser.browser import PageProblem
from sandboxes.browser.chromium.movement import Movement
from sandboxes.browser.chromium.reading import Reading

_CRASH_SECONDS = 2.0
_CLOSE_SECONDS = 3.0

# Resolves when the document has not changed for `quiet` ms, or after `most`.
_QUIET = """([quiet, most]) => new Promise((resolve) => {
  let timer;
  const end = () => { observer.disconnect(); resolve(); };
  const wait = () => { clearTimeout(timer); timer = setTimeout(end, quiet); };
  const observer = new MutationObserver(wait);
  observer.observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
  setTimeout(end, most);
  wait();
})"""


class Tab:
    """A tab. Made by `open`.

    Attributes:
        page: Playwright's object.
        opener: The tab that it came from; None for the first one.
        movement: What it is busy with.
        crashed: Set when its renderer is gone.
        reading: What was read last, as long as its refs are good.
        first: The first line that a snapshot shows.
    """

    def __init__(self, page: Page, session: CDPSession, opener: Tab | None) -> None:
        self.page = page
        self.opener = opener
        self.movement = Movement(page, session)
        self.crashed = asyncio.Event()
        self.reading: Reading | None = None
        self.first = 0
        self._session = session
        self._parsing: asyncio.Task[None] | None = None
        page.on("crash", lambda _: self.crashed.set())

    @classmethod
    async def open(cls, context: BrowserContext, page: Page, opener: Tab | None) -> Tab:
        """The tab of a page that is there.

        Raises:
            playwright.async_api.Error: It is gone already.
        """
        session = await context.new_cdp_session(page)
        tab = cls(page, session, opener)
        await session.send("Page.enable")
        if opener is not None:  # its first document was there before anybody listened
            tab.movement.set_parsed(False)
            tab._parsing = asyncio.ensure_future(tab._parse())
        return tab

    @property
    def url(self) -> str:
        """Where it is."""
        return "about:blank" if self.crashed.is_set() else self.page.url

    async def goto(self, url: str) -> None:
        """Sets out for an address; its document arrives later.

        Raises:
            PageProblem: It leads to no document.
        """
        # Not Playwright's own, which waits for the end of a document that was cut, and that never comes.
        answer: dict[str, Any] = await self._session.send("Page.navigate", {"url": url})
        if answer.get("isDownload") or answer.get("errorText") == "net::ERR_ABORTED":
            raise PageProblem("there is no page at that address: it is empty, or a download, which is off here")
        if "loaderId" in answer and self.movement.loader != answer["loaderId"]:
            self.movement.leave(answer["frameId"])

    async def back(self) -> bool:
        """Sets out for the page before; False where there is none."""
        history: dict[str, Any] = await self._session.send("Page.getNavigationHistory")
        place, entries = history["currentIndex"], history["entries"]
        blank = self.opener is None and place == 1 and entries[0]["url"] == "about:blank"  # with which a first tab begins
        if place == 0 or blank:
            return False
        frames: dict[str, Any] = await self._session.send("Page.getFrameTree")
        self.movement.leave(frames["frameTree"]["frame"]["id"])
        await self._session.send("Page.navigateToHistoryEntry", {"entryId": entries[place - 1]["id"]})
        return True

    async def rest(self, quiet: float, most: float) -> None:
        """Waits until the document does not change.

        Args:
            quiet: Seconds without a change that count as rest.
            most: Seconds that this may take.

        Raises:
            playwright.async_api.Error: The document has gone.
        """
        with contextlib.suppress(TimeoutError):  # a page may have put clocks of its own in place of the real ones
            async with asyncio.timeout(most + 1.0):
                await self.page.evaluate(_QUIET, [quiet * 1000, most * 1000])

    async def answers(self, patience: float) -> bool:
        """Whether its scripts let anything else run."""
        try:
            async with asyncio.timeout(patience):
                await self.page.evaluate("0")
            return True
        except TimeoutError:
            return False
        except PlaywrightError:
            return not self.crashed.is_set()

    async def stop(self) -> None:
        """Ends the loading of whatever it is loading."""
        with contextlib.suppress(PlaywrightError, TimeoutError):  # it is between two documents
            async with asyncio.timeout(_CRASH_SECONDS):
                await self._session.send("Page.stopLoading")
        self.movement.forget()

    async def kill(self) -> None:
        """Ends it, whatever its scripts are doing.

        Raises:
            TimeoutError: Chromium does not do that either.
        """
        if not self.crashed.is_set():
            # The answer never comes, since what would give it is gone.
            crash = asyncio.ensure_future(self._session.send("Page.crash"))
            crashed = asyncio.ensure_future(self.crashed.wait())
            await asyncio.wait({crashed, crash}, timeout=_CRASH_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            crashed.cancel()
            crash.cancel()
        await self.close()

    async def close(self) -> None:
        """Closes it.

        Raises:
            TimeoutError: It does not close.
        """
        if self._parsing is not None:
            self._parsing.cancel()
        async with asyncio.timeout(_CLOSE_SECONDS):
            await self.page.close()

    async def _parse(self) -> None:
        with contextlib.suppress(PlaywrightError):
            await self.page.wait_for_load_state("domcontentloaded", timeout=0)
        if not self.movement.arrivals:
            self.movement.set_parsed(True)

"""What a tab is busy with, by what Chromium reports of it: documents on their way, and requests that are not answered."""

from __future__ import annotations

import asyncio
from typing import Any

from playwright.async_api import CDPSession, Page, Request

_AWAITED = frozenset({"document", "script", "stylesheet", "xhr", "fetch"})
"""Kinds of requests that a document waits for; images come when they come, and streams have no end."""


class Movement:
    """The movement of one tab. Its events come in order, and before the answer to whatever has caused them.

    Args:
        page, session: Of the tab; the session must be told ``Page.enable`` after this.

    Attributes:
        windows: How many windows it has tried to open.
        arrivals: How many documents it has come to, those of its frames not counted.
        loader: What brought the latest of them.
        failure: Chromium's word for why a document did not come, the latest such.
        moved_to: What the next snapshot begins with: ``"top"`` or ``"fragment"``; None for what it has begun with.
    """

    def __init__(self, page: Page, session: CDPSession) -> None:
        self.windows = 0
        self.arrivals = 0
        self.loader = ""
        self.failure = ""
        self.moved_to: str | None = None
        self._leaving: set[str] = set()  # frames that are on their way to another document
        self._parsed = True  # the latest document, as far as it will be
        self._frame = ""  # of the page itself
        self._place = ""  # its address, without the fragment
        self._requests: set[Request] = set()
        self._changed = asyncio.Event()
        page.on("request", self._ask)
        page.on("requestfinished", self._answer)
        page.on("requestfailed", self._fail)
        session.on("Page.windowOpen", self._count_window)
        session.on("Page.frameRequestedNavigation", self._request_navigation)
        session.on("Page.frameNavigated", self._arrive)
        session.on("Page.navigatedWithinDocument", self._move_within)
        session.on("Page.domContentEventFired", lambda _: self.set_parsed(True))
        session.on("Page.frameStoppedLoading", self._stop_loading)
        session.on("Page.frameDetached", lambda event: self._stay(event["frameId"]))

    @property
    def is_moving(self) -> bool:
        """Whether a frame is on its way to another document, or the latest document is not parsed."""
        return bool(self._leaving) or not self._parsed

    @property
    def is_asking(self) -> bool:
        """Whether something that was asked of the network has not come."""
        return bool(self._requests)

    def leave(self, frame: str) -> None:
        """Notes that a frame has been sent to another document."""
        self._leaving.add(frame)

    def set_parsed(self, parsed: bool) -> None:
        """Notes whether the latest document is parsed."""
        self._parsed = parsed
        self._changed.set()

    def forget(self) -> None:
        """Whatever is on its way will not be waited for."""
        self._leaving.clear()
        self._requests.clear()
        self.set_parsed(True)

    async def arrive(self) -> None:
        """Waits until nothing is moving, or until another document is there."""
        arrivals = self.arrivals
        while self.is_moving and self.arrivals == arrivals:
            self._changed.clear()
            await self._changed.wait()

    async def hear(self, most: float) -> None:
        """Waits until all that was asked of the network has come. What takes longer is not waited for again.

        Args:
            most: Seconds that this may take.
        """
        try:
            async with asyncio.timeout(max(0.0, most)):
                while self._requests:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            self._requests.clear()

    def _ask(self, request: Request) -> None:
        if request.resource_type in _AWAITED:
            self._requests.add(request)

    def _answer(self, request: Request) -> None:
        self._requests.discard(request)
        self._changed.set()

    def _fail(self, request: Request) -> None:
        if request.is_navigation_request():
            self.failure = request.failure or ""
        self._answer(request)

    def _count_window(self, _: dict[str, Any]) -> None:
        self.windows += 1

    def _request_navigation(self, event: dict[str, Any]) -> None:
        if event["disposition"] == "currentTab":
            self.leave(event["frameId"])

    def _arrive(self, event: dict[str, Any]) -> None:
        frame = event["frame"]
        if "parentId" not in frame:
            self.arrivals += 1
            self.loader, self._frame, self._place = frame["loaderId"], frame["id"], frame["url"]
            self.moved_to = "fragment" if "urlFragment" in frame else "top"
            self._parsed = False
        self._stay(frame["id"])

    def _move_within(self, event: dict[str, Any]) -> None:
        place = event["url"].partition("#")[0]
        if event["navigationType"] == "fragment":
            self.moved_to = "fragment"
        elif place != self._place and event["frameId"] == self._frame:
            self.moved_to = "top"
        if event["frameId"] == self._frame:
            self._place = place
        self._stay(event["frameId"])

    def _stop_loading(self, event: dict[str, Any]) -> None:
        if event["frameId"] == self._frame:
            self._parsed = True  # which nothing else says of a document whose end is missing
        self._stay(event["frameId"])

    def _stay(self, frame: str) -> None:
        self._leaving.discard(frame)
        self._changed.set()

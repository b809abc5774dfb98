"""One Chromium, and the one thread that talks to it.

Playwright's objects belong to the event loop that made them, and a program's own threads come and go, so the engine has a
thread with a loop of its own, and callers hand their work over to it. Starting takes half a second and a Chromium takes a
quarter of a gigabyte, so a process shares one through `sandboxes.shared`; what parts the pages from each other is a browser
context each.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import re
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from playwright.async_api import Browser, CDPSession, Playwright, async_playwright
from playwright.async_api import Error as PlaywrightError

from sandboxes.browser.chromium import starter
from sandboxes.faults import SandboxFault

logger = logging.getLogger(__name__)

SandboxChoice = Literal["auto", "on", "off"]
Outcome = TypeVar("Outcome")

MEMORY = 1_500_000_000
"""Bytes that a renderer, the process of a page's documents, may hold; one that holds more is ended."""

_START_SECONDS = 60.0
_END_SECONDS = 5.0
_PING_SECONDS = 2.0
_WATCH_SECONDS = 0.25

_FLAGS = (
    "--disable-gpu",
    "--disable-quic",  # QUIC is UDP, which no proxy carries
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",  # its name before Chromium 143 or so
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # names are the proxy's to look up
    "--disable-features=AutofillServerCommunication,Translate",  # which ask servers of Google's about every form and page
    # Two pages of the address bar's own in every window, and a renderer kept in reserve: they triple the cost of a new page.
    "--disable-features=WebUIOmniboxPopup,WebUIOmniboxAimPopup,WebUIOmniboxFullPopup,SpareRendererForSitePerProcess",
)
_POINTER = (
    "primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4"  # Playwright's own, a mouse
)
_UNWANTED = ("--disable-popup-blocking",)  # of Playwright's flags: with it a page could open windows without end


@dataclass(frozen=True)
class ChromiumSettings:
    """What kind of Chromium; engines with equal settings are shared.

    Args:
        executable: Its path.
        sandbox: Chromium's own sandbox: ``"on"``, ``"off"``, or ``"auto"``: on where this kernel permits it.
        images: Whether images are loaded.
    """

    executable: str
    sandbox: SandboxChoice = "auto"
    images: bool = False

    def __post_init__(self) -> None:
        if self.sandbox not in ("auto", "on", "off"):
            raise ValueError(f"sandbox must be 'auto', 'on' or 'off', found {self.sandbox!r}")


class ChromiumEngine:
    """A running Chromium.

    Args:
        settings: What kind.

    Raises:
        SandboxFault: It could not be started.
    """

    def __init__(self, settings: ChromiumSettings) -> None:
        self.settings = settings
        self.user = _user()
        self.sandboxed = False
        self.pid = 0
        self.dead = ""
        self._playwright: Playwright | None = None
        self._browser: Browser | None = None
        self._session: CDPSession | None = None
        self._watch: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_note_quietly)
        self._thread = threading.Thread(target=self._loop.run_forever, name="chromium", daemon=True)
        self._thread.start()
        try:
            self.run(self._start, _START_SECONDS * 2)
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether Chromium and the thread still work."""
        return not self.dead and self._thread.is_alive() and self._browser is not None and self._browser.is_connected()

    @property
    def browser(self) -> Browser:
        """Playwright's object; for the engine's own thread only."""
        if self._browser is None:
            raise SandboxFault("Chromium is not running", retryable=True)
        return self._browser

    @property
    def version(self) -> str:
        """Chromium's."""
        return self._browser.version if self._browser else ""

    def run(self, work: Callable[[], Coroutine[Any, Any, Outcome]], patience: float) -> Outcome:
        """Does work in the engine's thread and waits for it.

        Args:
            work: Makes the coroutine. It keeps its own time limits.
            patience: Seconds after which Chromium counts as gone.

        Raises:
            SandboxFault: Chromium is gone.
            Whatever ``work`` raises.
        """
        if self.dead or not self._thread.is_alive():
            why = self.dead or "its thread has ended"
            raise SandboxFault(f"Chromium is gone ({why}): open another page", retryable=True)
        future = asyncio.run_coroutine_threadsafe(work(), self._loop)
        try:
            return future.result(patience)
        except TimeoutError:
            self.dead = "it could not end a page" if future.done() else f"it did not answer within {patience:.0f} s"
            future.cancel()
            raise SandboxFault(f"Chromium is gone ({self.dead}): open another page", retryable=True) from None
        except KeyboardInterrupt:
            future.cancel()
            raise

    async def is_gone(self) -> bool:
        """Whether Chromium, or the driver, is gone: known here before anything else says so. For the engine's thread."""
        try:
            await asyncio.wait_for(self._processes("browser"), _PING_SECONDS)
        except (PlaywrightError, TimeoutError) as problem:
            self._mark_dead(str(problem).strip().splitlines()[0] if str(problem) else "it does not answer")
        return bool(self.dead)

    def close(self) -> None:
        """Ends Chromium, the driver and the thread, and waits for them. Twice is fine."""
        if not self._thread.is_alive():
            return
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(_END_SECONDS * 4)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.dead = self.dead or "it was closed"

    async def _start(self) -> None:
        try:
            self._playwright = await async_playwright().start()
        except Exception as problem:
            raise SandboxFault(f"Playwright's driver could not be started: {problem}") from problem
        wanted = self.settings.sandbox
        try:
            await self._launch(sandboxed=wanted != "off")
        except PlaywrightError as problem:
            reason = _why(problem)
            if wanted != "auto":
                raise SandboxFault(f"Chromium could not be started (sandbox={wanted!r}): {reason}") from problem
            try:
                await self._launch(sandboxed=False)
            except PlaywrightError as second:
                raise SandboxFault(f"Chromium could not be started: {_why(second)}") from second
            logger.warning("Chromium runs without its own sandbox, since with it it does not start here: %s", reason)
        self._watch = asyncio.get_running_loop().create_task(self._watch_memory())

    async def _launch(self, sandboxed: bool) -> None:
        """Starts Chromium, and sees whether a page can be opened, since a sandbox that does not fit shows only then."""
        assert self._playwright is not None
        folder = tempfile.mkdtemp(prefix="chromium-start-")
        images = "true" if self.settings.images else "false"
        browser = None
        try:
            browser = await self._playwright.chromium.launch(
                executable_path=self._write_wrapper(folder),
                args=[*_FLAGS, f"--blink-settings=imagesEnabled={images},{_POINTER}"],
                ignore_default_args=list(_UNWANTED),
                chromium_sandbox=sandboxed,
                env=_environment(),
                handle_sigint=False,
                handle_sigterm=False,
                handle_sighup=False,
                timeout=_START_SECONDS * 1000,
            )
            page = await browser.new_page()
            await page.close()
            self._session = await browser.new_browser_cdp_session()
            self.pid = (await self._processes("browser"))[0]
        except BaseException:
            if browser is not None:
                await browser.close()
            raise
        finally:
            shutil.rmtree(folder)
        browser.on("disconnected", lambda _: self._mark_dead("its process has ended"))
        self._browser, self.sandboxed = browser, sandboxed

    def _write_wrapper(self, folder: str) -> str:
        """A program that Playwright can start in place of Chromium; returns its path."""
        nobody = pwd.getpwnam(self.user) if os.geteuid() == 0 else None
        ids = [str(nobody.pw_uid), str(nobody.pw_gid)] if nobody else ["-1", "-1"]
        command = shlex.join([sys.executable, "-I", "-S", starter.__file__, self.settings.executable, *ids])
        path = os.path.join(folder, "chromium")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700), "w") as file:
            file.write(f'#!/bin/sh\nexec {command} "$@"\n')
        return path

    async def _processes(self, kind: str) -> list[int]:
        assert self._session is not None
        answer = await self._session.send("SystemInfo.getProcessInfo")
        return [process["id"] for process in answer["processInfo"] if process["type"] == kind]

    async def _watch_memory(self) -> None:
        """Ends every renderer that holds too much; its page crashes, and its episode learns of it."""
        if not os.path.exists("/proc/self/statm"):
            logger.warning("the memory of pages is not limited here: this system has no /proc")
            return
        page_bytes = os.sysconf("SC_PAGESIZE")
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            try:
                renderers = await self._processes("renderer")
            except PlaywrightError as problem:
                return self._mark_dead(_why(problem))
            for number in renderers:
                with contextlib.suppress(OSError, ValueError):
                    with open(f"/proc/{number}/statm") as file:
                        _, resident, shared, *_ = (int(pages) * page_bytes for pages in file.read().split())
                    if resident - shared > MEMORY:
                        os.kill(number, signal.SIGKILL)
                        logger.info("a page held %d MB and was ended", (resident - shared) // 1_000_000)

    async def _end(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self._browser is not None:
            await self._end_within(self._browser.close)
        if self._playwright is not None:
            await self._end_within(self._playwright.stop)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _end_within(self, ending: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await asyncio.wait_for(ending(), _END_SECONDS)
        except TimeoutError:
            logger.info("Chromium did not end within %.0f s of being asked to, and was killed", _END_SECONDS)
            if self.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)  # it is there, else its end would have been noticed
        except Exception as problem:
            logger.info("Chromium was gone before it was asked to end: %s", problem)

    def _mark_dead(self, why: str) -> None:
        self.dead = self.dead or why


def _user() -> str:
    """The user that Chromium runs as: this process's own, unless that is root."""
    try:
        return pwd.getpwnam("nobody").pw_name if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    except KeyError as problem:
        if os.geteuid() == 0:
            raise SandboxFault("Chromium does not run as root, and there is no user 'nobody' here: add one") from problem
        return str(os.geteuid())  # of a container, say, that names no users


def _environment() -> dict[str, str | float | bool]:
    """What Chromium sees of this process's environment, which may hold secrets."""
    kept = ("PATH", "LD_LIBRARY_PATH", "FONTCONFIG_PATH", "FONTCONFIG_FILE", "XDG_DATA_DIRS")
    return {"LANG": "en_US.UTF-8", **{name: os.environ[name] for name in kept if name in os.environ}}


def _why(problem: PlaywrightError) -> str:
    """The line of Playwright's long message that says most."""
    lines = [line.strip() for line in str(problem).splitlines()]
    telling = [line for line in lines if "may not run" in line or "FATAL" in line or "No usable sandbox" in line]
    line = re.sub(r"^(- )?(\[[^\]]*\]\s*)+", "", (telling or lines)[0])  # without process ids and times
    return line if len(line) <= 200 else f"{line[:197]}..."


def _note_quietly(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    logger.debug("in Chromium's thread: %s", context.get("exception") or context.get("message"))

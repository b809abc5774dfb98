"""Opening a browser by the name of its backend."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from sandboxes import shared
from sandboxes.browser.browser import Browser, PageLimits
from sandboxes.browser.network_policy import NetworkPolicy
from sandboxes.browser.reader import ReaderBrowser
from sandboxes.faults import SandboxFault

logger = logging.getLogger(__name__)


def open_browser(
    backend: Literal["auto", "chromium", "reader"] = "auto",
    *,
    allow: Sequence[str] = (),
    hosts: Mapping[str, str] | None = None,
    limits: PageLimits | None = None,
    executable: str | None = None,
    sandbox: Literal["auto", "on", "off"] = "auto",
) -> Browser:
    """Opens a browser whose pages may reach what is allowed, and nothing else.

    Args:
        backend: ``"chromium"``, ``"reader"`` (HTTP to text, no scripts), or ``"auto"``: Chromium where it can be started,
            else the reader. What "auto" took, and why, is logged once in a process. A named backend is never replaced.
        allow: Hosts, as `NetworkPolicy` takes them: ``"host"``, ``"host:port"``, ``"*.host"``, ``"*"``.
        hosts: Names that stand for an address: ``{"wiki.test": "127.0.0.1:8123"}``.
        limits: What a page may use; `PageLimits()` by default.
        executable: Of Chromium; looked for where it is None.
        sandbox: Chromium's own: ``"auto"`` takes it where the kernel grants it, and ``describe`` says which.

    Returns:
        The browser; close it, or use it as a context manager.

    Raises:
        SandboxFault: Chromium was named and cannot be started; the message says what to do.
        ValueError: An argument is none of those it may be, or is one of another backend.

    Example:
        >>> with open_browser("reader", allow=["127.0.0.1:8123"]) as browser:
        ...     page = browser.new_page()
        ...     page.url
        'about:blank'
    """
    if backend not in ("auto", "chromium", "reader"):
        raise ValueError(f"backend must be 'auto', 'chromium' or 'reader', found {backend!r}")
    if backend == "reader" and (executable is not None or sandbox != "auto"):
        raise ValueError(f"executable and sandbox are arguments of chromium, found {executable=}, {sandbox=} with 'reader'")
    if isinstance(allow, str):
        raise ValueError(f"allow must be several hosts, such as [{allow!r}], found {allow!r} alone")
    policy, limits = NetworkPolicy(tuple(allow), hosts or {}), limits or PageLimits()

    def chromium() -> Browser:
        # Not at the top: it brings Playwright, which takes a fifth of a second that readers need not wait for.
        try:
            from sandboxes.browser.chromium import ChromiumBrowser
        except ModuleNotFoundError as problem:
            raise SandboxFault(f"Chromium needs the package playwright ({problem}): pip install playwright") from problem
        return ChromiumBrowser(policy, limits, executable=executable, sandbox=sandbox)

    if backend == "reader":
        return ReaderBrowser(policy, limits)
    if backend == "chromium":
        return chromium()
    lease = shared.acquire(("browser", executable, sandbox), lambda: _Choice(chromium), linger=True)
    lease.close()
    return chromium() if lease.engine.chromium else ReaderBrowser(policy, limits)


class _Choice:
    """Which browser "auto" stands for in this process, found out once by opening a page."""

    alive = True

    def __init__(self, chromium: Callable[[], Browser]) -> None:
        try:
            with chromium() as browser:
                browser.new_page().close()
                logger.info("browser: chromium, since it starts here: %s", browser.describe())
            self.chromium = True
        except SandboxFault as reason:
            self.chromium = False
            logger.info("browser: reader, since chromium is not to be had: %s", reason)

    def close(self) -> None:
        """There is nothing to end."""

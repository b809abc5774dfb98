"""A browser among sites, as the tests of Chromium have it, and how they read a page."""

from __future__ import annotations

import re
from dataclasses import dataclass

from servers import Site

from sandboxes.browser.browser import Browser, Page
from sandboxes.browser.network_policy import NetworkPolicy


@dataclass(frozen=True)
class Web:
    """A browser, and what it is in.

    Args:
        browser: Chromium; its pages may take 3 s for an action.
        friendly, hostile: Under ``http://friendly.test/`` and ``http://hostile.test/``.
        denied: A site that is there and may not be reached.
        policy: The browser's.
    """

    browser: Browser
    friendly: Site
    hostile: Site
    denied: Site
    policy: NetworkPolicy


def ref(page: Page, words: str) -> str:
    """The ref of the element that says that."""
    said = page.snapshot()
    found = re.search(r"\[(e\d+)(?![^\]]*\[)[^\]]*" + re.escape(words), said)
    assert found, f"nothing says {words!r} in:\n{said}"
    return found[1]


def body(page: Page) -> str:
    """A snapshot without its head."""
    return page.snapshot().partition("\n\n")[2]

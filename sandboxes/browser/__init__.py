"""Browsers for agents that nobody vouches for, on pages that nobody vouches for.

`open_browser` is the way in, `browser` the contract, `snapshot` how a page reads. Two engines: `chromium`, and `reader`, all
Python. `network_policy` says what pages may reach; the reader asks it itself, Chromium is behind a `proxy` that asks.
"""

from sandboxes.browser.browser import Browser, Cookie, Page, PageLimits, PageProblem
from sandboxes.browser.network_policy import NetworkPolicy
from sandboxes.browser.opening import open_browser

__all__ = ["Browser", "Cookie", "NetworkPolicy", "Page", "PageLimits", "PageProblem", "open_browser"]

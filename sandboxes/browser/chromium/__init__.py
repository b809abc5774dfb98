"""The browser's strong engine: Chromium, driven through Playwright.

What is in here, from the machine up to the agent: `finding` (which Chromium), `starter` (how it is started, as whom),
`engine` (one Chromium and the thread that talks to it, shared by a process), `movement`, `tab` and `tabs` (what Chromium
reports, and how tabs come and go), `reading` with ``reader.js`` (a document as lines and refs), `acting` (what is done to an
element), `episode` (an agent's actions and their limits), and `browser`, which fits all of it to the contract of
`sandboxes.browser.browser`.
"""

from sandboxes.browser.chromium.browser import ChromiumBrowser
from sandboxes.browser.chromium.finding import find_chromium

__all__ = ["ChromiumBrowser", "find_chromium"]

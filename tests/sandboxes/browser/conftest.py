"""A browser on this machine's Chromium, and the sites that its pages may reach."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
import sites
from servers import site, talker
from web import Web

from sandboxes import shared
from sandboxes.browser.browser import Page, PageLimits
from sandboxes.browser.network_policy import NetworkPolicy
from sandboxes.faults import SandboxFault


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    pytest.importorskip("playwright")
    from sandboxes.browser.chromium import ChromiumBrowser, find_chromium

    try:
        find_chromium()
    except SandboxFault as fault:
        pytest.skip(str(fault))
    with contextlib.ExitStack() as stack:
        friendly = stack.enter_context(site(sites.FRIENDLY))
        hostile = stack.enter_context(site(sites.HOSTILE))
        denied = stack.enter_context(site({"/secret": "<p>the secret</p>"}))
        places = {"friendly.test": friendly.place, sites.OTHER: friendly.place, "hostile.test": hostile.place}
        for name, talk in (
            ("endless.test", sites.endless_page),
            ("large.test", sites.large_page),
            ("silent.test", sites.silent),
            ("socket.test", sites.echo_websocket),
        ):
            places[name] = stack.enter_context(talker(talk))
        policy = NetworkPolicy(hosts=places)
        browser = stack.enter_context(ChromiumBrowser(policy, PageLimits(timeout=3.0)))
        yield Web(browser, friendly, hostile, denied, policy)
    shared.close_idle()


@pytest.fixture
def page(web: Web) -> Iterator[Page]:
    with web.browser.new_page() as page:
        yield page


@pytest.fixture
def udp() -> Iterator[socket.socket]:
    """A socket that nothing may reach, since UDP passes by every proxy."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.setblocking(False)
        yield listener

"""Where Chromium comes from, as whom it runs, how it ends, and that nothing of it is left behind."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import Site, site

from sandboxes import shared
from sandboxes.browser.browser import Page, PageLimits, PageProblem
from sandboxes.browser.network_policy import NetworkPolicy
from sandboxes.faults import SandboxFault

pytest.importorskip("playwright")

from sandboxes.browser.chromium import ChromiumBrowser, find_chromium
from sandboxes.browser.chromium.starter import merge_features

HANG = "<p>text</p><button onclick='setTimeout(() => { while (true); }, 50)'>go</button>"


@pytest.fixture
def home() -> Iterator[Site]:
    with site({"/": "<title>Home</title><p>home</p><button>press</button>", "/hang": HANG}) as made:
        yield made


@pytest.fixture
def browser(home: Site) -> Iterator[ChromiumBrowser]:
    """A browser whose Chromium is its own."""
    shared.close_idle()
    with ChromiumBrowser(NetworkPolicy(allow=(home.place,)), PageLimits(timeout=3.0)) as made:
        yield made
    shared.close_idle()


@pytest.fixture
def others() -> set[int]:
    """What tests of other files have started and keep until all have run."""
    shared.close_idle()
    return set(descendants())


def descendants(pid: int | None = None) -> dict[int, str]:
    """The command lines of what a process has started, and of what that has started, by process id.

    Left out is the one that Python's multiprocessing keeps until its process ends.
    """
    parents: dict[int, int] = {}
    for path in glob.glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = Path(path).read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                parents[int(path.split("/")[2])] = int(fields[1])
    found = {pid or os.getpid()}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    commands = {}
    for child in found - {pid or os.getpid()}:
        with contextlib.suppress(OSError):
            commands[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return {child: command for child, command in commands.items() if "multiprocessing.resource_tracker" not in command}


def chromium_of(browser: ChromiumBrowser) -> int:
    """The process id of the Chromium that this process has started: the one that was not forked by another."""
    found = [
        pid for pid, command in descendants().items() if "--remote-debugging-pipe" in command and "--type=" not in command
    ]
    assert len(found) == 1, browser.describe()
    return found[0]


def renderers() -> list[int]:
    return [pid for pid, command in descendants().items() if "--type=renderer" in command]


def profiles(pid: int | None = None) -> set[str]:
    """The folders that the Chromiums of a process keep their files in."""
    found = (re.search(r"--user-data-dir=(\S+)", command) for command in descendants(pid).values())
    return {match[1] for match in found if match}


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_named_chromium_is_taken_or_missed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "my-chromium"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert find_chromium(str(program)) == str(program)
    monkeypatch.setenv("CHROMIUM", str(program))
    assert find_chromium() == str(program)
    monkeypatch.setenv("CHROMIUM", "/nowhere/chromium")
    with pytest.raises(SandboxFault, match="the environment variable CHROMIUM names '/nowhere/chromium'"):
        find_chromium()
    with pytest.raises(SandboxFault, match="the argument names '/nowhere/other'"):
        find_chromium("/nowhere/other")


def test_playwrights_own_chromium_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path))
    with pytest.raises(SandboxFault, match=r"no Chromium was found: install it .*apt-get install chromium.*CHROMIUM"):
        find_chromium()
    for version in ("chromium-1100", "chromium-1200"):
        program = tmp_path / version / "chrome-linux" / "chrome"
        program.parent.mkdir(parents=True)
        program.touch(0o755)
    assert find_chromium() == str(program)


def test_several_lists_of_features_become_one() -> None:
    assert merge_features(["--disable-features=A,B", "--x", "--disable-features=C"]) == ["--x", "--disable-features=A,B,C"]
    assert merge_features(["--x"]) == ["--x"]


def test_a_program_that_is_no_chromium_is_a_fault(others: set[int]) -> None:
    with pytest.raises(SandboxFault, match="Chromium could not be started"):
        ChromiumBrowser(NetworkPolicy(), executable="/bin/false").new_page()
    assert eventually(lambda: descendants().keys() <= others)


def test_settings_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="sandbox must be 'auto', 'on' or 'off', found 'yes'"):
        ChromiumBrowser(NetworkPolicy(), executable="/bin/true", sandbox="yes")  # type: ignore[arg-type]


@pytest.mark.browser
def test_it_says_what_it_is(browser: ChromiumBrowser, home: Site) -> None:
    said = browser.describe()
    assert re.search(r"^Chromium \d+\.[\d.]+ at /\S+, run by user \w+, its own sandbox (on|OFF), images off;", said)
    assert home.place in said


@pytest.mark.browser
def test_pages_are_shut_in(browser: ChromiumBrowser) -> None:
    with browser.new_page():
        processes = [chromium_of(browser), *renderers()]
        assert len(processes) >= 2
        for pid in processes:
            status = Path(f"/proc/{pid}/status").read_text()
            assert not re.search(r"^Uid:\s+0\b", status, re.MULTILINE), "nothing of Chromium runs as root"
        if "sandbox on" in browser.describe():
            for pid in renderers():
                assert "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text()
                assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")


@pytest.mark.browser
def test_chromium_sees_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch, home: Site) -> None:
    shared.close_idle()
    monkeypatch.setenv("SOME_API_KEY", "secret")
    with ChromiumBrowser(NetworkPolicy()) as browser, browser.new_page():
        for pid in (chromium_of(browser), *renderers()):
            assert b"SOME_API_KEY" not in Path(f"/proc/{pid}/environ").read_bytes()
    shared.close_idle()


@pytest.mark.browser
def test_sandbox_off_is_explicit_and_said(home: Site) -> None:
    with ChromiumBrowser(NetworkPolicy(allow=(home.place,)), sandbox="off") as browser, browser.new_page() as page:
        assert "its own sandbox OFF" in browser.describe()
        page.goto(home.url)
        assert "home" in page.snapshot()
    shared.close_idle()


@pytest.mark.browser
@pytest.mark.parametrize("sandbox", ["auto", "on"])
def test_without_namespaces_the_sandbox_is_off_and_said_or_missed(home: Site, sandbox: str) -> None:
    pytest.importorskip("pyseccomp")
    script = f"""
import errno, logging, pyseccomp
table = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
table.add_rule(pyseccomp.ERRNO(errno.EPERM), "unshare")
user = 0x10000000
table.add_rule(pyseccomp.ERRNO(errno.EPERM), "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, user, user))
table.load()
logging.basicConfig(level=logging.WARNING, format="%(message)s")
from sandboxes.browser.chromium import ChromiumBrowser
from sandboxes.browser.network_policy import NetworkPolicy
with ChromiumBrowser(NetworkPolicy(allow=({home.place!r},)), sandbox={sandbox!r}) as browser:
    page = browser.new_page()
    page.goto({home.url!r})
    print(page.title, browser.describe())
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    if sandbox == "auto":
        assert ran.stdout.startswith("Home Chromium ")
        assert "its own sandbox OFF" in ran.stdout
        assert "Chromium runs without its own sandbox, since with it it does not start here: " in ran.stderr
    else:
        assert ran.returncode == 1
        assert "SandboxFault: Chromium could not be started (sandbox='on'): " in ran.stderr.splitlines()[-1]


@pytest.mark.browser
def test_browsers_share_a_chromium_and_it_ends_when_idle(others: set[int], browser: ChromiumBrowser, home: Site) -> None:
    with ChromiumBrowser(NetworkPolicy(allow=(home.place,))) as other:
        pages = [browser.new_page(), other.new_page(), browser.new_page()]
        first = chromium_of(browser)
        for page in pages:
            page.goto(home.url)
            page.close()
    with browser.new_page():
        assert chromium_of(browser) == first
    (folder,) = profiles()
    assert os.path.isdir(folder)
    browser.close()
    shared.close_idle()
    assert not set(descendants()) - others
    assert not os.path.exists(folder)


@pytest.mark.browser
def test_a_tab_that_crashes_is_blank_for_the_next_action(browser: ChromiumBrowser, home: Site) -> None:
    with browser.new_page() as other, contextlib.ExitStack() as stack:
        other.goto(home.url)
        known = set(renderers())
        page = stack.enter_context(browser.new_page())
        page.goto(home.url)
        (mine,) = set(renderers()) - known
        os.kill(mine, signal.SIGKILL)
        assert eventually(lambda: page.url == "about:blank")
        with pytest.raises(PageProblem, match="has crashed") as caught:
            page.click("e1")
        assert caught.value.kind == "killed"
        assert page.snapshot() == "Page: \nURL: about:blank\n\n"
        page.goto(home.url)
        assert "home" in page.snapshot()
        assert "home" in other.snapshot()


def _chromium(browser: ChromiumBrowser) -> int:
    return chromium_of(browser)


def _driver(browser: ChromiumBrowser) -> int:
    (driver,) = [pid for pid, command in descendants().items() if "run-driver" in command]
    return driver


@pytest.mark.browser
@pytest.mark.parametrize("victim", [_chromium, _driver])
def test_a_dead_browser_is_a_fault_and_is_replaced(
    others: set[int], browser: ChromiumBrowser, home: Site, victim: Callable[[ChromiumBrowser], int]
) -> None:
    page, other = browser.new_page(), browser.new_page()
    page.goto(home.url)
    other.goto(home.url)
    old = chromium_of(browser)
    os.kill(victim(browser), signal.SIGKILL)
    for one in (page, other):
        with pytest.raises(SandboxFault, match=r"Chromium is gone.*open another page") as caught:
            one.snapshot()
        assert caught.value.retryable
    with browser.new_page() as third:
        third.goto(home.url)
        assert "home" in third.snapshot()
        assert chromium_of(browser) != old
    page.close()
    other.close()
    browser.close()
    shared.close_idle()
    assert eventually(lambda: not set(descendants()) - others)


@pytest.mark.browser
def test_an_action_in_flight_learns_that_the_browser_has_died(browser: ChromiumBrowser, home: Site) -> None:
    with browser.new_page() as page:
        page.goto(home.url + "/hang")
        page.snapshot()
        page.click("e1")
        time.sleep(0.2)
        timer = threading.Timer(0.5, os.kill, (chromium_of(browser), signal.SIGKILL))
        timer.start()
        with pytest.raises(SandboxFault) as caught:
            page.snapshot()
        assert caught.value.retryable
        timer.join()


@pytest.mark.browser
@pytest.mark.thorough
def test_a_browser_that_is_stopped_is_given_up(others: set[int], browser: ChromiumBrowser, home: Site) -> None:
    page = browser.new_page()
    page.goto(home.url)
    stopped = chromium_of(browser)
    os.kill(stopped, signal.SIGSTOP)
    with pytest.raises(SandboxFault, match="Chromium is gone") as caught:
        page.goto(home.url)
    assert caught.value.retryable
    with browser.new_page() as other:
        other.goto(home.url)
    page.close()
    browser.close()
    shared.close_idle()
    assert eventually(lambda: not set(descendants()) - others)


@pytest.mark.browser
@pytest.mark.parametrize("ending", ["close", "exit", "SIGKILL"])
def test_nothing_outlives_its_process(home: Site, ending: str) -> None:
    script = f"""
import os, signal, sys
from sandboxes.browser.chromium import ChromiumBrowser
from sandboxes.browser.network_policy import NetworkPolicy
from sandboxes import shared
browser = ChromiumBrowser(NetworkPolicy(allow=({home.place!r},)))
page = browser.new_page()
page.goto({home.url!r})
print(page.title, flush=True)
sys.stdin.readline()
if {ending!r} == "close":
    browser.close()
    shared.close_idle()
    print("closed", flush=True)
    sys.stdin.readline()
elif {ending!r} == "SIGKILL":
    os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "Home\n"
        started = set(descendants(process.pid))
        assert len(started) > 5
        (folder,) = profiles(process.pid)
        process.stdin.write("\n")
        if ending == "close":
            assert process.stdout.readline() == "closed\n"
            assert not descendants(process.pid)
            process.stdin.write("\n")
        process.wait(30)
    assert eventually(lambda: not any(_runs(pid) for pid in started))
    assert eventually(lambda: not os.path.exists(folder)), "its files are gone too"


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.browser
def test_pages_of_many_threads_go_on_side_by_side(browser: ChromiumBrowser, home: Site) -> None:
    outcomes: list[str] = []

    def episode() -> None:
        with browser.new_page() as page:
            for _ in range(3):
                page.goto(home.url)
                page.snapshot()
                page.click("e1")
            outcomes.append(page.title)

    threads = [threading.Thread(target=episode) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["Home"] * 6


def _resident(pids: list[int]) -> int:
    """Bytes that processes hold for themselves."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            _, resident, common, *_ = (int(pages) for pages in Path(f"/proc/{pid}/statm").read_text().split())
            total += (resident - common) * os.sysconf("SC_PAGESIZE")
    return total


def _grows_not(browser: ChromiumBrowser, home: Site, episodes: int) -> tuple[int, int]:
    """Runs episodes; returns the memory after a tenth of them, and after all."""

    def episode() -> None:
        page: Page
        with browser.new_page() as page:
            page.goto(home.url)
            page.snapshot()
            page.click("e1")
            page.snapshot()

    def state() -> tuple[int, int, int]:
        own = len(os.listdir("/proc/self/fd"))
        return own, threading.active_count(), len(descendants())

    for _ in range(max(5, episodes // 10)):
        episode()
    assert eventually(lambda: len(renderers()) == 0)
    before, memory = state(), _resident([os.getpid(), *descendants()])
    for _ in range(episodes):
        episode()
    assert eventually(lambda: all(now <= then + 2 for now, then in zip(state(), before, strict=True))), (before, state())
    return memory, _resident([os.getpid(), *descendants()])


@pytest.mark.browser
def test_episodes_leave_no_processes_or_descriptors(browser: ChromiumBrowser, home: Site) -> None:
    _grows_not(browser, home, 40)


@pytest.mark.browser
@pytest.mark.thorough
def test_many_episodes_leave_no_memory_either(browser: ChromiumBrowser, home: Site) -> None:
    before, after = _grows_not(browser, home, 500)
    assert after - before < 100_000_000

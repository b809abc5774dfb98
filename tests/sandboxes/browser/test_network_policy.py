"""What the policy lets through: names by name, numbers in every spelling, and what a name points to."""

from __future__ import annotations

import copy
import pickle
import socket
import time
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxes.browser import NetworkPolicy, PageProblem
from sandboxes.browser.addresses import join, read_address, read_host

LOOPBACKS = [
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "2130706433",
    "0x7f000001",
    "0X7F.0x0.0.1",
    "0x7f.1",
    "0177.0.0.1",
    "017700000001",
    "127.0.0.1.",
    "%31%32%37.0.0.1",
    "\uff11\uff12\uff17.0.0.1",
    "127\u30020\u30020\u30021",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[0:0:0:0:0:FFFF:7F00:0001]",
]

NOT_PUBLIC = [
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.192", "192.0.2.1", "198.18.0.1", "203.0.113.7"),
    *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "168.63.129.16"),
    *("::", "::1", "::ffff:10.0.0.1", "::127.0.0.1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1"),
    *("2001::1", "2001:db8::1", "2002:7f00:1::", "2002:a00:1::", "64:ff9b::7f00:1", "64:ff9b:1::1", "100::1"),
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1", "64:ff9b::808:808"]


class Names:
    """A name server that knows what it is told; counts what it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **known: list[str]) -> None:
        self.known = {name.replace("_", "."): numbers for name, numbers in known.items()}
        self.asked: list[str] = []
        monkeypatch.setattr(socket, "getaddrinfo", self.look_up)

    def look_up(self, name: str, port: int, **_: Any) -> list[Any]:
        self.asked.append(name)
        if name not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (number, port)) for number in self.known[name]]


def test_nothing_is_allowed_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch, a_test=["8.8.8.8"])
    policy = NetworkPolicy()
    for host in ("a.test", "8.8.8.8", "127.0.0.1", "localhost", "::1"):
        with pytest.raises(PageProblem, match=r"may not be reached from here; allowed: nothing"):
            policy.resolve(host, 80)
    assert names.asked == []  # denied by name, before anything leaves this machine


def test_a_host_means_the_ports_of_http_and_https(monkeypatch: pytest.MonkeyPatch) -> None:
    Names(monkeypatch, a_test=["8.8.8.8"])
    policy = NetworkPolicy(("a.test",))
    assert policy.resolve("a.test", 80) == ("8.8.8.8", 80)
    assert policy.resolve("A.TEST.", 443) == ("8.8.8.8", 443)
    for port in (22, 8080):
        with pytest.raises(PageProblem):
            policy.resolve("a.test", port)
    with pytest.raises(PageProblem):
        policy.resolve("sub.a.test", 80)
    with pytest.raises(PageProblem):
        policy.resolve("nota.test", 80)


def test_a_star_means_the_names_below(monkeypatch: pytest.MonkeyPatch) -> None:
    Names(monkeypatch, x_a_test=["8.8.8.8"], y_x_a_test=["8.8.8.8"])
    policy = NetworkPolicy(("*.a.test", "*.b.test:8000"))
    assert policy.resolve("x.a.test", 80) == policy.resolve("y.x.a.test", 80) == ("8.8.8.8", 80)
    for host, port in (("a.test", 80), ("xa.test", 80), ("x.b.test", 80), ("x.a.test.evil", 80)):
        with pytest.raises(PageProblem, match="may not be reached from here"):
            policy.resolve(host, port)


def test_a_lone_star_means_every_public_host_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    Names(monkeypatch, a_test=["8.8.8.8"], inside_test=["10.0.0.1"], localhost=["127.0.0.1"])
    policy = NetworkPolicy(("*",))
    assert policy.resolve("a.test", 443) == ("8.8.8.8", 443)
    assert policy.resolve("8.8.4.4", 80) == ("8.8.4.4", 80)
    for host in ("inside.test", "localhost", *NOT_PUBLIC):
        with pytest.raises(PageProblem):
            policy.resolve(host, 80)
    with pytest.raises(PageProblem):
        policy.resolve("a.test", 8080)


@pytest.mark.parametrize("spelling", LOOPBACKS)
def test_every_spelling_of_a_number_is_that_number(spelling: str) -> None:
    assert read_host(spelling) == ip_address("127.0.0.1")
    for policy in (NetworkPolicy(("example.org", "127.0.0.2")), NetworkPolicy(("*",))):
        with pytest.raises(PageProblem, match=r"127\.0\.0\.1:80 may not be reached"):
            policy.check_url(f"http://{spelling}/")
        with pytest.raises(PageProblem):
            policy.resolve(spelling, 80)
    allowed = NetworkPolicy(("127.0.0.1:8123",))
    allowed.check_url(f"http://{spelling}:8123/")
    assert allowed.resolve(spelling, 8123) == ("127.0.0.1", 8123)


@pytest.mark.parametrize("number", NOT_PUBLIC)
def test_an_allowed_name_that_points_inside_is_denied(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Names(monkeypatch, a_test=[number])
    with pytest.raises(PageProblem, match=r"a\.test may not be reached: it points to .* which is not public"):
        NetworkPolicy(("a.test",)).resolve("a.test", 80)
    both = NetworkPolicy(("a.test", f"[{number}]:80" if ":" in number else f"{number}:80"))
    assert ip_address(both.resolve("a.test", 80)[0]) == (
        getattr(ip_address(number), "ipv4_mapped", None) or ip_address(number)
    )
    with pytest.raises(PageProblem):
        both.resolve("a.test", 443)  # another port of that address is another service


@pytest.mark.parametrize("number", PUBLIC)
def test_an_allowed_name_that_points_to_a_public_address_is_not(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Names(monkeypatch, a_test=[number])
    assert NetworkPolicy(("a.test",)).resolve("a.test", 80) == (number, 80)


def test_a_name_that_changes_its_mind_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch, a_test=["8.8.8.8"])
    policy = NetworkPolicy(("a.test",))
    assert policy.resolve("a.test", 80) == ("8.8.8.8", 80)
    assert names.asked == ["a.test"]  # once: what was judged is what is connected to
    names.known["a.test"] = ["127.0.0.1"]
    with pytest.raises(PageProblem, match="not public"):
        policy.resolve("a.test", 80)
    names.known["a.test"] = ["127.0.0.1", "8.8.8.8"]
    assert policy.resolve("a.test", 80) == ("8.8.8.8", 80)


def test_names_that_stand_for_a_place() -> None:
    policy = NetworkPolicy(hosts={"Wiki.Test": "127.0.0.1:8123", "six.test:99": "[::1]:70", "local.test": "localhost:9"})
    assert policy.resolve("wiki.test", 80) == policy.resolve("wiki.test.", 443) == ("127.0.0.1", 8123)
    assert policy.resolve("six.test", 99) == ("::1", 70)
    assert policy.resolve("local.test", 80) == ("127.0.0.1", 9)
    for host, port in (("wiki.test", 8123), ("127.0.0.1", 8123), ("six.test", 80), ("a.wiki.test", 80)):
        with pytest.raises(PageProblem, match="may not be reached"):
            policy.resolve(host, port)


def test_localhost_is_a_name_that_must_be_named() -> None:
    assert NetworkPolicy(("localhost:8123",)).resolve("LOCALHOST", 8123) == ("127.0.0.1", 8123)
    assert NetworkPolicy(("*.localhost",)).resolve("a.localhost", 80) == ("127.0.0.1", 80)
    with pytest.raises(PageProblem):
        NetworkPolicy(("127.0.0.1:8123",)).resolve("localhost", 8123)


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "javascript:alert(1)", "data:text/html,x", "chrome://version", "view-source:http://a.test/"),
        *(
            "ftp://a.test/",
            "blob:http://a.test/x",
            "about:config",
            "ws://a.test/",
            "//a.test/",
            "a.test",
            "",
            "http:",
            "http://",
        ),
        *("http://user@a.test/", "http://user:word@a.test/", "http://a.test:word@b.test/", "http://user@b.test@a.test/"),
        *("http://a.test:0/", "http://a.test:65536/", "http://a.test:8o/", "http://[::1/", "http://[fe80::1%25eth0]/"),
        *("http://a..test/", "http://a b.test/", "http://1.2.3.4.5/", "http://256.1.1.1/", "http://0x7g.1/", "http://a.09/"),
        *("http://xn--a\u200d.test/", "http://" + "a" * 300 + ".test/", "http://a.test/" + "x" * 20_000),
    ],
)
def test_what_no_page_may_open(url: str) -> None:
    with pytest.raises(PageProblem):
        NetworkPolicy(("*", "a.test")).check_url(url)


@pytest.mark.parametrize(
    "url",
    ["http://a.test", "HTTPS://A.test:443/", " http://a.test/x y\n", "ht\ntp:\\\\a.test", "http:///a.test/", "about:blank"],
)
def test_what_it_may_open(url: str) -> None:
    NetworkPolicy(("a.test",)).check_url(url)


def test_backslashes_and_at_signs_do_not_hide_the_host() -> None:
    assert read_address("http://a.test\\@b.test/").host == "a.test"
    assert read_address("http://a.test/@b.test/").host == "a.test"
    assert read_address("http://a.test#@b.test/").host == "a.test"
    assert read_address("http://a.test?@b.test/").host == "a.test"


@pytest.mark.parametrize(
    ("spelt", "meant"),
    [
        ("http://a.test", "http://a.test/"),
        ("http://A.TEST:80/%7e?q=a b#é", "http://a.test/%7e?q=a%20b#%C3%A9"),
        ("https://bücher.test:444/../x/./y/..", "https://xn--bcher-kva.test:444/x/"),
        ("http://[2606:4700::0:1111]:81", "http://[2606:4700::1111]:81/"),
    ],
)
def test_addresses_are_written_in_one_way(spelt: str, meant: str) -> None:
    assert str(read_address(spelt)) == meant
    assert str(read_address(meant)) == meant


@given(st.text(max_size=60))
def test_reading_an_address_ends_in_one_or_in_an_error(text: str) -> None:
    for url in (text, f"http://{text}", f"http://a.test/{text}"):
        try:
            address = read_address(url)
        except ValueError:
            continue
        assert str(address).isascii()
        assert read_address(str(address)) == address
    join(read_address("http://a.test/b/c"), text)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["{}", "{:#x}", "0{:o}"]))
def test_one_number_is_four(number: int, spelling: str) -> None:
    assert read_host(spelling.format(number)) == ip_address(number)


def test_a_policy_is_a_value() -> None:
    policy = NetworkPolicy(("a.test",), {"b.test": "127.0.0.1:1"})
    for twin in (
        NetworkPolicy(["a.test"], {"b.test": "127.0.0.1:1"}),
        pickle.loads(pickle.dumps(policy)),
        copy.deepcopy(policy),
    ):  # type: ignore[arg-type]
        assert twin == policy
        assert hash(twin) == hash(policy)
        assert twin.resolve("b.test", 80) == ("127.0.0.1", 1)
    assert policy != NetworkPolicy(("a.test",))
    with pytest.raises(TypeError):
        policy.hosts["c.test"] = "127.0.0.1:2"  # type: ignore[index]


@pytest.mark.parametrize(
    ("allow", "hosts"),
    [
        (("http://a.test",), {}),
        (("a.test/x",), {}),
        (("a.test:port",), {}),
        (("*.127.0.0.1",), {}),
        (("",), {}),
        ("a.test", {}),
        ((), {"a.test": "127.0.0.1"}),
        ((), {"a.test": "b.test:80"}),
        ((), {"a b": "127.0.0.1:80"}),
    ],
)
def test_entries_that_mean_nothing_are_refused(allow: Any, hosts: Any) -> None:
    with pytest.raises(ValueError, match=r"allow|hosts"):
        NetworkPolicy(allow, hosts)


def test_an_unknown_name_and_a_slow_name_server_are_said_to_be_that(monkeypatch: pytest.MonkeyPatch) -> None:
    Names(monkeypatch)
    policy = NetworkPolicy(("a.test",))
    with pytest.raises(PageProblem, match=r"there is no host a\.test") as unknown:
        policy.resolve("a.test", 80)
    assert unknown.value.kind == "error"
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(2))
    began = time.monotonic()
    with pytest.raises(PageProblem, match="not looked up within") as slow:
        policy.resolve("a.test", 80, timeout=0.1)
    assert slow.value.kind == "timeout"
    assert time.monotonic() - began < 1

"""What pages may reach: nothing, but for what is allowed by name.

A policy decides twice. By name, before anything is asked of the network: is this host and port among those allowed? Then by
number: the name is looked up once, the outcome is judged, and that very address is what is connected to. So a name that
points to this machine, to its neighbours or to a cloud's metadata service, at once or at the second look (DNS rebinding),
leads nowhere.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from types import MappingProxyType
from typing import Any

from sandboxes.browser.addresses import DEFAULT_PORTS, Host, read_address, read_authority, read_host
from sandboxes.browser.browser import PageProblem

_RESERVED = tuple(
    ip_network(block)
    for block in (
        # https://www.iana.org/assignments/iana-ipv4-special-registry, all of it, and multicast
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
        *("192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
        "168.63.129.16/32",  # Azure's platform service, which only machines in there can reach
        # the part of global unicast that is special: protocols with Teredo, documentation, 6to4
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "2620:4f:8000::/48"),
    )
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")  # the last 32 bits are an IPv4 address

_Number = IPv4Address | IPv6Address
_Rule = tuple[Host, bool, int]  # host, whether it stands for the names below it, port


@dataclass(frozen=True)
class NetworkPolicy:
    """What may be reached.

    Args:
        allow: ``"host"`` (ports 80 and 443), ``"host:port"``, ``"*.host"`` (every name below it, not itself), or ``"*"`` for
            every public host. A host is a name or a number. A number that is not public (this machine, a private network)
            must be named itself with its port; ``"localhost"`` names 127.0.0.1.
        hosts: Names that stand for an address, mostly on this machine, and are allowed by that:
            ``{"wiki.test": "127.0.0.1:8123"}``. A name without a port stands for its ports 80 and 443.

    Raises:
        ValueError: An entry is none of these.

    Example:
        >>> policy = NetworkPolicy(hosts={"wiki.test": "127.0.0.1:8123"})
        >>> policy.resolve("wiki.test", 80)
        ('127.0.0.1', 8123)
        >>> policy.check_url("http://0x7f.1:8123/")
        Traceback (most recent call last):
        sandboxes.browser.browser.PageProblem: 127.0.0.1:8123 may not be reached from here; allowed: wiki.test
    """

    allow: tuple[str, ...] = ()
    hosts: Mapping[str, str] = field(default_factory=dict)
    _rules: frozenset[_Rule] = field(init=False, repr=False, compare=False)
    _places: Mapping[tuple[Host, int], tuple[_Number, int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.allow, str):
            raise ValueError(f"allow must be several hosts, such as [{self.allow!r}], found {self.allow!r} alone")
        put = object.__setattr__  # a frozen dataclass is filled in this way
        put(self, "allow", tuple(self.allow))
        put(self, "hosts", MappingProxyType(dict(self.hosts)))
        put(self, "_rules", frozenset(rule for entry in self.allow for rule in _read_rules(entry)))
        put(self, "_places", {name: place for entry in self.hosts.items() for name, place in _read_places(*entry)})

    def __hash__(self) -> int:
        return hash((self.allow, frozenset(self.hosts.items())))

    def __reduce__(self) -> tuple[type[NetworkPolicy], tuple[tuple[str, ...], dict[str, str]]]:
        return type(self), (self.allow, dict(self.hosts))

    def check_url(self, url: str) -> None:
        """Whether a page may open that address, as far as its spelling tells; what its name points to is for `resolve`.

        Raises:
            PageProblem: It is none of http, https or about:blank, names a user, or its host is not allowed.
        """
        if url == "about:blank":
            return
        try:
            address = read_address(url)
        except ValueError as problem:
            raise PageProblem(str(problem)) from None
        self._check(address.host, address.port)

    def resolve(self, host: str, port: int, timeout: float = 10.0) -> tuple[str, int]:
        """Where a connection to that host and port must go: the one address that has been judged.

        Args:
            host: A name or a number in any spelling.
            port: From 1 to 65535.
            timeout: Seconds that looking up a name may take.

        Returns:
            A number, as text, and a port.

        Raises:
            PageProblem: That may not be reached, or there is no such name.
        """
        try:
            known = read_host(f"[{host}]" if ":" in host and not host.startswith("[") else host)
        except ValueError as problem:
            raise PageProblem(str(problem)) from None
        self._check(known, port)
        if (known, port) in self._places:
            number, port = self._places[known, port]
            return str(number), port
        if not isinstance(known, str):
            return str(known), port
        if _is_localhost(known) and self._names(known, port):
            return "127.0.0.1", port
        numbers = _look_up(known, port, timeout)
        for number in numbers:
            if _is_public(number) or (number, False, port) in self._rules:
                return str(number), port
        raise PageProblem(f"{known} may not be reached: it points to {numbers[0]}, which is not public")

    def describe(self) -> str:
        """What may be reached, for people and for the agent."""
        names = [*self.hosts, *self.allow]
        return "nothing" if not names else ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

    def _check(self, host: Host, port: int) -> None:
        if (host, port) in self._places or self._names(host, port):
            return
        if self._is_open() and port in DEFAULT_PORTS.values() and (isinstance(host, str) or _is_public(host)):
            return
        raise PageProblem(f"{host}:{port} may not be reached from here; allowed: {self.describe()}")

    def _names(self, host: Host, port: int) -> bool:
        """Whether a rule other than ``"*"`` allows it."""
        if (host, False, port) in self._rules:
            return True
        if not isinstance(host, str):
            return False
        labels = host.split(".")
        return any((".".join(labels[place:]), True, port) in self._rules for place in range(1, len(labels)))

    def _is_open(self) -> bool:
        return ("", True, DEFAULT_PORTS["http"]) in self._rules


def _read_rules(entry: str) -> list[_Rule]:
    if entry == "*":
        return [("", True, port) for port in DEFAULT_PORTS.values()]
    below = entry.startswith("*.")
    try:
        host, port = _read(entry[2:] if below else entry)
        if below and not isinstance(host, str):
            raise ValueError("nothing is below a number")
    except ValueError as problem:
        raise ValueError(f"allow takes 'host', 'host:port', '*.host' or '*', found {entry!r}: {problem}") from None
    return [(host, below, each) for each in ([port] if port else DEFAULT_PORTS.values())]


def _read_places(name: str, place: str) -> list[tuple[tuple[Host, int], tuple[_Number, int]]]:
    try:
        host, port = _read(name)
        number, place_port = _read(place)
        number = IPv4Address("127.0.0.1") if number == "localhost" else number
        if isinstance(number, str) or place_port is None:
            raise ValueError("what it stands for must be a number and a port, such as 127.0.0.1:8123")
    except ValueError as problem:
        raise ValueError(f"hosts maps a name to 'address:port', found {name!r}: {place!r}: {problem}") from None
    return [((host, each), (number, place_port)) for each in ([port] if port else DEFAULT_PORTS.values())]


def _read(entry: str) -> tuple[Host, int | None]:
    try:
        return ip_address(entry), None  # an IPv6 number need not be in brackets
    except ValueError:
        return read_authority(entry)


def _is_localhost(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost")  # RFC 6761, 6.3: no question for DNS


def _is_public(number: _Number) -> bool:
    if isinstance(number, IPv6Address):
        if number in _NAT64:
            return _is_public(IPv4Address(int(number) & 0xFFFF_FFFF))
        if number not in _GLOBAL_UNICAST:
            return False
    return not any(number in block for block in _RESERVED if block.version == number.version)


def _look_up(name: str, port: int, timeout: float) -> list[_Number]:
    """What a name points to, each number once. A thread looks it up, since that call knows no time limit."""
    outcome: queue.SimpleQueue[list[Any] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            outcome.put(socket.getaddrinfo(name, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as problem:
            outcome.put(problem)

    threading.Thread(target=ask, name="browser-look-up", daemon=True).start()
    try:
        found = outcome.get(timeout=max(timeout, 0.001))
    except queue.Empty:
        raise PageProblem(f"the name {name} was not looked up within {timeout:.1f} s", "timeout") from None
    if isinstance(found, Exception):
        raise PageProblem(f"there is no host {name}, or it cannot be looked up: {found}")
    numbers = [ip_address(entry[4][0].partition("%")[0]) for entry in found]
    plain = [number.ipv4_mapped or number if isinstance(number, IPv6Address) else number for number in numbers]
    if not plain:
        raise PageProblem(f"there is no host {name}")
    return list(dict.fromkeys(plain))

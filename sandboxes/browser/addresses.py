"""Web addresses, read as browsers read them.

To a browser ``http://2130706433/``, ``HTTP://0x7f.1`` and an address with backslashes for slashes may all be one place.
Whoever judges an address by its spelling judges another one than the one that is opened. So an address is read once, here,
by the rules that browsers share (https://url.spec.whatwg.org); what is judged and connected to is the outcome.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import quote, unquote_to_bytes, urljoin

import idna

Host = str | IPv4Address | IPv6Address
"""A name in lower case, without a dot at its end, in ASCII; or what a spelling of a number means."""

DEFAULT_PORTS = {"http": 80, "https": 443}

_LONGEST = 16_384  # characters of an address
_EDGES = "".join(map(chr, range(33)))  # control characters and the space, which browsers drop at both ends
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):")
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f#/:<>?@\[\\\]^|%]")  # in a host
_FRAGMENT = "/%:@!$&'()*+,;=~?[]|^{}#\\"
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")


@dataclass(frozen=True)
class Address:
    """An http or https address.

    Args:
        scheme: ``"http"`` or ``"https"``.
        host: A name or a number.
        port: As given, or the scheme's own.
        target: Path and query, percent-encoded, as a request names them.
        fragment: What follows ``#``, or "".
    """

    scheme: str
    host: Host
    port: int
    target: str
    fragment: str = ""

    @property
    def authority(self) -> str:
        """Host and port as in a Host header: the scheme's own port is left out."""
        host = f"[{self.host}]" if isinstance(self.host, IPv6Address) else str(self.host)
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.authority}"

    def __str__(self) -> str:
        return f"{self.origin}{self.target}" + (f"#{self.fragment}" if self.fragment else "")


def read_address(text: str) -> Address:
    """Reads an absolute address.

    Raises:
        ValueError: It is none of http or https, or it names a user, or its host or port is none; the message says which.

    Example:
        >>> str(read_address("HTTP://0x7f.1:80/a b?q=é#top"))
        'http://127.0.0.1/a%20b?q=%C3%A9#top'
    """
    text = _tidy(text)
    if len(text) > _LONGEST:
        raise ValueError(f"an address may have {_LONGEST} characters, found {len(text)}")
    match = _SCHEME.match(text)
    scheme = match[1].lower() if match else ""
    if match is None or scheme not in DEFAULT_PORTS:
        raise ValueError(f"an address begins with http:// or https://, found {_short(text)}")
    rest, _, fragment = text[match.end() :].partition("#")
    rest = rest.lstrip("/\\")
    end = re.search(r"[/\\?]", rest)
    authority, tail = (rest[: end.start()], rest[end.start() :]) if end else (rest, "")
    if "@" in authority:
        raise ValueError(f"an address must not name a user or a password, found {_short(text)}")
    host_text, port = _split_port(authority, text)
    path, mark, query = tail.partition("?")
    target = _without_dots(quote(path.replace("\\", "/") or "/", safe="/%:@!$&'()*+,;=~[]|^"))
    target += mark + quote(query, safe="/%:@!$&()*+,;=~?[]|^`{}\\")
    return Address(
        scheme,
        read_host(host_text),
        DEFAULT_PORTS[scheme] if port is None else port,
        target,
        quote(fragment, safe=_FRAGMENT),
    )


def join(base: Address, reference: str) -> str:
    """What a reference on a page means there, as text; it may be of any scheme."""
    reference = _tidy(reference)
    path, mark, fragment = reference.partition("#")
    if not _SCHEME.match(path):
        before, question, query = path.partition("?")
        path = before.replace("\\", "/") + question + query
    try:
        return urljoin(str(base), path + mark + fragment)
    except ValueError:  # brackets that hold no number, and the like
        return reference


def read_host(text: str) -> Host:
    """Reads a host: numbers in all spellings that browsers know, names in upper case or in other scripts.

    Raises:
        ValueError: It is no host.

    Example:
        >>> read_host("0177.0.0.1"), read_host("[::ffff:127.0.0.1]"), read_host("Bücher.Example.")
        (IPv4Address('127.0.0.1'), IPv4Address('127.0.0.1'), 'xn--bcher-kva.example')
    """
    if text.startswith("[") and text.endswith("]"):
        if "%" in text:
            raise ValueError(f"a host must not name a network interface, found {_short(text)}")
        number = IPv6Address(text[1:-1])
        return number.ipv4_mapped or number
    name = unquote_to_bytes(text).decode("utf-8", "replace")
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode()
        except (idna.IDNAError, UnicodeError) as problem:
            raise ValueError(f"{_short(text)} is no host's name: {problem}") from None
    name = name.lower()
    name = name[:-1] if name.endswith(".") else name
    if not name or len(name) > 253 or _FORBIDDEN.search(name):
        raise ValueError(f"{_short(text)} is no host's name")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return _ipv4(labels, text)
    if "" in labels:
        raise ValueError(f"{_short(text)} is no host's name")
    return name


def read_authority(text: str) -> tuple[Host, int | None]:
    """Reads ``host`` or ``host:port``.

    Raises:
        ValueError: It is neither.
    """
    host, port = _split_port(text, text)
    return read_host(host), port


def _split_port(authority: str, whole: str) -> tuple[str, int | None]:
    host, colon, digits = authority.rpartition(":")
    if not colon or "]" in digits:
        return authority, None
    if not digits:
        return host, None
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 5 or not 0 < int(digits) < 65_536:
        raise ValueError(f"a port is a number from 1 to 65535, found {_short(digits)} in {_short(whole)}")
    return host, int(digits)


def _ipv4(labels: list[str], text: str) -> IPv4Address:
    problem = ValueError(f"{_short(text)} ends like a number but is none of a host")
    if len(labels) > 4 or not all(_NUMBER.fullmatch(label) for label in labels):
        raise problem
    values = [_number(label) for label in labels]
    if None in values:
        raise problem
    *first, last = (value or 0 for value in values)
    if any(value > 255 for value in first) or last >= 256 ** (4 - len(first)):
        raise problem
    return IPv4Address(sum(value << (24 - 8 * place) for place, value in enumerate(first)) + last)


def _number(label: str) -> int | None:
    """What a label means: hexadecimal after 0x, octal after 0, else decimal."""
    label = label.lower()
    digits, base = (label[2:], 16) if label.startswith("0x") else (label, 8 if len(label) > 1 and label[0] == "0" else 10)
    try:
        return int(digits, base) if digits else 0
    except ValueError:
        return None


def _without_dots(path: str) -> str:
    """The path without ``.`` and ``..``."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for place, segment in enumerate(segments):
        plain = segment.lower().replace("%2e", ".")
        if plain == ".." and kept:
            kept.pop()
        if plain not in (".", ".."):
            kept.append(segment)
        elif place == len(segments) - 1:
            kept.append("")
    return "/" + "/".join(kept)


def _tidy(text: str) -> str:
    return re.sub(r"[\t\n\r]", "", text.strip(_EDGES)).encode("utf-8", "replace").decode()


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")

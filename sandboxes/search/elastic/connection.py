"""Where an Elasticsearch index is, and how to log in there."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from urllib.parse import unquote, urlsplit

_FORM = "elasticsearch://[USER:PASSWORD@]HOST[:PORT]/INDEX, or elasticsearch+https:// for TLS"
_SCHEMES = {"elasticsearch": "http", "elasticsearch+https": "https"}
_INDEX_NAME = re.compile(r"[^\sA-Z\\/*?\"<>|,#:_+.-][^\sA-Z\\/*?\"<>|,#:]*")  # one index, neither a pattern nor a list
_DEFAULT_PORT = 9200


@dataclass(frozen=True)
class Connection:
    """How to talk to a server.

    Args:
        user, password: Basic authentication, where there is a user.
        api_key: An API key in its encoded form, instead of a user.
        ca_certs: File of the certificate authorities to trust for TLS; those that come with Python's ``certifi`` by default.
        verify_certs: Whether the server's certificate must be one of theirs.
        timeout: Seconds that one call may take, with all it tries again.

    Raises:
        ValueError: There is a user and an API key, a password alone, or a ``timeout`` that is not above 0.
    """

    user: str = ""
    password: str = field(default="", repr=False)
    api_key: str = field(default="", repr=False)
    ca_certs: str | None = None
    verify_certs: bool = True
    timeout: float = 10.0

    def __post_init__(self) -> None:
        if self.user and self.api_key:
            raise ValueError("a connection logs in with a user or with an API key, found both")
        if self.password and not self.user:
            raise ValueError("a connection's password belongs to a user, found a password alone")
        if not self.timeout > 0:
            raise ValueError(f"timeout of a connection must be above 0 seconds, found {self.timeout!r}")

    @property
    def who(self) -> str:
        """Who logs in, for people."""
        return "the API key" if self.api_key else f"user {self.user!r}" if self.user else "a caller who does not log in"


@dataclass(frozen=True)
class Address:
    """An index on a server.

    Args:
        url: Of the server, without user and password.
        index: Its name.
    """

    url: str
    index: str

    def __str__(self) -> str:
        scheme, _, place = self.url.partition("://")
        ours = next(name for name, theirs in _SCHEMES.items() if theirs == scheme)
        return f"{ours}://{place}/{self.index}"


def read_address(where: str, connection: Connection) -> tuple[Address, Connection]:
    """Takes an address apart.

    Args:
        where: Such as ``elasticsearch://localhost:9200/wiki``. User and password in it are percent-encoded.
        connection: How to talk to the server there.

    Returns:
        The address, and the connection with the user of the address.

    Raises:
        ValueError: It is no such address, or names a user where the connection logs in too.
    """
    hidden = re.sub(r"//.*@", "//***@", where)  # the message of a mistake must not show a password
    try:
        parts = urlsplit(where)
        host, port = parts.hostname, parts.port or _DEFAULT_PORT
    except ValueError as problem:
        raise ValueError(f"expected {_FORM}, found {hidden!r}: {problem}") from None
    path, _, index = parts.path.rstrip("/").rpartition("/")
    if parts.scheme not in _SCHEMES or not host or parts.query or parts.fragment:
        raise ValueError(f"expected {_FORM}, found {hidden!r}")
    if not _INDEX_NAME.fullmatch(index) or len(index.encode()) > 255:
        raise ValueError(
            f"expected the name of one index after the host of {hidden!r}, found {index!r}: lower-case letters, digits, "
            "'-', '_' and '.', with a letter or digit first"
        )
    if parts.username is not None:
        if connection.user or connection.api_key:
            raise ValueError(f"{hidden!r} names a user, and the connection logs in as {connection.who}: name one of them")
        connection = replace(connection, user=unquote(parts.username), password=unquote(parts.password or ""))
    netloc = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Address(f"{_SCHEMES[parts.scheme]}://{netloc}{path}", index), connection

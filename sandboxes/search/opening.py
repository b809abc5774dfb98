"""Opening an index by where it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sandboxes import shared
from sandboxes.faults import SandboxFault
from sandboxes.search.bm25 import SETTINGS_FILE, Bm25Index
from sandboxes.search.elasticsearch import Connection, open_elasticsearch
from sandboxes.search.index import Index, Passage
from sandboxes.search.remote import RemoteIndex

_ELASTICSEARCH = ("elasticsearch", "elasticsearch+https")
_REMOTE = ("http", "https")


def open_index(
    where: str | os.PathLike[str],
    *,
    mmap: bool | None = None,
    connection: Connection | None = None,
    timeout: float | None = None,
) -> Index:
    """Opens a search index. What is opened twice in a process is opened once and shared, until its last user closes it.

    Args:
        where: A folder that ``python -m sandboxes.search index`` or `Bm25Index.save` wrote;
            ``elasticsearch://host:9200/name``, or with ``elasticsearch+https://``; or the ``http(s)://host:8000/retrieve``
            of a server that speaks Search-R1's format.
        mmap: Of a folder: map its files into memory (the default), or read all of them now.
        connection: Of Elasticsearch: how to log in there.
        timeout: Of an http server: seconds that a call may take, all tries together; 30 by default.

    Returns:
        The index; close it, or use it as a context manager. A forked child that goes on using it opens its own.

    Raises:
        SandboxFault: There is no index, or it cannot be reached; the message says what to do.
        ValueError: ``where`` is no such address, or an argument is one of another kind of index.
    """
    place = os.fspath(where)
    scheme = urlsplit(place).scheme if "://" in place else ""
    opened: dict[str, object] = {"mmap": mmap, "connection": connection, "timeout": timeout}
    own = "connection" if scheme in _ELASTICSEARCH else "timeout" if scheme in _REMOTE else "mmap"
    for name, value in opened.items():
        if name != own and value is not None:
            raise ValueError(f"{name} is an argument of another kind of index than {place!r}, which takes {own}")
    start: Callable[[], Index]
    if scheme in _ELASTICSEARCH:
        login = connection or Connection()
        key: Hashable = ("elasticsearch", place, login)
        start = lambda: open_elasticsearch(place, login)  # noqa: E731
    elif scheme in _REMOTE:
        limit = 30.0 if timeout is None else timeout
        key = ("remote", place, limit)
        start = lambda: RemoteIndex(place, limit)  # noqa: E731
    elif scheme:
        schemes = ", ".join(f"{name}://" for name in _ELASTICSEARCH + _REMOTE)
        raise ValueError(f"an index is a folder, or an address that begins with {schemes}; found {scheme}://")
    else:
        mapped = mmap is not False
        key = ("bm25", _identity(Path(place)), mapped)
        start = lambda: Bm25Index.load(place, mmap=mapped)  # noqa: E731
    return SharedIndex(lambda: shared.acquire(key, lambda: _Engine(start())))


def share_index(key: Hashable, build: Callable[[], Index]) -> Index:
    """Opens an index that is built in this process: once, by the first who asks, for all who ask for the same key.

    Args:
        key: Names what is built.
        build: Makes the index. It stays until this process ends, or until `sandboxes.shared.close_idle` finds it unused.

    Returns:
        A share of the index; close it, or use it as a context manager. A forked child that goes on using it builds its own.
    """
    return SharedIndex(lambda: shared.acquire(("index", key), lambda: _Engine(build()), linger=True))


def _identity(folder: Path) -> tuple[str, int, int]:
    """Which index a folder holds now: a rebuilt one is another."""
    try:
        settings = (folder / SETTINGS_FILE).stat()
    except OSError:
        return str(folder), 0, 0  # loading it says what is wrong
    return str(folder.resolve()), settings.st_ino, settings.st_mtime_ns


@dataclass(frozen=True)
class _Engine:
    """An index as what can be shared."""

    index: Index

    @property
    def alive(self) -> bool:
        return True  # an index whose server went away reaches it again when it is back

    def close(self) -> None:
        self.index.close()


class SharedIndex(Index):
    """One user's share of an index of this process.

    Args:
        borrow: Takes a share.
    """

    def __init__(self, borrow: Callable[[], shared.Lease[_Engine]]) -> None:
        self._borrow = borrow
        self._lease: shared.Lease[_Engine] | None = borrow()
        self._process = os.getpid()

    def search(self, queries: Sequence[str], k: int = 3) -> list[list[Passage]]:
        return self._index().search(queries, k)

    async def search_async(self, queries: Sequence[str], k: int = 3) -> list[list[Passage]]:
        return await self._index().search_async(queries, k)

    def get(self, id: str) -> Passage:
        return self._index().get(id)

    def __len__(self) -> int:
        return len(self._index())

    def describe(self) -> str:
        return self._index().describe()

    def close(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.close()

    def _index(self) -> Index:
        lease = self._lease
        if lease is None:
            raise SandboxFault("this search index is closed: open it again")
        if self._process != os.getpid():  # the parent's share, with its sockets and locks, is not for a forked child
            lease = self._lease = self._borrow()
            self._process = os.getpid()
        return lease.engine.index

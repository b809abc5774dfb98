"""Expensive engines, shared by everything in a process that needs the same one.

A browser, a warm interpreter or a loaded index costs a good part of a second or a gigabyte, so the environments of one
process share it. `acquire` hands out a lease; the engine starts with the first lease of its key and ends after the last
one, at once or, with ``linger=True``, when the process exits or `close_idle` is called, so that opening and closing in a
loop pays the start only once. An engine that died is replaced by the next `acquire`.

Engines belong to the process that started them. A forked child (a data loader's worker, a Gymnasium worker) starts with none
of them and never touches its parent's: keys count per process id.

This module's table is the only mutable module-level state of the whole project.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar, cast


class Engine(Protocol):
    """What can be shared."""

    @property
    def alive(self) -> bool:
        """Whether the engine still works; a dead one is closed and replaced."""

    def close(self) -> None:
        """Ends the engine and waits until it is gone. Called only by the process that started it."""


EngineType = TypeVar("EngineType", bound=Engine)


@dataclass
class _Entry:
    """An engine and who uses it. ``starting`` makes latecomers wait for the first one's start."""

    starting: threading.Lock = field(default_factory=threading.Lock)
    engine: Engine | None = None
    leases: int = 0
    linger: bool = False


class Lease(Generic[EngineType]):
    """One user's share of an engine. Closing it twice is fine; in a forked child it does nothing."""

    def __init__(self, table: _Table, slot: tuple[int, Hashable], entry: _Entry, engine: EngineType) -> None:
        self.engine = engine
        self._table = table
        self._slot = slot
        self._entry = entry
        self._closed = False

    def close(self) -> None:
        if not self._closed and self._slot[0] == os.getpid():
            self._closed = True
            self._table.release(self._slot, self._entry, self.engine)


class _Table:
    """The engines of this process by (process id, key). Safe for threads; a fork of the process sees an empty table."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[tuple[int, Hashable], _Entry] = {}
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        # Another thread of the parent may have held the lock at the fork; the engines are the parent's.
        self._lock = threading.Lock()
        self._entries = {}

    def acquire(self, key: Hashable, factory: Callable[[], EngineType], linger: bool) -> Lease[EngineType]:
        slot = (os.getpid(), key)
        while True:
            with self._lock:
                entry = self._entries.setdefault(slot, _Entry(linger=linger))
                entry.leases += 1
            try:
                with entry.starting:
                    if entry.engine is None:
                        entry.engine = factory()
                    engine = cast(EngineType, entry.engine)
            except BaseException:
                self.release(slot, entry, None)
                raise
            if engine.alive:
                return Lease(self, slot, entry, engine)
            with self._lock:
                if self._entries.get(slot) is entry:
                    del self._entries[slot]
            self.release(slot, entry, engine)

    def release(self, slot: tuple[int, Hashable], entry: _Entry, engine: Engine | None) -> None:
        with self._lock:
            entry.leases -= 1
            current = self._entries.get(slot) is entry
            unused = entry.leases == 0 and not (current and entry.linger and entry.engine is not None)
            if unused and current:
                del self._entries[slot]
        if unused and engine is not None:
            engine.close()

    def close_idle(self) -> None:
        with self._lock:
            idle = [slot for slot, entry in self._entries.items() if entry.leases == 0]
            engines = [self._entries.pop(slot).engine for slot in idle]
        for engine in engines:
            if engine is not None:
                engine.close()

    def close_all(self) -> None:
        with self._lock:
            engines = [entry.engine for entry in self._entries.values()]
            self._entries.clear()
        for engine in engines:
            if engine is not None:
                engine.close()


_table = _Table()
atexit.register(_table.close_all)


def acquire(key: Hashable, factory: Callable[[], EngineType], *, linger: bool = False) -> Lease[EngineType]:
    """Shares the engine of ``key`` in this process, starting it where there is none yet.

    Args:
        key: Names the engine; everything that makes two engines different belongs into it.
        factory: Starts the engine. Concurrent callers of one key wait for a single start.
        linger: Keep the engine after its last lease until the process exits or `close_idle` is called.

    Returns:
        A lease; its ``engine`` is alive at this moment, and ``close`` gives the share back.

    Raises:
        Whatever ``factory`` raises.
    """
    return _table.acquire(key, factory, linger)


def close_idle() -> None:
    """Ends the lingering engines of this process that nobody uses."""
    _table.close_idle()

"""Verdicts that cost a request, kept: in memory, and in a file that many processes may share."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from agent_envs.faults import EnvironmentFault

_LOCK_SECONDS = 30.0


class VerdictCache:
    """Yes or no by key. Safe for threads: who asks for a key that another thread is finding out waits for that one.

    Args:
        path: An SQLite file that is made where there is none; "" for memory alone.
        size: How many verdicts are kept in memory; the file keeps all.

    Raises:
        EnvironmentFault: The file cannot be made or read.
    """

    def __init__(self, path: str, size: int = 100_000) -> None:
        self.path = path
        self.size = size
        self._lock = threading.Lock()
        self._known: OrderedDict[str, bool] = OrderedDict()
        self._pending: dict[str, Future[bool]] = {}
        if path:
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise _unusable(path, error) from error
            self._execute("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, correct INTEGER NOT NULL)")

    def find(self, key: str, find_out: Callable[[], bool]) -> bool:
        """The verdict of ``key``; ``find_out`` is called where it is not known, and its errors are kept by nobody.

        Raises:
            EnvironmentFault: The file cannot be used, or the thread that was finding out failed.
            Exception: Whatever ``find_out`` raises.
        """
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
            pending = self._pending.get(key)
            if pending is None:
                mine = self._pending[key] = Future[bool]()
        if pending is not None:
            return _result(pending)
        try:
            verdict = self._load(key)
            if verdict is None:
                verdict = find_out()
                self._save(key, verdict)
            with self._lock:
                self._known[key] = verdict
                if len(self._known) > self.size:
                    self._known.popitem(last=False)
            mine.set_result(verdict)
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._pending[key]
        return verdict

    def _load(self, key: str) -> bool | None:
        rows = self._execute("SELECT correct FROM verdicts WHERE key = ?", key) if self.path else []
        return bool(rows[0][0]) if rows else None

    def _save(self, key: str, verdict: bool) -> None:
        if self.path:
            self._execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", key, int(verdict))

    def _execute(self, statement: str, *values: str | int) -> list[tuple[int]]:
        # A connection each time: they belong to one thread and to one side of a fork, and cost little beside a request.
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=_LOCK_SECONDS)) as connection, connection:
                return connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise _unusable(self.path, error) from error


def _result(pending: Future[bool]) -> bool:
    try:
        return pending.result()
    except EnvironmentFault as fault:  # an exception object belongs to the thread that raised it
        raise EnvironmentFault(str(fault), fault.component, fault.retryable) from fault
    except BaseException as error:
        raise EnvironmentFault(f"the same request failed in another thread: {error!r}", "verifier", True) from error


def _unusable(path: str, error: Exception) -> EnvironmentFault:
    return EnvironmentFault(
        f"the cache of verdicts {path} cannot be used ({error}): see that the disk has room and that the file may be "
        "written, or delete it if it is broken",
        "verifier",
    )

"""Warm interpreters: families that stand ready before anybody asks, bounded in number and cleaned between their users.

A pool hands out families of the kind that its ``start`` makes. What is given back is cleaned in the background and stands
ready again, or is ended and replaced when it may not serve another family. Whoever asks and finds none ready cleans one or
starts one in his own thread, so a pool is never slower than none. With ``warm=0`` nothing is kept and no thread runs.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from sandboxes.faults import SandboxFault
from sandboxes.python.family import Family

logger = logging.getLogger(__name__)

MOST = 512
LINGER_SECONDS = 60.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds until the next start ahead of need after one that failed; twice as long after each failure."""
LOOK_SECONDS = 1.0
"""How often those in the line look whether anything moves on."""
ENDING_SECONDS = 5.0
"""How long `Pool.close` waits for a start that is under way; the family is then ended by the thread that starts it."""


class Pool:
    """A stock of families. Any thread may use it.

    Args:
        start: Starts a family; called from many threads at once.
        warm: How many are to stand ready.
        most: How many may be alive at one time: in use, ready, being started, cleaned or ended.
        linger: Seconds that more than ``warm`` may stay ready when nobody asks for them.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self, start: Callable[[], Family], *, warm: int = 0, most: int = MOST, linger: float = LINGER_SECONDS
    ) -> None:
        if most < 1 or linger < 0:
            raise ValueError(f"expected most >= 1 and linger >= 0 of a pool, found most={most!r}, linger={linger!r}")
        self._start = start
        self._most = most
        self._linger = linger
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._line: deque[threading.Condition] = deque()  # who waits for a family; first come, first served
        self._ready: deque[tuple[float, Family]] = deque()  # since when; the last one is handed out first
        self._returned: deque[Family] = deque()  # to be cleaned
        self._spent: deque[Family] = deque()  # to be ended
        self._lent: set[Family] = set()
        self._living = 0
        self._starting = 0  # by keepers
        self._starting_here = 0  # by those who asked
        self._last_start = float("-inf")
        self._renewing = 0
        self._pause = FIRST_PAUSE
        self._next_start = 0.0
        self._warm = 0
        self._keepers: list[threading.Thread] = []
        self._closed = False
        self.want(warm)

    @property
    def alive(self) -> bool:
        """Whether families can be taken."""
        return not self._closed

    def want(self, warm: int) -> None:
        """Has at least ``warm`` families stand ready from now on.

        Raises:
            ValueError: ``warm`` is below 0 or more than the pool may have.
        """
        if not 0 <= warm <= self._most:
            raise ValueError(f"expected 0 to {self._most} warm interpreters, as many as the pool may have, found {warm!r}")
        with self._lock:
            self._check_open()
            self._warm = max(self._warm, warm)
            if self._warm and not self._keepers:
                self._keepers = [
                    threading.Thread(target=self._keep, name=f"interpreter-pool-{number}", daemon=True)
                    for number in range(_most_starts() + _most_cleanings())
                ]
                for keeper in self._keepers:
                    keeper.start()
            self._work.notify_all()

    def take(self, timeout: float = 60.0) -> Family:
        """A clean family: a ready one at once, else one that is cleaned or started now.

        Where many ask at once, a few are started at a time, so that each comes soon and all of them no later.

        Args:
            timeout: Seconds to wait for one to be given back where there are as many as there may be, and seconds in which
                not one start of anybody's succeeds.

        Raises:
            SandboxFault: None could be started, none was given back in time, or the pool is closed.
        """
        self._check_process()
        deadline = time.monotonic() + timeout
        while True:
            family, clean = self._wait_for_turn(deadline, timeout)
            if family is None:
                return self._start_here()
            if clean or self._renew_here(family):
                return family

    def give_back(self, family: Family) -> None:
        """Takes back a family that `take` or `exchange` handed out; what is still in it is ended.

        Raises:
            ValueError: It is not in use, or it is another pool's.
        """
        if self._owner != os.getpid():
            return
        with self._lock:
            self._check_lent(family)
            self._lent.remove(family)
            kept = self._warm > 0 and not self._closed
            if kept:
                self._receive(family)
        if not kept:
            self._end(family)

    def exchange(self, family: Family) -> Family:
        """A clean family for a used one: a ready one if there is, else the same one cleaned, else another one.

        Raises:
            SandboxFault: As in `take`; the used one is given back all the same.
            ValueError: It is not in use, or it is another pool's.
        """
        self._check_process()
        with self._lock:
            self._check_lent(family)
            if not self._closed and (ready := self._pop_ready()) is not None:
                self._lent.remove(family)
                self._lent.add(ready)
                self._receive(family)
                return ready
        if not self._closed and _renewable(family):
            if self._renew_here(family):
                return family
        else:
            self.give_back(family)
        return self.take()

    def close(self) -> None:
        """Ends all that are ready, and those in use when they are given back. Twice is fine."""
        if self._owner != os.getpid():
            return
        with self._lock:
            self._closed = True
            self._spent.extend(family for _, family in self._ready)
            self._spent.extend(self._returned)
            self._ready.clear()
            self._returned.clear()
            self._work.notify_all()
            for turn in self._line:
                turn.notify()
        while True:
            with self._lock:
                if not self._spent:
                    break
                family = self._spent.popleft()
            self._end(family)
        deadline = time.monotonic() + ENDING_SECONDS
        for keeper in self._keepers:
            keeper.join(max(0.0, deadline - time.monotonic()))

    # In the thread of whoever asks

    def _wait_for_turn(self, deadline: float, timeout: float) -> tuple[Family | None, bool]:
        """A family and whether it is clean; None for leave to start one."""
        turn = threading.Condition(self._lock)
        with self._lock:
            self._line.append(turn)
            try:
                while True:
                    self._check_open()
                    if self._line[0] is turn:
                        if (ready := self._pop_ready()) is not None:
                            self._lent.add(ready)
                            return ready, True
                        if self._returned:
                            self._lent.add(self._returned[-1])
                            return self._returned.pop(), False
                        if self._living < self._most and self._starting_here < _most_starts_by_takers():
                            self._starting_here += 1
                            self._living += 1
                            return None, False
                    turn.wait(self._patience(deadline, timeout))
            finally:
                self._line.remove(turn)
                self._notify()

    def _patience(self, deadline: float, timeout: float) -> float:
        """Seconds until somebody in the line looks again; raises ``SandboxFault`` when he has waited for long enough."""
        now = time.monotonic()
        if self._living >= self._most:
            if now < deadline:
                return deadline - now
            raise SandboxFault(
                f"expected one of the {self._most} interpreters that there may be to be given back within {timeout:g} s, "
                "found all in use: close some, or allow the pool more",
                retryable=True,
            )
        if now < max(deadline, self._last_start + timeout):
            return LOOK_SECONDS
        raise SandboxFault(
            f"expected an interpreter to be started within {timeout:g} s, found {self._starting_here} that others wait for "
            "still on their way: is the machine overloaded, or the engine stuck?",
            retryable=True,
        )

    def _start_here(self) -> Family:
        family = None
        try:
            family = self._start()
            return family
        finally:
            with self._lock:
                self._starting_here -= 1
                if family is None:
                    self._living -= 1
                else:
                    self._lent.add(family)
                    self._note_start()
                self._notify()

    def _renew_here(self, family: Family) -> bool:
        clean = False
        try:
            family.renew()
            clean = True
        except SandboxFault as fault:
            logger.info("an interpreter could not be cleaned, and is ended: %s", fault)
        finally:
            if not clean:
                with self._lock:
                    self._lent.remove(family)
                self._end(family)
        return clean

    # In the background

    def _keep(self) -> None:
        while True:
            with self._lock:
                while (job := self._next_job()) is None:
                    if self._closed:
                        return
                    self._work.wait(self._seconds_to_next_job())
            job()

    def _next_job(self) -> Callable[[], None] | None:
        now = time.monotonic()
        if len(self._ready) > self._warm and now - self._ready[0][0] >= self._linger:
            self._spent.append(self._ready.popleft()[1])
        if self._spent:
            return partial(self._end, self._spent.popleft())
        if self._returned:
            self._renewing += 1
            return partial(self._renew, self._returned.popleft())
        if self._is_short() and self._starting < _most_starts() and now >= self._next_start:
            self._starting += 1
            self._living += 1
            return self._start_ahead
        return None

    def _is_short(self) -> bool:
        coming = len(self._ready) + self._starting + self._renewing
        return not self._closed and coming < self._warm and self._living < self._most

    def _seconds_to_next_job(self) -> float | None:
        """Seconds until there is something to do without anybody saying so; None for never."""
        waits = []
        now = time.monotonic()
        if len(self._ready) > self._warm:
            waits.append(self._ready[0][0] + self._linger - now)
        if self._is_short() and self._next_start > now:
            waits.append(self._next_start - now)
        return max(0.0, min(waits)) if waits else None

    def _start_ahead(self) -> None:
        try:
            family = self._start()
        except Exception as problem:
            expected = isinstance(problem, SandboxFault)
            with self._lock:
                pause, self._pause = self._pause, min(LONGEST_PAUSE, 2 * self._pause)
                self._next_start = time.monotonic() + pause
                self._starting -= 1
                self._living -= 1
                self._notify()
            logger.warning("no interpreter could be started ahead; next in %g s: %s", pause, problem, exc_info=not expected)
            return
        with self._lock:
            self._note_start()
            self._starting -= 1
            self._stock(family)

    def _renew(self, family: Family) -> None:
        clean = False
        try:
            family.renew()
            clean = True
        except Exception as problem:
            expected = isinstance(problem, SandboxFault)
            logger.info("an interpreter could not be cleaned, and is ended: %s", problem, exc_info=not expected)
        with self._lock:
            self._renewing -= 1
            if clean:
                self._stock(family)
            else:
                self._spent.append(family)

    def _end(self, family: Family) -> None:
        _close(family)
        with self._lock:
            self._living -= 1
            self._notify()

    # With the lock held

    def _note_start(self) -> None:
        self._pause = FIRST_PAUSE
        self._last_start = time.monotonic()

    def _receive(self, family: Family) -> None:
        """Puts a used family where the keepers clean or end it."""
        (self._returned if _renewable(family) else self._spent).append(family)
        self._notify()

    def _stock(self, family: Family) -> None:
        """Puts a clean family among the ready ones."""
        if self._closed:
            self._spent.append(family)
        else:
            self._ready.append((time.monotonic(), family))
        self._notify()

    def _pop_ready(self) -> Family | None:
        """A ready family that still lives."""
        while self._ready:
            _, family = self._ready.pop()
            self._work.notify()
            if family.alive:
                return family
            logger.info("an interpreter died while it stood ready")
            self._spent.append(family)
        return None

    def _notify(self) -> None:
        """Something has changed: a keeper looks for work, and who is first in the line whether it is his turn."""
        self._work.notify()
        if self._line:
            self._line[0].notify()

    def _check_lent(self, family: Family) -> None:
        if family not in self._lent:
            raise ValueError("expected an interpreter of this pool that is in use, found another pool's, or one given back")

    def _check_open(self) -> None:
        if self._closed:
            raise SandboxFault("the interpreter pool is closed: open another one")

    def _check_process(self) -> None:
        if self._owner != os.getpid():
            raise SandboxFault(f"the interpreter pool belongs to process {self._owner}: open one in process {os.getpid()}")


def _most_starts() -> int:
    """How many are started at once in the background. A start keeps a core busy; the other half is for those at work."""
    return min(8, max(1, (os.cpu_count() or 1) // 2))


def _most_starts_by_takers() -> int:
    """How many are started at once by those who asked for one."""
    return max(4, 2 * (os.cpu_count() or 1))


def _most_cleanings() -> int:
    """How many threads are there for cleaning even while all starts are under way."""
    return min(4, os.cpu_count() or 1)


def _renewable(family: Family) -> bool:
    return family.alive and (family.uses_left is None or family.uses_left > 0)


def _close(family: Family) -> None:
    try:
        family.close()
    except Exception:
        logger.warning("an interpreter could not be ended properly", exc_info=True)

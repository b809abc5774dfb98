"""An interpreter in a sandbox, as its caller has it: one branch of a family, whichever launcher started that."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from sandboxes import shared
from sandboxes.faults import SandboxFault
from sandboxes.python.family import Family, SandboxEnded
from sandboxes.python.interpreter import Done, ForkRefused, Interpreter, Limits, Protection, check_timeout
from sandboxes.python.pool import Pool

ALL_GONE = "The interpreter starts afresh: variables, imports and files are gone."


class SandboxedInterpreter(Interpreter):
    """An interpreter of a pool; `open_interpreter` makes it.

    Args:
        borrow: Leases the pool.
        limits: What it may use.
        seed: Seeds its random generators.
    """

    def __init__(self, borrow: Callable[[], shared.Lease[Pool]], limits: Limits, seed: int) -> None:
        self._borrow = borrow
        self._limits = limits
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._closed = False
        self._seed = check_seed(seed)
        self._seed_told = False
        self._branch = 0
        self._lease = borrow()
        self._family: Family | None = None
        self._ended = False  # its sandbox was the code's victim: the next call finds another
        try:
            self._family = self._lease.engine.take()
        except BaseException:
            self._lease.close()
            raise
        self._protection = self._family.protection

    def run(self, code: str, timeout: float | None = None, display: bool = False) -> Done:
        if not isinstance(code, str):
            raise TypeError(f"code must be a string of Python, found {type(code).__name__}")
        seconds = self._limits.timeout if timeout is None else check_timeout(timeout)
        with self._lock:
            family = self._usable()
            request: dict[str, Any] = {"op": "run", "code": code, "timeout": seconds, "display": bool(display)}
            if not self._seed_told:
                request["seed"] = self._seed
            try:
                answer = family.ask(self._branch, request, seconds)
            except SandboxEnded as end:
                self._give_up()
                self._ended = True
                error = f"The interpreter's sandbox {end}. {ALL_GONE}"
                return Done("", error, "killed", 0.0, truncated=False, state_lost=True)
            except SandboxFault:
                self._give_up()
                raise
            self._seed_told = True
        return Done(
            stdout=answer["stdout"],
            error=answer["error"],
            status=answer["status"],
            seconds=answer["seconds"],
            truncated=answer["truncated"],
            state_lost=answer["state_lost"],
        )

    def fork(self) -> SandboxedInterpreter:
        with self._lock:
            family = self._usable()
            try:
                answer = family.fork(self._branch)
            except SandboxEnded as end:
                self._give_up()
                raise SandboxFault(f"the interpreter's sandbox {end}: reset the interpreter", retryable=True) from end
            except SandboxFault:
                self._give_up()
                raise
            if "refused" in answer:
                raise ForkRefused(f"this interpreter cannot be copied as it is: {answer['refused']}")
            twin = SandboxedInterpreter.__new__(SandboxedInterpreter)
            twin.__dict__.update(self.__dict__)
            twin._lock = threading.Lock()
            twin._lease = self._borrow()
            twin._branch = answer["forked"]
            return twin

    def reset(self, seed: int = 0) -> None:
        with self._lock:
            self._check_open()
            self._seed, self._seed_told, self._ended = check_seed(seed), False, False
            family, self._family = self._family, None
            branch, self._branch = self._branch, 0
            if family is None or not family.is_alone(branch):
                if family is not None:
                    family.leave(branch)
                self._family = self._lease.engine.take()
            else:
                self._family = self._lease.engine.exchange(family)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._owner == os.getpid():
            self._give_up()
            self._lease.close()

    def describe(self) -> Protection:
        self._check_open()
        return self._protection

    def _usable(self) -> Family:
        self._check_open()
        if self._ended:
            self._family, self._branch = self._lease.engine.take(), 0
            self._seed_told = self._ended = False
        if self._family is None:
            raise SandboxFault("the interpreter's engine is gone: reset the interpreter", retryable=True)
        return self._family

    def _check_open(self) -> None:
        if self._closed:
            raise SandboxFault("the interpreter is closed: open another one")
        if self._owner != os.getpid():
            raise SandboxFault(f"the interpreter belongs to process {self._owner}: open one in process {os.getpid()}")

    def _give_up(self) -> None:
        """Leaves the family; wakes a call that is under way in another thread, which ends with a fault."""
        family, self._family = self._family, None
        if family is not None and family.leave(self._branch):
            self._lease.engine.give_back(family)


def check_seed(seed: int) -> int:
    """Returns ``seed`` if it is a whole number from 0, else raises ``ValueError``."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number from 0, found {seed!r}")
    return seed

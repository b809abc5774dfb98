"""The process around an environment: what an episode must neither depend on nor leave changed."""

from __future__ import annotations

import contextlib
import decimal
import gc
import io
import locale
import logging
import os
import pickle
import random
import resource
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

# --- the generators that a whole process shares; torch's only where something has imported it


def generator_states() -> dict[str, Any]:
    """The states of the global generators, by a name for messages; comparable by ``==``."""
    numbers = pickle.dumps(np.random.get_state())  # arrays are not compared by ==
    states: dict[str, Any] = {"random": random.getstate(), "numpy.random": numbers}
    torch = sys.modules.get("torch")
    if torch is not None:
        states["torch"] = bytes(torch.get_rng_state().numpy())
    return states


def seed_generators(seed: int) -> None:
    """Seeds the global generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Puts the global generators back at the end of a block."""
    own, numbers = random.getstate(), np.random.get_state()
    torch = sys.modules.get("torch")
    tensors = None if torch is None else torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(own)
        np.random.set_state(numbers)
        if torch is not None:
            torch.set_rng_state(tensors)


# --- everything else


def _root_logger() -> list[str]:
    root = logging.getLogger()
    return [f"level {logging.getLevelName(root.level)}", f"disabled {root.manager.disable}", *map(repr, root.handlers)]


def _signals() -> dict[str, str]:
    return {number.name: repr(signal.getsignal(number)) for number in signal.Signals}


def _umask() -> str:
    # Asking for it by os.umask would change it for a moment, which other threads would see.
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((line.split()[1] for line in lines if line.startswith("Umask:")), "")


def _sweeping_filters() -> list[str]:
    # A library may well say what becomes of its own warnings; what becomes of all, or of Python's own kinds, is the user's.
    own = [(entry[0], entry[2]) for entry in warnings.filters if entry[1] is None and entry[3] is None]
    return [f"{action!r} for {kind}" for action, kind in own if getattr(kind, "__module__", "builtins") == "builtins"]


def _limits() -> dict[str, tuple[int, int]]:
    return {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")}


_LOOKS: Mapping[str, Callable[[], Any]] = {
    "os.environ": lambda: dict(os.environ),
    "the working directory": os.getcwd,
    "sys.path": lambda: list(sys.path),
    "sys.argv": lambda: list(sys.argv),
    "the root logger": _root_logger,
    "the signal handlers": _signals,
    "the alarm timer": lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0,
    "the warnings filters": _sweeping_filters,
    "sys.excepthook": lambda: repr(sys.excepthook),
    "threading.excepthook": lambda: repr(threading.excepthook),
    "the default time-out of sockets": socket.getdefaulttimeout,
    "the umask": _umask,
    "the resource limits": _limits,
    "the recursion limit": sys.getrecursionlimit,
    "the locale": lambda: locale.setlocale(locale.LC_ALL),
    "the time zone": lambda: time.tzname,
    "the precision of decimals": lambda: decimal.getcontext().prec,
    "numpy's error handling": np.geterr,
    "the garbage collector": gc.isenabled,
}


def look() -> dict[str, Any]:
    """What is so in this process, by a name for messages; comparable by ``==``."""
    return {name: see() for name, see in _LOOKS.items()}


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two looks, a line each."""
    return [f"{name}: {_change(before[name], after[name])}" for name in before if before[name] != after[name]]


def _change(before: Any, after: Any) -> str:
    if isinstance(before, dict):
        names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        return ", ".join(f"{name} was {before.get(name)!r} and is {after.get(name)!r}" for name in names[:3])
    if isinstance(before, list):
        gone, new = [x for x in before if x not in after], [x for x in after if x not in before]
        parts = [f"{word} {', '.join(map(str, some[:3]))}" for word, some in (("without", gone), ("with", new)) if some]
        return "now " + " and ".join(parts) if parts else "in another order"
    return f"was {before!r} and is {after!r}"


@contextlib.contextmanager
def put_back() -> Iterator[None]:
    """Undoes at the end of a block what would make the rest of the checks meaningless.

    The root logger has no handlers within the block, so that ``logging.basicConfig`` shows even if it was called before.
    """
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    folder, path, variables = Path.cwd(), list(sys.path), dict(os.environ)
    signals = {number: signal.getsignal(number) for number in signal.Signals}
    with warnings.catch_warnings():
        root.handlers = []
        try:
            yield
        finally:
            root.handlers = handlers
            root.setLevel(level)
            os.chdir(folder)
            sys.path[:] = path
            os.environ.clear()
            os.environ.update(variables)
            if threading.current_thread() is threading.main_thread():
                for number, handler in signals.items():
                    if handler is not None and signal.getsignal(number) != handler:
                        signal.signal(number, handler)


@contextlib.contextmanager
def heard() -> Iterator[Callable[[], str]]:
    """Listens to ``sys.stdout`` and ``sys.stderr`` for the length of a block. What is logged to nobody is no print."""
    output = io.StringIO()
    last, logging.lastResort = logging.lastResort, logging.NullHandler()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            yield output.getvalue
    finally:
        logging.lastResort = last

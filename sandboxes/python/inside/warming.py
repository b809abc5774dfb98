"""How a process gets warm that interpreters are forked from: its environment, and the packages that it imports once.

Runs inside; standard library only.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence

COMMON_PACKAGES = ("numpy", "sympy")
"""What is imported where nobody says what, as far as it is installed."""


class WarmingFault(RuntimeError):
    """A warm process cannot be what it was asked to be."""


def environment() -> dict[str, str]:
    """The environment of a warm process and all its interpreters: nothing of the host's.

    Hashes are the same in every interpreter, and numerical libraries use one thread, since a fork would lose the others.
    """
    variables = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONHASHSEED": "0",
        "PYTHONUTF8": "1",
        "MALLOC_ARENA_MAX": "2",  # each arena reserves 64 MiB of addresses, which count against the memory limit
    }
    for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "BLIS", "VECLIB_MAXIMUM"):
        variables[f"{name}_NUM_THREADS"] = "1"
    return variables


def warm_up(preload: Sequence[str] | None) -> None:
    """Imports the modules ``preload``; None stands for `COMMON_PACKAGES` where they are installed.

    Raises:
        WarmingFault: A module is not there, or one started a thread.
    """
    if preload is None:
        preload = [name for name in COMMON_PACKAGES if importlib.util.find_spec(name) is not None]
    for name in preload:
        try:
            importlib.import_module(name)
        except ImportError as problem:
            raise WarmingFault(f"cannot preload {name!r}: {problem}: install it, or leave it out of preload") from problem
    if "numpy" in sys.modules:
        importlib.import_module("numpy.random")  # numpy loads it late, and every worker seeds it
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise WarmingFault(f"preloading {', '.join(preload)} started {threads - 1} threads, which a fork would lose")


def freeze() -> None:
    """The last step before forks: what is there now is never looked at by the garbage collectors of workers."""
    gc.collect()
    gc.freeze()

"""What the commands share: how a bank is opened, what is said of it at the end, and the error of a wrong command line."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from tracebank import show
from tracebank.bank import TraceBank


class UsageError(ValueError):
    """A command line that cannot be meant."""


def open_bank(path: Path, *, embedder: str | None = None, use_index: bool = True) -> TraceBank:
    """Opens a bank.

    Raises:
        UsageError: There is no such folder.
    """
    if not path.is_dir():
        raise UsageError(f"{path}: expected the folder of a bank, found {'a file' if path.exists() else 'nothing'}")
    return TraceBank.open(path, embedder=embedder, use_index=use_index)


def say_ending(console: Console, bank: TraceBank, started: float) -> None:
    """Prints what the bank has become, and how long that took since ``started``."""
    show.say(console, f"{bank.path}: {show.size_of(bank)}; {time.perf_counter() - started:.1f} s")

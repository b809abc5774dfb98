"""Commands that look after a bank: check and compact."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from tyro.conf import Positional

from tracebank import show
from tracebank.commands.opening import open_bank, say_ending
from tracebank.faults import BankError
from tracebank.store import IndexKind, Problem, Store


@dataclass(frozen=True, kw_only=True)
class Check:
    """Read all of a bank and list what is wrong with it; exit code 1 if anything is."""

    bank: Positional[Path]
    """The bank's folder."""

    def run(self, console: Console) -> int:
        problems = _problems(self.bank)
        for problem in problems:
            show.say(console, f"{show.plain(problem.file)}: {show.plain(problem.what)}")
        mendable = sum(problem.mendable for problem in problems)
        if mendable:
            show.say(console, f"python -m tracebank compact {self.bank} mends {mendable} of these {len(problems)}.")
        if mendable < len(problems):
            show.say(console, "What is lost from a shard has to come from a copy, or the bank has to be built again.")
        if not problems:
            with open_bank(self.bank) as bank:
                show.say(console, f"Nothing is wrong: {show.size_of(bank)}.")
        return 1 if problems else 0


@dataclass(frozen=True, kw_only=True)
class Compact:
    """Merge a bank's files, bring all steps into its index, mend an index that is broken."""

    bank: Positional[Path]
    """The bank's folder."""
    index: IndexKind | None = None
    """Another kind of index, from now on."""
    rebuild: bool = False
    """Make the index anew even if it is whole."""

    def run(self, console: Console) -> int:
        started = time.perf_counter()
        try:
            bank = open_bank(self.bank)
        except BankError:  # its index may be what is broken; a broken shard is told again
            bank = open_bank(self.bank, use_index=False)
        with bank, show.progress(console) as tell:
            tell("building the index", 0, 0)
            bank.compact(index=self.index, rebuild=self.rebuild)
        with open_bank(self.bank) as bank:
            say_ending(console, bank, started)
        return 0


def _problems(path: Path) -> list[Problem]:
    """What is wrong with a bank, also with one that is too damaged to be opened."""
    try:
        with open_bank(path) as bank:
            return bank.check()
    except BankError:
        problems = Store(path).problems()
        if not problems:
            raise
        return problems

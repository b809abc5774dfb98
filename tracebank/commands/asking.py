"""Commands that look into a bank: query, stats and export."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from rich.console import Console
from tyro.conf import Positional, UseAppendAction

from tracebank import show
from tracebank.bank import TraceBank
from tracebank.commands.opening import UsageError, open_bank
from tracebank.export import export_steps
from tracebank.nearest import Filters
from tracebank.step import StepTrace


@dataclass(frozen=True, kw_only=True)
class Query:
    """Ask a bank what somebody did in a situation like this."""

    bank: Positional[Path]
    """The bank's folder."""
    text: Positional[str | None] = None
    """What has happened so far, a question for a start; "-" reads it from standard input."""
    file: Path | None = None
    """Read the text from a file."""
    k: int = 3
    """Steps to find."""
    exclude_task: UseAppendAction[tuple[str, ...]] = ()
    """Id or question of a task that no step may be of; may be given several times."""
    include_final: bool = False
    """Also find steps that ended their trajectory, which may hold an answer."""
    min_reward: float | None = None
    """Only steps of trajectories with a higher reward than this."""
    source: UseAppendAction[tuple[str, ...]] = ()
    """Only steps of this source; may be given several times."""
    steps: str | None = None
    """Only steps of these numbers, from 0: "1:5" for 1 to 4, "1:" for all but the first."""
    full: bool = False
    """Show long steps whole."""
    json: bool = False
    """Answer with one JSON object."""

    def run(self, console: Console) -> int:
        text = self._text()
        numbers = _range(self.steps) if self.steps is not None else None
        with open_bank(self.bank) as bank:
            bank.embedder.embed([""])  # loads it, so that the time below is that of a text
            times = [time.perf_counter()]
            vectors = bank.embedder.embed([text])
            times.append(time.perf_counter())
            (found,) = bank.search(
                vectors,
                self.k,
                Filters(
                    exclude_task=[self.exclude_task] if self.exclude_task else None,
                    exclude_final=not self.include_final,
                    min_reward=self.min_reward,
                    sources=self.source or None,
                    steps=numbers,
                ),
            )
            times.append(time.perf_counter())
            embedding, search = times[1] - times[0], times[2] - times[1]
            if self.json:
                answer = {
                    "hits": [asdict(hit) for hit in found],
                    "removed": dict(found.removed),
                    "seconds": {"embedding": embedding, "search": search},
                }
                show.say(console, json.dumps(answer))
            else:
                show.hits(console, found, full=self.full)
                show.say(console, f"embedding {embedding * 1e3:.2f} ms, search {search * 1e3:.2f} ms; {show.size_of(bank)}")
        return 0

    def _text(self) -> str:
        if (self.text is None) == (self.file is None):
            raise UsageError('expected a text, "-" for standard input, or --file, and only one of them')
        if self.file is not None:
            try:
                return self.file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as problem:
                raise UsageError(f"--file {self.file}: expected a text in UTF-8: {problem}") from None
        return sys.stdin.read() if self.text == "-" else self.text or ""


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Show what a bank holds, in numbers."""

    bank: Positional[Path]
    """The bank's folder."""
    picture: Path | None = None
    """Draw the distributions, as .png, .svg or .pdf."""
    json: bool = False
    """Answer with one JSON object."""

    def run(self, console: Console) -> int:
        if self.picture is not None and self.picture.suffix not in (".png", ".svg", ".pdf"):
            raise UsageError(f"--picture {self.picture}: expected a name that ends in .png, .svg or .pdf")
        with open_bank(self.bank) as bank:
            numbers = bank.stats()
        if self.json:
            show.say(console, json.dumps(numbers))
        else:
            show.stats(console, numbers)
        if self.picture is not None:
            show.picture(numbers, self.picture)
            if not self.json:
                show.say(console, f"picture: {self.picture}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a bank's steps to a file that others can read."""

    bank: Positional[Path]
    """The bank's folder."""
    to: Path
    """A name that ends in .jsonl or .parquet."""
    vectors: bool = False
    """With the vectors of the keys (Parquet)."""
    overwrite: bool = False
    """Replace a file of that name."""

    def run(self, console: Console) -> int:
        with open_bank(self.bank) as bank:
            rows = iter(bank.snapshot.vectors()) if self.vectors else None
            count = export_steps(_steps(bank), self.to, vectors=rows, overwrite=self.overwrite)
        show.say(console, f"{count:,} steps: {self.to}")
        return 0


def _range(text: str) -> range:
    start, colon, stop = text.partition(":")
    if not colon or not all(part.isdecimal() or not part for part in (start, stop)):
        raise UsageError(f'--steps {text}: expected two numbers such as "1:5", the first included and the second not')
    return range(int(start or 0), int(stop) if stop else sys.maxsize)


def _steps(bank: TraceBank) -> Iterator[StepTrace]:
    names = [field.name for field in fields(StepTrace)]
    for batch in bank.snapshot.batches():
        for row in zip(*(batch.column(name).to_pylist() for name in names), strict=True):
            yield StepTrace(*row)

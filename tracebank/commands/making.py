"""Commands that make banks: build and import."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from tyro.conf import Positional, UseAppendAction

from tracebank import importers, show
from tracebank.bank import TraceBank
from tracebank.build import TRAINING_SPLITS, add_steps, build, trajectory_files
from tracebank.commands.opening import UsageError, open_bank, say_ending
from tracebank.step import StepTrace
from tracebank.store import IndexKind


@dataclass(frozen=True, kw_only=True)
class _Made:
    """Options of the commands that make a bank."""

    output: Path
    """The bank's folder."""
    append: bool = False
    """Add to the bank that is there; steps that it has already are not added again."""
    embedder: str | None = None
    """What turns texts into vectors: hashing, sentence-transformers:NAME, policy:FOLDER or rapo (default: hashing, or the
    bank's own)."""
    index: IndexKind | None = None
    """How steps are found (default: auto, which chooses by their number, or the bank's own)."""
    min_reward: float | None = None
    """Only trajectories with a higher reward than this."""
    source: str | None = None
    """Who made the trajectories, in place of what they say themselves."""

    @contextmanager
    def bank(self) -> Iterator[TraceBank]:
        """The bank to add to: the one that is there, or a new one, which goes away again if nothing comes into it."""
        existed = self.output.is_dir()
        with self._opened() as bank:
            try:
                yield bank
            except BaseException:
                if not self.append and not len(bank):
                    bank.close()
                    shutil.rmtree(self.output)
                    if existed:
                        self.output.mkdir()
                raise

    def _opened(self) -> TraceBank:
        if not self.append:
            if self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir())):
                raise UsageError(
                    f"{self.output}: expected a new or empty folder, found something in it; --append adds to a bank"
                )
            return TraceBank.create(self.output, embedder=self.embedder or "hashing", index=self.index or "auto")
        bank = open_bank(self.output, embedder=self.embedder)
        if self.index not in (None, bank.manifest.index_kind):
            bank.close()
            raise UsageError(f"--index {self.index}: {self.output} has another; change it with python -m tracebank compact")
        return bank


@dataclass(frozen=True, kw_only=True)
class Build(_Made):
    """Make a bank of trajectories: of each task, the steps of the best few."""

    trajectories: tuple[Path, ...]
    """Files of trajectories, or run folders (all files in their trajectories/)."""
    keep: int = 5
    """Trajectories of a task, best reward first; 0 keeps all."""
    split: UseAppendAction[tuple[str, ...]] = ()
    """Only trajectories of this split (default: train, and those of no split); may be given several times."""

    def run(self, console: Console) -> int:
        started = time.perf_counter()
        if not self.trajectories:
            raise UsageError("--trajectories: expected at least one file or run folder")
        _check_keep(self.keep)
        for path in self.trajectories:
            trajectory_files(path)  # a path that is wrong should be told before a folder is made
        with self.bank() as bank:
            with show.progress(console) as tell:
                done = build(
                    bank,
                    self.trajectories,
                    keep=self.keep,
                    min_reward=self.min_reward,
                    splits=self.split or TRAINING_SPLITS,
                    source=self.source,
                    progress=tell,
                )
            show.build_report(console, done, "trajectories")
            say_ending(console, bank, started)
        return 0


@dataclass(frozen=True, kw_only=True)
class Import(_Made):
    """Make a bank of other people's records: RAPO's buffer, chat transcripts, exported steps."""

    files: Positional[tuple[Path, ...]]
    """JSON lines, JSON lists (either may be gzipped) or Parquet."""
    format: Annotated[Literal["rapo", "sharegpt", "openai", "arpo", "steps"], tyro.conf.arg(name="from")]
    """What the records are."""
    keep: int = 0
    """Transcripts of a task, best reward first; 0 keeps all."""
    reward: float | None = None
    """Reward of every transcript (default: 1, since most are demonstrations)."""
    reward_field: str | None = None
    """The field of a record that holds its reward."""
    environment: str = ""
    """Id of the environment that the records belong to."""

    def run(self, console: Console) -> int:
        started = time.perf_counter()
        if not self.files:
            raise UsageError("expected at least one file to import")
        _check_keep(self.keep)
        if self.keep and self.format in ("rapo", "steps"):
            raise UsageError(f"--keep {self.keep}: {self.format} records are steps that somebody has chosen already")
        records = importers.read(
            self.format,
            self.files,
            source=self.source,
            environment=self.environment,
            reward=self.reward,
            reward_field=self.reward_field,
        )
        with self.bank() as bank:
            with show.progress(console) as tell:
                if self.format in ("rapo", "steps"):
                    steps = (record for record in records if isinstance(record, StepTrace))
                    done = add_steps(bank, steps, min_reward=self.min_reward, progress=tell)
                else:
                    transcripts = (record for record in records if not isinstance(record, StepTrace))
                    done = build(bank, transcripts, keep=self.keep, min_reward=self.min_reward, splits=None, progress=tell)
            show.import_report(console, records)
            show.build_report(console, done, "steps" if self.format in ("rapo", "steps") else "trajectories")
            say_ending(console, bank, started)
        return 0


def _check_keep(keep: int) -> None:
    if keep < 0:
        raise UsageError(f"--keep {keep}: expected a number from 0 (all) up")

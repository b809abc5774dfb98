"""What a collection has brought so far: counted, shown while it lasts, and told at its end."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from learners.run.report import duration

_LINE_EVERY = 10.0  # seconds between two lines of progress where there is no terminal


class Outcome(Protocol):
    """How a trajectory ended, as far as a tally counts it."""

    @property
    def reward(self) -> float: ...
    @property
    def success(self) -> bool: ...
    @property
    def tool_calls(self) -> int: ...
    @property
    def fault(self) -> str: ...


@dataclass
class Tally:
    """What a collection has brought so far.

    Args:
        window: How many of the latest faults are kept.
    """

    window: int
    groups: int = 0
    trajectories: int = 0
    faults: int = 0
    successes: int = 0
    reward: float = 0.0
    tool_calls: int = 0
    latest: deque[str] = field(init=False)

    def __post_init__(self) -> None:
        self.latest = deque(maxlen=self.window)

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Counts a group."""
        self.groups += 1
        for outcome in outcomes:
            self.trajectories += 1
            self.latest.append(outcome.fault)
            if outcome.fault:
                self.faults += 1
            else:
                self.successes += outcome.success
                self.reward += outcome.reward
                self.tool_calls += outcome.tool_calls

    def means(self) -> tuple[float, float, float] | None:
        """Success rate, reward and tool calls of a trajectory that no fault ended; None where there is none."""
        sound = self.trajectories - self.faults
        return (self.successes / sound, self.reward / sound, self.tool_calls / sound) if sound else None

    def table(self, *, seconds: float) -> Table:
        """The closing table."""
        success, reward, tool_calls = self.means() or (math.nan,) * 3
        table = Table(box=SIMPLE_HEAD, show_header=False)
        table.add_column()
        table.add_column(justify="right")
        for name, value in (
            ("tasks", f"{self.groups}"),
            ("trajectories", f"{self.trajectories}"),
            ("success", f"{success:.1%}"),
            ("mean reward", f"{reward:.2f}"),
            ("tool calls a trajectory", f"{tool_calls:.2f}"),
            ("environment faults", f"{self.faults}"),
            ("seconds", f"{seconds:.1f}"),
        ):
            table.add_row(name, value)
        return table


class TallyProgress:
    """How far a collection is: a bar on a terminal, lines elsewhere."""

    def __init__(self, total: int, tally: Tally, console: Console) -> None:
        self._total, self._tally, self._console = total, tally, console
        self._before, self._began, self._last_line = tally.groups, time.monotonic(), -math.inf
        self._bar = Progress(
            TextColumn("task {task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[told]}", markup=False),
            console=console,
            disable=not console.is_terminal,
            transient=True,
            expand=True,
        )
        self._task = self._bar.add_task("", total=total, completed=tally.groups, told="")

    def __enter__(self) -> TallyProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self) -> None:
        """Shows what the tally says now."""
        done, now = self._tally.groups, time.monotonic()
        means = self._tally.means()
        told = f"success {means[0]:.2f}  reward {means[1]:.2f}" if means else "nothing but faults"
        if self._tally.faults:
            told += f"  faults {self._tally.faults}"
        left = (self._total - done) * (now - self._began) / (done - self._before)
        told += f"  {duration(left)} left" if done < self._total else ""
        self._bar.update(self._task, completed=done, told=told)
        if not self._console.is_terminal and (now - self._last_line >= _LINE_EVERY or done == self._total):
            self._last_line = now
            self._console.print(f"task {done}/{self._total}: {told}", markup=False, highlight=False, soft_wrap=True)

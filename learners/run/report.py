"""What a run tells: live to the person who started it, and in files to everybody after.

A `Report` owns these files of a run folder:

- ``metrics.jsonl``: one JSON object a step, keys sorted, floats exact. Keys that start with ``seconds/`` are times;
  everything else must be the same, bit for bit, when a deterministic run is repeated.
- ``evaluations.jsonl``: one object an evaluation on held-out tasks.
- ``trajectories/step_NNNNNN.jsonl``: what was rolled out for a step (written by the trainer, cut here on resume).
- ``tensorboard/``: the same numbers as event files.
- ``summary.json`` and ``curves.png``: how it ended.

Steps count from 1; step 0 is before the first update. A resumed run has the files of one that was never interrupted.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

HEADLINES = {"success": "success", "reward": "reward", "tool_calls": "tool calls", "entropy": "entropy"}
"""The metrics that the live display and the curves show, where a step has them, with what they are called there."""

_IN_THE_BAR = ("success", "reward", "tool_calls")  # all four would leave no room for a bar in 80 columns

_TRAJECTORY_FILE = re.compile(r"step_(\d+)\.jsonl")


class Report:
    """The files and the live display of one run.

    Args:
        folder: The run folder; it is made when there is none.
        total_steps: Steps that the run is going to have.
        resume_at: Step of the checkpoint that the run goes on from: later lines, trajectories and events are dropped. None
            for a new run.
        console: Where the live display goes, by default standard output. On a terminal it is a bar; elsewhere it is plain
            lines.
        line_every: Least seconds between two plain lines; the last step always has one.

    Raises:
        FileExistsError: A new run in a folder that holds one.
        ValueError: A line of an earlier part of the run that cannot be read.

    Example:
        >>> with Report(Path("runs/one"), total_steps=1) as report:           # doctest: +SKIP
        ...     report.evaluation(0, "held-out", {"success": 0.4})
        ...     report.log(1, {"reward": 0.5, "success": 0.5, "seconds/step": 0.8})
        ...     report.evaluation(1, "held-out", {"success": 0.9})
        ...     report.write_summary({"success_before": 0.4, "success_after": 0.9})
        ...     report.curves()
    """

    def __init__(
        self,
        folder: Path,
        *,
        total_steps: int,
        resume_at: int | None = None,
        console: Console | None = None,
        line_every: float = 2.0,
    ) -> None:
        self.folder = folder
        self.total_steps = total_steps
        self.console = console if console is not None else Console()
        self._metrics_path = folder / "metrics.jsonl"
        self._evaluations_path = folder / "evaluations.jsonl"
        self._history: list[dict[str, Any]] = []
        self._evaluations: list[dict[str, Any]] = []
        if resume_at is None and (self._metrics_path.exists() or self._evaluations_path.exists()):
            raise FileExistsError(f"{folder} already holds a run: resume it, or choose another output folder")
        (folder / "trajectories").mkdir(parents=True, exist_ok=True)
        if resume_at is not None:
            self._cut(resume_at)
        self._metrics = open(self._metrics_path, "a", encoding="utf-8")  # noqa: SIM115  # open as long as the report is
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=None if resume_at is None else resume_at + 1)
        self._done = resume_at or 0
        self._progress = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[headline]}", markup=False),
            console=self.console,
            disable=not self.console.is_terminal,
            expand=True,
        )
        self._task: TaskID = self._progress.add_task("", total=total_steps, completed=self._done, headline="")
        self._times: deque[float] = deque([time.monotonic()], maxlen=21)
        self._line_every = line_every
        self._last_line = -math.inf

    def __enter__(self) -> Report:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def history(self) -> Sequence[Mapping[str, Any]]:
        """What was logged, a record a step, the steps before a resume included."""
        return tuple(self._history)

    @property
    def evaluations(self) -> Sequence[Mapping[str, Any]]:
        """The evaluations, each with its ``step`` and ``name``, those before a resume included."""
        return tuple(self._evaluations)

    def trajectory_file(self, step: int) -> Path:
        """Where the trajectories of a step belong."""
        return self.folder / "trajectories" / f"step_{step:06d}.jsonl"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records one step.

        Args:
            step: The step, later than those before it.
            metrics: Its numbers by name, all finite.

        Raises:
            ValueError: A step out of order, or a number that is not finite.
        """
        if step <= self._done:
            raise ValueError(f"step: expected more than {self._done}, the last one logged, found {step}")
        record = {"step": step, **_numbers(step, metrics)}
        self._metrics.write(json.dumps(record, sort_keys=True) + "\n")
        self._metrics.flush()
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()
        self._history.append(record)
        self._done = step
        self._show(record)

    def evaluation(self, step: int, name: str, metrics: Mapping[str, float]) -> None:
        """Records an evaluation on held-out tasks, in place of an earlier one of that step and name.

        Args:
            step: Updates made so far; 0 is before training.
            name: What was evaluated, such as ``"held-out"`` or ``"held-out, greedy"``; one name is one series in the curves.
            metrics: Its numbers by name, all finite.

        Raises:
            ValueError: A number that is not finite.
        """
        record = {"step": step, "name": name, **_numbers(step, metrics)}
        self._evaluations = [old for old in self._evaluations if (old["step"], old["name"]) != (step, name)] + [record]
        _replace(self._evaluations_path, _lines(self._evaluations))
        for key, value in metrics.items():
            self._events.add_scalar(f"{name}/{key}", value, step)
        self._events.flush()
        self.say(f"{name}, step {step}: {_headline(record)}")

    def say(self, text: str) -> None:
        """Prints one line, above the bar where there is one."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        """Writes ``summary.json``, whole or not at all.

        Raises:
            ValueError: A value that JSON has no form for, such as NaN.
        """
        path = self.folder / "summary.json"
        _replace(path, (json.dumps(dict(summary), indent=2, allow_nan=False) + "\n").encode())
        return path

    def curves(self) -> Path:
        """Draws ``curves.png``: the headline metrics over the steps, with the evaluations as marks."""
        figure = Figure(figsize=(10, 6.5), layout="constrained")
        for axes, (key, label) in zip(figure.subplots(2, 2).flat, HEADLINES.items(), strict=True):
            self._draw(axes, key, label)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=120)
        path = self.folder / "curves.png"
        _replace(path, image.getvalue())
        return path

    def closing_table(
        self,
        rows: Sequence[Sequence[str]],
        *,
        heading: Sequence[str] = ("", "before", "after"),
        files: Mapping[str, Path] | None = None,
    ) -> None:
        """Takes the bar away and prints the final table.

        Args:
            rows: Text cells, as many in each row as in the heading; the first says what the row is.
            heading: Names of the columns.
            files: Printed below, one a line, by what they are.
        """
        self._progress.stop()
        table = Table(box=SIMPLE_HEAD)
        for number, name in enumerate(heading):
            table.add_column(name, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)
        width = max(map(len, files or {}), default=0)
        for name, path in (files or {}).items():
            self.say(f"{name:<{width}}  {path}")

    def close(self) -> None:
        """Takes the bar away and closes the files. Calling it twice is fine."""
        self._progress.stop()
        self._metrics.close()
        self._events.close()

    def _cut(self, resume_at: int) -> None:
        """Drops what came after the checkpoint, half-written lines included."""
        self._history = _whole_lines(self._metrics_path, resume_at)
        self._evaluations = _whole_lines(self._evaluations_path, resume_at)
        _replace(self._metrics_path, _lines(self._history))
        _replace(self._evaluations_path, _lines(self._evaluations))
        for path in sorted((self.folder / "trajectories").iterdir()):
            match = _TRAJECTORY_FILE.fullmatch(path.name)
            if match and int(match[1]) > resume_at:
                path.unlink()
        last = self._history[-1]["step"] if self._history else 0
        if last < resume_at:
            logger.warning("%s ends at step %d, before the checkpoint of step %d", self._metrics_path, last, resume_at)

    def _show(self, record: Mapping[str, Any]) -> None:
        now = time.monotonic()
        self._times.append(now)
        remaining = self.total_steps - self._done
        pace = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        left = f"  {duration(remaining * pace)} left" if remaining > 0 else ""
        self._progress.update(self._task, completed=self._done, headline=_headline(record, _IN_THE_BAR) + left)
        if not self.console.is_terminal and (now - self._last_line >= self._line_every or remaining <= 0):
            self._last_line = now
            self.say(f"step {self._done}/{self.total_steps}: {_headline(record)}{left}")

    def _draw(self, axes: Axes, key: str, label: str) -> None:
        axes.set_title(label, loc="left", fontsize=11)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.set_xlim(-0.03 * self.total_steps, 1.03 * self.total_steps)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
        points = [(record["step"], record[key]) for record in self._history if key in record]
        if points:
            axes.plot(*zip(*points, strict=True), color="C0", linewidth=1.8, label="training")
        names = dict.fromkeys(record["name"] for record in self._evaluations)
        for number, name in enumerate(names):
            marks = [
                (record["step"], record[key]) for record in self._evaluations if record["name"] == name and key in record
            ]
            if marks:
                steps, values = zip(*marks, strict=True)
                told = f"{name}: {values[0]:.2f} → {values[-1]:.2f}" if len(values) > 1 else f"{name}: {values[0]:.2f}"
                shape, colour = "oDs^v"[number % 5], f"C{1 + number % 9}"
                axes.plot(steps, values, shape, color=colour, markersize=7, label=told, zorder=3, clip_on=False)
        if axes.lines:
            axes.legend(frameon=False, fontsize=9)
        if key != "reward":  # rewards may be negative; of the others, zero is the end of the scale
            axes.set_ylim(bottom=0)
        if key == "success":
            axes.set_ylim(top=1)


def _numbers(step: int, metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics as plain numbers; whatever is not one is refused."""
    for reserved in ("step", "name"):
        if reserved in metrics:
            raise ValueError(f"metrics: expected names other than 'step' and 'name', found {reserved!r}")
    found = {key: value if type(value) is int else float(value) for key, value in metrics.items()}
    for key, value in found.items():
        if not math.isfinite(value):
            raise ValueError(f"metric {key!r} of step {step}: expected a finite number, found {value}")
    return found


def _headline(record: Mapping[str, Any], keys: Iterable[str] = HEADLINES) -> str:
    return "  ".join(f"{HEADLINES[key]} {record[key]:.2f}" for key in keys if key in record)


def duration(seconds: float) -> str:
    """A time as people write it: minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _lines(records: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(record, sort_keys=True) + "\n" for record in records).encode()


def _whole_lines(path: Path, last_step: int) -> list[dict[str, Any]]:
    """The records of a JSONL file up to a step, without what a kill left half written after the last line end."""
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
            if record["step"] <= last_step:
                records.append(record)
        except (ValueError, TypeError, KeyError) as error:
            problem = f"expected a JSON object with a step, found {line[:80]!r} ({error!r})"
            raise ValueError(f"{path}, line {number}: {problem}") from None
    return records


def _replace(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    with open(unfinished, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


@contextmanager
def stage_progress(title: str, console: Console | None = None) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for what comes before the first step; it shows itself with the first report.

    Args:
        title: What is being done.
        console: Where, by default standard output; what is no terminal gets one line a stage.

    Returns:
        A function of what is being done right now, how much is done and how much there is to do.
    """
    console = console if console is not None else Console()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[stage]}", markup=False),
        console=console,
        disable=not console.is_terminal,
        transient=True,
        expand=True,
    )
    task = bar.add_task(title, visible=False, stage="")
    said: list[str] = []

    def report(stage: str, done: int, total: int) -> None:
        bar.update(task, completed=done, total=total, stage=stage, visible=True)
        kind = stage.partition(",")[0]
        if not console.is_terminal and kind not in said:
            said.append(kind)
            console.print(f"{title}: {kind}", markup=False, highlight=False, soft_wrap=True)

    with bar:
        yield report

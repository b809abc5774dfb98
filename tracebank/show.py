"""How a bank looks to people: progress, tables, hits, and a picture.

Texts in a bank were written by models, web pages and programs, so whatever could steer a terminal is shown as an escape.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tracebank import build
from tracebank.bank import Hits, TraceBank
from tracebank.importers import Imported
from tracebank.index import kind_for

_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BAR = 32
_SHORT = 600
_SHOWN_EVERY = 0.1

_PANELS = {
    "reward": "reward of a step's trajectory",
    "trajectory_steps": "steps of a trajectory",
    "value_characters": "characters of a step",
    "nearest_other_task": "cosine to the nearest key of another task",
}
"""The distributions that are shown, with what they are called."""


def say(console: Console, text: str) -> None:
    """Prints a text as it is: no markup, no colours, no cutting of long lines."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def plain(text: str) -> str:
    """A text that cannot steer a terminal: control characters as escapes, line ends and tabs as they are."""
    return _STEERING.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


@contextmanager
def progress(console: Console) -> Iterator[build.Progress]:
    """A bar with what is being done; what is no terminal gets a line for each stage."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
        expand=True,
    )
    tasks: list[TaskID] = []
    stage_now, shown = "", 0.0

    def tell(stage: str, done: int, total: int) -> None:
        nonlocal stage_now, shown
        now = time.monotonic()
        if stage != stage_now:
            for before in tasks:
                bar.update(before, visible=False)
            tasks.append(bar.add_task(stage, total=total or None))  # None moves to and fro; it cannot be set later
            if not console.is_terminal:
                say(console, stage)
        elif now - shown < _SHOWN_EVERY:
            return
        stage_now, shown = stage, now
        bar.update(tasks[-1], completed=done)

    with bar:
        yield tell


def table(console: Console, heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table; all columns but the first stand to the right."""
    grid = Table(box=SIMPLE_HEAD, show_header=any(heading))
    for number, name in enumerate(heading):
        grid.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        grid.add_row(*map(Text, row))  # as a text, a cell could hold markup
    console.print(grid)


def build_report(console: Console, report: build.BuildReport, what: str) -> None:
    """Prints what was kept and what was not and why.

    Args:
        console: Where.
        report: What `tracebank.build` gave.
        what: What was read: "trajectories" or "steps".
    """
    rows = [[f"{what} read", _count(report.read)]]
    rows += [[f"  {plain(reason)}", f"-{count:,}"] for reason, count in report.dropped.items()]
    rows += [[f"{what} kept, of {_count(report.tasks)} tasks", _count(report.kept)], ["", ""]]
    if what != "steps":
        rows += [["their steps", _count(report.steps + sum(report.repeated.values()))]]
        rows += [[f"  {reason}", f"-{count:,}"] for reason, count in report.repeated.items()]
    rows += [["steps added", _count(report.steps)]]
    if len(report.sources) > 1:
        rows += [[f"  by {_name(source)}", _count(steps)] for source, (_, steps) in report.sources.items()]
    table(console, ("", "number"), rows)


def import_report(console: Console, imported: Imported[Any]) -> None:
    """Prints which records could not be used or had to be repaired; nothing where there were none."""
    for reason, count in imported.dropped.items():
        say(
            console, plain(f"{count:,} of {imported.read:,} records left out: {reason}, such as {imported.examples[reason]}")
        )
    for reason, count in imported.repaired.items():
        say(console, plain(f"{count:,} of {imported.read:,} records repaired: {reason}"))


def size_of(bank: TraceBank) -> str:
    """The bank's steps, bytes and index in one line."""
    manifest = bank.manifest
    files = (*manifest.shards, *([manifest.index] if manifest.index else []))
    asked = manifest.index_kind
    why = f", which auto takes for {len(bank):,} steps" if asked == "auto" and bank.kind == kind_for(len(bank)) else ""
    covered = f" ({manifest.index.rows:,} of {len(bank):,} steps in it)" if manifest.index else ""
    return f"{len(bank):,} steps, {_bytes(sum(file.bytes for file in files))}, index: {bank.kind}{why}{covered}"


def hits(console: Console, found: Hits, *, full: bool) -> None:
    """Prints what a query found, best first.

    Args:
        console: Where.
        found: The hits.
        full: Print values whole, however long.
    """
    for rank, hit in enumerate(found, start=1):
        last = ", its trajectory's last" if hit.final else ""
        say(
            console,
            f"{rank}. score {hit.score:.3f}  reward {hit.reward:g}  step {hit.step}{last}  task {_name(hit.task_id)}  "
            f"source {_name(hit.source)}  id {hit.id}",
        )
        value = plain(hit.value.strip("\n"))
        lines = value if full or len(value) <= _SHORT else f"{value[:_SHORT]} … ({len(value) - _SHORT:,} more; --full)"
        say(console, "".join(f"   │ {line}\n" for line in lines.split("\n")))
    if not found:
        say(console, "Nothing found.")
    taken = ", ".join(f"{name} {count:,}" for name, count in found.removed.items())
    if taken:
        say(console, f"better ones that filters took out: {taken}")


def stats(console: Console, numbers: Mapping[str, Any]) -> None:
    """Prints what `tracebank.report.stats` gave."""
    total, index = numbers["steps"], numbers["index"]
    rows = [
        ["steps", _count(total)],
        ["  that ended their trajectory", _share(numbers["final"], total)],
        ["  without a question: kept from their own task by its id alone", _share(numbers["without_question"], total)],
        ["  without a question and an id: kept from no task", _share(numbers["unnamed"], total)],
        ["trajectories", _count(numbers["trajectories"])],
        ["tasks by id", _count(numbers["tasks"])],
        ["tasks by question", _count(numbers["questions"])],
        *([f"source {_name(source)}", _share(steps, total)] for source, steps in numbers["sources"].items()),
        ["environments", ", ".join(map(_name, numbers["environments"]))],
        ["formats", ", ".join(map(_name, numbers["formats"]))],
        ["embedder", f"{plain(numbers['embedder'])}, {numbers['dimension']} dimensions"],
        ["index", f"{index['kind']} (asked: {index['asked']}), {index['rows']:,} steps in it"],
        ["files", f"{numbers['shards']} shards, {_bytes(numbers['bytes'])}"],
    ]
    table(console, ("", ""), rows)
    for key, label in {**_PANELS, "key_characters": "characters of a key"}.items():
        _histogram(console, label, numbers[key])


def picture(numbers: Mapping[str, Any], path: Path) -> None:
    """Draws the distributions that `tracebank.report.stats` gave; the path's suffix says as what."""
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    figure.suptitle(f"{numbers['steps']:,} steps of {numbers['trajectories']:,} trajectories", x=0.01, ha="left")
    for axes, (key, label) in zip(figure.subplots(2, 2).flat, _PANELS.items(), strict=True):
        _draw(axes, label, numbers[key], growing=key == "value_characters")
    figure.savefig(path, dpi=120)


def _draw(axes: Axes, label: str, distribution: Mapping[str, Any] | None, *, growing: bool) -> None:
    axes.set_title(label, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    if distribution is None:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "nothing to count", transform=axes.transAxes, ha="center", color="0.5")
        return
    edges, counts = distribution["edges"], distribution["counts"]
    whole = isinstance(edges[0], int) and not growing
    starts = [edge - 0.5 if whole else edge for edge in edges]  # a bar stands in the middle of its whole number
    widths = [after - before for before, after in pairwise(starts)]
    axes.bar(starts[:-1], counts, widths, align="edge", color="C0", edgecolor="white", linewidth=0.5)
    if whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if growing:
        axes.set_xscale("symlog", base=2, linthresh=1)
        filled = [number for number, count in enumerate(counts) if count]
        axes.set_xlim(edges[filled[0]], edges[filled[-1] + 1])
        axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.axvline(distribution["mean"], color="C1", linewidth=1.5)
    axes.set_title(f"mean {distribution['mean']:.4g}", loc="right", fontsize=9, color="C1")
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)


def _histogram(console: Console, label: str, distribution: Mapping[str, Any] | None) -> None:
    """Bars of block characters, one a line, without the empty ones at either end."""
    if distribution is None:
        return
    least, mean, greatest = (f"{distribution[name]:.4g}" for name in ("min", "mean", "max"))
    say(console, f"{label}: {least} to {greatest}, mean {mean}, of {distribution['count']:,}")
    edges, counts = distribution["edges"], distribution["counts"]
    filled = [number for number, count in enumerate(counts) if count]
    top = max(counts)
    for number in range(filled[0], filled[-1] + 1):
        bar = "█" * round(_BAR * counts[number] / top) or ("▏" if counts[number] else "")
        say(console, f"  from {edges[number]:>9.4g}  {bar:<{_BAR}} {counts[number]:,}".rstrip())
    say(console, "")


def _name(text: str) -> str:
    return plain(text) or "(none)"


def _count(number: int) -> str:
    return f"{number:,}"


def _share(number: int, total: int) -> str:
    return f"{number:,} ({number / total:.1%})" if total else f"{number:,}"


def _bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}" if unit != "bytes" else f"{number:.0f} bytes"
        number /= 1000
    return f"{number:,.3g} GB"

"""What a training run comes to: held-out numbers before and after it, as ``summary.json`` and as the closing table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from learners.run.config import RunConfig
from learners.run.report import Report

KEYS = ("success", "reward", "tool_calls")
"""Means over held-out episodes that are compared."""


def held_out(metrics: Mapping[str, float], name: str) -> dict[str, float]:
    """Those of one evaluation, ``"sampled"`` or ``"greedy"``, by the names that they have in a summary."""
    suffix = "" if name == "sampled" else f"_{name}"
    return {f"{key}{suffix}": metrics[key] for key in KEYS}


def summary_of(config: RunConfig, before: Mapping[str, float], after: Mapping[str, float], seconds: float) -> dict[str, Any]:
    """What ``summary.json`` holds.

    Args:
        config: The run's.
        before, after: `held_out` of both evaluations, before training and after.
        seconds: Of the whole run.
    """
    compared = {
        f"{key}_{when}{suffix}": found[f"{key}{suffix}"]
        for key in KEYS
        for suffix in ("", "_greedy")
        for when, found in (("before", before), ("after", after))
    }
    return compared | {"wall_seconds": seconds, "steps": config.steps, "seed": config.seed}


def close_with(report: Report, summary: Mapping[str, Any]) -> None:
    """Writes the summary and the curves, and prints the closing table."""

    def row(name: str, key: str, form: str, suffix: str = "") -> tuple[str, ...]:
        return (name, *(format(summary[f"{key}_{when}{suffix}"], form) for when in ("before", "after")))

    report.write_summary(summary)
    files = {"curves": report.curves(), "run folder": report.folder}
    rows = [
        row("held-out success, T = 1", "success", ".1%"),
        row("held-out success, greedy", "success", ".1%", "_greedy"),
        row("reward", "reward", ".2f"),
        row("tool calls an episode", "tool_calls", ".2f"),
    ]
    report.closing_table(rows, files=files)
    report.say(f"{summary['steps']} steps in {summary['wall_seconds']:.0f} s")

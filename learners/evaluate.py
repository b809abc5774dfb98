"""Evaluate: how often a policy, or the oracle, solves held-out tasks.

    python -m learners.evaluate --env MathTool-v0 --model runs/one/checkpoints/step_000040
    python -m learners.evaluate --env MathTool-v0 --tasks aime24 --model Qwen/Qwen3-1.7B --n 8
    python -m learners.evaluate --env MathTool-v0 --model tiny --temperature 0 --task-count 1000

An evaluation is a collection (`learners.collect`) of the held-out split: the same engine, the same file of trajectories, the
same ``--resume`` after a kill. Nothing is retrieved and nothing branches, whatever the policy was trained with. At the end,
and in OUTPUT.summary.json, stand

- success, the mean over tasks of the share of a task's n attempts that solved it, with a 95 % interval;
- with n > 1, pass@n: the share of tasks that at least one attempt solved;
- the mean reward and tool calls of an attempt, and how many environment faults ended one (they count for nothing).

The interval is for other tasks of the same kind: attempts at one task are not independent, so tasks are what is counted (the
normal approximation of a mean; Wilson's interval for one attempt a task, which holds near 0 and 1 as well).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance

from rich.console import Console

from learners.collect import CollectConfig, gather, run
from learners.run.players import TooManyFaults
from learners.run.tally import Tally
from tracebank.trajectory import read_trajectories

_Z = 1.959963984540054  # of a 95 % interval


@dataclass(frozen=True)
class EvaluateConfig(CollectConfig):
    """Options of an evaluation."""

    n: int = 1
    """Attempts a task."""
    output: str = "evaluation.jsonl"
    """File of trajectories, one a line. Its options are kept beside it, in OUTPUT.config.yaml."""
    split: str = "test"
    """Split of the tasks, where the environment has splits."""


def interval(shares: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the mean of shares from 0 to 1, one a task.

    Wilson's score interval where all are 0 or 1, else the normal approximation, cut at 0 and 1. One task, of which neither
    says anything, has the interval of all there is.
    """
    count, mean = len(shares), fmean(shares)
    if all(share in (0.0, 1.0) for share in shares):
        centre, width = mean + _Z**2 / (2 * count), _Z * math.sqrt(mean * (1 - mean) / count + _Z**2 / (4 * count**2))
        return (centre - width) / (1 + _Z**2 / count), (centre + width) / (1 + _Z**2 / count)
    if count < 2:
        return 0.0, 1.0
    half = _Z * math.sqrt(variance(shares) / count)
    return max(0.0, mean - half), min(1.0, mean + half)


def evaluate(config: EvaluateConfig, console: Console | None = None) -> dict[str, float]:
    """Evaluates, from the configuration to the closing table.

    Returns:
        What the summary holds: ``success``, ``success_low``, ``success_high``, ``pass_at_n``, ``reward``, ``tool_calls``,
        ``tasks``, ``attempts`` and ``environment_faults``.

    Raises:
        UsageError: The configuration cannot be evaluated as it stands.
        TooManyFaults: More than ``max_fault_share`` of the latest trajectories, or all, ended in environment faults.
    """
    console = console if console is not None else Console()
    begun = time.monotonic()
    tally = gather(config, console)
    summary = _summary(Path(config.output), tally)
    path = Path(f"{config.output}.summary.json")
    path.write_text(json.dumps(summary, indent=2) + "\n")
    between = f"{summary['success_low']:.1%} to {summary['success_high']:.1%}"
    table = tally.table(seconds=time.monotonic() - begun)
    table.add_row("success, 95 % interval", between)
    if config.n > 1:
        table.add_row(f"solved once in {config.n} attempts", f"{summary['pass_at_n']:.1%}")
    console.print(table)
    console.print(f"{config.output}\n{path}", markup=False, highlight=False, soft_wrap=True)
    return summary


def _summary(path: Path, tally: Tally) -> dict[str, float]:
    attempts: dict[int, list[bool]] = {}
    for trajectory in read_trajectories(path, segments=False):
        if not trajectory.fault:
            attempts.setdefault(trajectory.step, []).append(trajectory.success)
    if not attempts:
        raise TooManyFaults(f"every attempt in {path} ended in an environment fault: there is nothing to evaluate")
    shares = [fmean(solved) for solved in attempts.values()]
    low, high = interval(shares)
    success, reward, tool_calls = fmean(shares), *(tally.means() or (math.nan,) * 3)[1:]
    return {
        "success": success,
        "success_low": low,
        "success_high": high,
        "pass_at_n": fmean(map(any, attempts.values())),
        "reward": reward,
        "tool_calls": tool_calls,
        "tasks": len(attempts),
        "attempts": tally.trajectories,
        "environment_faults": tally.faults,
    }


def main(argv: Sequence[str] | None = None) -> None:
    run(EvaluateConfig, evaluate, __doc__.partition("\n")[0], argv)


if __name__ == "__main__":
    main()

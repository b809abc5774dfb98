"""The lab's rows, as a table and as a picture.

Seeds are what intervals are over: a statistic of all seeds is counted again for 2,000 draws of as many seeds with
replacement, and the middle 95 % of that is its interval (percentile bootstrap). Arms are compared on the same draws, since
runs of one seed share their tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

Row = Mapping[str, Any]
"""What `learning.py` writes of one run."""

COSTS = ("trajectories", "tool_calls", "tokens_generated", "tokens_processed", "seconds")
"""What a curve counts, summed over a run so far, beside the success at that point."""

_DRAWS = 2000


class Arms:
    """The rows of each arm, seed by seed; only seeds that every arm has.

    Args:
        rows: Rows of finished runs.
        baseline: The arm that the others are compared with.
    """

    def __init__(self, rows: Sequence[Row], baseline: str) -> None:
        self.names = list(dict.fromkeys(row["arm"] for row in rows))
        self.baseline = baseline
        by_arm = {name: {row["seed"]: row for row in rows if row["arm"] == name} for name in self.names}
        self.seeds = sorted(set.intersection(*(set(runs) for runs in by_arm.values())))
        self.runs = {name: [by_arm[name][seed] for seed in self.seeds] for name in self.names}
        self._curves = {  # [seeds, evaluations]
            (name, key): np.array([[point[key] for point in run["curve"]] for run in runs])
            for name, runs in self.runs.items()
            for key in (*COSTS, "success")
        }
        rng = np.random.default_rng(0)
        self._draws = rng.integers(len(self.seeds), size=(_DRAWS, len(self.seeds)))

    def interval(self, statistic: Callable[[Sequence[int]], float]) -> tuple[float, float, float]:
        """A statistic of the seeds (by their place) and its 95 % interval; where it is infinite, so may the interval be."""
        value = statistic(range(len(self.seeds)))
        drawn = np.sort([statistic(draw) for draw in self._draws.tolist()])
        return value, float(drawn[int(0.025 * _DRAWS)]), float(drawn[int(0.975 * _DRAWS) - 1])

    def final(self, name: str, key: str) -> Callable[[Sequence[int]], float]:
        """The mean of a number of the final evaluation."""
        values = np.array([run["test"][key] for run in self.runs[name]])
        return lambda seeds: float(values[np.asarray(seeds)].mean())

    def gain(self, name: str, key: str) -> Callable[[Sequence[int]], float]:
        """How much better than the baseline's it is, seed by seed."""
        own, other = self.final(name, key), self.final(self.baseline, key)
        return lambda seeds: own(seeds) - other(seeds)

    def curve(self, name: str, cost: str, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The mean cost so far and the mean success at each evaluation."""
        drawn = np.asarray(seeds)
        return self._curves[name, cost][drawn].mean(axis=0), self._curves[name, "success"][drawn].mean(axis=0)

    def success_at(self, name: str, point: int) -> Callable[[Sequence[int]], float]:
        """The mean success at one of the evaluations."""
        return lambda seeds: float(self.curve(name, COSTS[0], seeds)[1][point])

    def cost_ratio(self, name: str, cost: str) -> Callable[[Sequence[int]], float]:
        """What an arm paid until it was as good as the baseline in the end, over what the baseline paid until then.

        The end is the mean of the baseline's last three evaluations; a mean curve is there where it first crosses that
        level, evaluations being joined by straight lines. Infinite where it never is.
        """

        def ratio(seeds: Sequence[int]) -> float:
            level = float(np.mean(self.curve(self.baseline, cost, seeds)[1][-3:]))
            own = first_crossing(*self.curve(name, cost, seeds), level)
            return own / first_crossing(*self.curve(self.baseline, cost, seeds), level)

        return ratio

    def at_equal(self, name: str, cost: str) -> Callable[[Sequence[int]], float]:
        """How much better than the baseline's the success is where both have paid what the cheaper of them paid in all."""

        def gain(seeds: Sequence[int]) -> float:
            own, other = self.curve(name, cost, seeds), self.curve(self.baseline, cost, seeds)
            paid = min(own[0][-1], other[0][-1])
            return float(np.interp(paid, *own) - np.interp(paid, *other))

        return gain


def first_crossing(costs: np.ndarray, successes: np.ndarray, level: float) -> float:
    """The cost at which a curve, its points joined by straight lines, first reaches a level; infinite if it never does."""
    reached = np.flatnonzero(successes >= level)
    if not reached.size:
        return math.inf
    place = int(reached[0])
    if place == 0:
        return float(costs[0])
    share = (level - successes[place - 1]) / (successes[place] - successes[place - 1])
    return float(costs[place - 1] + share * (costs[place] - costs[place - 1]))


def table(arms: Arms) -> str:
    """The table, as Markdown."""
    columns = [
        ("success, T = 1", lambda name: _share(arms.interval(arms.final(name, "sampled")))),
        ("greedy", lambda name: _share(arms.interval(arms.final(name, "greedy")))),
        (f"over {arms.baseline}, T = 1", lambda name: _gain(arms, name, arms.gain(name, "sampled"))),
        ("at equal tokens", lambda name: _gain(arms, name, arms.at_equal(name, "tokens_processed"))),
        ("executed calls", lambda name: _ratio(arms.interval(arms.cost_ratio(name, "tool_calls")))),
        ("generated tokens", lambda name: _ratio(arms.interval(arms.cost_ratio(name, "tokens_generated")))),
        ("processed tokens", lambda name: _ratio(arms.interval(arms.cost_ratio(name, "tokens_processed")))),
        ("seconds", lambda name: _ratio(arms.interval(arms.cost_ratio(name, "seconds")))),
        ("retrieved where it matters", lambda name: _retrieved(arms.runs[name], "at_decisions")),
        ("and right", lambda name: _retrieved(arms.runs[name], "right")),
    ]
    lines = [["arm", *(title for title, _ in columns)], ["---"] * (len(columns) + 1)]
    lines += [[name, *(cell(name) for _, cell in columns)] for name in arms.names]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def picture(arms: Arms, path: Path) -> None:
    """Mean success on held-out tasks over executed calls and over processed tokens, with intervals."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, cost, title in zip(
        figure.subplots(1, 2, sharey=True),
        ("tool_calls", "tokens_processed"),
        ("executed tool calls, shared ones once", "tokens of all trajectories"),
        strict=True,
    ):
        for name in arms.names:
            everyone = range(len(arms.seeds))
            costs, successes = arms.curve(name, cost, everyone)
            (line,) = axes.plot(costs, successes, label=name)
            bounds = [arms.interval(arms.success_at(name, point))[1:] for point in range(len(costs))]
            axes.fill_between(costs, *np.transpose(bounds), color=line.get_color(), alpha=0.12, linewidth=0)
        axes.set_xlabel(title)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("held-out success, T = 1")
    figure.axes[0].legend()
    figure.savefig(path, dpi=120)


def _share(found: tuple[float, float, float]) -> str:
    value, low, high = (100 * number for number in found)
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def _gain(arms: Arms, name: str, statistic: Callable[[Sequence[int]], float]) -> str:
    if name == arms.baseline:
        return ""
    value, low, high = (100 * number for number in arms.interval(statistic))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _ratio(found: tuple[float, float, float]) -> str:
    value, low, high = ("never" if math.isinf(number) else f"{number:.2f}" for number in found)
    return f"{value} ({low} to {high})"


def _retrieved(runs: Sequence[Row], key: str) -> str:
    shares = [run["retrievals"][key] for run in runs if run["retrievals"]]
    return f"{100 * float(np.mean(shares)):.0f} %" if shares else ""

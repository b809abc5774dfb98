"""Evaluations: what they count, how sure they are of it, and that they are collections of the held-out split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners import evaluate
from learners.evaluate import interval
from tracebank.trajectory import read_trajectories

WIKI = ("--env", "WikiSearch-v0")


def evaluated(output: Path, *arguments: object) -> dict[str, float]:
    evaluate.main(["--output", str(output), *map(str, arguments)])
    summary: dict[str, float] = json.loads(Path(f"{output}.summary.json").read_text())
    return summary


@pytest.mark.parametrize(
    ("solved", "tasks", "low", "high"),
    [
        (8, 10, 0.490, 0.943),  # Wilson's: (0.8 + 0.192 ± 1.96 √(0.016 + 0.0096)) / 1.384
        (0, 10, 0.0, 0.278),  # z² / (n + z²) = 3.842 / 13.842
        (10, 10, 0.722, 1.0),
        (1, 1, 0.207, 1.0),  # 1 − 3.842 / 4.842
    ],
)
def test_one_attempt_a_task_has_wilsons_interval(solved, tasks, low, high):
    assert interval([1.0] * solved + [0.0] * (tasks - solved)) == pytest.approx((low, high), abs=6e-4)


def test_several_attempts_a_task_vary_by_task():
    # Shares 1/4 and 3/4, twice each: mean 1/2, variance (4 · 1/16) / 3 = 1/12, half width 1.96 √(1/48) = 0.2829.
    assert interval([0.25, 0.75, 0.25, 0.75]) == pytest.approx((0.2171, 0.7829), abs=1e-4)
    assert interval([0.5]) == (0.0, 1.0)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=30))
def test_the_interval_holds_the_mean_and_stays_between_0_and_1(shares):
    low, high = interval(shares)
    assert -1e-12 <= low <= sum(shares) / len(shares) + 1e-12
    assert sum(shares) / len(shares) - 1e-12 <= high <= 1 + 1e-12


def test_the_oracle_solves_the_held_out_tasks(tmp_path, capsys):
    output = tmp_path / "evaluation.jsonl"
    summary = evaluated(output, *WIKI, "--model", "oracle", "--task-count", 12)
    records = list(read_trajectories(output))
    assert {record.split for record in records} == {"test"}
    assert len(records) == summary["tasks"] == summary["attempts"] == 12
    assert (summary["success"], summary["success_high"], summary["environment_faults"]) == (1.0, 1.0, 0)
    assert summary["success_low"] == pytest.approx(1 / (1 + 3.8415 / 12), abs=1e-4)  # Wilson's at n of n
    printed = capsys.readouterr().out
    assert "75.8% to 100.0%" in printed
    assert str(output) in printed.replace("\n", "")


def test_several_attempts_are_counted_by_task(tmp_path):
    output = tmp_path / "evaluation.jsonl"
    summary = evaluated(output, *WIKI, "--model", "oracle", "--error-rate", 0.4, "--task-count", 20, "--n", 3)
    tasks: dict[str, list[bool]] = {}
    for record in read_trajectories(output):
        tasks.setdefault(record.task_id, []).append(record.success)
    assert {len(attempts) for attempts in tasks.values()} == {3}
    assert summary["success"] == pytest.approx(sum(map(sum, tasks.values())) / 60)
    assert summary["pass_at_n"] == pytest.approx(sum(map(any, tasks.values())) / 20)
    assert summary["success"] < summary["pass_at_n"] <= 1
    assert summary["success_low"] < summary["success"] < summary["success_high"]


def test_an_evaluation_goes_on_as_a_collection_does(tmp_path, capsys):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    arguments = (*WIKI, "--model", "oracle", "--error-rate", 0.4, "--task-count", 8)
    expected = evaluated(whole, *arguments)
    evaluated(cut, *arguments)
    cut.write_bytes(b"".join(whole.read_bytes().splitlines(keepends=True)[:3]))
    assert evaluated(cut, "--resume") == expected
    assert cut.read_bytes() == whole.read_bytes()
    with pytest.raises(SystemExit) as ended:
        evaluate.main(["--output", str(whole), *map(str, arguments)])
    assert ended.value.code == 2
    assert "is there already" in capsys.readouterr().err

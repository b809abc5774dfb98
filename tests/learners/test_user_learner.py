"""A learner of a user's own: the example's equation, and that its runs are like those of the project's own learners."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from learner_parts import advantages, metrics, same_weights, short, tree_of, untaught  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples import leave_one_out
from examples.leave_one_out import LeaveOneOut, LeaveOneOutConfig
from learners.grpo import GRPO, GRPOConfig
from learners.run.command import run
from learners.update.advantages import group_advantages

ROOT = Path(__file__).parents[2]
ENV = "learner_parts:tests/Parity-v0"


def credited(*groups: list[float], **options) -> list[list[float]]:
    return advantages(LeaveOneOut(LeaveOneOutConfig(**options)).credit([tree_of(group) for group in groups]))


@pytest.mark.parametrize(
    ("returns", "expected"),
    [
        ([1.0, 0.0], [1.0, -1.0]),  # 1 − 0, 0 − 1
        ([3.0, 0.0, 0.0], [3.0, -1.5, -1.5]),  # 0 − (3 + 0)/2
        ([1.0, 2.0, 3.0, 6.0], [-8 / 3, -4 / 3, 0.0, 4.0]),  # 1 − 11/3, 2 − 10/3, 3 − 9/3, 6 − 6/3
        ([5.0, 5.0, 5.0], [0.0, 0.0, 0.0]),
    ],
)
def test_a_return_is_compared_with_the_mean_of_the_others(returns, expected):
    assert credited(returns) == [pytest.approx(expected, abs=1e-6)]
    assert credited(returns, baseline=False) == [returns]


@given(st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=12))
def test_it_is_grpos_advantage_without_the_scale_times_g_over_g_minus_1(returns):
    group = torch.tensor(returns).double()
    ours = LeaveOneOut(LeaveOneOutConfig()).advantages(group)
    theirs = group_advantages(group, scale_by_std=False) * len(returns) / (len(returns) - 1)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_its_credit_is_grpos_in_everything_else():
    trees = [tree_of([1.0, 0.0, 0.5]), tree_of([2.0, 2.5])]
    theirs = advantages(GRPO(GRPOConfig(scale_by_std=False)).credit(trees))
    scaled = [pytest.approx([value * len(group) / (len(group) - 1) for value in group]) for group in theirs]
    assert advantages(LeaveOneOut(LeaveOneOutConfig()).credit(trees)) == scaled


def test_the_surrogate_is_reinforces():
    log_ratio, advantage = torch.tensor([0.5, -3.0], requires_grad=True), torch.tensor([2.0, -1.0])
    LeaveOneOut(LeaveOneOutConfig()).surrogate(log_ratio, advantage, torch.ones(2)).loss.sum().backward()
    assert log_ratio.grad is not None
    assert log_ratio.grad.tolist() == [-2.0, 1.0]  # −A, however far the policy has gone


# Runs


@pytest.fixture(scope="module")
def finished(untaught, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(LeaveOneOutConfig, LeaveOneOut, "", short(untaught, folder, "--group-size", 4, env=ENV, steps=3))
    return folder


def test_its_run_leaves_what_every_run_leaves(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert {"success_before", "success_after", "success_after_greedy", "tool_calls_after", "steps"} <= summary.keys()
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert (config["learner"], config["group_size"], config["baseline"]) == ("leave_one_out", 4, True)
    for name in (
        "curves.png",
        "evaluations.jsonl",
        "trajectories/step_000003.jsonl",
        "trajectories/evaluation_000003_greedy.jsonl",
    ):
        assert (finished / name).stat().st_size > 0
    assert list((finished / "tensorboard").glob("events.out.*"))
    assert all(record["grad_norm"] > 0 for record in metrics(finished))
    newest = finished / "checkpoints" / "step_000003"
    assert AutoModelForCausalLM.from_pretrained(newest).num_parameters() > 0
    assert AutoTokenizer.from_pretrained(newest).chat_template


def test_from_another_folder_it_runs_and_goes_on_after_a_kill_bit_for_bit(finished, untaught, tmp_path):  # noqa: F811
    command = [sys.executable, str(ROOT / "examples" / "leave_one_out.py")]
    paths = [str(ROOT), str(ROOT / "tests" / "learners")]
    place = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}}
    folder = tmp_path / "run"
    arguments = short(untaught, folder, "--group-size", 4, env=ENV, steps=3)
    child = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **place)
    while child.poll() is None and not (folder / "checkpoints" / "step_000001").exists():
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    _, told = child.communicate()
    assert child.returncode == -signal.SIGKILL, told.decode()
    run(LeaveOneOutConfig, LeaveOneOut, "", ["--resume", str(folder)])
    assert metrics(folder) == metrics(finished)
    last = Path("checkpoints") / "step_000003"
    assert same_weights(folder / last, finished / last)


def test_its_own_option_is_in_its_help_beside_everybodys(capsys):
    with pytest.raises(SystemExit) as exit:
        run(LeaveOneOutConfig, LeaveOneOut, "REINFORCE", ["--help"])
    assert exit.value.code == 0
    told = capsys.readouterr().out
    for option in ("--baseline", "--no-baseline", "--group-size", "--env", "--resume", "--bank"):
        assert (option in told) == (option != "--bank")
    assert "mean of the others'" in " ".join(told.split()).replace("│ │ ", "")


def test_a_group_of_one_has_nobody_to_be_compared_with(capsys, tmp_path):
    with pytest.raises(SystemExit) as exit:
        run(LeaveOneOutConfig, LeaveOneOut, "", ["--group-size", "1", "--output", str(tmp_path / "run")])
    assert exit.value.code == 2
    assert "--group-size must be at least 2" in capsys.readouterr().err


def test_the_file_is_short_enough_to_be_read_at_once():
    assert len(Path(leave_one_out.__file__).read_text().splitlines()) <= 60

"""Whole runs: what they leave behind, that they repeat and resume bit for bit, that they learn, and what they refuse."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from learners.grpo import GRPO, GRPOConfig
from learners.run.command import run
from tracebank.trajectory import read_trajectories

FOLDER = Path(__file__).parent


@pytest.fixture(scope="session")
def policy(taught) -> Path:
    return taught


def grpo(*arguments) -> None:
    run(GRPOConfig, GRPO, "", [str(argument) for argument in arguments])


def short(policy: Path, output: Path, steps: int = 4) -> list[str]:
    """The command line of a small run."""
    options = {
        "--model": policy,
        "--output": output,
        "--steps": steps,
        "--tasks-per-step": 3,
        "--group-size": 4,
        "--eval-tasks": 8,
        "--turn-tokens": 40,
        "--total-tokens": 300,
        "--checkpoint-every": 2,
        "--minibatch-groups": 2,
        "--threads": 1,
    }
    return ["--deterministic", *(str(part) for pair in options.items() for part in pair)]


def metrics(folder: Path) -> list[dict[str, float]]:
    """The metrics of a run without its times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("seconds/")} for line in lines]


def weights(folder: Path, step: int) -> dict[str, object]:
    return load_file(folder / "checkpoints" / f"step_{step:06d}" / "model.safetensors")


def same_weights(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


@pytest.fixture(scope="session")
def finished(policy, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    grpo(*short(policy, folder))
    return folder


def test_a_run_folder_holds_what_it_promises(finished):
    summary = json.loads((finished / "summary.json").read_text())
    for key in ("success", "reward", "tool_calls"):
        for moment in ("before", "after"):
            assert f"{key}_{moment}" in summary
            assert f"{key}_{moment}_greedy" in summary
    assert summary["steps"] == 4
    assert summary["seed"] == 0
    assert summary["wall_seconds"] > 0
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["learner"] == "grpo"
    assert config["group_size"] == 4
    assert [record["step"] for record in metrics(finished)] == [1, 2, 3, 4]
    assert (finished / "curves.png").stat().st_size > 10_000
    assert list((finished / "tensorboard").glob("events.out.*"))
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["step_000002", "step_000004"]


def test_the_trajectories_of_a_run_are_complete(finished):
    for step in range(1, 5):
        records = list(read_trajectories(finished / "trajectories" / f"step_{step:06d}.jsonl"))
        assert len(records) == 12
        assert {record.environment for record in records} == {"agent_envs/MathTool-v0"}
        assert len({record.task_id for record in records}) == 3
        assert {record.policy_version for record in records} == {step - 1}
        mean = sum(record.reward for record in records) / 12
        assert metrics(finished)[step - 1]["reward"] == pytest.approx(mean)
    held_out = list(read_trajectories(finished / "trajectories" / "evaluation_000000_greedy.jsonl"))
    assert len(held_out) == 8
    trained = {r.question for s in range(1, 5) for r in read_trajectories(finished / f"trajectories/step_{s:06d}.jsonl")}
    assert not trained & {record.question for record in held_out}


def test_the_sampler_and_the_trainer_agree_on_log_probabilities(finished):
    assert all(record["mismatch_max"] < 1e-4 for record in metrics(finished))


def test_a_run_repeats_bit_for_bit(policy, finished, tmp_path):
    grpo(*short(policy, tmp_path / "again"))
    assert metrics(tmp_path / "again") == metrics(finished)
    assert same_weights(weights(tmp_path / "again", 4), weights(finished, 4))


def test_another_seed_is_another_run(policy, finished, tmp_path):
    grpo(*short(policy, tmp_path / "other", steps=1), "--seed", 1)
    assert metrics(tmp_path / "other")[0] != metrics(finished)[0]


def _killed_and_resumed(policy: Path, folder: Path, moments: list[float]) -> None:
    """Starts the run and kills it after each moment (in shares of a step's time), then lets it end."""
    command = [sys.executable, "-m", "learners.grpo"]
    first = short(policy, folder)
    for moment in moments:
        resuming = (folder / "config.yaml").exists()
        arguments = ["--resume", str(folder)] if resuming else first
        child = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        done = len(metrics(folder)) if resuming else 0
        while child.poll() is None and not ((folder / "metrics.jsonl").exists() and _lines(folder) > done):
            time.sleep(0.01)
        time.sleep(moment)
        child.send_signal(signal.SIGKILL)
        child.wait()
    subprocess.run([*command, "--resume", str(folder)], check=True, stdout=subprocess.DEVNULL)


def _lines(folder: Path) -> int:
    return (folder / "metrics.jsonl").read_bytes().count(b"\n")


def test_a_run_that_is_killed_and_resumed_is_one_that_was_not(policy, finished, tmp_path):
    rng = random.Random(0)
    _killed_and_resumed(policy, tmp_path / "run", [rng.random() * 0.6 for _ in range(2)])
    assert metrics(tmp_path / "run") == metrics(finished)
    assert same_weights(weights(tmp_path / "run", 4), weights(finished, 4))
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path / "run", finished))
    assert {k: v for k, v in ours.items() if k != "wall_seconds"} == {k: v for k, v in theirs.items() if k != "wall_seconds"}


@pytest.mark.thorough
def test_resuming_is_exact_at_twenty_random_moments(policy, finished, tmp_path):
    rng = random.Random(7)
    for round_ in range(10):
        _killed_and_resumed(policy, tmp_path / f"run{round_}", [rng.random() for _ in range(2)])
        assert metrics(tmp_path / f"run{round_}") == metrics(finished)
        assert same_weights(weights(tmp_path / f"run{round_}", 4), weights(finished, 4))


# Learning


def test_a_users_own_environment_trains(tmp_path, monkeypatch, quick):
    """A plain Gymnasium environment, by module:id; without an oracle the tiny policy starts from a generic warm start."""
    monkeypatch.setenv("AGENT_ENVS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("learners.run.tiny.Recipe", lambda: quick)
    monkeypatch.syspath_prepend(str(FOLDER))
    options = ["--steps", 12, "--eval-tasks", 64, "--turn-tokens", 12, "--threads", 1, "--learning-rate", 1e-3]
    grpo("--env", "user_environments:tests/LastWord-v0", "--output", tmp_path / "run", *options)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["success_after"] > summary["success_before"] + 0.1


@pytest.mark.thorough
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("learner", ["rapo", "grpo"])
def test_the_demo_learns(tmp_path, learner, seed):
    cache = {**os.environ, "AGENT_ENVS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", f"learners.{learner}", "--env", "MathTool-v0", "--seed", str(seed)]
    subprocess.run([*command, "--output", str(tmp_path / "run")], check=True, env=cache)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0.1 <= summary["success_before"] <= 0.6
    assert summary["success_after"] >= 0.9
    assert summary["success_after"] > summary["success_before_greedy"]


# What is refused: one clear line, exit code 2, nothing overwritten


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as caught:
        grpo(*arguments)
    assert caught.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--env", "MathTol-v0"], "close: MathTool-v0"),
        (["--env", "nowhere:Thing-v0"], "there is no such environment"),
        (["--tasks", "gsm9k"], "tasks is one of arithmetic, tiny_wiki"),
        (["--tasks", "missing.jsonl"], "there is no such file"),
        (["--tasks", "reasoning_gym:chain_sun"], "chain_sum"),
        (["--env-args", "{"], "--env-args must be a JSON object"),
        (["--env-args", '{"colour": 3}'], "takes no colour"),
        (["--model", "/no/such/model"], "--model /no/such/model cannot be loaded"),
        (["--device", "tpu9"], "--device tpu9"),
        (["--group-size", "1"], "--group-size must be at least 2"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--temperature", "0"], "--temperature must be above 0"),
        (["--minibatch-groups", "99"], "more than the 16 groups"),
        (["--resume", "/no/such/run"], "there is no run here"),
        (["--eval-split", "holdout"], "holdout"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(capsys, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert says in refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        grpo("--lerning-rate", "1e-3")
    assert caught.value.code == 2


def test_a_broken_task_file_is_named_with_its_line(capsys, tmp_path, policy):
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"question": "1+1?", "answer": "#### 2"}\n{"question": "2+2?"}\n')
    line = refused(capsys, "--tasks", file, "--model", policy, "--output", tmp_path / "run")
    assert "tasks.jsonl:2" in line
    assert 'expected a text or a number under "answer"' in line
    assert not (tmp_path / "run").exists()


def test_an_output_folder_in_use_is_left_alone(capsys, tmp_path, policy):
    (tmp_path / "notes.txt").write_text("mine")
    assert "is in use" in refused(capsys, "--model", policy, "--output", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_model_without_a_chat_template_is_refused(capsys, tmp_path, policy):
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(policy, bare)
    (bare / "chat_template.jinja").unlink()
    assert "has no chat template" in refused(capsys, "--model", bare, "--output", tmp_path / "run")


def test_resuming_another_configuration_names_the_difference(capsys, finished):
    before = (finished / "metrics.jsonl").read_bytes()
    line = refused(capsys, "--resume", finished, "--group-size", 8)
    assert "--group-size is 8 here and 4 there" in line
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_resuming_a_run_of_another_learner_is_refused(capsys, finished, tmp_path):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | {"learner": "other"}))
    assert "a run of the learner 'other'" in refused(capsys, "--resume", tmp_path)

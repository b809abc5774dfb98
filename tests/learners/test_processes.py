"""Several processes of one run: the same as one up to rounding, the same again bit for bit, and ended by an error in any."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_parts import metrics, same_weights, short, untaught
from safetensors.torch import load_file
from world_jobs import begun

from learners.collect import main as collect
from learners.grpo import GRPO, GRPOConfig
from learners.run.command import run
from learners.run.config import UsageError
from learners.run.policy import check_processes, load_model, part_of
from learners.update.packing import dealt
from learners.update.world import ALONE, World
from tracebank import read_trajectories

HERE = Path(__file__).parent
RATE = 3e-3  # of `short`
__all__ = ["untaught"]  # the fixture

# What differs between one process and two is the order of sums in 32 bits. Sampled tokens, and all that is counted, are the
# same; a gradient has the same digits but the last two. AdamW divides a gradient by its own size, so that weights whose
# gradient is next to nothing move by up to the learning rate whichever way it points.
CLOSE = 1e-3
WEIGHTS = 0.1 * RATE


def grpo(*arguments: Any) -> None:
    run(GRPOConfig, GRPO, "", [str(argument) for argument in arguments])


def start(*program: Any, path: Path = HERE) -> subprocess.Popen[str]:
    """Starts Python with these arguments, which finds modules in a folder."""
    paths = [str(HERE.parents[1]), str(HERE), str(path), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, *map(str, program)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def torchrun(*program: Any) -> subprocess.Popen[str]:
    """Starts two processes of a program."""
    return start("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *program)


def finish(child: subprocess.Popen[str], seconds: float = 240) -> str:
    """What it printed, once it has ended; a hang is a failure."""
    try:
        return child.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        child.terminate()  # torchrun ends its processes
        raise AssertionError(f"two processes were not done after {seconds:g} s: {child.communicate()[0]}") from None


def options(policy: Path, output: Path, *more: Any) -> list[str]:
    env = "learner_parts:tests/Parity-v0"
    return short(policy, output, "--group-size", 4, "--eval-tasks", 5, "--kl-coefficient", 0.05, *more, env=env)


AHEAD = ("--async-steps", 1, "--gradient-checkpointing")
ROUNDED = ("--dtype", "bfloat16")
LEFT_OUT = {"wild": (), "silent": ("--total-tokens", 12)}


def assert_alike(one: Path, other: Path, *steps: int) -> None:
    """Two runs are the same up to rounding, what they sampled to the last token."""
    for ours, theirs in zip(metrics(one), metrics(other), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:  # a mismatch is rounding and nothing else
            assert ours[name] == pytest.approx(theirs[name], rel=CLOSE, abs=1e-5), name
    for path in sorted((one / "trajectories").iterdir()):
        pairs = zip(read_trajectories(path), read_trajectories(other / "trajectories" / path.name), strict=True)
        assert all([s.ids for s in a.segments] == [s.ids for s in b.segments] for a, b in pairs), path.name
    for step in steps:
        folders = [folder / "checkpoints" / f"step_{step:06d}" for folder in (one, other)]
        ours, theirs = (load_file(folder / "model.safetensors") for folder in folders)
        assert ours.keys() == theirs.keys()
        assert all(torch.allclose(ours[name], theirs[name], rtol=0, atol=WEIGHTS) for name in ours)
        ours, theirs = (torch.load(folder / "optimizer.pt") for folder in folders)
        assert ours["param_groups"] == theirs["param_groups"]
        assert ours["state"].keys() == theirs["state"].keys()
        for number, state in ours["state"].items():
            for name, value in state.items():
                largest = float(value.abs().max())
                assert torch.allclose(value, theirs["state"][number][name], rtol=0, atol=CLOSE * largest), name


@pytest.fixture(scope="session")
def alone(untaught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    grpo(*options(untaught, folder))
    return folder


@pytest.fixture(scope="session")
def ahead(untaught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ahead") / "run"
    grpo(*options(untaught, folder, *AHEAD))
    return folder


BROKEN = """
import os
import gymnasium as gym
from learner_parts import Parity

class Broken(Parity):
    played = 0

    def step(self, action):
        Broken.played += 1
        if os.environ["RANK"] == "1" and Broken.played == 9:
            raise ZeroDivisionError("an action too many")
        return super().step(action)

gym.register("tests/Broken-v0", Broken)
"""


@pytest.fixture(scope="session")
def two(untaught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs in two processes, of which one is resumed and the last breaks, and of what they printed."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "broken_parity.py").write_text(BROKEN)
    kinds = {"run": (), "ahead": AHEAD, "rounded": ROUNDED}
    runs = [["grpo", *options(untaught, folder / name, *more)] for name, more in kinds.items()]
    runs += [["go on", str(folder / name), str(folder / f"{name}_resumed")] for name in ("run", "rounded")]
    left_out = [[job, *options(untaught, folder / job, *more)] for job, more in LEFT_OUT.items()]
    broken = ["grpo", *short(untaught, folder / "broken", env="broken_parity:tests/Broken-v0")]
    child = start(HERE / "world_jobs.py", json.dumps([*runs, *left_out, broken]), path=folder)
    (folder / "printed").write_text(finish(child))
    assert child.returncode != 0
    return folder


def test_two_processes_do_what_one_does(alone: Path, two: Path) -> None:
    assert_alike(alone, two / "run", 1, 2)
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (alone, two / "run"))
    assert {**ours, "wall_seconds": 0} == {**theirs, "wall_seconds": 0}


def test_only_the_first_process_prints_and_writes(two: Path) -> None:
    printed = (two / "printed").read_text()
    assert printed.count("step 2/2") == 7  # once a run
    assert len(list((two / "run" / "tensorboard").iterdir())) == 1
    assert len((two / "run" / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("name", ["run", "rounded"])
def test_two_processes_go_on_with_what_two_began_bit_for_bit(two: Path, name: str) -> None:
    resumed = two / f"{name}_resumed"
    assert metrics(resumed) == metrics(two / name)
    assert same_weights(*(folder / "checkpoints" / "step_000002" for folder in (resumed, two / name)))


def test_one_process_goes_on_with_what_two_began(
    alone: Path, two: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = begun(two / "run", tmp_path / "run")
    grpo("--resume", folder)
    assert "the run was in 2 process(es) and goes on in 1" in caplog.text
    assert_alike(alone, folder, 1, 2)


def test_two_processes_play_ahead_as_one_does(ahead: Path, two: Path, tmp_path: Path) -> None:
    assert [record["staleness"] for record in metrics(ahead)] == [0, 1]
    assert_alike(ahead, two / "ahead", 1, 2)
    resumed = begun(two / "ahead", tmp_path / "run")
    grpo("--resume", resumed)  # with the weights that the batch in flight was sampled from
    assert_alike(ahead, resumed, 1, 2)


def test_steps_that_bfloat16_would_lose_are_kept_in_shards(untaught: Path, two: Path, tmp_path: Path) -> None:
    grpo(*options(untaught, tmp_path / "one", *ROUNDED, "--steps", 1))
    began = [weight.bfloat16().float() for weight in load_model(str(untaught), torch.float32).parameters()]
    steps = []
    for which in (tmp_path / "one", two / "rounded"):
        folder = which / "checkpoints" / "step_000001"
        masters = torch.load(folder / "optimizer.pt")["masters"]
        weights = list(load_model(str(folder), "auto").parameters())
        assert all(torch.equal(weight, master.bfloat16()) for weight, master in zip(weights, masters, strict=True))
        steps.append(torch.cat([(master - start).flatten() for master, start in zip(masters, began, strict=True)]))
    assert torch.cosine_similarity(*steps, dim=0) > 0.95  # sums of bfloat16 in another order, of which AdamW takes the sign
    # Samplers have the weights of the second step, too: else they would be as far apart as where batches are played ahead.
    assert all(record["mismatch_max"] < 0.15 for record in metrics(two / "rounded"))
    grpo("--resume", begun(two / "rounded", tmp_path / "resumed"))
    assert metrics(tmp_path / "resumed")[1]["mismatch_max"] < 0.15


@pytest.mark.parametrize(("job", "name"), [("wild", "skipped"), ("silent", "unwritten")])
def test_two_processes_leave_the_same_mini_batches_out(untaught: Path, two: Path, job: str, name: str) -> None:
    for record in metrics(two / job):
        assert (record["optimizer_steps"], record[name]) == (0.0, 2.0)
    assert same_weights(untaught, two / job / "checkpoints" / "step_000002")
    assert (two / "printed").read_text().count("step 2: the gradient of 2 of 2 mini-batches was not finite") == 1


def test_an_error_in_one_process_ends_the_run_and_says_which(two: Path) -> None:
    printed = (two / "printed").read_text()
    errors = re.findall(r"^error: .*$", printed, re.MULTILINE)
    assert errors == ["error: process 1 of 2: Traceback (most recent call last):"], printed
    assert "ZeroDivisionError: an action too many" in printed
    assert metrics(two / "broken") == []


def test_what_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_processes(GRPOConfig(tasks_per_step=8), World(rank=3, size=8))
    with pytest.raises(UsageError, match="--lora-rank 4: adapters are trained in one process, and these are 8"):
        check_processes(GRPOConfig(tasks_per_step=8, lora_rank=4), World(rank=3, size=8))
    with pytest.raises(UsageError, match="--optimizer-device cpu: 8 processes keep a part each"):
        check_processes(GRPOConfig(tasks_per_step=8, optimizer_device="cpu"), World(rank=3, size=8))
    with pytest.raises(UsageError, match="--tasks-per-step 7 leaves some of 8 processes nothing to play"):
        check_processes(GRPOConfig(tasks_per_step=7), World(rank=3, size=8))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    check_processes(GRPOConfig(device="cuda", deterministic=False), World(size=4))
    check_processes(GRPOConfig(device="cuda:1", deterministic=True), ALONE)
    for device, deterministic, size, says in (
        ("cuda:1", False, 4, "each process takes a GPU of its own; use --device cuda"),
        ("cuda", False, 8, "expected a GPU for each of 8 processes, found 4"),
    ):
        with pytest.raises(UsageError, match=says):
            check_processes(GRPOConfig(device=device, deterministic=deterministic), World(size=size))


def test_a_collection_is_made_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("learners.run.command.open_world", lambda: World(size=2))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        collect(["--model", "oracle"])
    assert caught.value.code == 2
    assert "this command runs in one process: start it by python -m, without torchrun" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_machines_threads_and_tools_are_shared() -> None:
    config = GRPOConfig(threads=8, concurrency=100)
    part = part_of(config, World(rank=1, size=3))
    assert (part.threads, part.concurrency) == (2, 34)
    assert part_of(config, ALONE) is config


@given(
    rows=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=12),
    hands=st.integers(1, 5),
)
def test_rows_are_dealt_out_evenly(rows: list[list[int]], hands: int) -> None:
    found = dealt([torch.tensor(row) for row in rows], hands)
    assert len(found) == hands
    assert sorted(index for own in found for index in own) == list(range(len(rows)))

    def tokens(own: list[int]) -> int:
        """How many there are to compute: as many as there are different beginnings."""
        return len({tuple(rows[index][: end + 1]) for index in own for end in range(len(rows[index]))})

    part = tokens(list(range(len(rows)))) / hands
    for own in found:  # a row may be cut off from what it shares, and half of one lie on either side
        assert tokens(own) <= part + 2 * max(map(len, rows))


# What takes longer


@pytest.mark.thorough
def test_rapo_in_two_processes_does_what_it_does_in_one(untaught: Path, tmp_path: Path) -> None:
    env = ["--env-args", '{"difficulty": 2}', "--group-size", "4", "--update", "padded", "--epochs", "2"]

    def arguments(folder: Path) -> list[str]:
        return [*short(untaught, folder, *env, env="MathTool-v0"), "--turn-tokens", "32", "--total-tokens", "200"]

    child = torchrun("-m", "learners.rapo", *arguments(tmp_path / "two"))
    printed = finish(child)
    assert child.returncode == 0, printed
    subprocess.run([sys.executable, "-m", "learners.rapo", *arguments(tmp_path / "one")], check=True)
    assert_alike(tmp_path / "one", tmp_path / "two", 1, 2)


@pytest.mark.thorough
def test_two_processes_that_are_killed_and_resumed_are_two_that_were_not(untaught: Path, two: Path, tmp_path: Path) -> None:
    rng = random.Random(3)
    for number in range(3):
        folder = tmp_path / str(number)
        child = torchrun("-m", "learners.grpo", *options(untaught, folder))
        while child.poll() is None and not list(folder.glob("checkpoints/step_*")):
            time.sleep(0.01)
        time.sleep(rng.random())
        workers = [int(pid) for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()]
        for pid in (child.pid, *workers):
            os.kill(pid, signal.SIGKILL)
        child.communicate()
        resumed = torchrun("-m", "learners.grpo", "--resume", folder)
        printed = finish(resumed)
        assert resumed.returncode == 0, printed
        assert metrics(folder) == metrics(two / "run")
        assert same_weights(*(run / "checkpoints" / "step_000002" for run in (folder, two / "run")))


@pytest.mark.thorough
def test_an_error_while_another_process_learns_ends_the_run(untaught: Path, tmp_path: Path) -> None:
    (tmp_path / "broken_parity.py").write_text(BROKEN.replace("played == 9", "played == 60"))
    arguments = short(untaught, tmp_path / "run", *AHEAD, env="broken_parity:tests/Broken-v0", steps=6, minibatch_groups=1)
    child = start(HERE / "world_jobs.py", json.dumps([["grpo", *arguments]]), path=tmp_path)
    printed = finish(child, 120)
    assert child.returncode != 0
    assert re.findall(r"^error: .*$", printed, re.MULTILINE) == ["error: process 1 of 2: Traceback (most recent call last):"]
    assert "ZeroDivisionError: an action too many" in printed
    assert 0 < len(metrics(tmp_path / "run")) < 6


@pytest.mark.thorough
@pytest.mark.vllm
def test_each_process_has_an_engine_of_vllm_with_the_weights_of_the_whole_policy(untaught: Path, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    arguments = [argument for argument in options(untaught, tmp_path / "run") if argument != "--deterministic"]
    child = torchrun("-m", "learners.grpo", *arguments, "--sampler", "vllm", "--no-deterministic", "--concurrency", 16)
    printed = finish(child, 480)
    assert child.returncode == 0, printed
    for record in metrics(tmp_path / "run"):  # in the second step only an engine that has the new weights agrees
        assert record["mismatch_max"] < 1e-3

"""A run of RAPO that is killed again and again, in every part of a step, ends as one that nobody disturbed, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from learner_parts import metrics, same_weights, short

from tracebank import read_trajectories

SCRIPT = Path(__file__).with_name("killing_rapo.py")
STEPS = 20
PARTS = {"rollout": 7, "update": 7, "checkpoint": 6}  # and how many of the kills are aimed at each


def command(policy: Path, folder: Path) -> list[str]:
    options = {"env": "MathTool-v0", "tasks_per_step": 2, "minibatch_groups": 1, "group_size": 4, "hybrid_rollouts": 2}
    options |= {"turn_tokens": 40, "total_tokens": 400, "cut_reward": -0.5, "learning_rate": 1e-3}
    return short(policy, folder, steps=STEPS, **options)


class Child:
    """A run in a process of its own, which tells how far it is; see `killing_rapo`.

    Args:
        process: The process.
        pipe: Descriptor of what it tells.
    """

    def __init__(self, process: subprocess.Popen[bytes], pipe: int) -> None:
        self.process, self._pipe = process, os.fdopen(pipe)

    def parts(self) -> Iterator[str]:
        """The parts that begin, as they do, until the process has ended."""
        return (line.strip() for line in self._pipe)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._pipe.close()


@contextmanager
def running(arguments: list[str]) -> Iterator[Child]:
    ours, theirs = os.pipe()
    process = subprocess.Popen(
        [sys.executable, SCRIPT, str(theirs), *arguments], stdout=subprocess.DEVNULL, pass_fds=[theirs]
    )
    os.close(theirs)
    child = Child(process, ours)
    try:
        yield child
    finally:
        child.close()


def undisturbed(arguments: list[str]) -> dict[str, list[float]]:
    """Lets a run come to its end.

    Returns:
        How many seconds each part took in each step.
    """
    begun: list[tuple[str, float]] = []
    with running(arguments) as child:
        begun += ((part, time.monotonic()) for part in child.parts())
        assert child.process.wait() == 0
    found: dict[str, list[float]] = {part: [] for part in PARTS}
    for (part, then), (_, now) in zip(begun, [*begun[1:], ("", time.monotonic())], strict=True):
        if part in found:
            found[part].append(now - then)
    return found


def killed(arguments: list[str], part: str, occurrence: int, delay: float) -> str:
    """Kills a run so many seconds after a part has begun so many times.

    Returns:
        The part that it was in when it died.
    """
    with running(arguments) as child:
        seen: Counter[str] = Counter()
        last = ""
        for last in child.parts():
            seen[last] += 1
            if seen[part] == occurrence:
                time.sleep(delay)
                child.process.send_signal(signal.SIGKILL)
                break
        assert seen[part] == occurrence, f"it ended before it came to {part} number {occurrence}"
        *_, last = (last, *child.parts())  # what it told until it died
        assert child.process.wait() == -signal.SIGKILL
    return last


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("step_*"))


def last_of(folder: Path) -> tuple[str, Path]:
    newest = checkpoints(folder)[-1]
    return newest.name, newest


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def optimizer(folder: Path) -> dict:
    return torch.load(last_of(folder)[1] / "optimizer.pt", weights_only=True)


def summary(folder: Path) -> dict[str, float]:
    return {k: v for k, v in json.loads((folder / "summary.json").read_text()).items() if k != "wall_seconds"}


@pytest.mark.thorough
def test_twenty_kills_of_a_run_of_rapo_leave_no_trace(taught, tmp_path, capsys):
    """One in every step, at a random moment of a part of it; the seed decides which, and when."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    seconds = undisturbed(command(taught, whole))
    assert {part: len(found) for part, found in seconds.items()} == dict.fromkeys(PARTS, STEPS)
    rng = random.Random(7)
    aims = [part for part, count in PARTS.items() for _ in range(count)]
    rng.shuffle(aims)
    fell = []
    for step, part in enumerate(aims, start=1):
        done = int(last_of(folder)[0].removeprefix("step_")) if checkpoints(folder) else 0
        arguments = ["--resume", str(folder)] if folder.exists() else command(taught, folder)
        delay = rng.random() * seconds[part][step - 1]
        fell.append(killed(arguments, part, step - done, delay))
        with capsys.disabled():
            print(f"step {step:2}: killed in {fell[-1]:10} {delay:.3f} s after its {part} had begun", flush=True)
    assert len(fell) == STEPS
    assert set(fell) >= set(PARTS)
    undisturbed(["--resume", str(folder)])
    assert metrics(folder) == metrics(whole)
    assert files(folder / "trajectories") == files(whole / "trajectories")
    assert files(folder / "bank") == files(whole / "bank")
    assert summary(folder) == summary(whole)
    assert last_of(folder)[0] == last_of(whole)[0] == f"step_{STEPS:06d}"
    assert same_weights(last_of(folder)[1], last_of(whole)[1])
    torch.testing.assert_close(optimizer(folder), optimizer(whole), rtol=0, atol=0)
    # There was something to lose: it learned, and it retrieved.
    assert any(record["grad_norm"] > 0 for record in metrics(whole))
    records = [one for path in (whole / "trajectories").glob("step_*.jsonl") for one in read_trajectories(path)]
    assert any(segment.author == "retrieved" for one in records for segment in one.segments)

"""Which learner learns what: GRPO, ARPO, RAPO and their controls in the lab, in pairs of equal seeds.

The lab's task (`lab.task`) has a rule to find and a move that its policy (`lab.policy`) hardly ever makes; the bank that
RAPO retrieves from is made of the oracle's steps in training tasks, one in ten of them spoilt. All runs begin with the same
policy; those of one seed draw the same tasks, and all are asked the same held-out ones: 200 of the validation split every
eight steps, which the curves are made of, and 1,100 draws of the test split at the end (less what was drawn twice), sampled
at T = 1 and greedily. How hard the task is was set with GRPO and RAPO on seed 0 and the validation split; the rows are of
the seeds from 1 on.

    python benchmarks/learning.py --seeds 8 --jobs 2                 # goes on where it was; hours
    python benchmarks/learning.py --arms grpo rapo --seeds 1 --steps 20 --rows trial.jsonl
    python benchmarks/learning.py --table                            # of the rows that there are

A run is an ordinary one, ``python -m learners.X --env lab.task:Lab-v0 ...``; it stands under runs/lab/ and goes on from its
last checkpoint when it was killed. Finished ones are rows of benchmarks/learning.jsonl: an arm and a seed that have a row
are not run again. Seconds are those of rollouts and updates, without evaluations.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from lab.policy import save_policy
from lab.results import Arms, picture, table
from timing import show_load
from transformers import AutoTokenizer

from tracebank.trajectory import read_trajectories

HERE = Path(__file__).parent

ARMS: Mapping[str, tuple[str, ...]] = {
    "grpo": ("grpo",),
    "arpo": ("arpo",),
    "arpo at decisions": ("arpo", "--entropy-norm", "log-vocab", "--tau", "0.52"),
    "random branching": ("arpo", "--branch-rule", "random", "--branch-rate", "0.2"),
    "rapo": ("rapo",),
    "random traces": ("rapo", "--noise", "1"),
}
"""What is compared: the learner, and its options beside those of all arms.

By ARPO's own threshold every path branches after its first call, since the call before was certain: any change is a rise.
"At decisions" asks for a rise of 0.6 nats, which a sign that is not understood brings; the random rate is near that arm's.
"""

COMMON = (
    *("--env", "lab.task:Lab-v0", "--group-size", "16", "--tasks-per-step", "8", "--minibatch-groups", "4"),
    *("--learning-rate", "2e-4", "--schedule", "constant", "--turn-tokens", "24", "--total-tokens", "400"),
    *("--threads", "1", "--deterministic", "--checkpoint-every", "20"),
    *("--eval-split", "validation", "--eval-tasks", "200", "--eval-every", "8"),
)
TEST_TASKS = 1100


def run(arm: str, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """Plays one run, or what is missing of it, and makes its row."""
    learner, *options = ARMS[arm]
    own = folder / f"{arm.replace(' ', '-')}-{seed}"
    model = folder / "policy"
    if not (own / "summary.json").exists():
        where = ("--resume", own) if (own / "config.yaml").exists() else ("--output", own)
        python(f"learners.{learner}", "--model", model, *where, "--seed", seed, "--steps", steps, *COMMON, *options)
    trained = sorted((own / "checkpoints").iterdir())[-1]
    test = {}
    for name, temperature in (("sampled", 1), ("greedy", 0)):
        output = own / f"test_{name}.jsonl"
        summary = Path(f"{output}.summary.json")
        if not summary.exists():
            output.unlink(missing_ok=True)
            limits = ("--turn-tokens", 24, "--total-tokens", 400, "--threads", 1, "--deterministic")
            asked = ("--task-count", TEST_TASKS, "--temperature", temperature, "--output", output)
            python("learners.evaluate", "--env", "lab.task:Lab-v0", "--model", trained, *limits, *asked)
        test[name] = json.loads(summary.read_text())["success"]
    row = {"arm": arm, "seed": seed, "steps": steps, "options": [learner, *options], "test": test, "curve": curve(own)}
    return row | {"retrievals": retrievals(own, model)}


def python(module: str, *arguments: object) -> None:
    """Runs a module on one thread. Raises `SystemExit` with its last words where it fails."""
    paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{module} {' '.join(map(str, arguments))} ended with {done.returncode}: {done.stderr[-2000:]}")


def curve(folder: Path) -> list[dict[str, float]]:
    """What a run had paid, and how good it was, at each evaluation."""
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    points = []
    for line in (folder / "evaluations.jsonl").read_text().splitlines():
        evaluation = json.loads(line)
        if evaluation["name"] != "sampled":
            continue
        before = steps[: evaluation["step"]]
        points.append(
            {
                "step": evaluation["step"],
                "success": evaluation["success"],
                "trajectories": sum(step["trajectories"] for step in before),
                "tool_calls": sum(step["tool_calls_executed"] for step in before),
                "tokens_generated": sum(step["tokens_generated"] for step in before),
                "tokens_processed": round(sum(step["trajectories"] * step["tokens/total"] for step in before)),
                "seconds": sum(step["seconds/rollout"] + step["seconds/update"] for step in before),
            }
        )
    return points


def retrievals(folder: Path, model: Path) -> dict[str, float]:
    """Of a run's retrievals, the share before a decision (a sign or a locked door), and of those at a locked door the share
    that unlocks one; nothing where nothing was retrieved."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    count = decisions = locked = right = 0
    for path in sorted((folder / "trajectories").glob("step_*.jsonl")):
        for trajectory in read_trajectories(path):
            for before, segment in zip(trajectory.segments, trajectory.segments[1:], strict=False):
                if segment.author != "retrieved":
                    continue
                count += 1
                room = str(tokenizer.decode(list(before.ids))).partition("<result>")[2].split()
                decisions += bool(room) and (room[0] == "locked" or "red" in room)
                if room and room[0] == "locked":
                    locked += 1
                    right += bool(re.search(r"<unlock>", str(tokenizer.decode(list(segment.ids)))))
    return {"count": count, "at_decisions": decisions / count, "right": right / max(1, locked)} if count else {}


def read(path: Path) -> list[dict[str, Any]]:
    """The rows that there are, arm by arm and seed by seed."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return sorted(rows, key=lambda row: ([*ARMS].index(row["arm"]), row["seed"]))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
    parser.add_argument("--seeds", type=int, default=8, help="how many, from 1 on")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on one core")
    parser.add_argument("--folder", type=Path, default=Path("runs/lab"))
    parser.add_argument("--rows", type=Path, default=HERE / "learning.jsonl")
    parser.add_argument("--picture", type=Path, default=HERE.parent / "docs" / "lab.png")
    parser.add_argument("--table", action="store_true", help="run nothing")
    arguments = parser.parse_args(argv)
    if not arguments.table:
        show_load("before")
        if not (arguments.folder / "policy").exists():
            save_policy(arguments.folder / "policy")
        if others := {row["steps"] for row in read(arguments.rows)} - {arguments.steps}:
            raise SystemExit(f"{arguments.rows} holds runs of {others} steps: choose other --rows, or as many --steps")
        there = {(row["arm"], row["seed"]) for row in read(arguments.rows)}
        due = [(arm, seed) for seed in range(1, arguments.seeds + 1) for arm in arguments.arms if (arm, seed) not in there]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            calls = [pool.submit(run, arm, seed, arguments.steps, arguments.folder) for arm, seed in due]
            for number, done in enumerate(as_completed(calls), start=1):
                row = done.result()
                with open(arguments.rows, "a") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{number}/{len(due)}: {row['arm']}, seed {row['seed']}: {row['test']}", flush=True)
        show_load("after")
    rows = [row for row in read(arguments.rows) if row["arm"] in arguments.arms]
    if not rows:
        raise SystemExit(f"{arguments.rows} holds no row of these arms")
    arms = Arms(rows, "grpo")
    print(f"{len(arms.seeds)} seeds\n\n{table(arms)}")
    picture(arms, arguments.picture)


if __name__ == "__main__":
    main()

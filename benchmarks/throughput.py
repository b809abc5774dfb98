"""Seconds a training step: ours and TRL's side by side, on the same policy, task, lengths and number of turns.

Method. The policy has random weights and writes tool calls of a fixed number of tokens, whatever it samples
(`side_by_side.policy`); its task is to look words up, by a tool that sleeps (`side_by_side.task`). Each side is its trainer
as a user starts it: ours is `learners.grpo` with ``--no-deterministic`` and the transformers sampler, the other TRL's
``GRPOTrainer`` with an ``environment_factory`` and Transformers' ``generate``. Both have groups of eight, temperature 1, no
KL penalty, one AdamW step a batch, clipped alike, in float32 on as many threads of torch. Neither recomputes activations.

- First a gate: of one batch that TRL has played, loss, advantages and gradient must be the same on both sides to 1e-5, or
  nothing is measured (`side_by_side.gate`).
- Each side runs in a process of its own. They step by turns, and who is first changes every round, so that both meet the
  same load. The first steps are not counted. A step is everything from one batch to the next, logs included.
- Every step must have had equally many tokens, of which the policy wrote equally many, and equally many tool calls on both
  sides, or the comparison ends with an error.

"turns" are tool calls; after the last result the policy writes once more. Seconds are medians, with the quartiles. "cpu" is
what a step took of the processor, which says more than seconds on a busy machine, but leaves out that tools are waited for.
Generated tokens a second are over a step without its update, trained ones (those that the loss is taken of) over the update.
Peak memory is how far a process grew beyond what it was, with the model loaded, before the first step.

    python benchmarks/throughput.py [--points tiny:1,3,5:0,20,50,200 60M:3:0,50] [--prompt 512] [--written 32] [--result 32]
                                    [--tasks 2] [--group-size 8] [--threads 1] [--warm-up 3] [--steps 10]

A point is a model, numbers of turns, and latencies in milliseconds. Needs trl 1.16.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles

from side_by_side import ours, theirs
from side_by_side.gate import TOLERANCE, compare
from side_by_side.pacing import Step
from side_by_side.policy import SIZES, save_policy
from side_by_side.shape import Shape
from timing import show_load

Play = Callable[[Connection, Shape, Path, Path, int], None]

SIDES: dict[str, Play] = {"ours": ours.play, "TRL": theirs.play}
SPAWN = multiprocessing.get_context("spawn")


@contextmanager
def side(play: Play, shape: Shape, policy: Path, folder: Path, steps: int) -> Iterator[Connection]:
    """A side in a process of its own, ready for its first step."""
    here, there = SPAWN.Pipe()
    process = SPAWN.Process(target=play, args=(there, shape, policy, folder, steps), daemon=True)
    process.start()
    there.close()
    try:
        here.recv()
        yield here
        process.join()
    finally:
        process.terminate()


def measured(shape: Shape, policy: Path, steps: int) -> dict[str, list[Step]]:
    """The steps of both sides, taken by turns.

    Raises:
        RuntimeError: They did not do the same work.
    """
    found: dict[str, list[Step]] = {name: [] for name in SIDES}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running = {name: stack.enter_context(side(play, shape, policy, folder, steps)) for name, play in SIDES.items()}
        for number in range(steps):
            for name in sorted(running, reverse=number % 2 == 1):
                running[name].send("go")
                found[name].append(running[name].recv())
            work = {name: taken[-1].work for name, taken in found.items()}
            if work["ours"] != work["TRL"] or work["ours"].generated != shape.generated:
                raise RuntimeError(f"both sides must do the same, of which the policy writes {shape.generated}: {work}")
    return found


def row(shape: Shape, name: str, taken: list[Step]) -> str:
    """A side's line of the table."""
    seconds = [step.seconds for step in taken]
    low, _, high = quantiles(seconds, n=4)
    update = median(step.update for step in taken)
    work = taken[-1].work
    cells = (
        shape.model,
        f"{shape.turns}",
        f"{shape.latency * 1e3:.0f} ms",
        name,
        f"{median(seconds):.2f} ({low:.2f} to {high:.2f})",
        f"{median(step.cpu for step in taken):.2f}",
        f"{update:.2f}",
        f"{median(work.generated / (step.seconds - step.update) for step in taken):,.0f}",
        f"{work.trained / update:,.0f}",
        f"{taken[-1].peak / 1e6:,.0f}",
    )
    return f"| {' | '.join(cells)} |"


def ratios(found: dict[str, list[Step]]) -> str:
    """How much longer TRL takes: medians over the rounds, in each of which both met about the same load."""

    def ratio(of: Callable[[Step], float]) -> str:
        pairs = zip(found["TRL"], found["ours"], strict=True)
        return f"**{median(of(other) / of(own) for other, own in pairs):.2f} x**"

    shown = [ratio(lambda step: step.seconds), ratio(lambda step: step.cpu), ratio(lambda step: step.update)]
    return f"| | | | TRL / ours | {' | '.join(shown)} | | | |"


def points(told: str, base: Shape) -> list[Shape]:
    """The points that an argument names: a model, turns, and latencies in milliseconds."""
    model, _, rest = told.partition(":")
    turns, _, latencies = rest.partition(":")
    if model not in SIZES or not latencies:
        raise SystemExit(f"a point is one of {', '.join(SIZES)}, turns and latencies, such as tiny:1,3:0,50; found {told}")
    return [
        replace(base, model=model, turns=int(count), latency=float(latency) / 1e3)
        for count in turns.split(",")
        for latency in latencies.split(",")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Times training steps, ours and TRL's.")
    parser.add_argument("--points", nargs="+", default=["tiny:1,3,5:0,20,50,200", "60M:3:0,50"])
    defaults = {"prompt": 512, "written": 32, "result": 32, "tasks": 2, "group-size": 8, "threads": 1}
    for name, default in (defaults | {"warm-up": 3, "steps": 10}).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    base = Shape(**{name: getattr(arguments, name) for name in (key.replace("-", "_") for key in defaults)})
    every = [point for told in arguments.points for point in points(told, base)]
    show_load("before")
    with tempfile.TemporaryDirectory() as scratch:
        policies = {model: Path(scratch) / model for model in sorted({point.model for point in every})}
        for model, folder in policies.items():
            save_policy(model, arguments.written, folder)
            with ProcessPoolExecutor(1, mp_context=SPAWN) as process:
                small = replace(base, model=model, turns=1)
                difference = process.submit(compare, small, folder, Path(scratch)).result()
            print(f"  {model}: one batch, {difference}", flush=True)
            if not difference.allowed:
                raise SystemExit(f"  the two sides do not learn the same (allowed: {TOLERANCE}): nothing is measured")
        print("| model | turns | latency | | s a step | cpu s | update s | generated/s | trained/s | MB |")
        print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
        for point in every:
            found = measured(point, policies[point.model], arguments.warm_up + arguments.steps)
            found = {name: taken[arguments.warm_up :] for name, taken in found.items()}
            for name, taken in found.items():
                print(row(point, name, taken))
            print(ratios(found), flush=True)
    show_load("after")


if __name__ == "__main__":
    main()

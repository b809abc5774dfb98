"""What an update keeps in memory: number formats, activations computed again, adapters.

Method: a random Qwen3 learns from one mini-batch of groups of random tokens (see `benchmarks/update.py`, shape "group"),
over trees, with the optimiser that a run has. Each configuration runs in a process of its own. Of the tensors that stay, the
bytes are counted: weights, gradients, and what the optimiser keeps (moments, float32 copies). Peak memory is how far the
resident set grows beyond that of the loaded model during two updates (on a GPU: the most that was allocated beyond it), so
that activations and whatever is allocated on the way are in it. Time is the second update's, of the processor over all
threads.

    python benchmarks/memory.py [--hidden 512] [--layers 18] [--vocabulary 8192] [--prompt 512] [--written 128]
                                [--group-size 8] [--groups 1] [--micro-tokens 4096] [--threads 1] [--device cpu] [--rank 16]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable

import torch
from timing import show_load
from update import drawn, model_of, peak, surrogate

from learners.update.adapters import add_adapters, trained
from learners.update.optimizer import MasterAdamW, open_optimizer
from learners.update.step import UpdateSettings, update_policy

CASES = {
    "float32": (torch.float32, False, False),
    "bfloat16": (torch.bfloat16, False, False),
    "bfloat16, computed again": (torch.bfloat16, True, False),
    "bfloat16, adapters": (torch.bfloat16, False, True),
    "bfloat16, adapters, computed again": (torch.bfloat16, True, True),
}


def held(tensors: Iterable[torch.Tensor | None]) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def one(arguments: argparse.Namespace, case: str) -> dict[str, float]:
    """Figures of one configuration, in this process."""
    torch.set_num_threads(arguments.threads)
    dtype, recompute, adapters = CASES[case]
    model = model_of(arguments).to(dtype)
    if adapters:
        add_adapters(model, rank=arguments.rank, alpha=2.0 * arguments.rank, seed=0)
    groups = [drawn(arguments, "group", seed) for seed in range(arguments.groups)]
    settings = UpdateSettings(micro_tokens=arguments.micro_tokens, ratio_to="sampler", recompute=recompute)
    before = peak(model.device)
    optimizer = open_optimizer(trained(model), weight_decay=0.0)
    for _ in range(2):
        started = time.process_time()
        update_policy(model, optimizer, groups, surrogate, settings, orders=[range(len(groups))])
        worked = time.process_time() - started
    state = [value for values in optimizer.state.values() for value in values.values()]
    masters = optimizer.state_dict()["masters"] if isinstance(optimizer, MasterAdamW) else []
    return {
        "weights": held(model.parameters()),
        "gradients": held(parameter.grad for parameter in model.parameters()),
        "optimiser": held(state) + held(masters),
        "peak": peak(model.device) - before,
        "cpu": worked,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures what an update keeps in memory.")
    defaults = {"hidden": 512, "layers": 18, "vocabulary": 8192, "prompt": 512, "written": 128, "group-size": 8}
    for name, default in (defaults | {"groups": 1, "micro-tokens": 4096, "threads": 1, "rank": 16, "turns": 1}).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", choices=CASES, help=argparse.SUPPRESS)  # what each process is started with
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments, arguments.one)))
        return
    show_load("before")
    names = ("weights", "gradients", "optimiser", "peak")
    print(f"  {'MB':<36}" + "".join(f"{name:>11}" for name in (*names, "cpu s")))
    for case in CASES:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", case]
        told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        print(
            f"  {case:<36}" + "".join(f"{told[name] / 1e6:>11,.0f}" for name in names) + f"{told['cpu']:>11.1f}", flush=True
        )
    show_load("after")


if __name__ == "__main__":
    main()

"""How much faster and leaner an update over trees is than one over padded rows.

Method: groups of random tokens are drawn, and one mini-batch of them is learned from: a forward and a backward pass over
every row, in both layouts of `learners.update.step`, with ratios to the sampler's log-probabilities and an optimiser that
changes nothing. Each layout of each case runs in a process of its own. Peak memory is how far the resident set grows beyond
that of the loaded model during the first update, gradients included (on a GPU: the most that was allocated beyond it). Time
is the fastest of the rounds after that: on the clock, and of the processor over all threads, which says more on a busy
machine. Loss and norm of the gradient must be the same in both. Machine load is printed before and after.

The shapes: "group" is G trajectories that share their prompt; "branches" is what ARPO plays: half of G begin at the prompt
and write turns of a call and a tool result, the others branch off after one of those results; "apart" is G trajectories that
share nothing.

    python benchmarks/update.py [--hidden 256] [--layers 4] [--vocabulary 8192] [--prompt 512] [--written 64]
                                [--group-size 8] [--turns 3] [--groups 2] [--rounds 3] [--micro-tokens 4096] [--threads 1]
                                [--device cpu] [--shapes group branches apart]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from timing import show_load
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from learners.rollout.tree import Leaf, RolloutTree
from learners.update.batch import Row, rows_of, terms_of
from learners.update.losses import TokenLoss, clip_surrogate
from learners.update.step import UpdateSettings, update_policy

SHAPES = ("group", "branches", "apart")
LAYOUTS = ("padded", "tree")


def drawn(arguments: argparse.Namespace, shape: str, seed: int) -> list[Row]:
    """The rows of one group."""
    draw = torch.Generator().manual_seed(seed)
    tree = RolloutTree(task_id=str(seed), question="", seed=seed, version=0)

    def add(author: Any, count: int, parent: int | None) -> int:
        ids = torch.randint(arguments.vocabulary, (count,), generator=draw).tolist()
        numbers = [-8.0] * count if author == "policy" else []
        return tree.add(author, ids, parent, turn=0, logprobs=numbers, entropies=numbers)

    count, turns = arguments.group_size, arguments.turns
    root = add("prompt", arguments.prompt, None)
    results: list[tuple[int, int]] = []  # where a branch may begin, and at which turn
    for index in range(count):
        parent, turn = root, 0
        if shape == "branches" and index >= (count + 1) // 2:
            parent, turn = results[int(torch.randint(len(results), (1,), generator=draw))]
        elif shape == "apart" and index:
            parent = add("prompt", arguments.prompt, None)
        for now in range(turn, turns if shape == "branches" else 1):
            parent = add("policy", arguments.written, parent)
            if now < turns - 1 and shape == "branches":
                parent = add("tool", arguments.written // 2, parent)
                results.append((parent, now + 1))
        tree.leaves.append(Leaf(path=(index,), segment=parent))
    advantages = torch.randn(count, generator=draw)
    return rows_of([tree], [terms_of(tree, advantages)])[0]


def model_of(arguments: argparse.Namespace) -> PreTrainedModel:
    """A random Qwen3."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.hidden,
        intermediate_size=3 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=max(1, arguments.hidden // 64),
        num_key_value_heads=max(1, arguments.hidden // 128),
        head_dim=64,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).to(arguments.device).eval()


def surrogate(log_ratio: torch.Tensor, advantage: torch.Tensor, ratio_scale: torch.Tensor) -> TokenLoss:
    return clip_surrogate(log_ratio, advantage, clip_high=0.28, ratio_scale=ratio_scale)


def peak(device: torch.device) -> int:
    """The most memory that was in use so far, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def one(arguments: argparse.Namespace, shape: str, layout: Any) -> dict[str, float]:
    """Figures of one layout of one shape, in this process."""
    torch.set_num_threads(arguments.threads)
    model = model_of(arguments)
    groups = [drawn(arguments, shape, seed) for seed in range(arguments.groups)]
    settings = UpdateSettings(
        layout=layout, micro_tokens=arguments.micro_tokens, ratio_to="sampler", max_grad_norm=float("inf")
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def learn() -> tuple[dict[str, float], float, float]:
        started, worked = time.perf_counter(), time.process_time()
        metrics = update_policy(model, optimizer, groups, surrogate, settings, orders=[range(len(groups))])
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return metrics, time.perf_counter() - started, time.process_time() - worked

    before = peak(model.device)
    metrics, *_ = learn()
    grown = peak(model.device) - before
    rounds = [learn()[1:] for _ in range(arguments.rounds)]
    seconds, worked = (min(figures) for figures in zip(*rounds, strict=True))
    tokens = sum(len(row.tokens.ids) for group in groups for row in group)
    return {"tokens": tokens, "seconds": seconds, "cpu": worked, "bytes": grown} | {
        name: metrics[name] for name in ("loss", "grad_norm")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Times updates over trees and over padded rows.")
    defaults = {"hidden": 256, "layers": 4, "vocabulary": 8192, "prompt": 512, "written": 64, "group-size": 8, "turns": 3}
    for name, default in (defaults | {"groups": 2, "rounds": 3, "micro-tokens": 4096, "threads": 1}).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # shape and layout: what each process is started with
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments, *arguments.one)))
        return
    show_load("before")
    print(f"  {'shape':<10}{'rows of':>9}  {'layout':<8}{'seconds':>9}{'cpu s':>9}{'tokens/s':>10}{'MB':>8}")
    for shape in arguments.shapes:
        found = {}
        for layout in LAYOUTS:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", shape, layout]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            figures = found[layout] = json.loads(told.splitlines()[-1])
            speed = figures["tokens"] / figures["seconds"]
            print(
                f"  {shape:<10}{figures['tokens']:>9,}  {layout:<8}{figures['seconds']:>9.3f}{figures['cpu']:>9.3f}"
                f"{speed:>10,.0f}{figures['bytes'] / 1e6:>8,.0f}",
                flush=True,
            )
        padded, tree = (found[layout] for layout in LAYOUTS)
        for name in ("loss", "grad_norm"):
            assert abs(padded[name] - tree[name]) <= 1e-4 * abs(padded["grad_norm"]), (name, padded, tree)
        times = ", ".join(
            f"{padded[name] / tree[name]:.2f} x {told}" for name, told in (("seconds", "time"), ("cpu", "cpu"))
        )
        print(f"  {'':<10}{'':>9}  padded / tree: {times}, {padded['bytes'] / tree['bytes']:.2f} x memory", flush=True)
    show_load("after")


if __name__ == "__main__":
    main()

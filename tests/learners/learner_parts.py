"""What the tests of whole learners share: trees drawn by hand, an environment of one turn, and short runs in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from policies import TOKENIZER, saved_policy
from safetensors.torch import load_file

from learners.rollout.tree import Leaf, RolloutTree
from tracebank import Trajectory, read_trajectories

ENDS = (TOKENIZER.eos_token_id, *range(0, 256, 6))  # an untaught policy would hardly ever end its turn by the right token


class Parity(gym.Env[str, str]):
    """Pays 1 for an action of an even number of characters: what an untaught policy does half of the time."""

    observation_space = gym.spaces.Text(400)
    action_space = gym.spaces.Text(400)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        return f"number {seed}", {"task_id": f"task-{seed}"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "", float(len(action) % 2 == 0), True, False, {}


gym.register("tests/Parity-v0", Parity)


def tree_of(
    rewards: Sequence[float],
    lengths: Sequence[int] | None = None,
    *,
    successes: Sequence[bool] = (),
    stop: str = "terminated",
) -> RolloutTree:
    """A group whose trajectories have a prompt of four tokens, and policy, tool and policy segments.

    Args:
        rewards: Their returns.
        lengths: How many tokens the policy wrote in each, 2 or more; 3 and up by default.
        successes: Whether each succeeded; by default whether it was paid.
        stop: How they ended.
    """
    tree = RolloutTree(task_id="t", question="q", seed=0, version=0)
    root = tree.add("prompt", [1, 2, 3, 4], None, turn=0)
    for index, reward in enumerate(rewards):
        parent, length = root, lengths[index] if lengths else 3 + index
        for author, ids in (("policy", [5] * (length - 1)), ("tool", [6, 7]), ("policy", [8])):
            zeros = [0.0] * len(ids) if author == "policy" else []
            parent = tree.add(author, ids, parent, turn=0, logprobs=zeros, entropies=zeros)  # type: ignore[arg-type]
        success = successes[index] if successes else reward > 0
        tree.leaves.append(Leaf(path=(index,), segment=parent, reward=reward, success=success, stop=stop))
    return tree


def advantages(credit: Sequence[Any]) -> list[list[float]]:
    """The advantage of each trajectory of each group, which all of its tokens have."""
    for group in credit:
        for terms in group:
            assert (terms.advantage == terms.advantage[0]).all()
    return [[float(terms.advantage[0]) for terms in group] for group in credit]


def weights_of(credit: Sequence[Any]) -> list[torch.Tensor]:
    return [terms.weight for group in credit for terms in group]


@pytest.fixture(scope="session")
def untaught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untaught policy as a folder."""
    return saved_policy(tmp_path_factory.mktemp("untaught") / "policy", ENDS)


def short(policy: Path, output: Path, *more: Any, **options: Any) -> list[str]:
    """The command line of a run of some seconds.

    Args:
        policy: Folder of the policy that it begins with.
        output: Its run folder.
        more: Further arguments, as they are.
        options: Options by their names with underscores, beside or in place of those below.
    """
    chosen: dict[str, Any] = {"env": "tests/Parity-v0", "model": policy, "output": output, "steps": 2}
    chosen |= {"tasks_per_step": 4, "minibatch_groups": 2, "eval_tasks": 4, "turn_tokens": 24, "total_tokens": 120}
    chosen |= {"learning_rate": 3e-3, "checkpoint_every": 1, "threads": 1} | options
    pairs = (("--" + name.replace("_", "-"), str(value)) for name, value in chosen.items())
    return ["--deterministic", *(part for pair in pairs for part in pair), *map(str, more)]


def metrics(folder: Path) -> list[dict[str, float]]:
    """The metrics of a run without its times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("seconds/")} for line in lines]


def same_weights(one: Path, other: Path) -> bool:
    """Whether two folders hold the same model, bit for bit."""
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def played(folder: Path, step: int) -> list[Trajectory]:
    return list(read_trajectories(folder / "trajectories" / f"step_{step:06d}.jsonl"))

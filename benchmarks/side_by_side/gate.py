"""Before speed is compared: both sides learn the same from the same batch.

TRL plays a batch, judges it and takes its loss and its gradient. Ours are computed of the same tokens and rewards, by the
code that a run updates by, on a model of its own with the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from learners.grpo import GRPO, GRPOConfig
from learners.rollout.tree import Leaf, RolloutTree
from learners.update.advantages import group_advantages
from learners.update.batch import rows_of, terms_of
from learners.update.step import UpdateSettings, update_policy
from side_by_side.shape import Shape
from side_by_side.theirs import trainer_of

TOLERANCE = 1e-5
_EPS = 1e-4  # what TRL adds to a standard deviation, which cannot be chosen there


@dataclass(frozen=True)
class Difference:
    """How far both sides are from one another.

    Args:
        loss: Of the losses.
        advantage: The most, of a trajectory's advantages.
        gradient: Norm of the difference of the gradients, as a share of the norm of TRL's.
    """

    loss: float
    advantage: float
    gradient: float

    @property
    def allowed(self) -> bool:
        """Whether this is rounding."""
        return max(abs(self.loss), self.advantage, self.gradient) <= TOLERANCE


def compare(shape: Shape, policy: Path, folder: Path) -> Difference:
    """Has both sides learn from one batch.

    Args:
        shape: Of the batch.
        policy: The saved policy.
        folder: Where TRL may write.
    """
    trainer: Any = trainer_of(shape, policy, folder, 1)
    prompt = [{"role": "user", "content": ""}]
    inputs = [{"prompt": prompt, "seed": task} for task in range(shape.tasks) for _ in range(shape.group_size)]
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._generate_and_score_completions(inputs)
    their_loss = trainer.compute_loss(trainer.model, batch)
    their_loss.backward()

    rewards = torch.tensor([environment.get_reward() for environment in trainer.environments])
    groups = rewards.view(shape.tasks, shape.group_size)
    advantages = torch.cat([group_advantages(group, eps=_EPS) for group in groups])
    trees = _trees(shape, batch)
    credit = [terms_of(tree, part) for tree, part in zip(trees, advantages.view_as(groups), strict=True)]
    ours = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
    metrics = update_policy(
        ours,
        torch.optim.SGD(ours.parameters(), lr=0.0),
        rows_of(trees, credit),
        GRPO(GRPOConfig(group_size=shape.group_size)).surrogate,
        UpdateSettings(max_grad_norm=float("inf")),
        orders=[range(shape.tasks)],
    )
    pairs = [(own.grad, other.grad) for own, other in zip(ours.parameters(), trainer.model.parameters(), strict=True)]
    apart = torch.stack([(own - other).norm() for own, other in pairs]).norm()
    return Difference(
        loss=metrics["loss"] - float(their_loss.detach()),
        advantage=float((advantages - batch["advantages"]).abs().max()),
        gradient=float(apart / torch.stack([other.norm() for _, other in pairs]).norm()),
    )


def _trees(shape: Shape, batch: dict[str, torch.Tensor]) -> list[RolloutTree]:
    """TRL's batch as rollout trees: a group's prompt, and of each trajectory what policy and tool wrote by turns."""
    trees = []
    for first in range(0, shape.rows, shape.group_size):
        tree = RolloutTree(task_id=str(first), question="", seed=0, version=0)
        root = tree.add("prompt", batch["prompt_ids"][first][batch["prompt_mask"][first].bool()].tolist(), None, turn=0)
        for row in range(first, first + shape.group_size):
            real = batch["completion_mask"][row].bool()
            ids, written = batch["completion_ids"][row][real].tolist(), batch["tool_mask"][row][real].tolist()
            parent = root
            for policy, places in groupby(range(len(ids)), key=written.__getitem__):
                run = [ids[place] for place in places]
                numbers = [0.0] * len(run) if policy else []
                author = "policy" if policy else "tool"
                parent = tree.add(author, run, parent, turn=0, logprobs=numbers, entropies=numbers)  # type: ignore[arg-type]
            tree.leaves.append(Leaf(path=(row,), segment=parent))
        trees.append(tree)
    return trees

"""What learners have in common whose trajectories all begin at the question and are played by themselves.

`GroupLearner` is the trainer's contract (`learners.run.trainer.Learner`) with everything filled in that such an algorithm
need not say. What is left is the algorithm: how a batch is credited, and what the loss of a token is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import gymnasium as gym
import torch

from learners.rollout.engine import Group, independent
from learners.rollout.tree import RolloutTree
from learners.run.config import RunConfig, UsageError
from learners.update.batch import Credit
from learners.update.losses import TokenLoss


class GroupLearner(ABC):
    """A learner that plays G independent trajectories of each task.

    Attributes:
        least: The fewest trajectories of a task that the algorithm can do with.

    Args:
        config: Its configuration.
        group_size: Trajectories of a task (G).

    Raises:
        UsageError: Too few trajectories of a task.
    """

    least: ClassVar[int] = 2
    config: RunConfig
    kl_coefficient: float = 0.0
    measure: bool = False
    ratio_to: Literal["trainer", "sampler"] = "trainer"

    def __init__(self, config: RunConfig, group_size: int) -> None:
        if group_size < self.least:
            why = ", since a group is compared with itself" if self.least == 2 else ""
            raise UsageError(f"--group-size must be at least {self.least}{why}, not {group_size}")
        self.config, self.group_size = config, group_size

    def prepare(self, folder: Path, make_env: Callable[[], gym.Env[Any, Any]]) -> None:  # noqa: B027  # a default
        """Needs nothing beside the policy."""

    async def explore(self, group: Group) -> RolloutTree:
        return await independent(group, self.group_size)

    def accept(self, tree: RolloutTree) -> bool:
        return True

    @abstractmethod
    def credit(self, trees: Sequence[RolloutTree]) -> Credit:
        """Terms for every token of every surviving trajectory of the batch."""

    @abstractmethod
    def surrogate(self, log_ratio: torch.Tensor, advantage: torch.Tensor, ratio_scale: torch.Tensor) -> TokenLoss:
        """The loss of each of N tokens."""


def returns_of(tree: RolloutTree) -> torch.Tensor:
    """The return of each trajectory of a group that no environment fault ended, [S]."""
    return torch.tensor([leaf.reward for leaf in tree.survivors()])

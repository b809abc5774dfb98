"""A learner of one's own in one file: REINFORCE with a leave-one-out baseline (Kool et al. 2019; RLOO, arXiv 2402.14740).

    python examples/leave_one_out.py --env MathTool-v0
    python examples/leave_one_out.py --resume runs/...

It has every option of the project's own learners, and one more; its runs have the same files, and resume as exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from learners.rollout.tree import RolloutTree
from learners.run.command import run
from learners.run.config import RunConfig
from learners.run.learner import GroupLearner, returns_of
from learners.update.batch import Credit, terms_of
from learners.update.losses import TokenLoss


@dataclass(frozen=True)
class LeaveOneOutConfig(RunConfig):
    """Options, after those of every run. The text below an option is its help."""

    group_size: int = 8
    """Trajectories a task (G)."""
    baseline: bool = True
    """Compare a return with the mean of the others' (--no-baseline: with nothing)."""


class LeaveOneOut(GroupLearner):
    """G independent trajectories of each task: how they are played, the base class knows."""

    config: LeaveOneOutConfig

    def __init__(self, config: LeaveOneOutConfig) -> None:
        super().__init__(config, config.group_size)

    def credit(self, trees: Sequence[RolloutTree]) -> Credit:
        """Every token that the policy wrote in a trajectory has the advantage R_i − mean of the other R_j."""
        return [terms_of(tree, self.advantages(returns_of(tree))) for tree in trees]

    def advantages(self, returns: torch.Tensor) -> torch.Tensor:
        """The advantage of each trajectory of a group, [S], from the returns, [S]; S is 2 at least."""
        if not self.config.baseline:
            return returns
        return returns - (returns.sum() - returns) / (len(returns) - 1)

    def surrogate(self, log_ratio: torch.Tensor, advantage: torch.Tensor, ratio_scale: torch.Tensor) -> TokenLoss:
        """REINFORCE: the gradient of −A log π, whatever the ratio to the policy that sampled."""
        unclipped = torch.zeros_like(log_ratio, dtype=torch.bool)
        return TokenLoss(-advantage * log_ratio, unclipped, unclipped)


if __name__ == "__main__":
    run(LeaveOneOutConfig, LeaveOneOut, "REINFORCE with a leave-one-out baseline")

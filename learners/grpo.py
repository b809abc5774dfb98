"""GRPO: group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300), over episodes with tools.

    python -m learners.grpo --env MathTool-v0

For each task G trajectories are played independently. A trajectory's return is compared with its group's:

    A_i = (R_i − mean(R)) / (std(R) + ε)                                                            section 4.1.2

and every token that the policy wrote in it gets that advantage. The loss of a token is the clipped surrogate

    −min(r A, clip(r, 1 − ε_low, 1 + ε_high) A),   r = π_θ(token) / π_old(token)                    equation 3

plus β times an estimate of KL(π_θ ‖ π_ref) (equation 4). Tokens of the prompt and of tools carry no gradient.

Where this differs from the paper, by default, and the option that goes back:

- ε_high is 0.28 and apart from ε_low = 0.2, as in DAPO (arXiv 2503.14476); the paper has one ε.   --clip-high 0.2
- Losses are averaged over all tokens of a mini-batch, as in DAPO; the paper averages each
  trajectory first, which makes a token of a long one count less.                                  --average sequence-mean
- β = 0, as in ARPO and RAPO: no reference policy; the paper has β = 0.04.                         --kl-coefficient 0.04
- The learning rate falls to zero over the run; the paper's is constant.                           --schedule constant
- Returns may be compared without dividing by their standard deviation, as in
  Dr. GRPO (arXiv 2503.20783); the paper divides, and so does this by default.                     --no-scale-by-std
- A clipped token has no gradient, as in the paper; GPPO (arXiv 2508.07629) leaves it one that
  the clip bounds.                                                                                 --surrogate preserve

The paper leaves open how the standard deviation is estimated: here it is unbiased (ddof = 1) with ε = 1e-6. A group whose
returns are all equal has advantage 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from learners.rollout.tree import RolloutTree
from learners.run.command import run
from learners.run.config import RunConfig
from learners.run.learner import GroupLearner, returns_of
from learners.update.advantages import group_advantages
from learners.update.batch import Credit, terms_of
from learners.update.losses import SURROGATES, TokenLoss


@dataclass(frozen=True)
class GRPOConfig(RunConfig):
    """Options of GRPO, after those of every run."""

    group_size: int = 8
    """Trajectories a task (G)."""
    clip_low: float = 0.2
    """How far below 1 the ratio may fall before its gradient stops."""
    clip_high: float = 0.28
    """How far above 1 the ratio may rise."""
    surrogate: Literal["clip", "dual-clip", "preserve", "preserve-high"] = "clip"
    """The surrogate. dual-clip bounds the loss of bad tokens as well; preserve leaves clipped tokens a bounded gradient
    (GPPO), preserve-high only those that are clipped high (AEPO)."""
    average: Literal["token-mean", "sequence-mean"] = "token-mean"
    """What the loss is averaged over."""
    scale_by_std: bool = True
    """Divide a group's advantages by its standard deviation."""
    kl_coefficient: float = 0.0
    """Weight of the KL penalty towards the first policy (β)."""


class GRPO(GroupLearner):
    """What GRPO adds to independent trajectories: its credit and its surrogate; see the module."""

    config: GRPOConfig

    def __init__(self, config: GRPOConfig) -> None:
        super().__init__(config, config.group_size)
        self.kl_coefficient = config.kl_coefficient

    def returns(self, tree: RolloutTree) -> torch.Tensor:
        """What the surviving trajectories of a group are compared by, [S]."""
        return returns_of(tree)

    def credit(self, trees: Sequence[RolloutTree]) -> Credit:
        config = self.config
        return [
            terms_of(tree, group_advantages(self.returns(tree), scale_by_std=config.scale_by_std), config.average)
            for tree in trees
        ]

    def surrogate(self, log_ratio: torch.Tensor, advantage: torch.Tensor, ratio_scale: torch.Tensor) -> TokenLoss:
        return SURROGATES[self.config.surrogate](
            log_ratio,
            advantage,
            clip_low=self.config.clip_low,
            clip_high=self.config.clip_high,
            ratio_scale=ratio_scale,
        )


def main() -> None:
    run(GRPOConfig, GRPO, __doc__.partition("\n")[0])


if __name__ == "__main__":
    main()

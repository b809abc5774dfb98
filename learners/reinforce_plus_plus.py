"""REINFORCE++: advantages normalised over the whole batch, not group by group (Hu et al. 2025, arXiv 2501.03262).

    python -m learners.reinforce_plus_plus --env MathTool-v0
    python -m learners.reinforce_plus_plus --env MathTool-v0 --baseline group

A trajectory's return R is compared with those of all others, of whatever task. Each of the N tokens that the policy wrote in
the batch has its trajectory's A, and

    A_norm = (A − mean(A)) / (std(A) + ε),   mean and standard deviation over the N tokens

so that a long trajectory weighs more in both. A is R (``--baseline none``, REINFORCE++), or R less the mean return of its
task's group (``--baseline group``, REINFORCE++-baseline), which takes out how hard a task is. The loss is PPO's clipped
surrogate, as in `learners.grpo`. Tokens of the prompt and of tools carry no gradient and are not counted.

Where this differs from the paper, by default, and the option that goes back:

- The paper subtracts a KL penalty to the first policy from the reward of every token (its k1 estimate); the baseline
  variant has a k2 loss instead. Here rewards are the environment's alone, and no reference policy is kept.
  ``--kl-coefficient`` adds GRPO's k3 loss, which is neither.
- One trajectory a task will do with ``--baseline none``; here are eight, as in the other learners,
  so that runs can be compared.                                                                    --group-size 1
- ε_high is 0.28 and apart from ε_low = 0.2; the paper has one ε.                                  --clip-high 0.2
- The learning rate falls to zero over the run; the paper's is constant.                           --schedule constant
- Advantages may be centred without dividing by their standard deviation.                          --no-scale-by-std

The standard deviation is that of all N tokens (divided by N), ε = 1e-6. There is no discount. A batch whose A are all equal
has advantage 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from learners.grpo import GRPO, GRPOConfig
from learners.rollout.tree import RolloutTree
from learners.run.command import run
from learners.run.config import UsageError
from learners.update.advantages import batch_advantages, group_advantages
from learners.update.batch import Credit, terms_of


@dataclass(frozen=True)
class ReinforcePlusPlusConfig(GRPOConfig):
    """Options of REINFORCE++, after those of GRPO."""

    baseline: Literal["none", "group"] = "none"
    """What is subtracted from a return before the batch is normalised: nothing, or the mean return of its group."""
    scale_by_std: bool = True
    """Divide the batch's advantages by their standard deviation."""


class ReinforcePlusPlus(GRPO):
    """GRPO's functions, of which ``credit`` is REINFORCE++'s own; see the module."""

    config: ReinforcePlusPlusConfig
    least = 1

    def __init__(self, config: ReinforcePlusPlusConfig) -> None:
        super().__init__(config)
        if config.baseline == "group" and config.group_size < 2:
            raise UsageError(f"--baseline group needs a --group-size of at least 2, not {config.group_size}")

    def credit(self, trees: Sequence[RolloutTree]) -> Credit:
        config = self.config
        groups = [self.returns(tree) for tree in trees]
        if config.baseline == "group":
            groups = [group_advantages(group, scale_by_std=False) for group in groups]
        counts = [int(tree.tokens(leaf).policy.sum()) for tree in trees for leaf in tree.survivors()]
        advantages = batch_advantages(torch.cat(groups), torch.tensor(counts), scale_by_std=config.scale_by_std)
        shares = advantages.split([len(group) for group in groups])
        return [terms_of(tree, share, config.average) for tree, share in zip(trees, shares, strict=True)]


def main() -> None:
    run(ReinforcePlusPlusConfig, ReinforcePlusPlus, __doc__.partition("\n")[0])


if __name__ == "__main__":
    main()

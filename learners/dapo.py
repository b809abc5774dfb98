"""DAPO: decoupled clip and dynamic sampling policy optimisation (Yu et al. 2025, arXiv 2503.14476).

    python -m learners.dapo --env MathTool-v0

GRPO with four changes (section 3 of the paper):

- clip-higher: ε_high = 0.28 apart from ε_low = 0.2                                                equation 10
- dynamic sampling: a group in which all or none succeed teaches nothing, and is replaced          equation 11
- token-level loss: all tokens of a mini-batch count the same                                      equation 12
- soft overlong punishment: with L tokens, at most L_max and L_cache of them a margin, a return gets

      0                               where L ≤ L_max − L_cache
      (L_max − L_cache − L) / L_cache  from there to L_max                                         equation 13
      −1                              beyond

There is no KL penalty. Advantages are GRPO's, of the returns with the punishment.

Where this differs from the paper, and the option that goes back:

- L counts the whole trajectory, prompt and tool results included, since that is what ``--total-tokens`` (L_max) limits; the
  paper's episodes are one reply each, and its L is that reply's.
- A trajectory that a limit cut has −1 by ``--cut-reward``, which stands for the last case: it is not punished twice. The
  limit of a single turn (``--turn-tokens``) cuts as well, and the paper has none.
- L_cache is a fifth of L_max, as in the paper (4,096 of 20,480).                                  --overlong-tokens
- The paper tells a success by the answer alone; here it is the environment's ``success``. Groups can be told apart by their
  returns instead, which may differ in form where no answer was right.                            --dynamic-sampling return
- The paper samples until the batch is full; here refused groups are replaced seven times, and then the batch is learned from
  as it is (metrics: ``groups`` learned from, ``refused`` beside them). What is sampled beyond a batch is not kept.
- The learning rate falls to zero over the run; the paper's is constant after a warm-up.           --schedule constant
- The standard deviation of returns, which the paper does not define, is `learners.grpo`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from learners.grpo import GRPO, GRPOConfig
from learners.rollout.engine import Group
from learners.rollout.tree import Leaf, RolloutTree
from learners.run.command import run
from learners.run.config import UsageError


@dataclass(frozen=True)
class DAPOConfig(GRPOConfig):
    """Options of DAPO, after those of GRPO."""

    dynamic_sampling: Literal["success", "return", "off"] = "success"
    """What must differ within a group for it to be learned from; off learns from all."""
    overlong: bool = True
    """Punish trajectories that come near the limit of their tokens."""
    overlong_tokens: int = 0
    """Tokens below the limit from which on it is punished (L_cache). 0: a fifth of the limit."""

    def unset(self) -> dict[str, float]:
        total = self.total_tokens or int(super().unset()["total_tokens"])
        return {**super().unset(), "overlong_tokens": max(1, total // 5)}


def overlong_punishment(length: int, *, limit: int, margin: int) -> float:
    """What a trajectory's length is punished by (equation 13).

    Args:
        length: Its tokens (L).
        limit: How many it may have (L_max).
        margin: How many below the limit it is punished from on (L_cache).

    Returns:
        A number from -1 to 0.
    """
    return max(-1.0, min(0.0, (limit - margin - length) / margin))


class DAPO(GRPO):
    """GRPO's functions, of which ``accept`` and what returns are compared by are DAPO's own; see the module."""

    config: DAPOConfig

    def __init__(self, config: DAPOConfig) -> None:
        super().__init__(config)
        if not 1 <= config.overlong_tokens <= config.total_tokens:
            most = f"the --total-tokens of {config.total_tokens}"
            raise UsageError(f"--overlong-tokens must be from 1 to {most}, not {config.overlong_tokens}")

    async def explore(self, group: Group) -> RolloutTree:
        tree = await super().explore(group)
        if self.config.overlong:
            tree.notes += [("overlong_punishment", self._punishment(tree, leaf)) for leaf in tree.survivors()]
        return tree

    def accept(self, tree: RolloutTree) -> bool:
        match self.config.dynamic_sampling:
            case "success":
                return len({leaf.success for leaf in tree.survivors()}) > 1
            case "return":
                return len(set(self.returns(tree).tolist())) > 1
            case "off":
                return True

    def returns(self, tree: RolloutTree) -> torch.Tensor:
        plain = super().returns(tree)
        if not self.config.overlong:
            return plain
        return plain + torch.tensor([self._punishment(tree, leaf) for leaf in tree.survivors()])

    def _punishment(self, tree: RolloutTree, leaf: Leaf) -> float:
        if leaf.stop == "length":
            return 0.0  # it has been punished by --cut-reward
        length = sum(length for _, length in tree.path(leaf))
        return overlong_punishment(length, limit=self.config.total_tokens, margin=self.config.overlong_tokens)


def main() -> None:
    run(DAPOConfig, DAPO, __doc__.partition("\n")[0])


if __name__ == "__main__":
    main()

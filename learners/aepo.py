"""AEPO: agentic entropy-balanced policy optimisation (arXiv 2510.14545): ARPO with its branches and its gradients balanced.

    python -m learners.aepo --env MathTool-v0

All of ARPO (`learners.arpo`), and four things that its authors added. How many of a group's M trajectories begin at the
question is told by a trial of the task: the surer the tools make the policy, compared with the question, the more do.

    m = M σ(β_m (H_root − mean H_tool))                                                  entropy pre-monitoring

A path that has branched l times in a row branches less:

    P_t = (α + β ΔH_t)(1 − P̂(l)),   P̂(l) = min(1, λ l)                                   consecutive branch penalty

The surrogate leaves tokens of positive advantage, whose ratio is clipped from above, the gradient of the bound 1 + ε_high
instead of none. And tokens that were written at high entropy count more; H is over the policy's tokens of a batch:

    A_t = A_i (1 + a (H_t − mean H) / std H)                                             entropy-balanced advantage

Each can be switched off; without all four this is ARPO, bit for bit:

    --no-pre-monitoring   --branch-penalty 0   --surrogate clip   --entropy-advantage 0

Where paper and released code differ, or leave something open (``--preset released`` sets all that has an option):

- The gap H_root − mean H_tool is the mean of −ΔH after the trial's tool results, normalised as ARPO's ΔH is, but by log V,
  as in the released code: divided by V the gap would be next to nothing and m = M / 2. The branch rule has the same ΔH.
                                                                                                   --entropy-norm vocab
- The trial is the group's first trajectory and one of the m; the released code throws it away. When m is known the trial is
  over and cannot branch, so m is at least 2. It is the nearest whole number; the released code rounds down and adds one,
  which is one more in half of all cases. A trial without tool results says nothing: m = M / 2.
- The released code draws U from [0, 1) and branches where (U + β ΔH)(1 − λ l) exceeds 1 − α. Here the coin comes up with
  probability P: the same for l = 0, and at l = 3 and ΔH = 0 with 0.425 where the released code has 0.412.
                                                                                                   --branch-rule coin
- A branch takes its parent's l along, itself included, since it has that history.
- Mean and std of H are over the batch, where a shared token counts once for each trajectory that it is in; the released code
  has them over the micro-batch, whose size then changes the loss. H is from the trainer's own forward pass in both.
- Which α, β, τ, β_m and λ the paper has is not known to us: the defaults are ARPO's, and those of the released code.
- All that ARPO leaves open is as in `learners.arpo`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import torch

from learners.arpo import ARPO, ARPOConfig, Branching, change_of_entropy
from learners.rollout.engine import Group
from learners.rollout.episode import Episode
from learners.rollout.tree import Leaf, RolloutTree
from learners.run.command import run
from learners.run.config import UsageError
from learners.update.batch import Credit


@dataclass(frozen=True)
class AEPOConfig(ARPOConfig):
    """Options of AEPO, after those of ARPO."""

    PRESETS = MappingProxyType(
        {
            "released": (
                *("--group-size", "16", "--pre-monitoring", "--monitoring-weight", "0.5", "--branch-penalty", "0.05"),
                *("--branch-rule", "coin", "--alpha", "0.5", "--beta", "0.2", "--branches", "1", "--entropy-tokens", "20"),
                *("--entropy", "top-k-sum", "--entropy-top", "10", "--entropy-of", "before"),
                *("--entropy-norm", "log-vocab", "--advantage", "soft", "--shared-weight", "copies"),
                *("--surrogate", "preserve-high", "--entropy-advantage", "0.2", "--average", "token-mean"),
                *("--kl-coefficient", "0", "--schedule", "constant"),
            ),
        }
    )
    preset: Literal["ours", "released"] = "ours"
    """Options all at once: as its released code has them; what is written out goes before it."""
    entropy_norm: Literal["vocab", "log-vocab"] = "log-vocab"
    """What the sum of differences is divided by: V or log V."""
    surrogate: Literal["clip", "dual-clip", "preserve", "preserve-high"] = "preserve-high"
    """The surrogate; preserve-high leaves tokens that are clipped from above a bounded gradient."""
    pre_monitoring: bool = True
    """Play a trial first that tells how many trajectories begin at the question; --initial-rollouts counts without."""
    monitoring_weight: float = 0.5
    """Weight of the gap of entropies in how many those are (β_m)."""
    branch_penalty: float = 0.05
    """How much of P each branch in a row takes away (λ)."""
    entropy_advantage: float = 0.2
    """Weight of a token's entropy in its advantage (a)."""


def balanced_rollouts(changes: Sequence[float], budget: int, weight: float) -> int:
    """m: how many trajectories of a group begin at the question, the trial among them.

    Args:
        changes: ΔH after each tool result of the trial.
        budget: M, 2 or more.
        weight: β_m.
    """
    gap = -math.fsum(changes) / len(changes) if changes else 0.0
    share = 0.5 * (1 + math.tanh(0.5 * weight * gap))  # the sigmoid, without an overflow
    return min(budget, max(2, math.floor(budget * share + 0.5)))


def entropies_of_actions(tree: RolloutTree, leaf: Leaf, k: int) -> list[tuple[float, ...]]:
    """The sampler's entropies of the first k tokens of each action of a trajectory, in nats."""
    return [segment.entropies[: min(k, length)] for segment, length in tree.path(leaf) if segment.author == "policy"]


class AEPO(ARPO):
    """ARPO's four functions, of which ``explore`` and ``credit`` are balanced by entropies; see the module."""

    config: AEPOConfig

    def __init__(self, config: AEPOConfig) -> None:
        super().__init__(config)
        if not 0.0 <= config.branch_penalty <= 1.0:
            raise UsageError(f"--branch-penalty must be from 0 to 1, not {config.branch_penalty}")
        if config.pre_monitoring and config.initial_rollouts != config.unset()["initial_rollouts"]:
            raise UsageError("--initial-rollouts is what the trial tells: leave it out, or say --no-pre-monitoring")
        for name in ("entropy_advantage", "monitoring_weight"):
            if not getattr(config, name) >= 0.0:
                raise UsageError(f"--{name.replace('_', '-')} must not be negative, but is {getattr(config, name)}")
        self.measure = config.entropy_advantage > 0

    def branching(self, group: Group) -> Branching:
        return _BalancedBranching(self.config, group)

    def credit(self, trees: Sequence[RolloutTree]) -> Credit:
        credit = super().credit(trees)
        if not self.config.entropy_advantage:
            return credit
        paths = [(tree.tokens(leaf).policy, tree.measured[leaf.path]) for tree in trees for leaf in tree.survivors()]
        written = torch.cat([entropies[policy] for policy, entropies in paths])
        if not len(written):
            return credit
        mean, std = written.mean(), written.std(correction=0) + 1e-6
        factors = iter([1 + self.config.entropy_advantage * (entropies - mean) / std for _, entropies in paths])
        return [[replace(terms, advantage=terms.advantage * next(factors)) for terms in group] for group in credit]


class _BalancedBranching(Branching):
    """One group's rollout: a trial first, and branches that spread over the paths."""

    def __init__(self, config: AEPOConfig, group: Group) -> None:
        super().__init__(config, group)
        self._balance = config
        self._in_a_row: dict[tuple[int, ...], int] = {}  # branches up to the last turn that was judged, by path

    async def play(self) -> None:
        config, group = self._balance, self._group
        if not config.pre_monitoring:
            await super().play()
            return
        trial = await group.episode(0).play()
        root, *tools = entropies_of_actions(group.tree, trial, config.entropy_tokens) or [()]
        changes = [change_of_entropy(tool, root, self._scale) for tool in tools]
        initial = balanced_rollouts(changes, config.group_size, config.monitoring_weight)
        group.tree.notes.append(("branch/initial_rollouts", float(initial)))
        await self._play_from(1, initial)

    def _judge(self, reports: Sequence[tuple[Episode, float]]) -> list[list[Episode]]:
        made = super()._judge(reports)
        for (episode, _), branches in zip(reports, made, strict=True):
            in_a_row = self._in_a_row.get(episode.leaf.path, 0) + 1 if branches else 0
            self._in_a_row |= {one.leaf.path: in_a_row for one in (episode, *branches)}
        return made

    def _probability(self, episode: Episode, change: float) -> float:
        in_a_row = self._in_a_row.get(episode.leaf.path, 0)
        return super()._probability(episode, change) * (1 - min(1.0, self._balance.branch_penalty * in_a_row))


def main() -> None:
    run(AEPOConfig, AEPO, __doc__.partition("\n")[0])


if __name__ == "__main__":
    main()

"""ARPO: agentic reinforced policy optimisation (arXiv 2507.19849): branches after unsettling tool results.

    python -m learners.arpo --env MathTool-v0

Of a group's M trajectories, N begin at the question (section 3.1). When a tool has answered, the policy is known by the
entropy of the first k tokens that it writes next, compared with that of its first k tokens after the question:

    H_t = −Σ_j p_tj log p_tj                                                                        equation 1
    ΔH_t = Normalize(H_t − H_initial), summed over the k tokens and divided by the vocabulary's size V
    P_t = α + β ΔH_t,  branch into Z where P_t > τ, else go on                                       equation 3

A branch begins where the tool result ends: it shares everything before with its parent, copies the environment, and writes
on with noise of its own. When M − N branches are made no more are; what is left of M when all paths have ended begins at the
question again. Advantages are GRPO's over the M returns (section 3.2):

    soft: every token of trajectory i has A_i, and a shared one is in several trajectories            equation 5
    hard: a shared token has the mean of A_i over the d trajectories that contain it                 equation 4

Which tokens are shared is known from the rollout tree. Where paper and released code differ, or the paper is silent
(``--preset paper`` and ``--preset released`` set all that has an option):

- The paper's threshold is α = τ = 0.5, with which the rule is ΔH > 0 and β makes no difference. The released code throws a
  coin that comes up with probability α + β ΔH.                                                    --branch-rule coin
- ΔH is divided by V in the paper, which leaves |β ΔH| near 3e-4 for a large vocabulary; by log V in the released code.
                                                                                                   --entropy-norm log-vocab
- k and Z are not stated; the released code has 20 tokens, one branch.                     --entropy-tokens, --branches
- The released code looks at the action before the tool result, so that the signal lags one step behind, and compares it
  with the first action of the path itself.                                                        --entropy-of before
- Summed over trajectories, a shared token counts as often as it is shared; "once" divides by that. With "copies", hard and
  soft have the same gradient as long as no ratio is clipped.                                      --shared-weight once
- Not reproduced: the released code takes entropies of the ten likeliest tokens, never forgets the first batch's H_initial,
  begins what is left of M one by one, and trains on an end of turn that it wrote itself.
- All that GRPO leaves open is as in `learners.grpo`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from agent_envs.faults import ForkError
from learners.grpo import GRPO, GRPOConfig
from learners.rollout.assembly import Assembly
from learners.rollout.engine import Group
from learners.rollout.episode import Episode
from learners.rollout.tree import RolloutTree
from learners.run.command import run
from learners.run.config import UsageError
from learners.sampling.sampler import Noise
from learners.update.advantages import means_over_sharers
from learners.update.batch import Credit

logger = logging.getLogger(__name__)

_ENOUGH = 40
"""Paths of which a rate can be told."""

Entropies = tuple[float, ...]
"""Entropies of the first tokens of an action, in nats."""


@dataclass(frozen=True)
class ARPOConfig(GRPOConfig):
    """Options of ARPO, after those of GRPO."""

    PRESETS = MappingProxyType(
        {
            "paper": (
                *("--group-size", "16", "--initial-rollouts", "8", "--branches", "1", "--entropy-tokens", "20"),
                *("--branch-rule", "threshold", "--alpha", "0.5", "--beta", "0.2", "--tau", "0.5"),
                *("--entropy-of", "after", "--entropy-norm", "vocab", "--advantage", "soft", "--shared-weight", "copies"),
                *("--surrogate", "clip", "--clip-low", "0.2", "--clip-high", "0.2", "--average", "sequence-mean"),
                *("--kl-coefficient", "0", "--schedule", "constant"),
            ),
            "released": (
                *("--group-size", "16", "--initial-rollouts", "8", "--branches", "1", "--entropy-tokens", "20"),
                *("--branch-rule", "coin", "--alpha", "0.5", "--beta", "0.2"),
                *(
                    "--entropy-of",
                    "before",
                    "--entropy-norm",
                    "log-vocab",
                    "--advantage",
                    "soft",
                    "--shared-weight",
                    "copies",
                ),
                *("--surrogate", "dual-clip", "--clip-low", "0.2", "--clip-high", "0.2", "--average", "token-mean"),
                *("--kl-coefficient", "0", "--schedule", "constant"),
            ),
        }
    )
    preset: Literal["ours", "paper", "released"] = "ours"
    """Options all at once: as the paper has them, or its released code; what is written out goes before it."""
    group_size: int = 16
    """Trajectories a task (M)."""
    initial_rollouts: int = 8
    """How many of them begin at the question (N)."""
    branch_rule: Literal["threshold", "coin"] = "threshold"
    """threshold: branch where P exceeds tau (paper); coin: branch with probability P (released code)."""
    alpha: float = 0.5
    """P where the entropy has not changed."""
    beta: float = 0.2
    """Weight of the change of entropy in P."""
    tau: float = 0.5
    """Threshold that P has to exceed."""
    entropy_tokens: int = 20
    """Tokens whose entropies are compared (k)."""
    entropy_of: Literal["after", "before"] = "after"
    """The action that is looked at: the one after the tool result (paper), or the one before it (released code)."""
    entropy_norm: Literal["vocab", "log-vocab"] = "vocab"
    """What the sum of differences is divided by: V (paper) or log V (released code)."""
    branches: int = 1
    """Branches at a time (Z)."""
    branch: Literal["fork", "replay"] = "fork"
    """How a branch gets its environment: a copy of its parent's, or another one in which its actions are played again."""
    advantage: Literal["soft", "hard"] = "soft"
    """Advantage of shared tokens."""
    shared_weight: Literal["copies", "once"] = "copies"
    """How often a shared token counts: once for each trajectory that contains it, or once."""


def change_of_entropy(now: Sequence[float], initial: Sequence[float], scale: float) -> float:
    """ΔH: the summed differences of two runs of entropies, over the tokens that both have, divided by ``scale``.

    Args:
        now: Entropies of the first tokens after a tool result, in nats.
        initial: The same after the question.
        scale: V or log V.
    """
    return math.fsum(a - b for a, b in zip(now, initial, strict=False)) / scale


def grants(wishes: Sequence[int], budget: int) -> list[int]:
    """How many branches each path gets of what is left, first come first served in the order of the paths."""
    granted = []
    for wish in wishes:
        granted.append(min(wish, budget))
        budget -= granted[-1]
    return granted


class ARPO(GRPO):
    """GRPO's four functions, of which ``explore`` and ``credit`` are ARPO's own; see the module."""

    config: ARPOConfig

    def __init__(self, config: ARPOConfig) -> None:
        super().__init__(config)
        if not 1 <= config.initial_rollouts <= config.group_size:
            most = f"the --group-size of {config.group_size}"
            raise UsageError(f"--initial-rollouts must be from 1 to {most}, not {config.initial_rollouts}")
        for name in ("entropy_tokens", "branches"):
            if getattr(config, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(config, name)}")

    async def explore(self, group: Group) -> RolloutTree:
        try:
            await _Branching(self.config, group).play()
        except ExceptionGroup as several:  # what a path met; the others were cancelled for it
            first = several.exceptions[0]
            if not isinstance(first, ForkError):
                raise first from None
            if self.config.branch == "replay":
                raise UsageError(f"--branch replay cannot make a branch: {first}") from None
            raise UsageError(
                f"the environment cannot be copied to branch: {first}; --branch replay plays the actions of a path again in "
                "another environment, if they give the same results there"
            ) from None
        return group.tree

    def credit(self, trees: Sequence[RolloutTree]) -> Credit:
        _warn_of_branch_rates(trees)
        credit = super().credit(trees)
        config = self.config
        if (config.advantage, config.shared_weight) == ("soft", "copies"):
            return credit
        for tree, group in zip(trees, credit, strict=True):
            numbers = [tree.tokens(leaf).numbers for leaf in tree.survivors()]
            means = means_over_sharers([terms.advantage for terms in group], numbers)
            for place, (terms, (mean, sharers)) in enumerate(zip(group, means, strict=True)):
                advantage = mean if config.advantage == "hard" else terms.advantage
                weight = terms.weight / sharers if config.shared_weight == "once" else terms.weight
                group[place] = replace(terms, advantage=advantage, weight=weight)
        return credit


class _Branching:
    """One group's rollout: its paths, where they branch, and how many branches are left."""

    def __init__(self, config: ARPOConfig, group: Group) -> None:
        self._config, self._group = config, group
        self._left = config.group_size - config.initial_rollouts
        self._assembly = Assembly(self._judge)
        self._scale = float(group.vocabulary) if config.entropy_norm == "vocab" else math.log(group.vocabulary)

    async def play(self) -> None:
        initial = self._config.initial_rollouts
        self._assembly.join(initial)
        async with asyncio.TaskGroup() as self._tasks:
            for index in range(initial):
                self._tasks.create_task(self._play_path(self._group.episode(index), ()))

    async def _play_path(self, episode: Episode, initial: Entropies) -> None:
        """Plays a path to its end. Its first action is not judged: that of a branch is why it is there.

        Args:
            episode: At the question, or a branch with its environment.
            initial: H_initial of the path that it comes from; () at the question.
        """
        config = self._config
        if not episode.leaf.path[1:]:
            await episode.reset()
        judged = False
        before: Entropies = ()
        while not episode.ended:
            episode.begin()
            if episode.ended:
                break
            if not self._left:  # nobody need wait for the others any more
                await episode.finish()
                continue
            entropies = (await episode.first(config.entropy_tokens)).entropies
            if judged:
                now = entropies if config.entropy_of == "after" else before
                branches = await self._assembly.report(episode, change_of_entropy(now, initial, self._scale))
                for branch in branches:
                    await branch.copy_environment(self._group.spare() if config.branch == "replay" else None)
                    self._tasks.create_task(self._play_path(branch, initial))
            elif not initial or config.entropy_of == "before":
                initial = entropies
            judged, before = True, entropies
            await episode.finish()
        self._assembly.leave()
        if not self._assembly.live:
            self._play_fresh()

    def _play_fresh(self) -> None:
        """Begins what is left at the question; at once, so that no sampler goes on between the last path's end and these."""
        for index in range(self._config.initial_rollouts, self._config.initial_rollouts + self._left):
            self._tasks.create_task(self._group.episode(index).play())

    def _judge(self, reports: Sequence[tuple[Episode, float]]) -> list[list[Episode]]:
        """Decides which paths branch, and makes the branches."""
        wishes = [self._wish(episode, change) for episode, change in reports]
        self._group.tree.notes += [
            (f"branch/turn_{len(episode.leaf.turns)}", float(wish > 0))
            for (episode, _), wish in zip(reports, wishes, strict=True)
        ]
        granted = grants(wishes, self._left)
        self._left -= sum(granted)
        self._assembly.join(sum(granted))
        return [
            [self._group.fork(episode, (len(episode.leaf.turns), number)) for number in range(count)]
            for (episode, _), count in zip(reports, granted, strict=True)
        ]

    def _wish(self, episode: Episode, change: float) -> int:
        """How many branches a path should have (equation 3)."""
        config = self._config
        probability = config.alpha + config.beta * change
        if config.branch_rule == "threshold":
            branches = probability > config.tau
        else:
            place = (*self._group.place, *episode.leaf.path, len(episode.leaf.turns))
            branches = Noise(config.seed, (*place, -1)).at(0) < probability  # no stream's path ends in -1
        return config.branches if branches else 0


def _warn_of_branch_rates(trees: Sequence[RolloutTree]) -> None:
    """Says so where nearly all or nearly none of the paths of a turn want to branch: the entropies decide nothing then."""
    wishes: defaultdict[str, list[float]] = defaultdict(list)
    for tree in trees:
        for name, wish in tree.notes:
            wishes[name].append(wish)
    for name, values in sorted(wishes.items()):
        rate = math.fsum(values) / len(values)
        if len(values) >= _ENOUGH and not 0.05 <= rate <= 0.95:
            logger.warning("%s: %.0f %% of %d paths branch; see --alpha, --beta and --tau", name, 100 * rate, len(values))


def main() -> None:
    run(ARPOConfig, ARPO, __doc__.partition("\n")[0])


if __name__ == "__main__":
    main()

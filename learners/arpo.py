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
  coin that comes up with probability α + β ΔH, one for each of the Z.                             --branch-rule coin
- ΔH is divided by V in the paper, which leaves |β ΔH| near 3e-4 for a large vocabulary; by log V in the released code.
                                                                                                   --entropy-norm log-vocab
- k and Z are not stated; the released code has 20 tokens, one branch.                     --entropy-tokens, --branches
- The released code looks at the action before the tool result, so that the signal lags one step behind, and compares it
  with the first action of the path itself.                                                        --entropy-of before
- Entropies are of the whole vocabulary in the paper, of the ten likeliest tokens in the released code; an inference server
  can tell no more than those (`learners.sampling.entropy`).                      --entropy top-k-sum --entropy-top 10
- Summed over trajectories, a shared token counts as often as it is shared; "once" divides by that. With "copies", hard and
  soft have the same gradient as long as no ratio is clipped.                                      --shared-weight once
- The control of the signal: branches as often as one likes whatever the entropies, all else being equal; the rate to
  compare with is the other run's metric branch/turn_*.                           --branch-rule random --branch-rate 0.5
- Where the policy left something in its environment that has no copy (a thread, a socket), the branch ends at once with an
  environment fault: it is left out of the group, and its slot is not given to another (metric branch/refused).
- Not reproduced: the released code never forgets the first batch's H_initial, begins what is left of M one by one, and
  trains on an end of turn that it wrote itself.
- All that GRPO leaves open is as in `learners.grpo`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import gymnasium as gym

from agent_envs.faults import ForkError
from learners.grpo import GRPO, GRPOConfig
from learners.rollout.assembly import Assembly
from learners.rollout.engine import Group
from learners.rollout.episode import Episode, copy_of
from learners.rollout.tree import RolloutTree
from learners.run.command import run
from learners.run.config import UsageError, environment_maker
from learners.sampling.sampler import Noise
from learners.update.advantages import means_over_sharers
from learners.update.batch import Credit

logger = logging.getLogger(__name__)

_ENOUGH = 40
"""Paths of which a rate can be told."""

_RATES = "branch/turn_"
"""What the shares of paths that would branch are noted under, by turn."""

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
                *("--entropy", "full", "--entropy-of", "after", "--entropy-norm", "vocab"),
                *("--advantage", "soft", "--shared-weight", "copies"),
                *("--surrogate", "clip", "--clip-low", "0.2", "--clip-high", "0.2", "--average", "sequence-mean"),
                *("--kl-coefficient", "0", "--schedule", "constant"),
            ),
            "released": (
                *("--group-size", "16", "--initial-rollouts", "8", "--branches", "1", "--entropy-tokens", "20"),
                *("--branch-rule", "coin", "--alpha", "0.5", "--beta", "0.2"),
                *("--entropy", "top-k-sum", "--entropy-top", "10", "--entropy-of", "before"),
                *("--entropy-norm", "log-vocab", "--advantage", "soft", "--shared-weight", "copies"),
                *("--surrogate", "dual-clip", "--clip-low", "0.2", "--clip-high", "0.2", "--average", "token-mean"),
                *("--kl-coefficient", "0", "--schedule", "constant"),
            ),
        }
    )
    preset: Literal["ours", "paper", "released"] = "ours"
    """Options all at once: as the paper has them, or its released code; what is written out goes before it."""
    group_size: int = 16
    """Trajectories a task (M)."""
    initial_rollouts: int = 0
    """How many of them begin at the question (N). 0: half of them."""
    branch_rule: Literal["threshold", "coin", "random"] = "threshold"
    """threshold: branch where P exceeds tau (paper); coin: branch with probability P (released code); random: branch at the
    --branch-rate, whatever the entropies."""
    branch_rate: float = 0.5
    """Probability of a branch under the random rule."""
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

    def unset(self) -> dict[str, float]:
        return {**super().unset(), "initial_rollouts": (self.group_size + 1) // 2}


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
        if not 0.0 <= config.branch_rate <= 1.0:
            raise UsageError(f"--branch-rate must be from 0 to 1, not {config.branch_rate}")
        if config.branch == "fork" and config.initial_rollouts < config.group_size:
            _refuse_without_copies(environment_maker(config, config.train_split), config.seed)

    def branching(self, group: Group) -> Branching:
        """What plays a group."""
        return Branching(self.config, group)

    async def explore(self, group: Group) -> RolloutTree:
        try:
            await self.branching(group).play()
        except ExceptionGroup as several:  # what a path met; the others were cancelled for it
            raise several.exceptions[0] from None
        return group.tree

    def credit(self, trees: Sequence[RolloutTree]) -> Credit:
        if self.config.branch_rule != "random":
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


class Branching:
    """One group's rollout: its paths, where they branch, and how many branches are left."""

    def __init__(self, config: ARPOConfig, group: Group) -> None:
        self._config, self._group = config, group
        self._left = self._next = 0  # branches, and the place of the next trajectory from the question
        self._assembly = Assembly(self._judge)
        self._scale = float(group.vocabulary) if config.entropy_norm == "vocab" else math.log(group.vocabulary)

    async def play(self) -> None:
        """Plays all of the group."""
        await self._play_from(0, self._config.initial_rollouts)

    async def _play_from(self, first: int, initial: int) -> None:
        """Plays the trajectories from place ``first`` on, ``initial`` of the whole group from the question."""
        self._left, self._next = self._config.group_size - initial, initial
        self._assembly.join(initial - first)
        async with asyncio.TaskGroup() as self._tasks:
            for index in range(first, initial):
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
                    copied = await branch.copy_environment(self._group.spare() if config.branch == "replay" else None)
                    self._group.tree.notes.append(("branch/refused", float(not copied)))
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
        for index in range(self._next, self._next + self._left):
            self._tasks.create_task(self._group.episode(index).play())

    def _judge(self, reports: Sequence[tuple[Episode, float]]) -> list[list[Episode]]:
        """Decides which paths branch, and makes the branches."""
        wishes = [self._wish(episode, change) for episode, change in reports]
        self._group.tree.notes += [
            (f"{_RATES}{len(episode.leaf.turns)}", float(wish > 0))
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
        """How many branches a path should have."""
        config = self._config
        if config.branch_rule == "threshold":
            return config.branches if self._probability(episode, change) > config.tau else 0
        place = (*self._group.place, *episode.leaf.path, len(episode.leaf.turns))
        if config.branch_rule == "coin":
            coin, chance = Noise(config.seed, (*place, -1)), self._probability(episode, change)
        else:
            coin, chance = Noise(config.seed, (*place, -2)), config.branch_rate
        return sum(coin.at(number) < chance for number in range(config.branches))  # no stream's path ends below 0

    def _probability(self, episode: Episode, change: float) -> float:
        """P of equation 3, given ΔH."""
        return self._config.alpha + self._config.beta * change


def _refuse_without_copies(make_env: Callable[[], gym.Env[Any, Any]], seed: int) -> None:
    """Raises `UsageError` for an environment that has no copy, whatever is done in it."""
    environment = make_env()
    try:
        environment.reset(seed=seed)
        copy_of(environment).close()
    except ForkError as refusal:
        raise UsageError(
            f"the environment cannot be copied to branch: {refusal}; --branch replay plays the actions of a path again in "
            "another environment, if they give the same results there"
        ) from None
    finally:
        environment.close()


def _warn_of_branch_rates(trees: Sequence[RolloutTree]) -> None:
    """Says so where nearly all or nearly none of the paths of a turn want to branch: the entropies decide nothing then."""
    wishes: defaultdict[str, list[float]] = defaultdict(list)
    for tree in trees:
        for name, wish in tree.notes:
            if name.startswith(_RATES):
                wishes[name].append(wish)
    for name, values in sorted(wishes.items()):
        rate = math.fsum(values) / len(values)
        if len(values) >= _ENOUGH and not 0.05 <= rate <= 0.95:
            logger.warning("%s: %.0f %% of %d paths branch; see --alpha, --beta and --tau", name, 100 * rate, len(values))


def main() -> None:
    run(ARPOConfig, ARPO, __doc__.partition("\n")[0])


if __name__ == "__main__":
    main()

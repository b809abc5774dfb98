"""RAPO: retrieval-augmented policy optimisation (arXiv 2603.03078): rollouts that meet other agents' steps on their way.

    python -m learners.rapo --env MathTool-v0
    python -m learners.rapo --env MathTool-v0 --bank bank/

Explore (section 4.1). Of a group's G trajectories at most N_hybrid are hybrid: after each finished step, but never before
the first, a step of the bank is put into the context with probability p, the one whose history is most like the present
one; then the policy writes on (algorithm 1, so that two retrievals are never adjacent). Retrieved tokens carry no gradient.

Credit (section 4.2). A retrieval between the policy's steps with entropies H_before and H_after (means over their tokens) is
worth

    H_Δ = −(H_after − H_before) / H_before                                                             equation 5
    Z   = tanh(2 H_Δ) · H_before,  a trajectory's Z the mean over its retrievals, 0 without           equations 6, 7
    A_i = (1 + a · A_ret,i) · A_acc,i                                                                  equations 9, 10

where A_acc is GRPO's advantage and A_ret that of Z in the group. The ratio of every token that the policy wrote is scaled by
the share F of retrieved tokens in its trajectory, before it is clipped:

    r̂ = (1 + m · F) · r                                                                                equation 8

Evaluation retrieves nothing. Where paper and released code differ, or the paper is silent (``--preset paper`` and
``--preset released`` set all that has an option):

- The released code takes the best rewarded of the three most alike, and where none earned anything a fixed advice to think
  for oneself (in other words here).                                                               --retrieved best-reward
- The paper keeps no answer out: its bank is made of the training questions. Here steps of the task that is played and steps
  that ended a trajectory are left out.                                   --no-exclude-task, --no-exclude-final
- What a block is, the paper says once in its system prompt (here: "system_prompt" in --env-args), the released code in a
  sentence before each block; here it says nothing.                                                --retrieve-hint inline
- F: the paper counts the retrieved step in the whole trajectory, the released code the block around it as well, in what
  follows the prompt.                                                       --fret-length block, --sequence-length response
- H of a step: the paper has the mean over its tokens, here by the trainer's forward pass. The released code sums what its
  sampler says of the first 20, each the sum over the ten likeliest tokens, and divides by log V.
                                                               --step-entropy first, --entropy top-k-sum, --entropy-top 10
- Differences of Z that are mere noise become unit advantages when they are divided by their own deviation; a floor on it
  prevents that.                                                                                   --retrieval-std-floor
- A retrieval after which the policy wrote nothing is left out of the mean of Z.
- The released code lets 7 of 16 trajectories retrieve where it means 8.                           --hybrid-rollouts 7
- All that GRPO leaves open is as in `learners.grpo`; the paper's clip is 0.28 on both sides.      --clip-low 0.28

Two controls of the paper: random steps in place of the most alike (section 5.5, ``--noise 1``), and whole trajectories, the
one whose question is most like this one (section 5.6, ``--retrieve-level trajectory``), put in after the first finished step
alone, with probability p.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import gymnasium as gym
import torch

from agent_envs.moves import Answer
from learners.grpo import GRPO, GRPOConfig
from learners.rollout.engine import Group
from learners.rollout.episode import Episode
from learners.rollout.retrieved import retrieved_block, step_pieces
from learners.rollout.tree import Leaf, RolloutTree
from learners.run.command import run
from learners.run.config import UsageError, check_least, environment_maker
from learners.run.oracle_bank import check_oracle, oracle_bank
from learners.run.retrieval import Retriever, check_account, keep_account, open_bank
from learners.sampling.sampler import Noise
from learners.update.advantages import group_advantages
from learners.update.batch import Credit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RAPOConfig(GRPOConfig):
    """Options of RAPO, after those of GRPO."""

    PRESETS = MappingProxyType(
        {
            "paper": (
                *("--group-size", "16", "--hybrid-rollouts", "8", "--retrieve-probability", "0.5"),
                *("--retrieved", "best-match", "--no-exclude-task", "--no-exclude-final"),
                *("--retrieve-level", "step", "--noise", "0", "--retrieve-hint", "none", "--step-entropy", "mean"),
                *("--shaping", "0.05", "--retrieval-weight", "0.2", "--fret-length", "trace", "--sequence-length", "all"),
                *("--surrogate", "clip", "--clip-low", "0.28", "--clip-high", "0.28", "--average", "sequence-mean"),
                *("--kl-coefficient", "0", "--schedule", "constant"),
            ),
            "released": (
                *("--group-size", "16", "--hybrid-rollouts", "7", "--retrieve-probability", "0.5"),
                *("--retrieved", "best-reward", "--no-exclude-task", "--no-exclude-final"),
                *("--retrieve-level", "step", "--noise", "0", "--retrieve-hint", "inline", "--step-entropy", "first"),
                *("--step-entropy-tokens", "20", "--entropy", "top-k-sum", "--entropy-top", "10"),
                *("--shaping", "0.05", "--retrieval-weight", "0.2", "--fret-length", "block"),
                *("--sequence-length", "response", "--surrogate", "dual-clip", "--clip-low", "0.2", "--clip-high", "0.28"),
                *("--average", "token-mean", "--kl-coefficient", "0", "--schedule", "constant"),
            ),
        }
    )
    preset: Literal["ours", "paper", "released"] = "ours"
    """Options all at once: as the paper has them, or its released code; what is written out goes before it."""
    group_size: int = 16
    """Trajectories a task (G)."""
    tasks_per_step: int = 0
    """Groups in a batch. 0: 8 for the tiny policy, 16 for any other."""
    bank: str | None = None
    """Folder of the bank of steps; default: one made of the environment's oracle, in the run folder."""
    hybrid_rollouts: int | None = None
    """Trajectories of a group that may retrieve (N_hybrid); default: half of them."""
    retrieve_probability: float = 0.5
    """Probability of a retrieval after each finished step (p)."""
    retrieved: Literal["best-match", "best-reward"] = "best-match"
    """The most alike step (paper), or the best rewarded of the three most alike (released code)."""
    retrieve_level: Literal["step", "trajectory"] = "step"
    """One step at a time, or, as a control, once a whole trajectory."""
    noise: float = 0.0
    """Probability that a random step of the bank takes the place of the one that was found; 1 is the control."""
    retrieve_hint: Literal["none", "inline"] = "none"
    """Whether a sentence before each block says what it is (released code)."""
    exclude_task: bool = True
    """Leave out steps of the task that is played."""
    exclude_final: bool = True
    """Leave out steps that ended their trajectory."""
    shaping: float = 0.05
    """Weight of the share of retrieved tokens in the ratio (m)."""
    retrieval_weight: float = 0.2
    """Weight of the retrieval advantage (a)."""
    step_entropy: Literal["mean", "first"] = "mean"
    """H of a step: the mean over its tokens, by the trainer's forward pass (paper); or the sum over its first ones, by what
    the sampler says (--entropy), divided by log V (released code)."""
    step_entropy_tokens: int = 20
    """How many tokens of a step are the first."""
    retrieval_std_floor: float = 0.0
    """The least standard deviation of the trajectories' Z that is divided by."""
    fret_length: Literal["trace", "block"] = "trace"
    """Tokens that count as retrieved: the step's, or those of the tags around it as well."""
    sequence_length: Literal["all", "response"] = "all"
    """Tokens that they are a share of: all of the trajectory, or those after the prompt."""

    def unset(self) -> dict[str, float]:
        return {**super().unset(), "tasks_per_step": 8 if self.model == "tiny" else 16}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hybrid_rollouts is None:
            object.__setattr__(self, "hybrid_rollouts", self.group_size // 2)
        if self.bank is not None:  # from wherever the run is resumed
            object.__setattr__(self, "bank", os.path.abspath(Path(self.bank).expanduser()))


def retrieval_value(before: float, after: float, eps: float = 1e-6) -> float:
    """Z of one retrieval: tanh(2 H_Δ) · H_before, H_Δ = −(H_after − H_before) / H_before (equations 5 to 7).

    Args:
        before: Entropy of the policy's step before it, in nats, 0 or more.
        after: Of the one after it.
        eps: Least entropy that is divided by.
    """
    return math.tanh(2.0 * (before - after) / max(before, eps)) * before


class RAPO(GRPO):
    """GRPO's four functions, of which ``explore`` and ``credit`` are RAPO's own; see the module."""

    config: RAPOConfig

    def __init__(self, config: RAPOConfig) -> None:
        super().__init__(config)
        assert config.hybrid_rollouts is not None  # the configuration's own work
        self._hybrid = config.hybrid_rollouts
        if not 0 <= self._hybrid <= config.group_size:
            most = f"the --group-size of {config.group_size}"
            raise UsageError(f"--hybrid-rollouts must be from 0 to {most}, not {self._hybrid}")
        for name in ("retrieve_probability", "noise"):
            if not 0.0 <= getattr(config, name) <= 1.0:
                raise UsageError(f"--{name.replace('_', '-')} must be from 0 to 1, not {getattr(config, name)}")
        if not 0.0 <= config.shaping <= config.clip_high:
            raise UsageError(
                f"--shaping must be from 0 to the --clip-high of {config.clip_high}, not {config.shaping}: beyond that a "
                "trajectory made of retrieved tokens has no gradient for a positive advantage"
            )
        if not config.retrieval_std_floor >= 0.0:
            raise UsageError(f"--retrieval-std-floor must not be negative, but is {config.retrieval_std_floor}")
        check_least(config, 1, ["step_entropy_tokens"])
        self.measure = self._hybrid > 0 and config.step_entropy == "mean"
        self._vocabulary = 0  # number of tokens that the policy chooses from; known once it explores
        self._warned = False
        self._find_bank()

    def _find_bank(self) -> None:
        """Opens the bank, or sees that one can be made: now, before a policy is taught and a folder made."""
        config = self.config
        if not self._hybrid:
            return
        make_env = environment_maker(config, config.train_split)
        if config.bank is not None:
            self._retriever = _retriever(Path(config.bank), make_env, config)
            if config.resume:
                check_account(Path(config.resume), self._retriever.bank)
        elif not config.resume:
            check_oracle(make_env, config)

    def prepare(self, folder: Path, make_env: Callable[[], gym.Env[Any, Any]]) -> None:
        if not self._hybrid:
            return
        if self.config.bank is None:
            self._retriever = _retriever(oracle_bank(folder / "bank", make_env, self.config), make_env, self.config)
        keep_account(folder, self._retriever.bank)

    async def explore(self, group: Group) -> RolloutTree:
        self._vocabulary = group.vocabulary
        pure = self.config.group_size - self._hybrid
        plays = [group.episode(index).play() for index in range(pure)]
        plays += [self._play_hybrid(group, group.episode(index)) for index in range(pure, self.config.group_size)]
        await asyncio.gather(*plays)
        return group.tree

    def credit(self, trees: Sequence[RolloutTree]) -> Credit:
        config, credit = self.config, super().credit(trees)
        if not self._hybrid:
            return credit
        strongest = 0.0
        for tree, group in zip(trees, credit, strict=True):
            leaves = tree.survivors()
            values = torch.tensor([self._value(tree, leaf) for leaf in leaves])
            retrieval = group_advantages(values, std_floor=config.retrieval_std_floor).tolist()
            for place, (leaf, terms) in enumerate(zip(leaves, group, strict=True)):
                shaping = config.shaping * self._share(tree, leaf)
                strongest = max(strongest, shaping)
                group[place] = replace(
                    terms,
                    advantage=(1.0 + config.retrieval_weight * retrieval[place]) * terms.advantage,
                    ratio_scale=(1.0 + shaping) * terms.ratio_scale,
                )
        if strongest > config.clip_high / 2 and not self._warned:
            self._warned = True
            logger.warning(
                "retrieved tokens scale ratios by up to %.3f before anything is learned, which takes more than half of what "
                "--clip-high %g leaves to good trajectories (the metric is retrieval/shaping_max): lower --shaping",
                1 + strongest,
                config.clip_high,
            )
        return credit

    async def _play_hybrid(self, group: Group, episode: Episode) -> Leaf:
        config, traces = self.config, list[str]()

        async def between(episode: Episode) -> None:
            turns = episode.leaf.turns
            if config.retrieve_level == "trajectory" and len(turns) > 1:
                return
            chance = Noise(config.seed, (*group.place, *episode.leaf.path, len(turns), -1))  # no stream's path ends so
            if chance.at(0) < config.retrieve_probability:
                tree = group.tree
                trace = await asyncio.to_thread(self._retriever.retrieve, tree.task_id, tree.question, turns, chance)
                if trace is not None and self._insert(trace, episode):
                    traces.append(trace)

        leaf = await episode.play(between)
        if leaf.fault:
            return leaf
        share = self._share(group.tree, leaf)
        notes = [("count", float(len(traces))), ("share", share), ("shaping_max", config.shaping * share)]
        if traces and (answer := _answer(episode)):
            whole = re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)")
            notes.append(("answers_copied", float(any(whole.search(trace) for trace in traces))))
        group.tree.notes += [(f"retrieval/{name}", number) for name, number in notes]
        return leaf

    def _insert(self, trace: str, episode: Episode) -> bool:
        """Puts a retrieved step into the sequence; returns whether there was room."""
        hint = self.config.retrieve_hint == "inline"
        there_is_room = episode.insert(retrieved_block(trace, episode.dialect, hint=hint))
        if there_is_room:
            episode.leaf.retrieved_tokens += episode.tokens_of(step_pieces(trace, episode.dialect))
        return there_is_room

    def _share(self, tree: RolloutTree, leaf: Leaf) -> float:
        """F of a trajectory, by the tokens that the options count."""
        blocks = sum(length for segment, length in tree.path(leaf) if segment.author == "retrieved")
        retrieved = leaf.retrieved_tokens if self.config.fret_length == "trace" else blocks
        return retrieved_share(tree, leaf, retrieved, with_prompt=self.config.sequence_length == "all")

    def _value(self, tree: RolloutTree, leaf: Leaf) -> float:
        """Z of a trajectory, by the entropies that the options name."""
        if self.config.step_entropy == "mean":
            return trajectory_value(tree, leaf, tree.measured[leaf.path], lambda own: float(own.mean()))
        count, vocabulary = self.config.step_entropy_tokens, self._vocabulary
        return trajectory_value(tree, leaf, tree.tokens(leaf).entropies, lambda own: first_entropy(own, count, vocabulary))


def first_entropy(entropies: torch.Tensor, tokens: int, vocabulary: int) -> float:
    """H of a step in the released code: the sum over its first tokens, divided by log V; the paper has the mean over all.

    Args:
        entropies: Of the step's tokens, in nats, [n].
        tokens: How many of them count.
        vocabulary: V, 2 or more.
    """
    return float(entropies[:tokens].sum()) / math.log(vocabulary)


def trajectory_value(
    tree: RolloutTree, leaf: Leaf, entropies: torch.Tensor, step_entropy: Callable[[torch.Tensor], float]
) -> float:
    """Z of a trajectory: the mean over its retrievals that the policy wrote something before and after; 0 without.

    Args:
        tree: The group.
        leaf: One of its trajectories.
        entropies: Of the trajectory's tokens, [T].
        step_entropy: H of a step, from the entropies of its tokens, [n].
    """
    steps: list[tuple[str, float]] = []
    start = 0
    for segment, length in tree.path(leaf):
        if segment.author in ("policy", "retrieved") and length:
            own = segment.author == "policy"
            steps.append((segment.author, step_entropy(entropies[start : start + length]) if own else 0.0))
        start += length
    values = [
        retrieval_value(steps[at - 1][1], steps[at + 1][1])
        for at in range(1, len(steps) - 1)
        if steps[at][0] == "retrieved" and steps[at - 1][0] == steps[at + 1][0] == "policy"
    ]
    return math.fsum(values) / len(values) if values else 0.0


def retrieved_share(tree: RolloutTree, leaf: Leaf, retrieved: int, *, with_prompt: bool) -> float:
    """F of equation 8: the share of retrieved tokens in a trajectory, from 0 to below 1.

    Args:
        tree: The group.
        leaf: One of its trajectories.
        retrieved: How many of its tokens count as retrieved.
        with_prompt: Whether the prompt is a part of the whole.
    """
    whole = sum(length for segment, length in tree.path(leaf) if with_prompt or segment.author != "prompt")
    return retrieved / whole if whole else 0.0


def _retriever(path: Path, make_env: Callable[[], gym.Env[Any, Any]], config: RAPOConfig) -> Retriever:
    return Retriever(
        open_bank(path, make_env, config),
        retrieved=config.retrieved,
        level=config.retrieve_level,
        noise=config.noise,
        exclude_task=config.exclude_task,
        exclude_final=config.exclude_final,
    )


def _answer(episode: Episode) -> str:
    """The answer that the episode ended with, or ""."""
    if not episode.leaf.turns:
        return ""
    last = episode.leaf.turns[-1]
    move = episode.dialect.format.parse(last.thought + last.action, episode.dialect.tools).move
    return move.text.strip() if isinstance(move, Answer) else ""


def main() -> None:
    run(RAPOConfig, RAPO, __doc__.partition("\n")[0])


if __name__ == "__main__":
    main()

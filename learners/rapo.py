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
- F: the paper counts the retrieved step in the whole trajectory, the released code the block around it as well, in what
  follows the prompt.                                                       --fret-length block, --sequence-length response
- Differences of Z that are mere noise become unit advantages when they are divided by their own deviation; a floor on it
  prevents that.                                                                                   --retrieval-std-floor
- A retrieval after which the policy wrote nothing is left out of the mean of Z.
- Entropies are of the full distribution, from the forward pass of the trainer. Not reproduced: the released code sums those
  of a step's first 20 tokens over the ten likeliest each, and divides by log V.
- The released code lets 7 of 16 trajectories retrieve where it means 8.                           --hybrid-rollouts 7
- All that GRPO leaves open is as in `learners.grpo`; the paper's clip is 0.28 on both sides.      --clip-low 0.28
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import gymnasium as gym
import torch

from agent_envs.actions import Piece
from agent_envs.moves import Answer
from learners.grpo import GRPO, GRPOConfig
from learners.rollout.engine import Group
from learners.rollout.episode import Dialect, Episode
from learners.rollout.tree import Leaf, RolloutTree
from learners.run.command import run
from learners.run.config import UsageError, environment_maker
from learners.run.oracle_bank import oracle_bank
from learners.run.policy import is_deterministic
from learners.sampling.sampler import Noise
from learners.update.advantages import group_advantages
from learners.update.batch import Credit
from tracebank import BankError, Hit, TraceBank, render_history

logger = logging.getLogger(__name__)

ADVICE = "<think> Nothing done elsewhere helps here: reason step by step, without tools, and check the answer. </think>"
"""What takes the place of a step that earned nothing (released code; the wording is ours)."""


@dataclass(frozen=True)
class RAPOConfig(GRPOConfig):
    """Options of RAPO, after those of GRPO."""

    PRESETS = MappingProxyType(
        {
            "paper": (
                *("--group-size", "16", "--hybrid-rollouts", "8", "--retrieve-probability", "0.5"),
                *("--retrieved", "best-match", "--no-exclude-task", "--no-exclude-final"),
                *("--shaping", "0.05", "--retrieval-weight", "0.2", "--fret-length", "trace", "--sequence-length", "all"),
                *("--surrogate", "clip", "--clip-low", "0.28", "--clip-high", "0.28", "--average", "sequence-mean"),
                *("--kl-coefficient", "0", "--schedule", "constant"),
            ),
            "released": (
                *("--group-size", "16", "--hybrid-rollouts", "7", "--retrieve-probability", "0.5"),
                *("--retrieved", "best-reward", "--no-exclude-task", "--no-exclude-final"),
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
    bank: str | None = None
    """Folder of the bank of steps; default: one made of the environment's oracle, in the run folder."""
    hybrid_rollouts: int = 8
    """Trajectories of a group that may retrieve (N_hybrid)."""
    retrieve_probability: float = 0.5
    """Probability of a retrieval after each finished step (p)."""
    retrieved: Literal["best-match", "best-reward"] = "best-match"
    """The most alike step (paper), or the best rewarded of the three most alike (released code)."""
    exclude_task: bool = True
    """Leave out steps of the task that is played."""
    exclude_final: bool = True
    """Leave out steps that ended their trajectory."""
    shaping: float = 0.05
    """Weight of the share of retrieved tokens in the ratio (m)."""
    retrieval_weight: float = 0.2
    """Weight of the retrieval advantage (a)."""
    retrieval_std_floor: float = 0.0
    """The least standard deviation of the trajectories' Z that is divided by."""
    fret_length: Literal["trace", "block"] = "trace"
    """Tokens that count as retrieved: the step's, or those of the tags around it as well."""
    sequence_length: Literal["all", "response"] = "all"
    """Tokens that they are a share of: all of the trajectory, or those after the prompt."""


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
        if not 0 <= config.hybrid_rollouts <= config.group_size:
            most = f"the --group-size of {config.group_size}"
            raise UsageError(f"--hybrid-rollouts must be from 0 to {most}, not {config.hybrid_rollouts}")
        if not 0.0 <= config.retrieve_probability <= 1.0:
            raise UsageError(f"--retrieve-probability must be from 0 to 1, not {config.retrieve_probability}")
        if not 0.0 <= config.shaping <= config.clip_high:
            raise UsageError(
                f"--shaping must be from 0 to the --clip-high of {config.clip_high}, not {config.shaping}: beyond that a "
                "trajectory made of retrieved tokens has no gradient for a positive advantage"
            )
        if not config.retrieval_std_floor >= 0.0:
            raise UsageError(f"--retrieval-std-floor must not be negative, but is {config.retrieval_std_floor}")
        self.measure = config.hybrid_rollouts > 0
        self._frame = 0  # tokens of the tags around a retrieved step
        if config.hybrid_rollouts and config.bank is not None:  # now, before a policy is taught and a folder made
            self._bank = _open_bank(Path(config.bank), environment_maker(config, config.train_split), config)

    def prepare(self, folder: Path, make_env: Callable[[], gym.Env[Any, Any]]) -> None:
        if self.config.hybrid_rollouts and self.config.bank is None:
            self._bank = _open_bank(oracle_bank(folder / "bank", make_env, self.config), make_env, self.config)

    async def explore(self, group: Group) -> RolloutTree:
        pure = self.config.group_size - self.config.hybrid_rollouts
        plays = [group.episode(index).play() for index in range(pure)]
        plays += [self._play_hybrid(group, group.episode(index)) for index in range(pure, self.config.group_size)]
        await asyncio.gather(*plays)
        return group.tree

    def credit(self, trees: Sequence[RolloutTree]) -> Credit:
        config, credit = self.config, super().credit(trees)
        if not config.hybrid_rollouts:
            return credit
        for tree, group in zip(trees, credit, strict=True):
            leaves = tree.survivors()
            values = torch.tensor([trajectory_value(tree, leaf) for leaf in leaves])
            retrieval = group_advantages(values, std_floor=config.retrieval_std_floor).tolist()
            for place, (leaf, terms) in enumerate(zip(leaves, group, strict=True)):
                group[place] = replace(
                    terms,
                    advantage=(1.0 + config.retrieval_weight * retrieval[place]) * terms.advantage,
                    ratio_scale=(1.0 + config.shaping * self._share(tree, leaf)) * terms.ratio_scale,
                )
        return credit

    async def _play_hybrid(self, group: Group, episode: Episode) -> Leaf:
        traces: list[str] = []

        async def between(episode: Episode) -> None:
            place = (*group.place, *episode.leaf.path, len(episode.leaf.turns))
            if Noise(self.config.seed, (*place, -1)).at(0) < self.config.retrieve_probability:  # no stream's path ends so
                trace = await asyncio.to_thread(self._retrieve, group.tree, episode.leaf)
                if trace is not None and episode.insert(retrieved_block(trace, episode.dialect)):
                    self._frame = self._frame or episode.tokens_of(retrieved_block("", episode.dialect))
                    traces.append(trace)

        leaf = await episode.play(between)
        if leaf.fault:
            return leaf
        notes = [("retrieval/count", float(len(traces))), ("retrieval/share", self._share(group.tree, leaf))]
        if traces and (answer := _answer(episode)):
            whole = re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)")
            notes.append(("retrieval/answers_copied", float(any(whole.search(trace) for trace in traces))))
        group.tree.notes += notes
        return leaf

    def _retrieve(self, tree: RolloutTree, leaf: Leaf) -> str | None:
        """The step that is put into the context, or None where the bank has none (equation 3)."""
        config = self.config
        ((*hits,),) = self._bank.query(
            [render_history(tree.question, leaf.turns)],
            k=1 if config.retrieved == "best-match" else 3,
            exclude_task=[[tree.task_id, tree.question]] if config.exclude_task else None,
            exclude_final=config.exclude_final,
        )
        if not hits:
            return None
        if config.retrieved == "best-match":
            return hits[0].value
        best: Hit = max(hits, key=lambda hit: hit.reward)
        return best.value if best.reward > 0 else ADVICE

    def _share(self, tree: RolloutTree, leaf: Leaf) -> float:
        """F of a trajectory, by the tokens that the options count."""
        frame = self._frame if self.config.fret_length == "trace" else 0
        return retrieved_share(tree, leaf, frame=frame, with_prompt=self.config.sequence_length == "all")


def retrieved_share(tree: RolloutTree, leaf: Leaf, *, frame: int, with_prompt: bool) -> float:
    """F of equation 8: the share of retrieved tokens in a trajectory, from 0 to below 1.

    Args:
        tree: The group.
        leaf: One of its trajectories.
        frame: Tokens of each retrieved segment that do not count as retrieved.
        with_prompt: Whether the prompt is a part of the whole.
    """
    path = tree.path(leaf)
    retrieved = sum(length - frame for segment, length in path if segment.author == "retrieved")
    whole = sum(length for segment, length in path if with_prompt or segment.author != "prompt")
    return retrieved / whole if whole else 0.0


def trajectory_value(tree: RolloutTree, leaf: Leaf) -> float:
    """Z of a trajectory: the mean over its retrievals that the policy wrote something before and after; 0 without."""
    if not any(segment.author == "retrieved" for segment, _ in tree.path(leaf)):
        return 0.0
    entropies = tree.measured[leaf.path]
    steps: list[tuple[str, float]] = []
    start = 0
    for segment, length in tree.path(leaf):
        if segment.author in ("policy", "retrieved") and length:
            steps.append((segment.author, float(entropies[start : start + length].mean())))
        start += length
    values = [
        retrieval_value(steps[at - 1][1], steps[at + 1][1])
        for at in range(1, len(steps) - 1)
        if steps[at][0] == "retrieved" and steps[at - 1][0] == steps[at + 1][0] == "policy"
    ]
    return math.fsum(values) / len(values) if values else 0.0


def retrieved_block(trace: str, dialect: Dialect) -> list[Piece]:
    """A retrieved step as the policy reads it. Of its text only the format's own tags may become control tokens."""
    spelled = "".join(dialect.format.stop(dialect.tools)) + dialect.format.observe("").text
    names = "|".join(map(re.escape, {"think", "result", *re.findall(r"</([^<>/]+)>", spelled)}))
    parts = re.split(rf"(</?(?:{names})>)", trace.replace("</retrieve>", "</ retrieve>"))
    inner = [Piece(part, trusted=number % 2 == 1) for number, part in enumerate(parts) if part]
    return [Piece("<retrieve>\n", trusted=True), *inner, Piece("\n</retrieve>\n", trusted=True)]


def _open_bank(path: Path, make_env: Callable[[], gym.Env[Any, Any]], config: RAPOConfig) -> TraceBank:
    """Opens the bank that is retrieved from.

    Raises:
        UsageError: It is not there, cannot be asked, is empty, or was written in another format than the environment's.
    """
    try:
        bank = TraceBank.open(path, deterministic=is_deterministic(config))
        _ = bank.embedder  # loaded now
    except BankError as problem:
        raise UsageError(f"--bank: {problem}") from None
    if not len(bank):
        raise UsageError(f"--bank {path} holds no steps: add some, or choose another bank")
    environment = make_env()
    format = Dialect.of(environment).format.name
    environment.close()
    if bank.manifest.formats != (format,):
        named = ", ".join(repr(name) for name in bank.manifest.formats if name) or "none that it names"
        raise UsageError(
            f"--bank {path} holds steps of the format {named}, but {config.env} is talked to in {format!r}: build it of "
            "trajectories in that format alone"
        )
    return bank


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

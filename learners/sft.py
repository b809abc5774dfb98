"""SFT: supervised fine-tuning on trajectories: those of a bank, of files, or of other runs.

    python -m learners.sft --env MathTool-v0 --bank bank/ --output runs/sft
    python -m learners.sft --env MathTool-v0 --trajectories rollouts.jsonl runs/math
    python -m learners.grpo --env MathTool-v0 --model runs/sft/policy

The loss is the mean negative log-likelihood of what the policies of these trajectories wrote, over all such tokens of a
mini-batch:

    L = −(1/N) Σ log π_θ(token | everything before it)

Prompts and tool results carry no loss. Texts become tokens as they do in a rollout. A *group* is one trajectory here:
``--tasks-per-step`` are taken a step, ``--minibatch-groups`` an optimiser step. All are taken once, in an order that the
seed draws, before any is taken again. ``--temperature`` divides the logits here too.

- Imitated are, of each task, the best ``--keep`` trajectories by reward, if their reward is above ``--min-reward``. They are
  written to ``demonstrations.jsonl`` in the run folder, which a resumed run goes on with.
- Left out, and counted, are trajectories of other splits than ``--train-split``, in another format than the environment's,
  and what an environment fault ended. A bank does not know which split its steps are of: whoever builds it chooses, by
  default training tasks alone (docs/tracebank.md).
- A trajectory that is longer than ``--total-tokens`` is cut there.
- ``trajectories/step_*`` is what each step learned from, and ``success``, ``reward`` and ``tool_calls`` of ``metrics.jsonl``
  describe that; ``loss`` and the evaluations are about the policy.
- The folder ``policy`` is the model that came out, for the ``--model`` of any other command.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch

from learners.rollout.engine import Group
from learners.rollout.episode import Dialect
from learners.rollout.tree import Leaf, RolloutTree
from learners.run.checkpoint import latest_checkpoint
from learners.run.command import answering, parse
from learners.run.config import RunConfig, UsageError, check_least, environment_maker
from learners.run.demonstrations import Choice, choose, save, transcript
from learners.run.learner import GroupLearner
from learners.run.players import seed_of
from learners.run.policy import load_model
from learners.run.trainer import train
from learners.update.adapters import ADAPTER_CONFIG
from learners.update.batch import Credit, terms_of
from learners.update.losses import TokenLoss
from tracebank import Trajectory, read_trajectories

logger = logging.getLogger(__name__)

_DRAW = 17  # tells this draw of a seed from the trainer's


@dataclass(frozen=True)
class SFTConfig(RunConfig):
    """Options of supervised fine-tuning, after those of every run."""

    bank: str | None = None
    """Folder of a bank whose trajectories are imitated."""
    trajectories: tuple[str, ...] = ()
    """Files of trajectories, and run folders, that are imitated."""
    keep: int = 5
    """Of each task the best so many trajectories; 0: all."""
    min_reward: float = 0.0
    """Only trajectories with a higher reward."""

    def unset(self) -> dict[str, float]:
        return {**super().unset(), "learning_rate": self.usual_rate(1e-5)}


class SFT(GroupLearner):
    """A learner whose groups are read and not played; see the module."""

    config: SFTConfig
    least = 1
    ratio_to: Literal["trainer", "sampler"] = "sampler"  # who demonstrates has probability 1: a log-ratio is log π

    def __init__(self, config: SFTConfig) -> None:
        super().__init__(config, group_size=1)
        check_least(config, 0, ("keep",))
        self.folder = Path()
        self._demonstrations: Sequence[Trajectory] = ()
        if not config.resume or not (Path(config.resume) / "demonstrations.jsonl").exists():
            self._demonstrations = _demonstrations(config)  # now, before a policy is taught and a folder made

    def prepare(self, folder: Path, make_env: Callable[[], gym.Env[Any, Any]]) -> None:
        self.folder = folder
        path = folder / "demonstrations.jsonl"
        if not path.exists():
            save(path, self._demonstrations)
        self._demonstrations = list(read_trajectories(path))
        self._orders: dict[int, list[int]] = {}

    async def explore(self, group: Group) -> RolloutTree:
        """Writes down a trajectory as if it had been played."""
        shown, tree, room = self._drawn(group.place), group.tree, self.config.total_tokens
        tree.task_id, tree.question = shown.task_id, shown.question
        segment: int | None = None
        for author, turn, ids in transcript(group.renderer, group.dialect, shown.question, shown.turns):
            ids = ids[:room]
            room -= len(ids)
            zeros = [0.0] * len(ids) if author == "policy" else []
            if ids:
                segment = tree.add(author, ids, segment, turn=turn, logprobs=zeros, entropies=zeros)
        leaf = Leaf(
            path=(0,),
            segment=segment or 0,
            turns=list(shown.turns),
            reward=shown.reward,
            score=shown.score,
            success=shown.success,
            stop=shown.stop,
            tool_calls=shown.tool_calls,
        )
        tree.leaves.append(leaf)
        return tree

    def accept(self, tree: RolloutTree) -> bool:
        """Refuses what was cut before the policy's first token."""
        return any(segment.author == "policy" for segment in tree.segments)

    def credit(self, trees: Sequence[RolloutTree]) -> Credit:
        return [terms_of(tree, torch.ones(1)) for tree in trees]

    def surrogate(self, log_ratio: torch.Tensor, advantage: torch.Tensor, ratio_scale: torch.Tensor) -> TokenLoss:
        never = torch.zeros_like(log_ratio, dtype=torch.bool)
        return TokenLoss(-advantage * log_ratio, never, never)

    def _drawn(self, place: tuple[int, ...]) -> Trajectory:
        """The trajectory of a place in the run: (phase, step, attempt, index)."""
        config, count = self.config, len(self._demonstrations)
        _, step, attempt, index = place
        if attempt:  # in place of one that was refused
            return self._demonstrations[seed_of(config.seed, _DRAW, *place) % count]
        epoch, at = divmod(step * config.tasks_per_step + index, count)
        if epoch not in self._orders:
            rng = np.random.default_rng(seed_of(config.seed, _DRAW, epoch))
            self._orders = {epoch - 1: self._orders.get(epoch - 1, []), epoch: rng.permutation(count).tolist()}
        return self._demonstrations[self._orders[epoch][at]]


def _demonstrations(config: SFTConfig) -> list[Trajectory]:
    """What is imitated.

    Raises:
        UsageError: Nothing is named, it cannot be read, or nothing is left of it.
    """
    if config.bank is None and not config.trajectories:
        raise UsageError("there is nothing to imitate: give a bank by --bank, or files or run folders by --trajectories")
    environment = environment_maker(config, config.train_split)()
    dialect = Dialect.of(environment)
    environment.close()
    choice = Choice(config.keep, config.min_reward, config.train_split)
    chosen, dropped = choose(config.bank, config.trajectories, dialect, choice)
    left_out = "; ".join(f"{count} {reason}" for reason, count in dropped.most_common())
    if not chosen:
        raise UsageError(
            f"there is nothing to imitate: of {dropped.total()} trajectories were left out {left_out or 'none'}"
        )
    if left_out:
        logger.warning("%d trajectories are imitated; left out: %s", len(chosen), left_out)
    return chosen


def save_policy(folder: Path) -> Path:
    """Puts the newest checkpoint's model (adapters merged) and tokenizer into ``policy`` of a run folder, whole or not at
    all."""
    path, newest = folder / "policy", latest_checkpoint(folder / "checkpoints")
    if newest is not None and not path.exists():
        unfinished = folder / ".policy.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(newest, unfinished, ignore=shutil.ignore_patterns("optimizer.pt", "trainer.json", "manifest.json"))
        if (unfinished / ADAPTER_CONFIG).exists():  # whole, so that it can be trained with adapters again
            load_model(str(unfinished), "auto").save_pretrained(unfinished)
            for left in unfinished.glob("adapter_*"):
                left.unlink()
        os.rename(unfinished, path)
    return path


def main(argv: Sequence[str] | None = None) -> None:
    with answering() as world:
        learner = SFT(parse(SFTConfig, list(sys.argv[1:] if argv is None else argv), __doc__.partition("\n")[0]))
        train(learner, world)
        print(f"policy       {world.of_first(lambda: save_policy(learner.folder))}")  # noqa: T201  # the command line's own answer


if __name__ == "__main__":
    main()

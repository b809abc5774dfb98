"""Our side: `learners.run.trainer` with GRPO, as a command line would start it, step by step at a word from outside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from learners.grpo import GRPO, GRPOConfig
from learners.rollout.engine import Group
from learners.rollout.tree import RolloutTree
from learners.run.trainer import train
from learners.update.batch import Credit
from side_by_side.pacing import Finished, Pace, Work, silent
from side_by_side.shape import Shape
from side_by_side.task import arguments


class Paced(GRPO):
    """GRPO that waits before each batch, and counts what the batch was."""

    def __init__(self, config: GRPOConfig, pace: Pace) -> None:
        super().__init__(config)
        self._pace = pace

    async def explore(self, group: Group) -> RolloutTree:
        if group.place[-1] == 0:
            self._pace.turn(self._seconds_of_update)
        return await super().explore(group)

    def credit(self, trees: Sequence[RolloutTree]) -> Credit:
        credit = super().credit(trees)
        paths = [tree.tokens(leaf) for tree in trees for leaf in tree.survivors()]
        self._pace.work = Work(
            generated=sum(len(segment.ids) for tree in trees for segment in tree.segments if segment.author == "policy"),
            trained=sum(int(path.policy.sum()) for path in paths),
            tokens=sum(len(path.ids) for path in paths),
            calls=sum(leaf.tool_calls - 1 for tree in trees for leaf in tree.leaves),  # the last is made for nothing
        )
        return credit

    def _seconds_of_update(self) -> float:
        """Of the batch before."""
        assert self.config.output is not None
        *_, newest = (Path(self.config.output) / "metrics.jsonl").read_text().splitlines()
        seconds: float = json.loads(newest)["seconds/update"]
        return seconds


def config_of(shape: Shape, policy: Path, output: Path, steps: int) -> GRPOConfig:
    """The run, with options that mean what TRL's do."""
    return GRPOConfig(
        env="side_by_side.task:Lookups-v0",
        env_args=arguments(shape),
        model=str(policy),
        output=str(output),
        steps=steps,
        tasks_per_step=shape.tasks,
        group_size=shape.group_size,
        minibatch_groups=0,
        learning_rate=1e-6,
        schedule="constant",
        turn_tokens=shape.written,
        total_tokens=8192,
        eval_tasks=1,
        checkpoint_every=steps,
        threads=shape.threads,
        sampler="transformers",
        deterministic=False,
    )


def play(connection: Connection, shape: Shape, policy: Path, folder: Path, steps: int) -> None:
    """Runs steps, one at each word that comes through the connection; see `side_by_side.pacing`."""
    learner = Paced(config_of(shape, policy, folder / "ours", steps + 1), Pace(connection, steps))
    with silent(), suppress(Finished):
        train(learner)
    connection.close()

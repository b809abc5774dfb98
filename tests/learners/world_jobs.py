"""Several runs one after the other in two processes, which would take longer to start than to run.

They are torchrun's, by torchrun's own library, but that the second is a fork of the first one's beginnings: modules are
imported once.

python tests/learners/world_jobs.py '[["grpo", "--env", ...], ["go on", FROM, TO]]'
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from learners.grpo import GRPO, GRPOConfig
from learners.run.command import answering, parse
from learners.run.trainer import train
from learners.update.losses import TokenLoss


class Wild(GRPO):
    """GRPO with losses that are never finite."""

    def surrogate(self, log_ratio: torch.Tensor, advantage: torch.Tensor, ratio_scale: torch.Tensor) -> TokenLoss:
        found = super().surrogate(log_ratio, advantage, ratio_scale)
        return replace(found, loss=found.loss * math.inf)


def begun(run: Path, folder: Path) -> Path:
    """A copy of a run whose second step is still to be made."""
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "checkpoints" / "step_000002")
    return folder


def work(jobs: list[list[str]]) -> None:
    """What each process does."""
    with answering() as world:
        for job, *arguments in jobs:
            if job == "go on":
                run, folder = map(Path, arguments)
                arguments = ["--resume", str(world.of_first(lambda run=run, folder=folder: begun(run, folder)))]
            learner = Wild if job == "wild" else GRPO  # any other job is GRPO's too
            train(learner(parse(GRPOConfig, arguments, "")), world)


if __name__ == "__main__":
    alike = {"min_nodes": 1, "max_nodes": 1, "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "max_restarts": 0}
    config = LaunchConfig(**alike, nproc_per_node=2, start_method="fork")
    elastic_launch(config, work)(json.loads(sys.argv[1]))

"""Several runs one after the other in two processes, which would take longer to start than to run.

They are torchrun's, by torchrun's own library, but that the second is a fork of the first one's beginnings: modules are
imported once.

python tests/learners/world_jobs.py '[["grpo", "--env", ...], ["go on", FROM, TO]]'
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from learners.grpo import GRPO, GRPOConfig
from learners.run.command import answering, parse
from learners.run.trainer import train


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
            train(GRPO(parse(GRPOConfig, arguments, "")), world)


if __name__ == "__main__":
    alike = {"min_nodes": 1, "max_nodes": 1, "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "max_restarts": 0}
    config = LaunchConfig(**alike, nproc_per_node=2, start_method="fork")
    elastic_launch(config, work)(json.loads(sys.argv[1]))

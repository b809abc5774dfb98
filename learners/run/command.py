"""From a command line to a run: what every ``python -m learners.X`` does.

What a user gets wrong ends in one line on stderr and exit code 2, with nothing overwritten; what broke on the way, in one
line and exit code 1.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import transformers
import tyro

from agent_envs.faults import EnvironmentFault
from learners.run.checkpoint import CheckpointError
from learners.run.config import RunConfig, UsageError
from learners.run.trainer import Learner, TooManyFaults, train

C = TypeVar("C", bound=RunConfig)


def run(config_class: type[C], learner: Callable[[C], Learner], description: str, argv: Sequence[str] | None = None) -> None:
    """Parses a command line and trains.

    Args:
        config_class: The learner's configuration.
        learner: Makes the learner from it.
        description: What ``--help`` says first.
        argv: The arguments; default: the process's.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    transformers.utils.logging.disable_progress_bar()  # the report has its own
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        config = parse(config_class, arguments, description)
        train(learner(config))
    except (UsageError, TooManyFaults, EnvironmentFault, CheckpointError) as problem:
        print(f"error: {problem}", file=sys.stderr)  # noqa: T201  # this is the command line's own answer
        raise SystemExit(2 if isinstance(problem, UsageError) else 1) from None


def parse(config_class: type[C], arguments: Sequence[str], description: str) -> C:
    """The configuration that a command line means; with ``--resume`` its defaults are those of the run to go on with.

    Raises:
        UsageError: The run to resume is not there, is another learner's, or has another configuration.
    """
    arguments = _with_flag_values(arguments)
    folder = _resumed(arguments)
    if folder is None:
        fresh: C = tyro.cli(config_class, args=arguments, description=description)
        return fresh
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"--resume {folder}: there is no run here (expected its config.yaml)")
    saved = config_class.load(folder / "config.yaml")
    config: C = tyro.cli(config_class, args=arguments, description=description, default=saved)
    differences = [
        f"--{field.name.replace('_', '-')} is {getattr(config, field.name)!r} here and {getattr(saved, field.name)!r} there"
        for field in dataclasses.fields(saved)
        if field.name not in ("resume", "output") and getattr(config, field.name) != getattr(saved, field.name)
    ]
    if differences:
        raise UsageError(f"--resume {folder}: a run goes on as it began, but {'; '.join(differences)}")
    return config


def _resumed(arguments: Sequence[str]) -> Path | None:
    """The folder given to ``--resume``, if any."""
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--resume" and equals:
            return Path(value)
        if name == "--resume" and index + 1 < len(arguments):
            return Path(arguments[index + 1])
    return None


def _with_flag_values(arguments: Sequence[str]) -> list[str]:
    """``--deterministic`` and ``--no-deterministic`` as values of the option; without either the policy decides."""
    spelled: list[str] = []
    for index, argument in enumerate(arguments):
        following = arguments[index + 1] if index + 1 < len(arguments) else "--"
        if argument == "--no-deterministic":
            spelled += ["--deterministic", "False"]
        elif argument == "--deterministic" and following.startswith("--"):
            spelled += ["--deterministic", "True"]
        else:
            spelled.append(argument)
    return spelled

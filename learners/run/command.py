"""From a command line to a run: what every ``python -m learners.X`` does.

What a user gets wrong ends in one line on stderr and exit code 2, with nothing overwritten; what broke on the way, in one
line and exit code 1.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import transformers
import tyro

from agent_envs.faults import EnvironmentFault
from learners.run.checkpoint import CheckpointError
from learners.run.config import PlayConfig, RunConfig, UsageError
from learners.run.players import TooManyFaults
from learners.run.skipped import NotFinite
from learners.run.trainer import Learner, train
from learners.sampling.sampler import SamplerFault
from learners.update.world import ALONE, World, WorldError, open_world
from tracebank import BankError

R = TypeVar("R", bound=RunConfig)
C = TypeVar("C", bound=PlayConfig)


def run(config_class: type[R], learner: Callable[[R], Learner], description: str, argv: Sequence[str] | None = None) -> None:
    """Parses a command line and trains.

    Args:
        config_class: The learner's configuration.
        learner: Makes the learner from it.
        description: What ``--help`` says first.
        argv: The arguments; default: the process's.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with answering() as world:
        config = parse(config_class, arguments, description)
        train(learner(config), world)


@contextmanager
def answering(*also: type[Exception]) -> Iterator[World]:
    """Makes one line and an exit code of what the user got wrong (2) or what broke on the way (1).

    Where torchrun started several processes, the first that fails answers for all, and says which one it is.

    Args:
        also: Further exceptions that say all there is to say in their own words.

    Yields:
        The processes of the command.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    transformers.utils.logging.disable_progress_bar()  # the report has its own
    ours = (UsageError, TooManyFaults, NotFinite, EnvironmentFault, SamplerFault, CheckpointError, BankError)
    told: tuple[type[Exception], ...] = (*ours, *also)
    world = ALONE
    try:
        try:
            world = open_world()
        except WorldError as problem:
            raise UsageError(str(problem)) from None
        with world.quiet():
            yield world
            world.close()
    except told as problem:
        _answer(world, str(problem))
        raise SystemExit(2 if isinstance(problem, UsageError) else 1) from None
    except Exception:
        if world.size == 1:
            raise
        _answer(world, traceback.format_exc().rstrip())
        raise SystemExit(1) from None


def _answer(world: World, problem: str) -> None:
    if world.speaks():
        who = f"process {world.rank} of {world.size}: " if world.size > 1 else ""
        print(f"error: {who}{problem}", file=sys.stderr, flush=True)  # noqa: T201  # this is the command line's own answer


def parse(config_class: type[R], arguments: Sequence[str], description: str) -> R:
    """The configuration that a command line means; with ``--resume`` its defaults are those of the run to go on with.

    Raises:
        UsageError: The run to resume is not there, is another learner's, or has another configuration.
    """
    resumed = value_of("--resume", arguments)
    if resumed is None:
        preset = config_class.PRESETS.get(value_of("--preset", arguments) or "", ())
        return parse_as(config_class, [*preset, *arguments], description)
    folder = Path(resumed)
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"--resume {folder}: there is no run here (expected its config.yaml)")
    saved = config_class.load(folder / "config.yaml")
    return parse_as(config_class, arguments, description, saved, begun=str(folder), free=("resume", "output"))


def parse_as(
    config_class: type[C],
    arguments: Sequence[str],
    description: str,
    saved: C | None = None,
    *,
    begun: str = "",
    free: Sequence[str] = (),
) -> C:
    """The configuration that a command line means, where ``saved`` is the one that the run began with, if it has begun.

    Args:
        config_class: The command's configuration.
        arguments: The command line.
        description: What ``--help`` says first.
        saved: Gives the defaults.
        begun: What is gone on with, for the message.
        free: The options that may differ from the saved ones.

    Raises:
        UsageError: An option that is not free differs.
    """
    arguments = _with_flag_values(arguments)
    if saved is None:
        fresh: C = tyro.cli(config_class, args=arguments, description=description)
        return fresh
    config: C = tyro.cli(config_class, args=arguments, description=description, default=saved)
    differences = [
        f"--{field.name.replace('_', '-')} is {getattr(config, field.name)!r} here and {getattr(saved, field.name)!r} there"
        for field in dataclasses.fields(saved)
        if field.name not in free and getattr(config, field.name) != getattr(saved, field.name)
    ]
    if differences:
        raise UsageError(f"--resume {begun}: a run goes on as it began, but {'; '.join(differences)}")
    return config


def value_of(option: str, arguments: Sequence[str]) -> str | None:
    """The value given to an option, if any."""
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == option and equals:
            return value
        if name == option and index + 1 < len(arguments):
            return arguments[index + 1]
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

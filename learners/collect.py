"""Collect: many trajectories a task, of any policy or of an environment's oracle, written down for a bank of steps.

    python -m learners.collect --env MathTool-v0 --model tiny --n 16 --output rollouts.jsonl
    python -m learners.collect --env MathTool-v0 --tasks gsm8k --model Qwen/Qwen3-1.7B
    python -m learners.collect --env WikiSearch-v0 --model oracle --error-rate 0.1
    python -m learners.collect --model Qwen/Qwen3-32B --sampler server --server http://host:8000/v1
    python -m learners.collect --output rollouts.jsonl --resume                        # after a kill
    python -m tracebank build --trajectories rollouts.jsonl --output bank/

This is the first half of RAPO (arXiv 2603.03078, section 4.1.1): 16 trajectories for each task of the training set. A source
that lists its tasks (a file, gsm8k) gives each of them once, one that makes them without end gives ``--task-count`` of them.

A policy plays as it does in training: the same engine, sampler and limits, and its tokens are in the file. The oracle writes
text alone. In a trajectory of a collection ``step`` is the number of its task, and ``path`` the attempt.

The file grows by whole groups (all trajectories of a task), in the order in which they finish; at the end it is put into the
order of the tasks. After a kill ``--resume`` keeps the groups that are complete and plays the others, those in which an
environment fault occurred among them. Where runs are deterministic (the tiny policy on CPU, the oracle wherever its tools
are), the file is then, byte for byte, that of a collection that was never interrupted.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shlex
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
from rich.console import Console

from agent_envs.task import NoOracle
from learners.rollout.engine import Start, independent
from learners.rollout.tree import RolloutTree
from learners.run.collection import CollectionFile
from learners.run.command import answering, parse_as, value_of
from learners.run.config import (
    PLAY_POSITIVE,
    PlayConfig,
    UsageError,
    check_decoding,
    check_least,
    environment_maker,
    learner_name,
)
from learners.run.drawing import Choice, Chosen, choose
from learners.run.folder import sole_writer
from learners.run.oracle import OraclePlayer
from learners.run.players import (
    Policy,
    TooManyFaults,
    open_engine,
    open_policy,
    open_sampler,
    records_of,
    refuse_too_many_faults,
)
from learners.run.policy import is_deterministic
from learners.run.served import ServedPolicy, check_served, open_served, open_server
from learners.run.tally import Tally, TallyProgress
from learners.sampling.sampler import Sampler, SamplerFault
from tracebank.trajectory import Trajectory, TrajectoryError

C = TypeVar("C", bound="CollectConfig")


@dataclass(frozen=True)
class CollectConfig(PlayConfig):
    """Options of a collection."""

    model: str = "tiny"
    """Who plays: tiny (built and taught here, no download), a Hugging Face id, a folder (a run's checkpoint too), or oracle,
    the environment's scripted expert."""
    n: int = 16
    """Trajectories a task."""
    output: str = "rollouts.jsonl"
    """File of trajectories, one a line. Its options are kept beside it, in OUTPUT.config.yaml."""
    resume: bool = False
    """Go on with the file where it stopped. Other options then default to those that it began with."""
    split: str = "train"
    """Split of the tasks, where the environment has splits."""
    task_count: int = 0
    """Tasks. 0: all that the source lists, or 100 of a source that makes them without end."""
    error_rate: float = 0.0
    """Share of the oracle's actions that are spoilt: a guess, or a broken form."""
    concurrency: int = 0
    """Trajectories that are live at once. 0: 32 for the oracle, 256 for a policy."""
    max_fault_share: float = 0.1
    """The collection stops when of the latest trajectories, as many as are live at once, a larger share ended in environment
    faults."""

    def unset(self) -> dict[str, float]:
        return {**super().unset(), "concurrency": 32 if self.model == "oracle" else 256}

    @property
    def source(self) -> str:
        """Who plays, as the trajectories name it."""
        errors = f", {100 * self.error_rate:g} % errors" if self.error_rate else ""
        return f"{self.model}{errors}"


def collect(config: CollectConfig, console: Console | None = None) -> Tally:
    """Collects, from the configuration to the closing table; see `gather`, which does all but telling."""
    console = console if console is not None else Console()
    begun = time.monotonic()
    tally = gather(config, console)
    console.print(tally.table(seconds=time.monotonic() - begun))
    path = Path(config.output)
    told = [str(path), "", f"next: python -m tracebank build --trajectories {shlex.quote(str(path))} --output bank/"]
    console.print("\n".join(told), markup=False, highlight=False, soft_wrap=True)
    return tally


def gather(config: CollectConfig, console: Console) -> Tally:
    """Plays what is missing of a collection and writes it down.

    Args:
        config: What is to be collected.
        console: Where progress goes.

    Returns:
        What the file holds.

    Raises:
        UsageError: The configuration cannot be run as it stands.
        TooManyFaults: More than ``max_fault_share`` of the latest trajectories ended in environment faults.
        SamplerFault: The server that samples gave up; nothing of that is held against the policy.
        KeyboardInterrupt: The user's; its message says how to go on.
    """
    _check(config)
    path = Path(config.output)
    _refuse_what_is_there(config)
    make_env = environment_maker(config, config.split)
    choice = choose(
        make_env, seed=config.seed, split=config.split, count=config.task_count, with_oracle=config.model == "oracle"
    )
    if choice.again:
        console.print(f"{choice.again} draws were of a task that had been drawn before, and are left out", highlight=False)
    player = _Oracle(config, make_env) if config.model == "oracle" else _Policy(config, make_env)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise UsageError(f"--output {path} cannot be made: {problem.strerror}") from None
        with sole_writer(path, _config_path(path)):
            _refuse_what_is_there(config)  # by now
            if not config.resume:
                config.save(_config_path(path))
            return _fill(config, choice, player, CollectionFile(path), console)
    finally:
        player.close()


def _check(config: CollectConfig) -> None:
    """Raises `UsageError` for values that cannot be meant."""
    check_least(config, 1, (*PLAY_POSITIVE, "n"))
    check_least(config, 0, ("seed", "task_count", "temperature"))
    check_decoding(config)
    if not 0.0 <= config.error_rate <= 1.0:
        raise UsageError(f"--error-rate is a share from 0 to 1, not {config.error_rate}")
    if config.error_rate and config.model != "oracle":
        raise UsageError(f"--error-rate is of --model oracle; {config.model} makes its own errors")
    check_served(config)


def _refuse_what_is_there(config: CollectConfig) -> None:
    if Path(config.output).is_dir():
        raise UsageError(f"--output {config.output} is a folder: name a file")
    if Path(config.output).exists() and not config.resume:
        raise UsageError(f"--output {config.output} is there already: choose a new file, or go on with it by --resume")


class _Policy:
    """A policy, playing groups through the engine that training uses."""

    def __init__(self, config: CollectConfig, make_env: Callable[[], gym.Env[Any, Any]]) -> None:
        self._config = config
        policy: Policy | ServedPolicy
        if config.sampler == "server":
            policy = open_served(config)
            self._sampler: Sampler = open_server(config, policy)
        else:
            policy = open_policy(config, make_env)
            self._sampler = open_sampler(config, policy)
        self._engine = open_engine(config, make_env, policy, self._sampler, group_size=config.n)

    def close(self) -> None:
        self._engine.close()
        self._sampler.close()

    def due(self, tasks: Sequence[Chosen], held: Callable[[Chosen], bool]) -> list[Chosen]:
        """The tasks to play: those that are missing. Deterministic groups are played again with all of their wave."""
        wave = self._engine.at_once(self._config.n) if is_deterministic(self._config) else 1
        waves = [tasks[first : first + wave] for first in range(0, len(tasks), wave)]
        return [task for together in waves if not all(map(held, together)) for task in together]

    def stream(self, starts: Sequence[Start]) -> AsyncGenerator[tuple[int, RolloutTree], None]:
        config = self._config
        return self._engine.stream(
            starts, lambda group: independent(group, config.n), group_size=config.n, temperature=config.temperature
        )


class _Oracle:
    """The environment's oracle, with mistakes or without."""

    def __init__(self, config: CollectConfig, make_env: Callable[[], gym.Env[Any, Any]]) -> None:
        self._config = config
        self._player = OraclePlayer(make_env, seed=config.seed, error_rate=config.error_rate, concurrency=config.concurrency)
        self.close = self._player.close

    def due(self, tasks: Sequence[Chosen], held: Callable[[Chosen], bool]) -> list[Chosen]:
        """The tasks to play: those that are missing."""
        return [task for task in tasks if not held(task)]

    def stream(self, starts: Sequence[Start]) -> AsyncGenerator[tuple[int, RolloutTree], None]:
        return self._player.stream(starts, self._config.n)


def _fill(config: CollectConfig, choice: Choice, player: _Policy | _Oracle, file: CollectionFile, console: Console) -> Tally:
    """Brings the file to its end."""
    tally = Tally(window=min(config.concurrency, config.n * len(choice.tasks)))
    if config.resume and file.path.exists():
        chosen = {task.number: task for task in choice.tasks}
        file.keep_complete(lambda number, group: _is_complete(config, chosen.get(number), group), tally)
    due = player.due(choice.tasks, lambda task: task.number in file.numbers)
    with TallyProgress(len(choice.tasks), tally, console) as progress:
        try:
            asyncio.run(_play(config, choice, due, player, file, tally, progress))
        except (TooManyFaults, SamplerFault) as problem:
            raise type(problem)(f"{problem}; {_how_to_go_on(config, tally, choice)}") from None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_how_to_go_on(config, tally, choice)) from None
    file.put_in_order()
    return tally


async def _play(
    config: CollectConfig,
    choice: Choice,
    due: Sequence[Chosen],
    player: _Policy | _Oracle,
    file: CollectionFile,
    tally: Tally,
    progress: TallyProgress,
) -> None:
    async with aclosing(player.stream([task.start for task in due])) as finished:
        async for index, tree in finished:
            task = due[index]
            if task.number in file.numbers:
                continue  # played again for the sake of its wave
            # Faults may have kept every episode of the group from asking.
            tree.task_id, tree.question = tree.task_id or task.task_id, tree.question or task.question
            records = records_of(
                tree, config, format=choice.format, split=choice.split, step=task.number, source=config.source
            )
            file.add(task.number, records)
            tally.add(records)
            progress.update()
            if len(tally.latest) == tally.window:
                refuse_too_many_faults(tally.latest, config.max_fault_share)


def _is_complete(config: CollectConfig, task: Chosen | None, group: Sequence[Trajectory]) -> bool:
    if task is None or (task.task_id and any(record.task_id not in ("", task.task_id) for record in group)):
        found = group[0].task_id
        raise UsageError(
            f"--resume: {config.output} holds the task {found!r} as number {group[0].step}, but the tasks are others now: "
            "begin a new file"
        )
    whole = sorted(record.path for record in group) == [(attempt,) for attempt in range(config.n)]
    return whole and not any(record.fault for record in group)


def _how_to_go_on(config: CollectConfig, tally: Tally, choice: Choice) -> str:
    command = f"python -m learners.{learner_name(type(config))} --output {shlex.quote(config.output)} --resume"
    return f"{tally.groups} of {len(choice.tasks)} tasks are in {config.output}; go on by: {command}"


def _config_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.config.yaml")


def parse(config_class: type[C], arguments: Sequence[str], description: str) -> C:
    """The configuration that a command line means; with ``--resume`` its defaults are those that the file began with."""
    if "--resume" not in arguments:
        return parse_as(config_class, arguments, description)
    path = Path(value_of("--output", arguments) or config_class.output)
    if not _config_path(path).is_file():
        raise UsageError(f"--resume: there is no collection {path} (expected its {_config_path(path)})")
    saved = dataclasses.replace(config_class.load(_config_path(path)), output=str(path))
    free = ("resume", "max_fault_share", "server")
    return parse_as(config_class, arguments, description, saved, begun=str(path), free=free)


def run(config_class: type[C], command: Callable[[C], object], description: str, argv: Sequence[str] | None = None) -> None:
    """Parses a command line and does what it asks for, with one line and an exit code for what goes wrong.

    Args:
        config_class: The command's configuration.
        command: Does it.
        description: What ``--help`` says first.
        argv: The arguments; default: the process's.
    """
    with answering(TrajectoryError, NoOracle, OSError) as world:  # of which a full disk is the likeliest
        if world.size > 1:
            raise UsageError("this command runs in one process: start it by python -m, without torchrun")
        try:
            command(parse(config_class, list(sys.argv[1:] if argv is None else argv), description))
        except KeyboardInterrupt as interruption:
            print(f"interrupted; {interruption}".rstrip("; "), file=sys.stderr)  # noqa: T201  # the command line's own answer
            raise SystemExit(130) from None


def main(argv: Sequence[str] | None = None) -> None:
    run(CollectConfig, collect, __doc__.partition("\n")[0], argv)


if __name__ == "__main__":
    main()

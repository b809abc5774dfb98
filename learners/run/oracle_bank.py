"""A bank of the steps of an environment's own oracle, for a run that was given no bank."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import shutil
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gymnasium as gym

from agent_envs.env import ToolEnv
from agent_envs.task import NoOracle
from learners.run.config import RunConfig, UsageError
from learners.run.drawing import Choice, choose
from learners.run.oracle import OraclePlayer
from learners.run.players import records_of, refuse_too_many_faults
from tracebank import TraceBank, Trajectory
from tracebank.build import build

logger = logging.getLogger(__name__)

_TASKS, _ATTEMPTS, _ERRORS = 300, 2, 0.1
_NEEDS_BANK = "without --bank, one is made of the environment's oracle"


def check_oracle(make_env: Callable[[], gym.Env[Any, Any]], config: RunConfig) -> None:
    """Sees that a bank can be made, without making it.

    Raises:
        UsageError: No task has an oracle.
    """
    if not _tasks(make_env, config, 1)[0].tasks:  # the first mostly says it for all
        _all_tasks(make_env, config)


def oracle_bank(path: Path, make_env: Callable[[], gym.Env[Any, Any]], config: RunConfig) -> Path:
    """Makes a bank of the oracle's steps in tasks of the training split, or finds the one that was made before.

    One action in ten is spoilt, so that the bank is no better than banks are. Tasks without an oracle are left out.

    Args:
        path: Its folder.
        make_env: Makes the environment to train in.
        config: Of the run.

    Returns:
        The folder.

    Raises:
        UsageError: No task has an oracle.
        TooManyFaults: The environment breaks too often.
    """
    if path.exists():
        return path
    choice = _all_tasks(make_env, config)
    logger.warning("no --bank: one is made in %s of the environment's oracle in %d tasks", path, len(choice.tasks))
    records = asyncio.run(_played(make_env, choice, config))
    refuse_too_many_faults((record.fault for record in records), config.max_fault_share)
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with TraceBank.create(unfinished) as bank:
        build(bank, records, splits=None)
    unfinished.rename(path)
    return path


def _all_tasks(make_env: Callable[[], gym.Env[Any, Any]], config: RunConfig) -> Choice:
    """The tasks to play: those that have an oracle.

    Raises:
        UsageError: None has.
    """
    choice, without, reason = _tasks(make_env, config, _TASKS)
    if not choice.tasks:
        raise UsageError(f"{_NEEDS_BANK}, and {reason or 'there is no task'}: give a bank by --bank")
    if without:
        logger.warning("%d tasks have no oracle and are not in the bank (%s)", without, reason)
    return choice


def _tasks(make_env: Callable[[], gym.Env[Any, Any]], config: RunConfig, most: int) -> tuple[Choice, int, str]:
    """Tasks that have an oracle, out of ``most``; how many have none, and why the last of these has none.

    Raises:
        UsageError: It is no environment whose tasks could have one.
    """
    environment = make_env()
    environment.close()
    inner = environment.unwrapped
    if not isinstance(inner, ToolEnv):
        raise UsageError(f"{_NEEDS_BANK}, and {config.env} has none, since it is no ToolEnv: give a bank by --bank")
    ids = inner.tasks.ids(inner.split)  # of a source that lists its own, no more than there are
    count = most if ids is None else min(most, len(ids))
    choice = choose(make_env, seed=config.seed, split=config.train_split, count=count)
    kept, reason = [], ""
    for task in choice.tasks:
        try:
            if task.task_id:  # else a fault hid it, and what it is will be seen when it is played
                inner.tasks.oracle(inner.tasks.get(task.task_id))
            kept.append(task)
        except NoOracle as none:
            reason = str(none)
    return dataclasses.replace(choice, tasks=tuple(kept)), len(choice.tasks) - len(kept), reason


async def _played(make_env: Callable[[], gym.Env[Any, Any]], choice: Choice, config: RunConfig) -> list[Trajectory]:
    player = OraclePlayer(make_env, seed=config.seed, error_rate=_ERRORS, concurrency=32)
    groups: dict[int, list[Trajectory]] = {}
    try:
        async with aclosing(player.stream([task.start for task in choice.tasks], _ATTEMPTS)) as finished:
            async for index, tree in finished:
                groups[index] = records_of(
                    tree, config, format=choice.format, split=choice.split, step=index, source="oracle"
                )
    finally:
        player.close()
    return [record for _, group in sorted(groups.items()) for record in group]

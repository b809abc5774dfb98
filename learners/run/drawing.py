"""Which tasks are played where each is to be played once: all that a source lists, or so many of those that seeds draw."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from agent_envs.env import ToolEnv
from agent_envs.faults import EnvironmentFault
from agent_envs.task import NoOracle
from learners.rollout.engine import Start
from learners.rollout.episode import Dialect
from learners.run.config import UsageError
from learners.run.players import PHASES, seed_of

logger = logging.getLogger(__name__)

DRAWN = 100
"""Tasks of a source that makes them without end, where nobody says how many."""


@dataclass(frozen=True)
class Chosen:
    """One of the tasks.

    Args:
        number: Its number among all that were listed or drawn.
        start: What its group begins with.
        task_id: The task; "" where a fault hid it.
        question: Its question; "" likewise.
    """

    number: int
    start: Start
    task_id: str
    question: str


@dataclass(frozen=True)
class Choice:
    """The tasks to play, and what is the same for all of them.

    Args:
        tasks: In order. No task is there twice.
        again: Draws that were left out, since they were of a task that had been drawn before.
        split: The split that they belong to.
        format: Name of the environment's action format.
    """

    tasks: tuple[Chosen, ...]
    again: int
    split: str
    format: str


def choose(
    make_env: Callable[[], gym.Env[Any, Any]], *, seed: int, split: str, count: int = 0, with_oracle: bool = False
) -> Choice:
    """Chooses the tasks.

    A source that lists its ids gives all of them, or the first so many, in order; any other, and an environment that is no
    ``ToolEnv``, what so many seeds draw. No tool is opened for it, but an environment that is no ``ToolEnv`` is reset.

    Args:
        make_env: Makes the environment.
        seed: Of the draws.
        split: The split, where the environment does not name its own.
        count: How many; 0: all that are listed, or `DRAWN`.
        with_oracle: Whether each task must have an oracle.

    Raises:
        UsageError: There are fewer tasks, or one has no oracle.
    """
    environment = make_env()
    try:
        inner, probe, ids = environment.unwrapped, environment, None
        if isinstance(inner, ToolEnv):
            # An episode's task depends on its seed and not on its tools, so tasks can be looked at without them.
            probe = ToolEnv(
                tasks=inner.tasks, verifier=inner.verifier, split=inner.split, max_observation=inner.max_observation
            )
            split, ids = inner.split, inner.tasks.ids(inner.split)
            if ids is not None and count > len(ids):
                raise UsageError(
                    f"--task-count {count} is more than the {len(ids)} tasks of {inner.tasks.name}'s {split} split"
                )
        elif with_oracle:
            raise UsageError(f"--model oracle: {environment} has none, since it is no ToolEnv: choose another --model")
        named = [None] * (count or DRAWN) if ids is None else list(ids)[: count or None]
        tasks: dict[str, Chosen] = {}
        for number, task_id in enumerate(named):
            place = (PHASES["collect"], number)
            chosen = _look(probe, number, Start(seed_of(seed, *place), place, task_id))
            if with_oracle and chosen.question:
                _ask_for_oracle(probe)
            tasks.setdefault(chosen.task_id or chosen.question or f"number {number}", chosen)
        return Choice(tuple(tasks.values()), len(named) - len(tasks), split, Dialect.of(environment).format.name)
    finally:
        environment.close()


def _look(probe: gym.Env[Any, Any], number: int, start: Start) -> Chosen:
    named: dict[str, Any] = {} if start.task_id is None else {"options": {"task_id": start.task_id}}
    try:
        question, info = probe.reset(seed=start.seed, **named)
    except EnvironmentFault as fault:  # it may well be there when it is played; if not, that is counted then
        logger.warning("task %d cannot be looked at: %s", number, fault)
        return Chosen(number, start, start.task_id or "", "")
    return Chosen(number, start, str(info.get("task_id", "")), question if isinstance(question, str) else "")


def _ask_for_oracle(probe: gym.Env[Any, Any]) -> None:
    try:
        probe.unwrapped.oracle()  # type: ignore[attr-defined]  # a ToolEnv's, as was just seen
    except NoOracle as none:
        raise UsageError(f"--model oracle: {none}; choose another --model or other --tasks") from None

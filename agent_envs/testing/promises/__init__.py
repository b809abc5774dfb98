"""Every promise of an environment, each with the function that looks for a case in which it is broken.

A file holds the promises about one thing. The first ones are asked of any Gymnasium text environment, the later ones of
`agent_envs.ToolEnv`s.
"""

from __future__ import annotations

from agent_envs.testing.promise import Promise
from agent_envs.testing.promises import (
    api,
    authorship,
    copies,
    faults,
    formats,
    inputs,
    life,
    limits,
    outputs,
    process,
    rewards,
    seeding,
    tasks,
    tools,
    turns,
    vector,
)

PROMISES: tuple[Promise, ...] = (
    *outputs.PROMISES,
    *inputs.PROMISES,
    *seeding.PROMISES,
    *turns.PROMISES,
    *process.PROMISES,
    *life.PROMISES,
    *vector.PROMISES,
    *api.PROMISES,
    *copies.PROMISES,
    *tools.PROMISES,
    *faults.PROMISES,
    *limits.PROMISES,
    *formats.PROMISES,
    *tasks.PROMISES,
    *rewards.PROMISES,
    *authorship.PROMISES,
)

__all__ = ["PROMISES"]

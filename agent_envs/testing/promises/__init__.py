"""Every promise of an environment, each with the function that looks for a case in which it is broken.

A file holds the promises about one thing. The first ones are asked of any Gymnasium text environment, the later ones of
`agent_envs.ToolEnv`s.
"""

from __future__ import annotations

from agent_envs.testing.promise import Promise
from agent_envs.testing.promises import api, copies

PROMISES: tuple[Promise, ...] = (*api.PROMISES, *copies.PROMISES)

__all__ = ["PROMISES"]

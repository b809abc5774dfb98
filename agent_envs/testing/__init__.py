"""A conformance kit for agent environments: is this one fit to train on?

``check_agent_env`` asks an environment every promise that ours make (`agent_envs.testing.promises`) and reports which it
breaks, by the smallest episode that shows it. The Hypothesis strategies behind it (`actions`, `episodes`, `texts`) and a
state machine (`AgentEnvMachine`) are there for tests of one's own, and ``pytest --agent-env ID`` runs each promise as a
test (`agent_envs.testing.plugin`). Needs the extra ``testing``.

The names here are imported when they are asked for: every run of pytest loads the plugin, and only those that check an
environment need Hypothesis.

Example:
    >>> from agent_envs.testing import check_agent_env
    >>> report = check_agent_env("agent_envs/MathTool-v0")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_envs.testing.adversarial import texts
    from agent_envs.testing.check import ask, check_agent_env
    from agent_envs.testing.episode import EXPERT, Episode, Moment, Trace, play
    from agent_envs.testing.machine import AgentEnvMachine
    from agent_envs.testing.profile import PROFILES
    from agent_envs.testing.promise import Broken, NotAsked, Promise
    from agent_envs.testing.promises import PROMISES
    from agent_envs.testing.report import Finding, Report
    from agent_envs.testing.strategies import actions, episodes
    from agent_envs.testing.subject import Subject

__all__ = [
    "EXPERT",
    "PROFILES",
    "PROMISES",
    "AgentEnvMachine",
    "Broken",
    "Episode",
    "Finding",
    "Moment",
    "NotAsked",
    "Promise",
    "Report",
    "Subject",
    "Trace",
    "actions",
    "ask",
    "check_agent_env",
    "episodes",
    "play",
    "texts",
]

_HOMES = {
    "check": ("ask", "check_agent_env"),
    "episode": ("EXPERT", "Episode", "Moment", "Trace", "play"),
    "machine": ("AgentEnvMachine",),
    "profile": ("PROFILES",),
    "promise": ("Broken", "NotAsked", "Promise"),
    "promises": ("PROMISES",),
    "report": ("Finding", "Report"),
    "strategies": ("actions", "episodes"),
    "subject": ("Subject",),
    "adversarial": ("texts",),
}


def __getattr__(name: str) -> Any:
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{home}")
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        message = (
            "agent_envs.testing draws episodes with Hypothesis, which is not installed: pip install 'agent-envs[testing]'"
        )
        raise ModuleNotFoundError(message, name="hypothesis") from error
    return getattr(module, name)

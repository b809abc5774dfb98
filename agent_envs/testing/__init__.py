"""A conformance kit for agent environments: is this one fit to train on?

``check_agent_env`` asks an environment every promise that ours make (`agent_envs.testing.promises`) and reports which it
breaks, by the smallest episode that shows it. The Hypothesis strategies behind it (`actions`, `episodes`, `texts`) and a
state machine (`AgentEnvMachine`) are there for tests of one's own, and ``pytest --agent-env ID`` runs each promise as a
test. Needs the extra ``testing``.

Example:
    >>> from agent_envs.testing import check_agent_env
    >>> report = check_agent_env("agent_envs/MathTool-v0")  # doctest: +SKIP
"""

from agent_envs.testing.check import check_agent_env
from agent_envs.testing.episode import EXPERT, Episode, Moment, Trace, play
from agent_envs.testing.promise import Broken, NotAsked, Promise
from agent_envs.testing.promises import PROMISES
from agent_envs.testing.report import Finding, Report
from agent_envs.testing.strategies import actions, episodes, texts

__all__ = [
    "EXPERT",
    "PROMISES",
    "Broken",
    "Episode",
    "Finding",
    "Moment",
    "NotAsked",
    "Promise",
    "Report",
    "Trace",
    "actions",
    "check_agent_env",
    "episodes",
    "play",
    "texts",
]

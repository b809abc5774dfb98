"""The contract of a site on this machine that keeps what an episode does there.

Such a site gives each episode a session of its own, opens it in the same state whenever the task is the same, and tells a
verifier what it keeps. `agent_envs.tasks.site` is one; `agent_envs.tools.web` browses them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from agent_envs.task import Task
from sandboxes.browser.browser import Cookie


class OpenSite(Protocol):
    """A site on this machine whose state belongs to sessions, while it is open."""

    @property
    def hosts(self) -> Mapping[str, str]:
        """The names of the site, each with its address, for `sandboxes.browser.open_browser`."""

    @property
    def alive(self) -> bool:
        """Whether it still answers."""

    def open_session(self, task: Task) -> str:
        """Opens a session in the initial state of a task, the same each time, and gives its key."""

    def cookies(self, key: str) -> Sequence[Cookie]:
        """What a page shows to be let into the session."""

    def state(self, key: str) -> dict[str, Any]:
        """What the session keeps, as JSON values. Raises ``SandboxFault`` where it is gone."""

    def close_session(self, key: str) -> None:
        """Ends the session. Twice is fine."""

    def close(self) -> None:
        """Gives back what was opened. Twice is fine."""


class Site(Protocol):
    """A plain value that names such a site. Its pages show nothing that differs between two sessions of one history."""

    @property
    def start_url(self) -> str:
        """The page on which an episode opens."""

    def open(self) -> OpenSite:
        """Opens the site. Raises ``SandboxFault`` where it cannot be."""

"""An episode's share of the site: one server in a process, and sessions in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from agent_envs.task import Task
from agent_envs.tasks.site.server import COOKIE, SiteServer, UnknownSession
from sandboxes import shared
from sandboxes.browser.browser import Cookie
from sandboxes.faults import SandboxFault

HOST = "wiki.test"
"""The name under which browsers see the site, so that no page or address holds a port."""


@dataclass(frozen=True)
class WikiSite:
    """The site for `agent_envs.tools.web.WebTool`: a plain value. Its server starts when a process first opens it."""

    start_url: ClassVar[str] = f"http://{HOST}/"

    def open(self) -> OpenWikiSite:
        """A share in this process's server, which ends with its last share.

        Raises:
            SandboxFault: The server could not start.
        """
        return OpenWikiSite(shared.acquire("agent_envs.tasks.site", SiteServer))


class OpenWikiSite:
    """A share in the server, and the sessions that were opened through it.

    Args:
        lease: The share; this object gives it back.
    """

    def __init__(self, lease: shared.Lease[SiteServer]) -> None:
        self._lease = lease
        self.hosts: Mapping[str, str] = {HOST: lease.engine.address}

    @property
    def alive(self) -> bool:
        """Whether the server still answers."""
        return self._lease.engine.alive

    def open_session(self, task: Task) -> str:
        """Opens a session of the task's world in its initial state.

        Returns:
            Its key.

        Raises:
            ValueError: The task does not say which world, as those of `agent_envs.tasks.tiny_web` do.
        """
        seed, world = task.metadata.get("seed"), task.metadata.get("world")
        if not isinstance(seed, int) or not isinstance(world, int):
            raise ValueError(
                f"a task on this site has 'seed' and 'world' in its metadata, found {sorted(task.metadata)} in {task.id!r}"
            )
        return self._lease.engine.open_session(seed, world)

    def cookies(self, key: str) -> tuple[Cookie, ...]:
        """What a browser shows to be let into the session."""
        return (Cookie(COOKIE, key, WikiSite.start_url),)

    def state(self, key: str) -> dict[str, Any]:
        """What a session keeps, as JSON values.

        Raises:
            SandboxFault: The server or the session is gone.
        """
        try:
            return self._lease.engine.state(key)
        except UnknownSession as problem:
            raise SandboxFault("the site has ended in the middle of the episode: reset", retryable=True) from problem

    def close_session(self, key: str) -> None:
        """Ends a session. Twice is fine."""
        self._lease.engine.close_session(key)

    def close(self) -> None:
        """Gives the share back. Twice is fine."""
        self._lease.close()

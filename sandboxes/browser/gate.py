"""Who may pass through a proxy, and what one action of its page has used so far.

The gate is where a proxy's connections meet: all of them ask it. Nothing in here knows how a request looks on the wire.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import threading
from concurrent.futures import Executor
from dataclasses import dataclass, field

from sandboxes.browser.browser import PageLimits, PageProblem
from sandboxes.browser.network_policy import NetworkPolicy

_NOTED = 50  # how many hosts are noted in one action


@dataclass
class Tally:
    """What happened in one action.

    Args:
        requests: How many there were.
        denied: What was refused, as ``host:port``.
    """

    requests: int = 0
    denied: list[str] = field(default_factory=list)


class Gate:
    """The rules of one proxy. Its connections use it from their thread, the page from another.

    Args:
        policy, limits: Of the proxy.
        username, password: What a connection must know.
        look_ups: Where names are looked up, since that takes time.
    """

    def __init__(self, policy: NetworkPolicy, limits: PageLimits, username: str, password: str, look_ups: Executor) -> None:
        self.limits = limits
        self._policy = policy
        self._secret = base64.b64encode(f"{username}:{password}".encode())
        self._look_ups = look_ups
        self._lock = threading.Lock()
        self._tally = Tally()
        self._cut: list[str] = []

    @property
    def action(self) -> object:
        """Stands for the action that is going on: another object in the next one."""
        return self._tally

    def knows(self, authorization: bytes) -> bool:
        """Whether the value of a ``Proxy-Authorization`` header is right."""
        scheme, _, secret = authorization.partition(b" ")
        return scheme.lower() == b"basic" and hmac.compare_digest(secret.strip(), self._secret)

    async def admit(self, host: str, port: int) -> tuple[str, int]:
        """Lets a request through, if it may.

        Returns:
            The address to connect to.

        Raises:
            PageProblem: It may not.
        """
        try:
            with self._lock:
                self._tally.requests += 1
                if self._tally.requests > self.limits.requests:
                    raise PageProblem(f"one action may make {self.limits.requests} requests: this is one more")
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._look_ups, self._policy.resolve, host, port, self.limits.timeout)
        except PageProblem:
            with self._lock:
                _note(self._tally.denied, host, port)
            raise

    def note_cut(self, host: str, port: int) -> None:
        """Notes that a response of that host was longer than it may be."""
        with self._lock:
            _note(self._cut, host, port)

    def settle(self) -> Tally:
        """Ends an action and begins the next; returns what the old one has done."""
        with self._lock:
            done, self._tally = self._tally, Tally()
        return done

    def take_cut(self) -> list[str]:
        """The hosts that `note_cut` was told of since the last call."""
        with self._lock:
            cut, self._cut = self._cut, []
        return cut


def _note(places: list[str], host: str, port: int) -> None:
    place = f"{host[:200]}:{port}"
    if len(places) < _NOTED and place not in places:
        places.append(place)

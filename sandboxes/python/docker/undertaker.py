"""Makes certain that the containers that nobody needs any more are gone."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

import docker

from sandboxes.faults import SandboxFault
from sandboxes.python.docker.client import DockerClient

logger = logging.getLogger(__name__)

REMOVAL_SECONDS = 20.0
LAST_SECONDS = 5.0
"""How long the end of this process waits for an engine that does not answer."""
LOOK_SECONDS = 0.01
CONFLICT = 409


class Undertaker:
    """Removes containers, one after the other, in a thread that lives as long as there are any to remove.

    A container ends by itself when its connection is closed, so this is for the rare one that does not, and nobody waits.

    Args:
        client: The engine.
    """

    def __init__(self, client: DockerClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._waiting: deque[str] = deque()
        self._thread: threading.Thread | None = None
        self._alone = False

    def bury(self, container: str) -> None:
        """Has a container removed, soon."""
        with self._lock:
            self._waiting.append(container)
            if self._thread is None and not self._alone:
                self._thread = threading.Thread(
                    target=self._work, args=(REMOVAL_SECONDS,), name="sandbox-undertaker", daemon=True
                )
                self._thread.start()

    def work_alone(self) -> None:
        """From now on `bury` only takes note for `finish`: a process that is ending can start no threads."""
        with self._lock:
            self._alone = True

    def finish(self) -> None:
        """Removes what is left to remove, and waits until it is gone."""
        with self._lock:
            thread = self._thread
        self._work(LAST_SECONDS)
        if thread is not None:
            thread.join(LAST_SECONDS)

    def _work(self, seconds: float) -> None:
        reachable = True
        while True:
            with self._lock:
                if not self._waiting:
                    if threading.current_thread() is self._thread:
                        self._thread = None
                    return
                container = self._waiting.popleft()
            if reachable:
                reachable = self._remove(container, seconds)

    def _remove(self, container: str, seconds: float) -> bool:
        """Removes one; False if the engine does not answer."""
        end = time.monotonic() + seconds
        try:
            with self._client.lend("remove a container", seconds) as client:
                while time.monotonic() < end:
                    try:
                        client.remove_container(container, force=True, v=True)
                        return True
                    except docker.errors.APIError as problem:
                        if problem.status_code != CONFLICT:
                            raise
                    time.sleep(LOOK_SECONDS)  # the engine is at it already
        except docker.errors.NotFound:
            return True
        except SandboxFault as fault:
            # With the engine's end of the connection, whenever that comes, the container ends too.
            logger.warning("a container could not be removed, `python -m sandboxes reap` will do it: %s", fault)
            return False
        logger.warning("container %s is still being removed after %g s", container[:12], seconds)
        return True

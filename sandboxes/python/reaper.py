"""Removes what processes that were killed have left: containers of the engine, and temporary folders of this machine.

Containers end with the stream to the process that opened them, and warm processes with their host, so there is rarely
anything to find: a container that was made and never started, or whose engine was down at the time, or the folder of a warm
process that was killed too. Whatever belongs to a living process stays. What belongs to a process of another machine, of
which nothing is known from here, stays until its time to live is over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import tempfile
import threading
import time

import docker

from sandboxes.faults import SandboxFault
from sandboxes.python.docker.client import DockerClient
from sandboxes.python.inside.folders import remove_folder
from sandboxes.python.owners import fate, owner_of_folder

logger = logging.getLogger(__name__)

OWNER_LABEL = "agent-envs.owner"
"""Label of every container: whose it is, as `owner` says it."""
EXPIRES_LABEL = "agent-envs.expires"
"""Label of every container: until when it may stay if nobody knows its owner, in whole seconds since 1970."""

CONFLICT = 409
ATTEMPTS = 5
"""Its last processes may still write to a folder, or remove it themselves, while it is being removed."""
PAUSE_SECONDS = 0.1


def reap(temporary: str | None = None) -> list[str]:
    """Removes what processes that are gone have left.

    Containers are looked for on the engine that the environment names, if it answers. What cannot be removed is logged, and
    does not keep the rest from being removed.

    Args:
        temporary: The folder of temporary folders; by default this process's own.

    Returns:
        What was removed, in words, one item each.
    """
    return _reap_containers() + _reap_folders(temporary or tempfile.gettempdir())


def reap_in_background() -> threading.Thread:
    """Starts `reap` in a thread that keeps nobody waiting; what it removed is logged."""
    thread = threading.Thread(target=_reap_and_log, name="sandbox-reaper", daemon=True)
    thread.start()
    return thread


def _reap_and_log() -> None:
    try:
        for words in reap():
            logger.info("left by a process that is gone, removed: %s", words)
    except Exception:
        logger.warning("looking for what killed processes left behind failed", exc_info=True)


def _reap_containers() -> list[str]:
    try:
        client = DockerClient()
    except SandboxFault as fault:
        logger.info("no container was looked for: %s", fault)
        return []
    removed = []
    with contextlib.closing(client):
        try:
            with client.lend("list its containers") as engine:
                found = engine.containers(all=True, filters={"label": OWNER_LABEL})
        except SandboxFault as fault:
            logger.warning("%s", fault)
            return []
        for container in found:
            labels = container["Labels"]
            reason = _reason(labels[OWNER_LABEL], labels.get(EXPIRES_LABEL, ""))
            if reason and _remove_container(client, container["Id"]):
                removed.append(f"container {container['Id'][:12]} ({container['State']}): {reason}")
    return removed


def _remove_container(client: DockerClient, identity: str) -> bool:
    """Removes a container, with what it stored; False if it was gone already, is going, or will not go."""
    try:
        with client.lend(f"remove container {identity[:12]}") as engine:
            engine.remove_container(identity, v=True, force=True)
        return True
    except docker.errors.NotFound:
        return False
    except SandboxFault as fault:
        if getattr(fault.__cause__, "status_code", None) != CONFLICT:  # which it is when somebody else is removing it
            logger.warning("%s", fault)
        return False


def _reason(name: str, expires: str) -> str:
    """Why what belongs to the owner ``name`` may go, or ""."""
    became = fate(name)
    if became == "gone":
        return "its process is gone"
    if became == "unknown" and expires.isdecimal() and int(expires) < time.time():
        return "its time to live is over"
    return ""


def _reap_folders(parent: str) -> list[str]:
    removed = []
    try:
        names = os.listdir(parent)
    except OSError as problem:
        logger.warning("the temporary folders could not be listed: %s", problem)
        return []
    for name in names:
        if fate(owner_of_folder(name)) != "gone":
            continue
        path = os.path.join(parent, name)
        try:
            if _is_ours(path):
                _remove(path)
                removed.append(f"folder {path}: its process is gone")
        except OSError as problem:
            logger.warning("folder %s could not be removed: %s", path, problem)
    return removed


def _is_ours(path: str) -> bool:
    """Whether it is a folder, no link to one, and this user's to remove."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and os.geteuid() in (0, found.st_uid)


def _remove(path: str) -> None:
    """Removes a folder, however often something in it comes or goes meanwhile."""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS)
        try:
            remove_folder(path)
        except OSError:
            if attempt + 1 == ATTEMPTS:
                raise
        if not os.path.lexists(path):
            return
    raise OSError("something in it comes again and again")

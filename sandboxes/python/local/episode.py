"""From a warm process to a supervisor inside its walls: how a zygote starts one episode."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import NoReturn

from sandboxes.python.inside import kernel
from sandboxes.python.inside.frames import ChannelClosed, FrameChannel
from sandboxes.python.inside.supervisor import Supervisor
from sandboxes.python.interpreter import Limits
from sandboxes.python.local.confinement import Home, Plan, Walls, map_user


def fork_episode(plan: Plan, limits: Limits, home: Home, connection: int, to_close: tuple[int, ...]) -> int:
    """Forks a supervisor that serves ``connection``.

    Args:
        plan: The protections to put up.
        limits: What each branch may use.
        home: What the zygote's episodes have in common.
        connection: Stream socket to the host; the child's from here on.
        to_close: Descriptors of the zygote's that the episode must not have.

    Returns:
        Process id of the supervisor.

    Raises:
        OSError: The kernel does not grant the plan's namespaces, or no process at all.
    """
    user, group = os.geteuid(), os.getegid()
    pid = kernel.fork_into(plan.namespaces)
    if pid:
        return pid
    _be_episode(plan, limits, home, connection, to_close, user, group)


def _be_episode(
    plan: Plan,
    limits: Limits,
    home: Home,
    connection: int,
    to_close: tuple[int, ...],
    user: int,
    group: int,
) -> NoReturn:
    try:
        signal.set_wakeup_fd(-1)
        for descriptor in to_close:
            os.close(descriptor)
        os.setsid()  # before anything else: in a new namespace the parent's id is 0, and 0 means "my process group"
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        if "user" in plan.namespaces:
            map_user(user, group)
        walls = Walls(plan, limits, proc, home)
        walls.build()
        Supervisor(connection, connection, walls, proc).serve()
    except BaseException as problem:
        try:
            FrameChannel(connection, connection).send({"fault": f"{type(problem).__name__}: {problem}"})
        except ChannelClosed:
            traceback.print_exc()
            sys.stderr.flush()
    finally:
        os._exit(0)

"""From a warm process to a supervisor inside its walls: how a zygote starts one episode."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import NoReturn

from sandboxes.python.confinement import Home, Plan, Walls, enter_namespaces
from sandboxes.python.frames import ChannelClosed, FrameChannel
from sandboxes.python.interpreter import Limits
from sandboxes.python.supervisor import Supervisor


def fork_episode(plan: Plan, limits: Limits, seed: int, home: Home, connection: int, to_close: tuple[int, ...]) -> int:
    """Forks a supervisor that serves ``connection``.

    Args:
        plan: The protections to put up.
        limits: What the code may use.
        seed: The episode's seed.
        home: What the zygote's episodes have in common.
        connection: Stream socket to the host; the child's from here on.
        to_close: Descriptors of the zygote's that the episode must not have.

    Returns:
        Id of the child. With a process-id namespace it is a go-between that ends at once; the supervisor's parent is then
        the zygote, which adopts orphans.
    """
    pid = os.fork()
    if pid:
        return pid
    _be_episode(plan, limits, seed, home, connection, to_close)


def _be_episode(plan: Plan, limits: Limits, seed: int, home: Home, connection: int, to_close: tuple[int, ...]) -> NoReturn:
    channel = FrameChannel(connection, connection)
    try:
        signal.set_wakeup_fd(-1)
        for descriptor in to_close:
            os.close(descriptor)
        os.setsid()
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        enter_namespaces(plan)
        if "pid" in plan.namespaces:
            if os.fork():
                os._exit(0)
            os.setsid()  # before anything else: in a new namespace the parent's id is 0, and 0 means "my process group"
        walls = Walls(plan, limits, proc, home)
        walls.build()
        Supervisor(channel, walls, proc, seed, limits.output_bytes).serve()
    except BaseException as problem:
        try:
            channel.send({"fault": f"{type(problem).__name__}: {problem}"})
        except ChannelClosed:
            traceback.print_exc()
            sys.stderr.flush()
    finally:
        os._exit(0)

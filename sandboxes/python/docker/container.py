"""The first process of a container: makes sure of the walls that the engine put up, gets warm, and is the supervisor.

Its options come from `docker`. It keeps three capabilities, to become the worker's user in forks of its own and to end them;
whatever else it may not do it cannot get back. Its standard streams are the connection to the host, and a place for last
words. Runs inside; standard library only.
"""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import stat
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from sandboxes.python.inside import kernel
from sandboxes.python.inside.enclosure import Enclosure
from sandboxes.python.inside.frames import ChannelClosed, FrameChannel
from sandboxes.python.inside.supervisor import Supervisor
from sandboxes.python.inside.warming import WarmingFault, freeze, warm_up
from sandboxes.python.interpreter import Limits

HUNG_UP = 0
"""Exit status: the host is gone."""
FAILED = 1
TERMINATED = 128 + signal.SIGTERM

CAPABILITIES = ("kill", "setgid", "setuid")
QUEUES = "/dev/mqueue"
SHARED_MEMORY = "/dev/shm"
IPC_TABLES = ("/proc/sysvipc/msg", "/proc/sysvipc/sem", "/proc/sysvipc/shm")


class WallMissing(RuntimeError):
    """The engine did not shut this container in as it was asked to."""


class ContainerWalls(Enclosure):
    """The walls inside a container.

    Args:
        limits: What each branch may use.
        proc: File descriptor of /proc.
        folders: A work folder for each slot, each a file system of its own in memory.
        user: User and group id of the workers.
        syscall_filter: The compiled system-call filter for this machine; b"" where there is none.
    """

    def __init__(self, limits: Limits, proc: int, folders: Sequence[str], user: int, syscall_filter: bytes) -> None:
        super().__init__(limits, proc, folders, user, counted=0)
        self._user = user
        self._filter = syscall_filter

    def check(self) -> None:
        """Raises ``WallMissing`` unless this container is shut in as the host believes."""
        with open("/proc/self/status") as file:
            status = dict(line.rstrip("\n").split(":", 1) for line in file)
        allowed = sum(1 << kernel.CAPABILITIES[name] for name in CAPABILITIES)
        with open("/proc/net/dev") as file:
            devices = {line.split(":")[0].strip() for line in file.readlines()[2:]}
        open_places = self._open_places()
        for found, wall in (
            (int(status["CapBnd"], 16) & ~allowed, "no capabilities but those to become another user and to end processes"),
            (status.get("NoNewPrivs", "1").strip() != "1", "no new privileges"),
            (devices - {"lo"}, "no network"),
            (_can_write("/"), "a read-only root"),
            (self._unfit_folders(), "empty work folders of their own for the code (has the image a folder of that name?)"),
            (open_places, f"no place to write to but the work folders (found {', '.join(open_places)})"),
        ):
            if found:
                raise WallMissing(f"the engine did not grant what this container was asked to have: {wall}")

    def leftovers(self) -> str:
        """What the last family has left behind, in words, or ""."""
        found = [super().leftovers()]
        for folder in (QUEUES, SHARED_MEMORY):
            with contextlib.suppress(FileNotFoundError):
                found += [f"files in {folder}"] if os.listdir(folder) else []
        for table in IPC_TABLES:
            with contextlib.suppress(FileNotFoundError), open(table) as file:
                found += [f"entries in {table}"] if len(file.readlines()) > 1 else []
        return " and ".join(words for words in found if words)

    def _shut_in(self) -> None:
        os.nice(19)  # within the container, so that a thousand processes of the code leave the supervisor its share
        kernel.set_inspectable(False)
        kernel.forbid_new_privileges()
        kernel.keep_capabilities(())
        if self._filter:
            kernel.load_filter(self._filter)

    def _unfit_folders(self) -> bool:
        try:
            return any(os.stat(folder).st_uid != self._user or os.listdir(folder) for folder in self.folders)
        except OSError:
            return True

    def _open_places(self) -> list[str]:
        """Folders that a worker could write to, besides those that are emptied or looked at after each family."""
        with open("/proc/self/mounts") as file:
            places = [line.split()[1].encode().decode("unicode_escape") for line in file]
        found = []
        for place in dict.fromkeys([*places, SHARED_MEMORY]):
            if place in self.folders or place == QUEUES:
                continue
            with contextlib.suppress(OSError):
                about = os.stat(place)
                mine = about.st_uid == self._user, about.st_gid == self._user, True
                mode = sum(bit for bit, holds in zip((0o200, 0o020, 0o002), mine, strict=True) if holds)
                writable = not os.statvfs(place).f_flag & os.ST_RDONLY
                if stat.S_ISDIR(about.st_mode) and about.st_mode & mode and writable:
                    found.append(place)
        return found


def main(options: dict[str, Any]) -> NoReturn:
    """Serves the host until it is gone.

    Args:
        options: ``limits``, ``folders``, ``user``, ``preload`` (None for the usual packages), ``filter`` (base64).
    """
    status = FAILED
    try:
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(TERMINATED))  # else a first process ignores it
        reader, writer = _take_streams()
        try:
            _serve(reader, writer, options)
            status = HUNG_UP
        except (WallMissing, WarmingFault) as problem:
            FrameChannel(reader, writer).send({"fault": str(problem)})
        except ChannelClosed:
            status = HUNG_UP
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _serve(reader: int, writer: int, options: dict[str, Any]) -> None:
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    limits = Limits(**options["limits"])
    walls = ContainerWalls(limits, proc, options["folders"], options["user"], base64.b64decode(options["filter"]))
    walls.check()
    warm_up(options["preload"])
    freeze()
    kernel.set_inspectable(False)
    Supervisor(reader, writer, walls, proc).serve()


def _can_write(folder: str) -> bool:
    """Whether this process can make something in a folder that belongs to its user."""
    name = os.path.join(folder, f"attempt-{os.urandom(8).hex()}")
    try:
        os.mkdir(name)
    except OSError:
        return False
    os.rmdir(name)
    return True


def _take_streams() -> tuple[int, int]:
    """Moves the connection to the host away from standard input and output, so that no import can print into it."""
    reader, writer = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    return reader, writer

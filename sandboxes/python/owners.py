"""Names of processes that nobody can mistake for one another: whose a container or a temporary folder is.

A process id alone says little: it is used again, and other machines and containers have it too. An owner is the machine
since it was last started, the process-id namespace, the process id, and when that process began. Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import subprocess
import time
import uuid
from typing import Literal

Fate = Literal["alive", "gone", "unknown"]

_OWNER = r"[0-9a-f]{16}-[0-9]+-[0-9]+-[0-9]+"
_FOLDER = rf"sandbox-({_OWNER})-[0-9a-f]+"

_START_FIELD = 19
"""When a process began (clock ticks since the machine started), counted in /proc/PID/stat from behind the name."""
_THREADS_FIELD = 17
ENDED = -1


def owner(pid: int | None = None) -> str:
    """The name of a process: ``machine-namespace-pid-start``, of hexadecimal digits and hyphens only.

    Args:
        pid: A process of this process's own namespace; this one by default.

    Raises:
        ProcessLookupError: There is no such process.

    Example:
        >>> is_gone(owner())
        False
    """
    number = os.getpid() if pid is None else pid
    start = _start(number)
    if start is None or start == ENDED:
        raise ProcessLookupError(f"expected the id of a running process, found {number}")
    return f"{_machine()}-{_namespace()}-{number}-{start}"


def fate(name: str) -> Fate:
    """What has become of the process that `owner` called ``name``.

    Returns:
        ``"unknown"`` where it cannot be told from here: on another machine, before a restart, in another process-id
        namespace, or because ``name`` is not an owner's.
    """
    if not re.fullmatch(_OWNER, name):
        return "unknown"
    machine, namespace, number, start = name.split("-")
    if machine != _machine() or namespace != _namespace() or int(namespace) == 0:
        return "unknown"
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return "gone"
    except PermissionError:
        pass  # somebody else's, but there
    begun = _start(int(number))
    if begun is None:
        # It ended just now, or it is hidden from us.
        return "unknown"
    return "alive" if begun == int(start) else "gone"


def is_gone(name: str) -> bool:
    """Whether the process that `owner` called ``name`` has certainly ended."""
    return fate(name) == "gone"


def folder_name(name: str) -> str:
    """A new name for a temporary folder that belongs to the owner ``name``."""
    return f"sandbox-{name}-{os.urandom(8).hex()}"


def owner_of_folder(folder: str) -> str:
    """Whose a temporary folder is, by a name that `folder_name` gave it; "" for every other name."""
    match = re.fullmatch(_FOLDER, folder)
    return match.group(1) if match else ""


def _machine() -> str:
    """This machine since its last start, in 16 hexadecimal digits."""
    parts = [platform.node()]  # copies of a virtual machine differ in this at least
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/time"))  # the time at which a process began is told differently in each
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            parts.append(file.read().strip())
    except OSError:
        parts.append(f"{uuid.getnode():x}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _namespace() -> str:
    """Number of this process-id namespace: 1 where the system has none, 0 where the /proc to be seen is of another one."""
    try:
        if int(os.readlink("/proc/self")) != os.getpid():
            return "0"
        return os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        return "1"


def _start(number: int) -> int | None:
    """When a process began; `ENDED` for one that only waits to be asked how it ended, None where nobody can see."""
    if not os.path.exists("/proc/self/stat"):
        return _start_by_ps(number)
    try:
        with open(f"/proc/{number}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    # The first thread of a process may end before the others: then it is a zombie too, but not the only thread.
    if fields[0] in (b"Z", b"X") and int(fields[_THREADS_FIELD]) <= 1:
        return ENDED
    return int(fields[_START_FIELD])


def _start_by_ps(number: int) -> int | None:
    """The same, in seconds since 1970, for systems without /proc."""
    command = ["ps", "-o", "state=,lstart=", "-p", str(number)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    state, _, began = answer.stdout.strip().partition(" ")
    if not state:
        return None
    return ENDED if state.startswith("Z") else int(time.mktime(time.strptime(began.strip(), "%a %b %d %H:%M:%S %Y")))

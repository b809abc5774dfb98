"""The walls of a local episode: what the kernel is asked for, and in which order.

A `Plan` says which protections this machine grants (`probe` finds out). `Walls.build` puts a supervisor inside those that
it shares with its workers; `Enclosure.confine` then shuts each of its workers in further: own user, limits, no capabilities,
Landlock, and the system-call filter last. In a mount namespace the root is an empty one that holds the Python installation,
read-only, and the work folders in memory; without one the work folders are real folders, and Landlock alone guards the
host's files.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import stat
from dataclasses import dataclass
from typing import Any

from sandboxes.python.inside import kernel
from sandboxes.python.inside.enclosure import MOST_FILES, Enclosure, folder_names
from sandboxes.python.inside.folders import size_of_folder
from sandboxes.python.interpreter import Limits, Protection
from sandboxes.python.local.libraries import Step
from sandboxes.python.local.syscall_filter import compile_filter

landlock: Any
try:
    landlock = importlib.import_module("landlock")
except (ImportError, OSError, AttributeError):  # the package is not here, or this is no Linux
    landlock = None

HIGHEST_USER = 2_000_000_000
NAMESPACES = ("pid", "net", "ipc", "uts", "mount")
SUPERVISOR_CAPABILITIES = ("dac_read_search", "kill", "setgid", "setuid")
"""It looks into the work folders, signals workers, and becomes their user to clean up after them."""


@dataclass(frozen=True)
class Plan:
    """Which protections an episode gets.

    Args:
        namespaces: Linux namespaces of its own.
        own_user: The worker runs under a user id of its own; needs root.
        landlock: Version of Landlock to use, 0 for none.
        seccomp: Load the system-call filter.
        process_limit: The kernel's limit of processes counts this episode's alone, so it bounds them; else the
            supervisor's watch does.
    """

    namespaces: tuple[str, ...] = ()
    own_user: bool = False
    landlock: int = 0
    seccomp: bool = False
    process_limit: bool = False

    def protection(self, fixed_addresses: bool, missing: tuple[str, ...]) -> Protection:
        """The plan in the words of the interpreter's contract."""

        def joined(*parts: tuple[bool, str]) -> str:
            return " and ".join(name for granted, name in parts if granted) or "open"

        return Protection(
            backend="local",
            namespaces=self.namespaces,
            own_user=self.own_user,
            landlock=self.landlock,
            seccomp=self.seccomp,
            network=joined(("net" in self.namespaces, "namespace"), (self.seccomp, "seccomp")),
            files=joined(("mount" in self.namespaces, "mount namespace"), (self.landlock > 0, "landlock")),
            processes="kernel" if self.process_limit else "watchdog",
            signals=joined(
                ("pid" in self.namespaces, "pid namespace"),
                (self.own_user, "own user"),
                (self.landlock >= 6, "landlock"),
                (self.signals_filtered, "seccomp"),
            ),
            fixed_addresses=fixed_addresses,
            missing=missing,
        )

    @property
    def signals_filtered(self) -> bool:
        """Whether only the system-call filter keeps signals inside."""
        return self.seccomp and "pid" not in self.namespaces and not self.own_user and self.landlock < 6


@dataclass(frozen=True)
class Home:
    """What all episodes of a zygote have in common.

    Args:
        folder: The zygote's own temporary folder; work folders are made in it, and new roots mounted on it.
        readable: Files and folders that Python needs.
        root: How to make them appear under an empty root.
        syscall_filter: The compiled system-call filter; b"" where there is none.
    """

    folder: str
    readable: tuple[str, ...]
    root: tuple[Step, ...]
    syscall_filter: bytes


def map_user(user: int, group: int) -> None:
    """In a new user namespace: the host's ``user`` and ``group``, who started it, are called the same in it."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


class Walls(Enclosure):
    """The walls around the workers of one local supervisor.

    Args:
        plan: What to put up.
        limits: What each branch may use.
        proc: File descriptor of the host's /proc.
        home: What this supervisor has in common with its zygote's others.
    """

    def __init__(self, plan: Plan, limits: Limits, proc: int, home: Home) -> None:
        self._in_memory = "mount" in plan.namespaces
        self._top = "" if self._in_memory else os.path.join(home.folder, os.readlink("self", dir_fd=proc))
        folders = folder_names(limits.branches)
        if not self._in_memory:
            folders = [self._top + folder for folder in folders]
        user = _unused_user(proc) if plan.own_user else None
        supervisors = 0 if plan.own_user else 1  # in a user namespace, the supervisor counts too
        super().__init__(limits, proc, folders, user, supervisors if plan.process_limit else None)
        self._plan = plan
        self._home = home
        self._rules: Any = None

    def build(self) -> None:
        """Puts this process, a supervisor, inside the walls that it shares with its workers."""
        kernel.adopt_orphans()
        if self._in_memory:
            self._build_root()
        else:
            os.mkdir(self._top, 0o711)
            for folder in self.folders:
                os.mkdir(folder, 0o750)
        if self.user is not None:
            for folder in self.folders:
                os.chown(folder, self.user, os.getegid())
        if self._plan.landlock:
            self._rules = self._file_rules()
        if self._plan != Plan():
            kernel.forbid_new_privileges()
            kernel.keep_capabilities(SUPERVISOR_CAPABILITIES if self._plan.own_user else ())
            kernel.set_inspectable(False)

    def overfull(self, slot: int) -> str:
        """What is too much in a work folder, in words, or ""; in memory the kernel itself keeps it within bounds."""
        size = 0 if self._in_memory else size_of_folder(self.folders[slot], MOST_FILES)
        if size is None:
            return f"{MOST_FILES} files, or folders that nobody can count,"
        return f"{self.limits.file_bytes // 1024} KiB of files" if size > self.limits.file_bytes else ""

    def no_copies(self) -> str:
        """A filter that knows a single process id would keep a copy from signalling itself."""
        return "nothing but a filter of one process id keeps signals inside here" if self._plan.signals_filtered else ""

    def leave(self) -> None:
        """Removes the work folders; those in memory go with their namespace."""
        if not self._in_memory:
            for slot, folder in enumerate(self.folders):
                self.empty(slot)
                os.rmdir(folder)
            os.rmdir(self._top)

    def _shut_in(self) -> None:
        if self._plan == Plan():
            return
        kernel.set_inspectable(False)
        kernel.forbid_new_privileges()
        kernel.keep_capabilities(())
        if self._rules is not None:
            ctypes.set_errno(0)  # the package takes any error number that it finds for its own
            self._rules.apply()
            if self._plan.landlock >= 4:
                kernel.scope_by_landlock(self._plan.landlock)
        if self._plan.seccomp:
            alone = self._plan.signals_filtered
            kernel.load_filter(compile_filter(only_signal=os.getpid()) if alone else self._home.syscall_filter)

    def _build_root(self) -> None:
        root = self._home.folder
        kernel.mount(None, "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
        kernel.mount("tmpfs", root, "tmpfs", kernel.MS_NOSUID, "size=1m,mode=755")
        for folder in self.folders:
            os.mkdir(root + folder)
        for step in self._home.root:
            made = root + step.path
            if step.kind == "folder":
                os.mkdir(made, 0o755)
            elif step.kind == "link":
                os.symlink(step.target, made)
            else:
                if step.kind == "file":
                    os.close(os.open(made, os.O_CREAT | os.O_WRONLY, 0o644))
                kernel.mount(step.path, made, None, kernel.MS_BIND | kernel.MS_REC)
        kernel.make_mount_read_only(root)
        flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
        for folder in self.folders:
            options = f"size={self.limits.file_bytes},nr_inodes={MOST_FILES},mode=750"
            kernel.mount("tmpfs", root + folder, "tmpfs", flags, options)
        # A change of root binds whoever has no capabilities and no file descriptor outside, and costs nothing; moving the
        # old root away for good would wait for the whole kernel.
        os.chroot(root)
        os.chdir("/")

    def _file_rules(self) -> Any:
        ctypes.set_errno(0)
        access = landlock.FSAccess
        rules = landlock.Ruleset()
        for path in self._home.readable:
            kind = os.stat(path).st_mode
            if stat.S_ISDIR(kind):
                allowed = access.READ_FILE | access.READ_DIR | access.EXECUTE
            elif stat.S_ISCHR(kind):
                allowed = access.READ_FILE | access.WRITE_FILE
            else:
                allowed = access.READ_FILE | access.EXECUTE
            rules.allow(path, rules=allowed)
        refused = access.EXECUTE | access.MAKE_CHAR | access.MAKE_BLOCK | access.MAKE_SOCK
        for folder in self.folders:
            rules.allow(folder, rules=access.all() & ~refused)
        return rules


def _unused_user(proc: int) -> int:
    """A user id that no other live episode on this machine has: the highest one, less this process's id."""
    end = 0
    with open("/proc/self/uid_map") as file:
        for line in file:
            start, _, length = (int(field) for field in line.split())
            end = max(end, min(start + length, HIGHEST_USER))
    entry = int(os.readlink("self", dir_fd=proc))
    if end < 2:
        raise OSError("this user namespace has no second user id")
    return end - 1 - entry % (end // 2)

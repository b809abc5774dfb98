"""The walls of a local episode: what the kernel is asked for, and in which order.

A `Plan` says which protections this machine grants (`probe` finds out). `Walls.build` puts a supervisor inside those that
it shares with its workers; `Walls.confine` then shuts each of its workers in further: own user, limits, no capabilities,
Landlock, and the system-call filter last. In a mount namespace the root is an empty one that holds the Python installation,
read-only, and the work folder in memory; without one the work folder is a real folder, and Landlock alone guards the host's
files.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import resource
import signal
import stat
from dataclasses import dataclass
from typing import Any

from sandboxes.python import kernel
from sandboxes.python.folders import empty_folder, remove_folder, size_of_folder
from sandboxes.python.interpreter import MIB, Limits, Protection
from sandboxes.python.libraries import Step
from sandboxes.python.processes import Process
from sandboxes.python.syscall_filter import compile_filter

landlock: Any
try:
    landlock = importlib.import_module("landlock")
except (ImportError, OSError, AttributeError):  # the package is not here, or this is no Linux
    landlock = None

WORK_FOLDER = "/sandbox"
"""The work folder inside a mount namespace."""
MOST_FILES = 10_000
HIGHEST_USER = 2_000_000_000
NAMESPACES = ("pid", "net", "ipc", "uts", "mount")
SUPERVISOR_CAPABILITIES = ("chown", "dac_override", "fowner", "kill", "setgid", "setuid")


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


class Walls:
    """The enclosure of one episode, as its supervisor uses it.

    Args:
        plan: What to put up.
        limits: What the code may use.
        proc: File descriptor of the host's /proc.
        home: What this episode has in common with its zygote's others.
    """

    def __init__(self, plan: Plan, limits: Limits, proc: int, home: Home) -> None:
        self.open_files = limits.open_files
        self._plan = plan
        self._limits = limits
        self._proc = proc
        self._home = home
        self._in_memory = "mount" in plan.namespaces
        self._folder = WORK_FOLDER if self._in_memory else os.path.join(home.folder, os.readlink("self", dir_fd=proc))
        self._user = _unused_user(proc) if plan.own_user else os.geteuid()
        self._rules: Any = None

    def build(self) -> None:
        """Puts this process, a supervisor, inside the walls that it shares with its workers."""
        kernel.adopt_orphans()
        if self._in_memory:
            self._build_root()
        else:
            os.mkdir(self._folder, 0o700)
        if self._plan.own_user:
            os.chown(self._folder, self._user, self._user)
        if self._plan.landlock:
            self._rules = self._file_rules()
        if self._plan != Plan():
            kernel.forbid_new_privileges()
            kernel.keep_capabilities(SUPERVISOR_CAPABILITIES if self._plan.own_user else ())
            kernel.set_inspectable(False)

    def confine(self) -> None:
        """Shuts the calling process, a fresh worker, in. Each step takes away what the ones before it needed."""
        kernel.set_inspectable(True)  # else /proc/self belongs to root
        with contextlib.suppress(OSError):
            self._write("self/oom_score_adj", b"1000")  # when memory runs out, the kernel is to choose this one
        size = int(self._read("self/statm").split()[0]) * resource.getpagesize()
        os.chdir(self._folder)
        os.umask(0o022)
        self._limit("RLIMIT_AS", size + self._limits.memory_bytes)
        self._limit("RLIMIT_FSIZE", self._limits.file_bytes)
        self._limit("RLIMIT_CORE", 0)
        self._limit("RLIMIT_MSGQUEUE", 0)
        if self._plan.process_limit:
            # In a user namespace the supervisor counts too; with a user of its own only the worker does.
            self._limit("RLIMIT_NPROC", self._limits.processes + (not self._plan.own_user))
        if self._plan.own_user:
            os.setgroups([])
            os.setresgid(self._user, self._user, self._user)
            os.setresuid(self._user, self._user, self._user)
        os.environ.update(HOME=self._folder, TMPDIR=self._folder, PWD=self._folder)
        kernel.die_with_parent(signal.SIGKILL)  # the supervisor has one thread; changing the user would clear this
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

    def overrun(self, below: list[Process], baseline: Process) -> str:
        """What the code uses too much of, in words, or ""."""
        if sum(process.threads for process in below if not process.zombie) > self._limits.processes:
            return f"{self._limits.processes} processes and threads"
        if sum(max(0, process.resident_bytes - baseline.resident_bytes) for process in below) > self._limits.memory_bytes:
            return f"{self._limits.memory_bytes // MIB} MiB of memory"
        return ""

    def overfull(self) -> str:
        """What is too much in the work folder, in words, or ""; in memory the kernel itself keeps it within bounds."""
        size = 0 if self._in_memory else size_of_folder(self._folder, MOST_FILES)
        if size is None:
            return f"{MOST_FILES} files, or folders that nobody can count,"
        return f"{self._limits.file_bytes // 1024} KiB of files" if size > self._limits.file_bytes else ""

    def empty_folder(self) -> None:
        """Removes every file that the code made."""
        os.chmod(self._folder, 0o700)
        empty_folder(self._folder)

    def leave(self) -> None:
        """Removes the work folder; one in memory goes with its namespace."""
        if not self._in_memory:
            os.chmod(self._folder, 0o700)
            remove_folder(self._folder)

    def _build_root(self) -> None:
        root = self._home.folder
        kernel.mount(None, "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
        kernel.mount("tmpfs", root, "tmpfs", kernel.MS_NOSUID, "size=1m,mode=755")
        work = root + WORK_FOLDER
        os.mkdir(work)
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
        kernel.mount("tmpfs", work, "tmpfs", flags, f"size={self._limits.file_bytes},nr_inodes={MOST_FILES},mode=700")
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
        rules.allow(self._folder, rules=access.all() & ~refused)
        return rules

    def _limit(self, name: str, value: int) -> None:
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))

    def _read(self, path: str) -> bytes:
        file = os.open(path, os.O_RDONLY, dir_fd=self._proc)
        try:
            return os.read(file, 4096)
        finally:
            os.close(file)

    def _write(self, path: str, text: bytes) -> None:
        file = os.open(path, os.O_WRONLY, dir_fd=self._proc)
        try:
            os.write(file, text)
        finally:
            os.close(file)


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

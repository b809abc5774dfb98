"""The system-call filter of the local interpreter, compiled once with libseccomp and loaded by every worker.

It refuses with EPERM what code under test has no business with: the network above all, then other processes' memory, new
namespaces and mounts, memory that no limit counts, and the kernel's rarely used corners. It is a list of refusals and not of
permissions, since numerical libraries use a long and changing list of calls; the namespaces and Landlock rules do not depend
on it.
"""

from __future__ import annotations

import errno
import importlib
import os
import socket
from typing import Any

from sandboxes.python.inside.kernel import NAMESPACES

seccomp: Any
try:
    seccomp = importlib.import_module("pyseccomp")
except (ImportError, OSError, RuntimeError):  # the package, or libseccomp itself, is not here
    seccomp = None

REQUIRED = ("socket", "ptrace", "process_vm_readv", "process_vm_writev", "unshare", "setns", "mount")
"""Refused always; a library that does not know one of them is too old to be used."""

REFUSED = (
    # networks by other doors; other processes
    *("io_uring_setup", "io_uring_enter", "io_uring_register", "pidfd_getfd", "kcmp", "process_madvise", "process_mrelease"),
    *("setpriority", "sched_setparam", "sched_setscheduler", "sched_setattr", "ioprio_set", "migrate_pages", "move_pages"),
    # mounts and roots
    *("umount2", "pivot_root", "chroot", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick"),
    *(
        "mount_setattr",
        "swapon",
        "swapoff",
        "quotactl",
        "quotactl_fd",
        "name_to_handle_at",
        "open_by_handle_at",
        "fanotify_init",
    ),
    # memory that RLIMIT_AS does not see
    *("memfd_create", "memfd_secret", "shmget", "shmat", "shmctl", "shmdt", "semget", "semop", "semctl", "semtimedop"),
    *("msgget", "msgsnd", "msgrcv", "msgctl", "mq_open", "mq_unlink", "mlock", "mlock2", "mlockall", "remap_file_pages"),
    # the kernel's rarely used corners, and the machine as a whole
    *("bpf", "perf_event_open", "userfaultfd", "keyctl", "add_key", "request_key", "personality", "syslog", "acct"),
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot", "sethostname"),
    *("setdomainname", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "iopl", "ioperm", "modify_ldt"),
    *("vhangup", "lookup_dcookie", "uselib", "ustat", "sysfs"),
)
"""Refused where libseccomp knows the name; those that it does not know are newer than it."""

SIGNALLING = ("rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal")
F_SETOWN, F_SETSIG, F_SETOWN_EX = 8, 10, 15  # a way to have the kernel send signals in one's name


def compile_filter(only_signal: int | None = None) -> bytes:
    """Compiles the filter for this machine.

    Args:
        only_signal: Refuse signals to any process but this one. Needed only where neither a process-id namespace nor
            Landlock keeps signals inside; its children then cannot be signalled either.

    Returns:
        A classic BPF program, 8 bytes an instruction, for `kernel.load_filter`.

    Raises:
        OSError: libseccomp is missing, or does not know a call that must be refused.
    """
    if seccomp is None:
        raise OSError(errno.ENOSYS, "the package pyseccomp with the library libseccomp2 is needed")
    refuse = seccomp.ERRNO(errno.EPERM)
    table = seccomp.SyscallFilter(seccomp.ALLOW)
    architecture = seccomp.system_arch()
    for name in (*REQUIRED, *REFUSED):
        known = seccomp.resolve_syscall(architecture, name) >= 0
        if known:
            table.add_rule(refuse, name)
        elif name in REQUIRED:
            raise OSError(errno.ENOSYS, f"libseccomp does not know the system call {name}")
    table.add_rule(refuse, "socketpair", seccomp.Arg(0, seccomp.NE, socket.AF_UNIX))
    table.add_rule(refuse, "prlimit64", seccomp.Arg(0, seccomp.NE, 0))
    table.add_rule(refuse, "sched_setaffinity", seccomp.Arg(0, seccomp.NE, 0))
    for flag in NAMESPACES.values():
        table.add_rule(refuse, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, flag, flag))
    if seccomp.resolve_syscall(architecture, "clone3") >= 0:
        table.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")  # its flags are out of a filter's sight; libc then uses clone
    if only_signal is not None:
        for name in ("kill", "tgkill", "tkill"):
            table.add_rule(refuse, name, seccomp.Arg(0, seccomp.NE, only_signal))
        for name in SIGNALLING:
            if seccomp.resolve_syscall(architecture, name) >= 0:
                table.add_rule(refuse, name)
        for command in (F_SETOWN, F_SETSIG, F_SETOWN_EX):
            # Masked: the kernel looks at the lower half of the argument only, and so must the filter.
            table.add_rule(refuse, "fcntl", seccomp.Arg(1, seccomp.MASKED_EQ, 0xFFFFFFFF, command))
    reader, writer = os.pipe()
    try:
        with os.fdopen(writer, "wb") as file:
            table.export_bpf(file)
        with os.fdopen(reader, "rb") as file:
            return file.read()
    except BaseException:
        os.close(reader)
        raise

"""The handful of Linux system calls that the standard library of Python 3.11 does not wrap.

Each function is one call, raises ``OSError`` as the kernel reports it, and decides nothing; `confinement` does that.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
from collections.abc import Collection, Iterable

NAMESPACES = {
    "mount": 0x00020000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
"""Flags of ``clone`` by the names used here."""

CAPABILITIES = {"dac_read_search": 2, "kill": 5, "setgid": 6, "setuid": 7}
"""Numbers of the capabilities that a supervisor may keep."""

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_SECCOMP_MODE_FILTER = 2
_ADDR_NO_RANDOMIZE = 0x0040000
_SYS_MOUNT_SETATTR = 442
_CLONE_PARENT = 0x8000
_SYS_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220}
_LANDLOCK_REFER = 0x2000
_AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID = -100, 0x8000, 0x1, 0x2

_libc = ctypes.CDLL(None, use_errno=True)
_libc_with_gil = ctypes.PyDLL(None, use_errno=True)  # the child of a bare clone is to hold the lock that its parent holds


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


class _MountAttributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "user_namespace"))


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _check(name: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def _prctl(name: str, option: int, *arguments: int) -> None:
    padded = (*arguments, 0, 0, 0, 0)[:4]
    _check(name, _libc.prctl(ctypes.c_int(option), *(ctypes.c_ulong(value) for value in padded)))


def fork_into(namespaces: Collection[str]) -> int:
    """Forks this process, which must have a single thread; the child is the first process in the new namespaces.

    With namespaces it is the bare system call: the standard library could only ``unshare`` and then fork a second time,
    which for a process of this size costs several milliseconds. What ``os.fork`` does besides is to put right the locks and
    the list of threads, of which there is one.

    Returns:
        The child's id, or 0 in the child.
    """
    if not namespaces:
        return os.fork()
    flags = 0
    for name in namespaces:
        flags |= NAMESPACES[name]
    return _clone(flags)


def fork_beside() -> int:
    """Forks this process, which must have a single thread; the child becomes a child of this process's parent.

    It is the bare system call, without the hooks that Python, its modules and its users hang on ``os.fork``: one of them
    draws a new seed for ``random`` in the child.

    Returns:
        The child's id, or 0 in the child.
    """
    return _clone(_CLONE_PARENT)


def _clone(flags: int) -> int:
    if platform.machine() not in _SYS_CLONE:
        raise OSError(errno.ENOSYS, f"no number of the system call clone is known for {platform.machine()}")
    arguments = (_SYS_CLONE[platform.machine()], flags | int(signal.SIGCHLD), 0, 0, 0, 0)
    return _check("clone", _libc_with_gil.syscall(*map(ctypes.c_long, arguments)))


def mount(source: str | None, target: str, kind: str | None = None, flags: int = 0, options: str | None = None) -> None:
    """``mount(2)``."""
    text = [None if value is None else os.fsencode(value) for value in (source, target, kind, options)]
    _check(f"mount {target}", _libc.mount(text[0], text[1], text[2], ctypes.c_ulong(flags), text[3]))


def make_mount_read_only(path: str) -> None:
    """Makes a mount and all that is mounted below it read-only and free of set-user-id (Linux 5.12)."""
    attributes = _MountAttributes(set=_MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID)
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        os.fsencode(path),
        ctypes.c_uint(_AT_RECURSIVE),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    _check(f"mount_setattr {path}", result)


def adopt_orphans() -> None:
    """Makes this process the parent of descendants whose own parent ended."""
    _prctl("PR_SET_CHILD_SUBREAPER", _PR_SET_CHILD_SUBREAPER, 1)


def set_inspectable(inspectable: bool) -> None:
    """Whether processes of the same user may trace this one and open its files under /proc."""
    _prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, int(inspectable))


def die_with_parent(signal_number: int) -> None:
    """Has this process signalled when the thread that forked it ends: for parents with a single thread only."""
    _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, signal_number)


def forbid_new_privileges() -> None:
    """Programs that this process starts gain no rights from set-user-id bits; needed before a system-call filter."""
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)


def keep_capabilities(names: Iterable[str]) -> None:
    """Gives up every capability but those named."""
    mask = 0
    for name in names:
        mask |= 1 << CAPABILITIES[name]
    data = (_CapabilityData * 2)(_CapabilityData(mask, mask, 0), _CapabilityData(0, 0, 0))
    header = _CapabilityHeader(0x20080522, 0)
    try:
        _prctl("PR_CAP_AMBIENT", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    except OSError as problem:
        if problem.errno != errno.EINVAL:  # gVisor has no ambient ones
            raise
    _check("capset", _libc.capset(ctypes.byref(header), ctypes.byref(data)))


def load_filter(program: bytes) -> None:
    """Installs a compiled system-call filter (8 bytes an instruction) in this thread, for good."""
    filter_program = _FilterProgram(len(program) // 8, program)
    address = ctypes.addressof(filter_program)
    _prctl("PR_SET_SECCOMP", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, address)


def addresses_fixed() -> bool:
    """Whether address-space randomisation is off for this process."""
    return bool(_libc.personality(ctypes.c_ulong(0xFFFFFFFF)) & _ADDR_NO_RANDOMIZE)


def fix_addresses() -> bool:
    """Turns address-space randomisation off for the programs that this process executes from now on; False if refused."""
    persona = _libc.personality(ctypes.c_ulong(0xFFFFFFFF))
    return bool(_libc.personality(ctypes.c_ulong(persona | _ADDR_NO_RANDOMIZE)) >= 0)


def scope_by_landlock(version: int) -> None:
    """Shuts this process's signals and abstract sockets in (Landlock version 6) and denies TCP (version 4).

    Every rule set denies moving files between folders unless it says otherwise; this one leaves that to others.
    """
    attributes = (ctypes.c_uint64 * 3)(_LANDLOCK_REFER, 0x3 if version >= 4 else 0, 0x3 if version >= 6 else 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    create, add, restrict = (ctypes.c_long(number) for number in (444, 445, 446))
    rules = _check("landlock_create_ruleset", _libc.syscall(create, ctypes.byref(attributes), size, ctypes.c_uint(0)))
    root = os.open("/", os.O_PATH)
    try:
        rule = ctypes.create_string_buffer(struct.pack("=Qi", _LANDLOCK_REFER, root))
        path_beneath = ctypes.c_int(1)
        _check("landlock_add_rule", _libc.syscall(add, ctypes.c_int(rules), path_beneath, rule, ctypes.c_uint(0)))
        _check("landlock_restrict_self", _libc.syscall(restrict, ctypes.c_int(rules), ctypes.c_uint(0)))
    finally:
        os.close(root)
        os.close(rules)

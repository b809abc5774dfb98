"""How a live worker is copied: a fork of its process, which then takes a work folder and open files of its own.

The copy has all that the process had: modules, closures, generators, open data. It shares nothing with the original but
pages that neither has written to. What a fork would share or lose is named by `hindrance`, and then nothing is copied.
Paths in the copy are those of its own folder, so relative ones mean the same in both; absolute ones that the code has kept
still name the original's files. Where the code has put something else into a module that is needed here, there is no copy
and nothing worse. Runs inside, in the worker; standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import resource
import select
import signal
import stat
import sys
import time
from collections.abc import Collection, Iterator
from typing import Any

from sandboxes.python.inside import kernel
from sandboxes.python.inside.folders import DEEPEST
from sandboxes.python.inside.processes import set_mark

PIECE = 1 << 20

FileKey = tuple[int, int]
"""Device and number of a file."""


class CannotCopy(Exception):
    """Something of this process cannot be copied; the message names it for the code's author."""


def hindrance(home: str, wires: range, ours: Collection[int]) -> str:
    """Why this process cannot be copied exactly, in words, or "".

    Args:
        home: Its work folder.
        wires: Descriptors that are not the code's, and lie above its own.
        ours: Others that are not the code's.
    """
    mmap = sys.modules.get("mmap")
    if mmap is not None:
        for thing in gc.get_objects():
            if isinstance(thing, mmap.mmap) and not thing.closed:
                return "a memory map is open, which both would write to: close or delete it first"
    try:
        inside = {key for key, _, _ in _walk(home)}
        for descriptor, status in _open_files(wires):
            if descriptor in ours:
                continue
            what = _what_is_shared(status, inside)
            if what:
                return f"descriptor {descriptor} is {what}: close it first"
    except (OSError, CannotCopy) as problem:
        return str(problem)
    return ""


def become_copy(home: str, folder: str, branch: int, wires: range, control: int, output: int) -> None:
    """Gives this process, a fresh fork of a worker, what it may not share. On return it stands on its own.

    Args:
        home: The original's work folder.
        folder: Its own, which is empty.
        branch: Its number.
        wires: Where the descriptors to the supervisor belong: control, then output, then others that stay.
        control: Its own packet socket to the supervisor.
        output: Its own output pipe.

    Raises:
        CannotCopy: A file cannot be copied.
        OSError: Likewise.
    """
    os.setsid()
    kernel.die_with_parent(signal.SIGKILL)
    set_mark(branch)
    with _limit_lifted():
        for own, place in ((control, wires[0]), (output, wires[1])):
            os.dup2(own, place, inheritable=False)
            os.close(own)
        current = os.getcwd()
        files = _copy_folder(home, folder)
        _reopen(home, folder, files, wires)
        _finish_folder(home, folder)
    below = os.path.relpath(current, home)
    if below != ".." and not below.startswith("../"):
        os.chdir(os.path.normpath(os.path.join(folder, below)))
    for name in ("HOME", "TMPDIR", "PWD"):
        if os.environ.get(name) == home:
            os.environ[name] = folder
    tempfile: Any = sys.modules.get("tempfile")
    if tempfile is not None and tempfile.tempdir == home:
        tempfile.tempdir = folder


def copy_worker(home: str, folder: str, branch: int, wires: range, control: int, output: int) -> bool:
    """Forks this worker's process; the arguments are those of `become_copy`, and so are the errors, in the copy.

    Returns:
        Whether this is the copy, which has all of its own.

    Raises:
        OSError: There can be no more processes.
    """
    # All branches have one user, whose processes the kernel counts together; the supervisor counts each branch's.
    most = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
    original = os.getpid()
    if child := kernel.fork_beside():
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)  # on a kernel that has made it this process's own child, it ends at once
        return False
    if os.getppid() == original:  # old gVisor: an orphan becomes the supervisor's child too
        between = os.getpid()
        if kernel.fork_beside():
            os._exit(0)
        while os.getppid() == between:
            time.sleep(0.0001)
    become_copy(home, folder, branch, wires, control, output)
    return True


def _open_files(wires: range) -> Iterator[tuple[int, os.stat_result]]:
    """The code's own descriptors, standard streams aside: those are given anew for each call."""
    poll = select.poll()
    for descriptor in range(3, wires.start):
        poll.register(descriptor, 0)
    with _limit_lifted():  # which a poll of so many needs
        closed = {descriptor for descriptor, event in poll.poll(0) if event & select.POLLNVAL}
    for descriptor in range(3, wires.start):
        if descriptor not in closed:
            yield descriptor, os.fstat(descriptor)


@contextlib.contextmanager
def _limit_lifted() -> Iterator[None]:
    """Lifts the limit of open files to where the wires are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _what_is_shared(status: os.stat_result, inside: set[FileKey]) -> str:
    kind = status.st_mode
    if stat.S_ISSOCK(kind):
        return "a socket"
    if stat.S_ISFIFO(kind):
        return "a pipe"
    if stat.S_ISREG(kind) or stat.S_ISDIR(kind):
        if (status.st_dev, status.st_ino) in inside or (stat.S_ISREG(kind) and status.st_nlink == 0):
            return ""
        return "an open file or folder outside the work folder"
    return "" if stat.S_ISCHR(kind) else "none that can be copied, such as an event queue"


def _walk(home: str) -> Iterator[tuple[FileKey, str, os.stat_result]]:
    """All that is in a folder, and the folder itself, parents first, each with its path below it."""
    status = os.lstat(home)
    yield (status.st_dev, status.st_ino), "", status
    pending = [("", 0)]
    while pending:
        below, depth = pending.pop()
        if depth > DEEPEST:
            raise CannotCopy(f"the work folder is more than {DEEPEST} folders deep")
        folder = os.path.join(home, below)
        mode = os.lstat(folder).st_mode
        if mode & 0o500 != 0o500:
            os.chmod(folder, 0o700)
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    name = os.path.join(below, entry.name)
                    yield (status.st_dev, status.st_ino), name, status
                    if stat.S_ISDIR(status.st_mode):
                        pending.append((name, depth + 1))
        finally:
            if mode & 0o500 != 0o500:
                os.chmod(folder, stat.S_IMODE(mode))


def _copy_folder(home: str, folder: str) -> dict[FileKey, str]:
    """Copies what is in ``home`` to ``folder``, writable for now; returns the path below it of each file by its number."""
    copied: dict[FileKey, str] = {}
    for key, name, status in _walk(home):
        target = os.path.join(folder, name)
        if key in copied and not stat.S_ISDIR(status.st_mode):
            os.link(os.path.join(folder, copied[key]), target, follow_symlinks=False)
            continue
        copied[key] = name
        if not name:
            continue
        if stat.S_ISDIR(status.st_mode):
            os.mkdir(target, 0o700)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(os.path.join(home, name)), target)
        elif stat.S_ISFIFO(status.st_mode):
            os.mkfifo(target, 0o600)
        else:
            source = _open_for_reading(os.path.join(home, name), status)
            try:
                os.close(_copy_content(source, target))
            finally:
                os.close(source)
    return copied


def _finish_folder(home: str, folder: str) -> None:
    """Gives the copies the permissions and times of the originals, what is inside before what it is in."""
    for _, name, status in reversed(list(_walk(home))):
        if name and not stat.S_ISLNK(status.st_mode):
            os.chmod(os.path.join(folder, name), stat.S_IMODE(status.st_mode))
        if name:
            times = (status.st_atime_ns, status.st_mtime_ns)
            os.utime(os.path.join(folder, name), ns=times, follow_symlinks=False)


def _open_for_reading(file: str, status: os.stat_result) -> int:
    if status.st_mode & 0o400:
        return os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    os.chmod(file, 0o600)
    try:
        return os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    finally:
        os.chmod(file, stat.S_IMODE(status.st_mode))


def _copy_content(source: int, target: str) -> int:
    """Copies an open file into a new one, holes as holes, and returns the new one, open for reading and writing."""
    copy = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    end = os.fstat(source).st_size
    os.ftruncate(copy, end)
    before = os.lseek(source, 0, os.SEEK_CUR)
    position = 0
    while position < end:
        try:
            position = os.lseek(source, position, os.SEEK_DATA)
        except OSError:  # nothing but a hole from here on
            break
        hole = os.lseek(source, position, os.SEEK_HOLE)
        while position < hole and (piece := os.pread(source, min(PIECE, hole - position), position)):
            position += os.pwrite(copy, piece, position)
    os.lseek(source, before, os.SEEK_SET)
    return copy


def _reopen(home: str, folder: str, files: dict[FileKey, str], wires: range) -> None:
    """Puts the copy's own file in the place of each open one of the original's, open in the same way and position."""
    groups: dict[FileKey, list[int]] = {}
    for descriptor, status in _open_files(wires):
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            groups.setdefault((status.st_dev, status.st_ino), []).append(descriptor)
    for key, descriptors in groups.items():
        # Descriptors that come from one opening share their position, and so must those of the copy.
        first = {
            later: next((d for d in descriptors if d < later and _one_opening(d, later)), later) for later in descriptors
        }
        deleted = key not in files
        name = os.path.join(folder, _copy_deleted(descriptors, folder) if deleted else files[key])
        for descriptor in descriptors:
            keep = os.get_inheritable(descriptor)
            if first[descriptor] != descriptor:
                os.dup2(first[descriptor], descriptor, inheritable=keep)
                continue
            new = _open_likewise(descriptor, name)
            os.dup2(new, descriptor, inheritable=keep)
            os.close(new)
        if deleted:
            os.unlink(name)


def _one_opening(first: int, second: int) -> bool:
    """Whether two descriptors of one file share their position, and so come from a single opening."""
    try:
        place = os.lseek(first, 0, os.SEEK_CUR)
        if os.lseek(second, 0, os.SEEK_CUR) != place:
            return False
        os.lseek(first, place + 1, os.SEEK_SET)
        shared = os.lseek(second, 0, os.SEEK_CUR) == place + 1
        os.lseek(first, place, os.SEEK_SET)
    except OSError:  # a folder, or nothing but a path
        return False
    return shared


def _copy_deleted(descriptors: list[int], folder: str) -> str:
    """Copies a file that has no name any more; returns a name in ``folder``, for as long as it is being opened."""
    for descriptor in descriptors:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY:
            name = os.urandom(8).hex()
            os.close(_copy_content(descriptor, os.path.join(folder, name)))
            return name
    raise CannotCopy(f"descriptor {descriptors[0]} is a deleted file that is open for writing only: close it first")


def _open_likewise(descriptor: int, name: str) -> int:
    """Opens ``name`` with the flags and the position of ``descriptor``."""
    new = os.open(name, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_TMPFILE)
    with contextlib.suppress(OSError):  # a folder, or nothing but a path
        os.lseek(new, os.lseek(descriptor, 0, os.SEEK_CUR), os.SEEK_SET)
    return new

"""Emptying a folder that hostile code has filled: any depth, any permissions, links never followed.

Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import stat

DEEPEST = 100
"""Levels of folders that are counted; each costs more to reach than the one before."""


def empty_folder(path: str) -> None:
    """Removes everything in ``path`` but ``path`` itself. Nobody may be writing there any more.

    A folder in it is not walked down, since trees can be deeper than any path or stack: what it holds is moved up to the top
    and dealt with there, so that nothing is ever more than one level deep.
    """
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    token = os.urandom(8).hex()  # no name of the code's own can be in the way
    moved = 0
    try:
        while names := os.listdir(top):
            for name in names:
                if not stat.S_ISDIR(os.lstat(name, dir_fd=top).st_mode):
                    os.unlink(name, dir_fd=top)
                    continue
                os.chmod(name, 0o700, dir_fd=top)
                folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
                try:
                    for inner in os.listdir(folder):
                        if not stat.S_ISDIR(os.lstat(inner, dir_fd=folder).st_mode):
                            os.unlink(inner, dir_fd=folder)
                            continue
                        moved += 1
                        os.chmod(inner, 0o700, dir_fd=folder)  # moving a folder writes its ".."
                        os.rename(inner, f"{token}-{moved}", src_dir_fd=folder, dst_dir_fd=top)
                finally:
                    os.close(folder)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)


def remove_folder(path: str) -> None:
    """Removes ``path`` with everything in it; fine if it is gone already."""
    with contextlib.suppress(FileNotFoundError):
        empty_folder(path)
        os.rmdir(path)


def size_of_folder(path: str, most_entries: int) -> int | None:
    """Bytes on disk below ``path``; None where nobody can tell: too many entries, folders too deep, or closed to us."""
    size = entries = 0
    pending = [(path, 0)]
    while pending:
        folder, depth = pending.pop()
        if depth > DEEPEST:
            return None
        try:
            with os.scandir(folder) as found:
                for entry in found:
                    entries += 1
                    if entries > most_entries:
                        return None
                    with contextlib.suppress(FileNotFoundError):
                        size += entry.stat(follow_symlinks=False).st_blocks * 512
                        if entry.is_dir(follow_symlinks=False):
                            pending.append((entry.path, depth + 1))
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return size

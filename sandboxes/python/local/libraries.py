"""Which files and folders of this machine Python needs to run, and so may be read by the code in a local interpreter."""

from __future__ import annotations

import glob
import os
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/usr/share/zoneinfo")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


@dataclass(frozen=True)
class Step:
    """One thing to make under an empty root: a folder, a symbolic link, or a mount on a new file or an earlier folder."""

    kind: Literal["folder", "link", "file", "mount"]
    path: str
    target: str = ""


def readable_paths(programs: Iterable[str] = ()) -> tuple[str, ...]:
    """The standard library, the installed packages, the shared libraries, the interpreter itself, and a few devices.

    Wherever they were installed, that is also so for the packages that this process has imported, but for this one.

    Args:
        programs: Paths of programs, to be readable as well.

    Returns:
        Existing absolute paths, none below another, sorted.
    """
    wanted = [*SYSTEM, *DEVICES, *programs, *map(os.path.realpath, programs)]
    for prefix in {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}:
        wanted += [os.path.join(prefix, "lib"), os.path.join(prefix, "lib64"), os.path.join(prefix, "pyvenv.cfg")]
        wanted += glob.glob(os.path.join(glob.escape(prefix), "bin", "python*[0-9n]"))
    wanted += [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    wanted += [sys.executable, os.path.realpath(sys.executable)]
    wanted += [entry for entry in sys.path if os.path.basename(entry) in ("site-packages", "dist-packages")]
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and "." not in name and name not in ("sandboxes", "__main__"):
            wanted.append(os.path.dirname(file) if os.path.basename(file).startswith("__init__.") else file)
    existing = {os.path.abspath(path) for path in wanted if path and os.path.exists(path)}
    return tuple(sorted(path for path in existing if not is_below(os.path.dirname(path), existing)))


def is_below(path: str, roots: Iterable[str]) -> bool:
    """Whether ``path`` is one of ``roots`` or inside one."""
    return any(path == root or path.startswith(root.rstrip("/") + "/") for root in roots)


def steps_to_mirror(paths: Iterable[str]) -> tuple[Step, ...]:
    """How to make ``paths`` appear under an empty root: folders, the symbolic links on the way, and mounts at their ends."""
    steps: dict[str, Step] = {}
    mounted: set[str] = set()
    pending = [(path, 0) for path in reversed(list(paths))]
    while pending:
        path, links = pending.pop()
        walked = ""
        parts = [part for part in path.split("/") if part]
        for index, part in enumerate(parts):
            walked = f"{walked}/{part}"
            if is_below(walked, mounted):
                break
            if os.path.islink(walked):
                target = os.readlink(walked)
                steps.setdefault(walked, Step("link", walked, target))
                if links > 40:
                    raise OSError(f"{path}: too many symbolic links")
                rest = os.path.join(os.path.dirname(walked), target, *parts[index + 1 :])
                pending.append((os.path.normpath(rest), links + 1))
                break
            if index < len(parts) - 1 or os.path.isdir(walked):
                steps.setdefault(walked, Step("folder", walked))
        else:
            mounted.add(path)
            kind: Literal["mount", "file"] = "mount" if os.path.isdir(path) else "file"
            steps[f"{path} mounted"] = Step(kind, path)
    return tuple(steps.values())

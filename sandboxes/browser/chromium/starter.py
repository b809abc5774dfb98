"""Becomes Chromium: run as a program of its own between Playwright's driver and the browser. Standard library only.

Playwright can start a browser but cannot say as whom. Root's browser would be the whole machine's risk (and Chromium refuses
its own sandbox to root), so this program gives the profile folder, which Playwright has just made and will remove, to the
user ``nobody``, becomes that user and only then Chromium. Chromium is killed when the driver dies, and keeps all its files
in the profile folder.

    python -I -S starter.py EXECUTABLE UID GID [chromium's arguments...]

A UID of -1 is for whoever is not root: nobody changes.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

CLOSED = 126
"""Exit status where Chromium may not be run by that user."""

_PROFILE = "--user-data-dir="
_FEATURES = "--disable-features="
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Does not return where all goes well."""
    executable, uid, gid, *flags = arguments
    profile = next(flag.removeprefix(_PROFILE) for flag in flags if flag.startswith(_PROFILE))
    if int(uid) >= 0:
        os.chown(profile, int(uid), int(gid))
        os.setgroups([])
        os.setgid(int(gid))
        os.setuid(int(uid))
    if not os.access(executable, os.X_OK):
        print(f"user {os.getuid()} may not run {executable}: install it where every user may", file=sys.stderr)  # noqa: T201
        sys.exit(CLOSED)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of user, which would undo it
    os.chdir(profile)
    environment = os.environ | {"HOME": profile, "TMPDIR": profile}
    os.execve(executable, [executable, *merge_features(flags)], environment)


def merge_features(flags: list[str]) -> list[str]:
    """One list of disabled features out of several, of which Chromium would take the last alone.

    Example:
        >>> merge_features(["--disable-features=A", "--headless", "--disable-features=B,C"])
        ['--headless', '--disable-features=A,B,C']
    """
    features = [flag.removeprefix(_FEATURES) for flag in flags if flag.startswith(_FEATURES)]
    others = [flag for flag in flags if not flag.startswith(_FEATURES)]
    return [*others, _FEATURES + ",".join(features)] if features else others


if __name__ == "__main__":
    main(sys.argv[1:])

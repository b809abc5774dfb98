"""Which Chromium there is on this machine."""

from __future__ import annotations

import glob
import os
import shutil
import sys

from sandboxes.faults import SandboxFault

VARIABLE = "CHROMIUM"
"""The environment variable that names an executable."""

_USUAL = (
    "/usr/lib/chromium/chromium",  # what Debian's start script runs after adding flags of its own
    "/usr/bin/chromium",
    "chromium",
    "chromium-browser",
    "google-chrome",
)
_PLAYWRIGHTS = (
    "chromium_headless_shell-*/chrome*/*headless*shell",
    "chromium-*/chrome-*/chrome",
    "chromium-*/chrome-*/*.app/Contents/MacOS/*",
)


def find_chromium(executable: str | None = None) -> str:
    """The path of a Chromium.

    Args:
        executable: The one to take. Else that of the environment variable ``CHROMIUM``, else one that is installed where
            systems put it, else one that ``playwright install`` has brought. One that is named is never replaced by another.

    Raises:
        SandboxFault: There is none.
    """
    for source, named in (("the argument", executable), (f"the environment variable {VARIABLE}", os.environ.get(VARIABLE))):
        if named:
            path = shutil.which(named)
            if path is None:
                raise SandboxFault(f"{source} names {named!r} as Chromium, and there is no program of that name")
            return os.path.abspath(path)
    for name in _USUAL:
        if path := shutil.which(name):
            return path
    for pattern in _PLAYWRIGHTS:
        found = [path for path in sorted(glob.glob(os.path.join(_playwright_folder(), pattern))) if os.access(path, os.X_OK)]
        if found:
            return found[-1]
    raise SandboxFault(
        "no Chromium was found: install it ('apt-get install chromium' or 'playwright install chromium'), "
        f"or name one with the environment variable {VARIABLE}"
    )


def _playwright_folder() -> str:
    if folder := os.environ.get("PLAYWRIGHT_BROWSERS_PATH"):
        return folder
    home = os.path.expanduser("~")
    cache = os.path.join(home, "Library", "Caches") if sys.platform == "darwin" else os.path.join(home, ".cache")
    return os.path.join(cache, "ms-playwright")

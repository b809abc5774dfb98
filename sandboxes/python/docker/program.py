"""What is sent into a container: the source of the modules that run there, wherever this package was installed."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from typing import Any

from sandboxes.python.inside.frames import encode

PACKAGES = ("sandboxes", "sandboxes.python", "sandboxes.python.docker", "sandboxes.python.inside")
"""Empty in there: their own text would bring in what runs on this side."""
MAIN = "sandboxes.python.docker.container"
MODULES = (
    *("docker.container", "interpreter", "inside.branch", "inside.copying", "inside.enclosure", "inside.folders"),
    *(
        "inside.frames",
        "inside.handle",
        "inside.kernel",
        "inside.population",
        "inside.processes",
        "inside.seeding",
        "inside.supervisor",
    ),
    *("inside.warming", "inside.worker"),
)
"""`container`, and all of this package that it needs. A list, since reading it off the sources is not safe in threads."""


def boot_text() -> str:
    """What a container's ``python3 -c`` is given."""
    return _source("sandboxes.python.docker.boot")


def sources() -> dict[str, str | None]:
    """The text of each module by its name; None stands for a package.

    Raises:
        FileNotFoundError: This package was installed without it.
    """
    return {**dict.fromkeys(PACKAGES), **{name: _source(name) for name in (f"sandboxes.python.{last}" for last in MODULES)}}


def first_message(options: Mapping[str, Any]) -> bytes:
    """The message that `boot` waits for: the program, and the ``options`` of its ``main``, which are JSON."""
    return encode({"sources": sources(), "main": MAIN, "options": options})


def _source(name: str) -> str:
    package, _, module = name.rpartition(".")
    file = importlib.resources.files(package) / f"{module}.py"
    if not file.is_file():
        raise FileNotFoundError(f"expected the source text of {name} in the installed package, found none: install it again")
    return file.read_text(encoding="utf-8")

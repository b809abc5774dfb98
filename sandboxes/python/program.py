"""What is sent into a container: the source of the modules that run there, wherever this package was installed."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from importlib.abc import InspectLoader
from typing import Any

from sandboxes.python.frames import encode

_BOOT = "sandboxes.python.boot"


def boot_text() -> str:
    """What a container's ``python3 -c`` is given."""
    return _source(_BOOT)


def sources_of(main: str) -> dict[str, str | None]:
    """The text of a module of this package and of all others that it needs, by name; None stands for a package."""
    found: dict[str, str | None] = {}
    pending = [main]
    while pending:
        name = pending.pop()
        if name in found:
            continue
        package = name.rpartition(".")[0]
        if package:
            # Packages are empty in there: their own text would bring in what runs on this side.
            found.setdefault(package, None)
            found.setdefault(package.partition(".")[0], None)
        found[name] = _source(name)
        for node in ast.walk(ast.parse(found[name] or "")):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                # `from package import module` names a module, `from module import name` does not.
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            pending += [name for name in names if name.startswith("sandboxes.") and _is_module(name)]
    return found


def first_message(main: str, options: Mapping[str, Any]) -> bytes:
    """The message that `boot` waits for.

    Args:
        main: The module whose ``main`` is to run, with ``options``.
        options: Anything that is JSON.
    """
    return encode({"sources": sources_of(main), "main": main, "options": options})


def _is_module(name: str) -> bool:
    """Whether it is a module's name, and no package's or class's."""
    package = name.rpartition(".")[0]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        return False
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.submodule_search_locations is None


def _source(name: str) -> str:
    spec = importlib.util.find_spec(name)
    source = spec.loader.get_source(name) if spec is not None and isinstance(spec.loader, InspectLoader) else None
    if source is None:
        raise FileNotFoundError(f"expected the source text of {name} in the installed package, found none: install it again")
    return source


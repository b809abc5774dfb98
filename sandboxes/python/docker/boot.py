"""The first lines that run in a container: they take in the rest of the program from standard input, and start it.

Nothing of this package has to be in the image, and no file is written. The text of this module is given to ``python3 -c``,
so it must be legible to older versions of Python too, of which it says that they are too old. Standard library only.
"""

import importlib.abc
import importlib.machinery
import json
import os
import struct
import sys
import types
from typing import Any

OLDEST = (3, 11)


class Program(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports modules from their source text, which tracebacks then show.

    Args:
        sources: Text of each module by its name; None stands for a package.
    """

    def __init__(self, sources: "dict[str, str | None]") -> None:
        self._sources = sources

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> "importlib.machinery.ModuleSpec | None":
        """Knows the modules of the program, and no other."""
        if name not in self._sources:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=self._sources[name] is None)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """Leaves it to the import system."""

    def exec_module(self, module: types.ModuleType) -> None:
        """Runs a module's text in it."""
        source = self._sources[module.__name__]
        if source is not None:
            exec(compile(source, module.__name__.replace(".", "/") + ".py", "exec", dont_inherit=True), module.__dict__)

    def get_source(self, name: str) -> "str | None":
        """A module's text, for tracebacks."""
        return self._sources[name]


def read_exactly(count: int) -> bytes:
    """So many bytes from standard input; ends this process where there are no more."""
    parts = []
    while count:
        part = os.read(0, min(count, 1 << 16))
        if not part:
            os._exit(0)
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def main() -> None:
    """Takes in the program and runs its main module."""
    sys.path[:] = [entry for entry in sys.path if entry]
    if sys.version_info < OLDEST:
        found, oldest = (".".join(str(number) for number in version[:2]) for version in (sys.version_info, OLDEST))
        answer = {"fault": f"the image's python3 is version {found}, and {oldest} is the oldest that will do"}
        body = json.dumps(answer).encode("ascii")
        os.write(1, struct.pack("!I", len(body)) + body)
        os._exit(1)
    order = json.loads(read_exactly(struct.unpack("!I", read_exactly(4))[0]).decode("ascii"))
    program = Program(order["sources"])
    sys.meta_path.insert(0, program)
    module = importlib.import_module(order["main"])
    sys.meta_path.remove(program)  # the code that will run here is to find nothing of it
    module.main(order["options"])


if __name__ == "__main__":
    main()

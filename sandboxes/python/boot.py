"""The first lines that run in a container: they take in the rest of the program from standard input, and start it.

Nothing of this package has to be in the image, and no file is written. The text of this module is given to ``python3 -c``, so
it must be legible to older versions of Python too, of which it says that they are too old. Standard library only.
"""

import importlib.machinery
import json
import os
import struct
import sys

OLDEST = (3, 11)


class Program:
    """Imports modules from their source text, which tracebacks then show.

    Args:
        sources: Text of each module by its name; None stands for a package.
    """

    def __init__(self, sources):  # type: ignore[no-untyped-def]
        self._sources = sources

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        """Knows the modules of the program, and no other."""
        if name not in self._sources:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=self._sources[name] is None)

    def create_module(self, spec):  # type: ignore[no-untyped-def]
        """Leaves it to the import system."""

    def exec_module(self, module):  # type: ignore[no-untyped-def]
        """Runs a module's text in it."""
        source = self._sources[module.__name__]
        if source is not None:
            exec(compile(source, module.__name__.replace(".", "/") + ".py", "exec", dont_inherit=True), module.__dict__)

    def get_source(self, name):  # type: ignore[no-untyped-def]
        """A module's text, for tracebacks."""
        return self._sources[name]


def read_exactly(count):  # type: ignore[no-untyped-def]
    """So many bytes from standard input; ends this process where there are no more."""
    parts = []
    while count:
        part = os.read(0, min(count, 1 << 16))
        if not part:
            os._exit(0)
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def main():  # type: ignore[no-untyped-def]
    """Takes in the program and runs its main module."""
    sys.path[:] = [entry for entry in sys.path if entry]
    if sys.version_info < OLDEST:
        found = (*sys.version_info[:2], *OLDEST)
        answer = {"fault": "the image's python3 is version %d.%d, and %d.%d is the oldest that will do" % found}
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

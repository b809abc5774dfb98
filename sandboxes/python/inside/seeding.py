"""Random numbers that repeat: ``random`` and ``numpy.random`` start from the episode's seed.

Runs inside, in the worker; standard library only.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import random
import sys
import types
from collections.abc import Sequence
from typing import Any


def seed_generators(seed: int) -> None:
    """Seeds ``random`` now, and ``numpy.random`` now or, where nothing has imported it yet, as soon as something does."""
    random.seed(seed)
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is None:
        sys.meta_path.insert(0, _SeedsNumpy(seed % 2**32))
    else:
        numpy_random.seed(seed % 2**32)


class _SeedsNumpy:
    """A finder of modules that waits for ``numpy.random``."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Finds it as it would be found without this finder, and has it seeded when it has run."""
        if name != "numpy.random":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_seed(module: types.ModuleType) -> None:
            execute(module)
            module.seed(self._seed)

        loader.exec_module = execute_and_seed
        return spec

"""The examples in the docstrings of ``agent_envs``, and of the ``sandboxes`` behind it, say what really happens."""

import doctest
import importlib
import pkgutil

import pytest

import agent_envs
import sandboxes

PROGRAMS = ("agent_envs.verifiers.worker", "sandboxes.python.inside", "sandboxes.python.docker.inside")
MODULES = [
    module.name
    for package in (agent_envs, sandboxes)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.startswith(PROGRAMS) and not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", ["agent_envs", "sandboxes", *MODULES])
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0

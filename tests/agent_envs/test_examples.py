"""The examples in the docstrings of ``agent_envs`` say what really happens."""

import doctest
import importlib
import pkgutil

import pytest

import agent_envs

MODULES = [
    module.name
    for module in pkgutil.walk_packages(agent_envs.__path__, "agent_envs.")
    if module.name != "agent_envs.verifiers.worker"  # a script
]


@pytest.mark.parametrize("name", ["agent_envs", *MODULES])
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0

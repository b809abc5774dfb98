"""The examples in the docstrings of the trace bank are true."""

import doctest
import importlib
import pkgutil

import pytest

import tracebank

MODULES = [
    module.name for module in pkgutil.walk_packages(tracebank.__path__, "tracebank.") if "__main__" not in module.name
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name: str):
    assert doctest.testmod(importlib.import_module(name)).failed == 0

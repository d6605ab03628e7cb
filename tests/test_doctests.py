"""The examples in docstrings do what they say."""

import doctest
import importlib
import pkgutil

import pytest

import llcjax

MODULES = [name for _, name, _ in pkgutil.walk_packages(llcjax.__path__, "llcjax.") if not name.endswith("__main__")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0

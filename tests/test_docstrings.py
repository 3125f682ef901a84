"""The examples of docstrings run, and show what they say."""

import doctest
import importlib
import pkgutil

import pytest

import adafactor_native as an

MODULES = [info.name for info in pkgutil.iter_modules(an.__path__) if info.name != "__main__"]


@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    results = doctest.testmod(importlib.import_module(f"adafactor_native.{module}"))
    assert results.failed == 0


@pytest.mark.parametrize("public", [an.AdaFactor, an.Optimizer])
def test_there_is_an_example(public):
    assert doctest.DocTestFinder(recurse=False).find(public)[0].examples

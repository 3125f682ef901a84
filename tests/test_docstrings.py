"""The examples of docstrings run, and show what they say."""

import doctest
import importlib
import pkgutil

import pytest

import adafactor_native as an

MODULES = [
    module.name
    for module in pkgutil.walk_packages(an.__path__, "adafactor_native.")
    # those of adafactor_native.torch need torch: torch_adapter/test_documentation.py
    if module.name.split(".")[1] not in ("__main__", "torch")
]


@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    results = doctest.testmod(importlib.import_module(module))
    assert results.failed == 0


@pytest.mark.parametrize("public", [an.AdaFactor, an.Optimizer, an.convert.load_torch])
def test_there_is_an_example(public):
    assert doctest.DocTestFinder(recurse=False).find(public)[0].examples

"""The examples of adafactor_native.torch run, and every public class is documented."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import adafactor_native.torch as adapter

MODULES = [
    "adafactor_native.torch",
    *(module.name for module in pkgutil.walk_packages(adapter.__path__, "adafactor_native.torch.")),
]


@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


@pytest.mark.parametrize("name", adapter.__all__)
def test_arguments_are_documented(name):
    """Every argument is named under Parameters, of an optimizer its options as well."""
    public = getattr(adapter, name)
    documented = inspect.getdoc(public)
    for argument in inspect.signature(public).parameters.values():
        shown = "**options" if argument.kind is argument.VAR_KEYWORD else argument.name
        if shown == "**options" and "See `NativeOptions`" in documented:
            continue
        assert shown in documented, argument

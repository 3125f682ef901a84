"""The examples of adafactor_native.torch run, and every public class is documented."""

import doctest
import importlib
import inspect
import pkgutil
import re
import runpy
from pathlib import Path

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


README = Path(__file__).parents[2] / "adafactor_native" / "torch" / "README.md"


@pytest.mark.parametrize(("text", "most"), [(README, 64), (README.parents[1] / "README.md", 0.1)])
def test_the_example_of_a_readme_runs(text, most, tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"^```py\n(.*?)^```$", text.read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.py").write_text(example)
    runpy.run_path(str(tmp_path / "example.py"))
    assert float(capsys.readouterr().out) < most


def test_links_of_the_readme_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / link).exists(), link

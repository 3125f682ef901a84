"""What a type checker and a reader of the documentation see of Optimizer's keyword arguments."""

import inspect
import re
import subprocess
import sys
import textwrap
from typing import get_type_hints

import numpy as np
import pytest

import adafactor_native as an
from adafactor_native import conventions
from adafactor_native.convention import Argument, Options
from adafactor_native.conventions import CONVENTIONS
from adafactor_native.switches import SWITCHES, Switch, Switches

ARGUMENTS = {
    name: getattr(conventions, class_name)
    for name, class_name in {
        "paper": "PaperArguments",
        "numpy": "NumpyArguments",
        "huggingface": "HuggingFaceArguments",
        "torch": "TorchArguments",
        "optax": "OptaxArguments",
        "keras": "KerasArguments",
        "t5x": "T5xArguments",
        "big_vision": "BigVisionArguments",
    }.items()
}

RIGHT = """
    Optimizer(params)
    Optimizer(params, lr=0.5, eps_mode="both", num_threads=2)
    Optimizer(params, convention="numpy", lr=lambda t: 1 / t, masters="split", copies=None)
    Optimizer(params, "seed", beta2=0.5)
    Optimizer(params, convention="huggingface", lr=None, eps=(1e-30, 1e-3), warmup_init=True)
    Optimizer(params, "torch", beta2_decay=-0.5, eps=(None, 1e-3), d=1.0, foreach=None, beta1=0.9)
    Optimizer(params, "optax", learning_rate=0.1, factored=False, eps=None, lr=0.5)
    Optimizer(params, "keras", weight_decay=None, epsilon_1=1e-30, seed=3)
    Optimizer(params, "t5x", learning_rate=0.1, factored_axes=(0, 1), rounding="stochastic")
    Optimizer(params, "big_vision", lr=0.1, wd=0.1, schedule=lambda count: 1.0, atomic="tensor")
"""

WRONG = """
    Optimizer(params, learning_rate=0.5)
    Optimizer(params, lr="0.5")
    Optimizer(params, eps_mode="squared")
    Optimizer(params, masters=True)
    Optimizer(params, nonfinite="ignore")
    Optimizer(params, "numpy", lr=None)
    Optimizer(params, "huggingface", eps=1e-30)
    Optimizer(params, "torch", decay=-0.5)
    Optimizer(params, "torch", eps=1e-3)
    Optimizer(params, "optax", learning_rte=0.1)
    Optimizer(params, "keras", epsilon1=1e-30)
    Optimizer(params, "big_vision", schedule=0.5)
    Optimizer(params, "adafactor", lr=0.5)
    opt.lr = 0.5
    opt.max_gradnorm = 1.0
    adafactor_native.Adafactor(params)
"""


def mypy_errors(statements, folder):
    """Return the lines of the statements in which mypy finds an error."""
    pytest.importorskip("mypy", reason="the linters' environment has mypy, and runs this")
    lines = [
        "import numpy as np",
        "import adafactor_native",
        "from adafactor_native import Optimizer",
        "params = [np.ones(3)]",
        "opt = Optimizer(params)",
    ]
    source = folder / "snippet.py"
    source.write_text("\n".join(lines) + textwrap.dedent(statements))
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={folder / 'cache'}", source.name],
        check=False,
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.returncode in (0, 1), run.stdout
    found = {int(line.split(":")[1]) for line in run.stdout.splitlines() if ": error:" in line}
    return {source.read_text().splitlines()[line - 1] for line in found}


def test_a_type_checker_takes_what_is_right(tmp_path):
    assert mypy_errors(RIGHT, tmp_path) == set()


def test_a_type_checker_refuses_every_wrong_line(tmp_path):
    assert mypy_errors(WRONG, tmp_path) == set(textwrap.dedent(WRONG).split("\n")) - {""}


def test_each_convention_has_its_arguments_and_all_switches():
    assert set(ARGUMENTS) == set(CONVENTIONS)
    for name, arguments in ARGUMENTS.items():
        own = CONVENTIONS[name].own
        assert arguments.__annotations__.keys() == {*SWITCHES, *own, *Options.__annotations__}


def test_every_annotation_is_a_definition():
    for name, annotation in get_type_hints(Switches, include_extras=True).items():
        assert [type(one) for one in annotation.__metadata__] == [Switch], name
    for arguments in ARGUMENTS.values():
        hints = get_type_hints(arguments, include_extras=True)
        for name in hints.keys() - Options.__annotations__.keys():
            assert type(hints[name].__metadata__[-1]) in (Switch, Argument), name


def test_options_are_the_constructors():
    keywords = {
        name
        for name, parameter in inspect.signature(an.Optimizer).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert keywords == Options.__annotations__.keys()


def test_help_has_every_switch_and_its_default():
    text = inspect.getdoc(an.Optimizer)
    assert "SWITCHES" not in text
    rows = {line.split()[0]: line for line in text.split("\n") if re.match("    [a-z]", line)}
    for name, switch in SWITCHES.items():
        is_text = isinstance(switch.default, (str, np.dtype))
        default = f'"{switch.default}"' if is_text else repr(switch.default)
        assert rows[name].split()[1] == default, name


@pytest.mark.parametrize(
    "public", [an.AdaFactor, an.Optimizer, an.StepReport, an.ParamGroup, an.StateMemory]
)
def test_every_property_has_a_docstring(public):
    properties = {
        name: attribute
        for cls in public.__mro__
        for name, attribute in vars(cls).items()
        if isinstance(attribute, property)
    }
    assert [name for name, attribute in properties.items() if not attribute.__doc__] == []


def test_every_public_method_has_a_docstring():
    for public in (an.AdaFactor, an.Optimizer):
        methods = dict(inspect.getmembers(public, inspect.isfunction))
        assert [n for n, f in methods.items() if n[0] != "_" and not f.__doc__] == []


def test_defaults_stand_in_docstrings():
    for public in (an.AdaFactor, an.Optimizer):
        text = inspect.getdoc(public)
        for name, parameter in inspect.signature(public).parameters.items():
            if parameter.default is not parameter.empty and name != "copies":
                line = next(line for line in text.split("\n") if line.startswith(f"{name} : "))
                shown = line.split("default ")[1]
                assert eval(shown) == parameter.default, name

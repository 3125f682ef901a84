"""Fixtures: every instruction set this machine has, and a fresh Python process."""

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import adafactor_native as an
from optimizers import KINDS


def pytest_addoption(parser):
    parser.addoption(
        "--require-peers",
        action="store_true",
        help="fail, rather than skip, where a library to compare with is not installed or too old",
    )


@pytest.fixture
def require_installed(request):
    """Return a function of package names that skips where one is missing; see --require-peers."""

    def require(*packages):
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            report = pytest.fail if request.config.getoption("--require-peers") else pytest.skip
            report(f"not installed: {', '.join(missing)} (pip install '.[peers]')")

    return require


INSTRUCTION_SETS = an.show_config(mode="dicts")["instruction sets"]


@pytest.fixture(params=INSTRUCTION_SETS["available"])
def isa(request):
    """Run the test once per instruction set."""
    an._core.set_isa(request.param)
    yield request.param
    an._core.set_isa(INSTRUCTION_SETS["running"])


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    """Run the test once per class: one array by an AdaFactor, and by an Optimizer of it alone."""
    return request.param


@pytest.fixture(params=KINDS)
def class_name(request):
    """Run the test once per class, for a script that finds it in optimizers.KINDS."""
    return request.param


@pytest.fixture
def each_isa():
    """Return a generator over the instruction sets; each one runs while its name is out."""

    def switch():
        for name in INSTRUCTION_SETS["available"]:
            an._core.set_isa(name)
            yield name

    yield switch
    an._core.set_isa(INSTRUCTION_SETS["running"])


@pytest.fixture
def python(tmp_path):
    """Return run(script, **environment): a new process's output, in a folder of its own.

    The script may import this folder's helpers. Its variables are ours, without those that
    choose threads or instruction sets. A process that hangs, or ends with another return code than
    is expected, fails the test.
    """

    def run(script, returncode=0, **environment):
        ours = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ADAFACTOR_", "OMP_", "GOMP_", "KMP_"))
        }
        ours["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(Path(__file__).parent), ours.get("PYTHONPATH")])
        )
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            check=False,
            cwd=tmp_path,
            env={**ours, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == returncode, done.stdout + done.stderr
        return done.stdout

    return run

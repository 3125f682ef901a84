"""What the package says about itself."""

import json
import re
import subprocess
import sys
from importlib.metadata import version

import pytest

import adafactor_native as an


def test_config_as_dicts():
    config = an.show_config(mode="dicts")
    assert set(config) == {"version", "compiler", "openmp", "instruction sets", "walks", "threads"}
    assert config["version"] == an.__version__ == version("adafactor-native")
    assert config["compiler"]["name"] in ("gcc", "clang")
    assert re.match(r"\d+\.\d+", config["compiler"]["version"])
    assert set(config["openmp"]) == {"enabled", "specification", "runtime"}
    assert config["openmp"]["enabled"] == (config["openmp"]["runtime"] is not None)

    sets = config["instruction sets"]
    assert set(sets) == {"built", "available", "running"}
    assert sets["built"][0] == sets["available"][0] == "baseline"
    assert set(sets["available"]) <= set(sets["built"])
    assert sets["running"] in sets["available"]


def test_config_tells_what_runs(isa):
    assert an.show_config(mode="dicts")["instruction sets"]["running"] == isa


def test_config_tells_the_threads():
    """Those that will run: without OpenMP it is one."""
    before = an.get_num_threads()
    try:
        for n in (1, 3):
            an.set_num_threads(n)
            config = an.show_config(mode="dicts")
            assert config["threads"] == {"limit": n if config["openmp"]["enabled"] else 1}
    finally:
        an.set_num_threads(before)


def test_config_is_printed(capsys):
    assert an.show_config() is None
    assert json.loads(capsys.readouterr().out) == an.show_config(mode="dicts")
    with pytest.raises(ValueError, match="mode is 'yaml', must be 'stdout' or 'dicts'"):
        an.show_config(mode="yaml")


def test_main_prints_the_config(tmp_path):
    printed, ours = (
        json.loads(subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout)
        for command in (
            [sys.executable, "-m", "adafactor_native"],
            [sys.executable, "-c", "import adafactor_native as an; an.show_config()"],
        )
    )
    assert printed == ours


@pytest.mark.parametrize(
    ("option", "said"),
    [("--help", "ADAFACTOR_ISA"), ("--help", "ADAFACTOR_WALK"), ("--version", an.__version__)],
)
def test_main_explains_itself(tmp_path, option, said):
    command = [sys.executable, "-m", "adafactor_native", option]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said in run.stdout


@pytest.mark.parametrize("name", an.show_config(mode="dicts")["instruction sets"]["available"])
def test_environment_lowers_the_instruction_set(python, name):
    script = """
        import adafactor_native as an
        sets = an.show_config(mode="dicts")["instruction sets"]
        print(sets["running"], *sets["available"])
    """
    available = an.show_config(mode="dicts")["instruction sets"]["available"]
    assert python(script, ADAFACTOR_ISA=name).split() == [name, *available]
    assert python(script).split() == [available[-1], *available]


def test_public_names():
    assert set(an.__all__) == {
        "AdaFactor",
        "AdafactorWarning",
        "LoadReport",
        "Optimizer",
        "ParamGroup",
        "SkippedStepWarning",
        "StateMemory",
        "StepReport",
        "StuckTensorWarning",
        "__version__",
        "convert",
        "get_num_threads",
        "schedules",
        "set_num_threads",
        "show_config",
    }

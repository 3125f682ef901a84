"""Where a tool is missing, tests that need it are skipped with the reason, and none fails."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    "test",
    [
        "test_allocations.py",
        "test_memory_errors.py",
        "test_loading.py::test_other_libraries_see_the_init_function_only",
    ],
)
def test_without_compiler_and_binutils(test, tmp_path):
    """A search path that has nothing: every test that asks for a tool says which."""
    arguments = ["-q", "-p", "no:cacheprovider", str(HERE / test)]
    ran = subprocess.run(
        [sys.executable, "-c", f"import pytest; raise SystemExit(pytest.main({arguments}))"],
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PATH": str(tmp_path), "PYTEST_ADDOPTS": ""},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout
    last = ran.stdout.strip().splitlines()[-1]
    assert re.search(r"\d+ skipped", last) and "failed" not in last and "error" not in last
    reasons = [line for line in ran.stdout.splitlines() if line.startswith("SKIPPED")]
    assert reasons and all(": needs " in line for line in reasons), ran.stdout

"""Starts ranks by mpiexec, as pytest's subprocesses: many cases in each, for a start costs a second."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent


def mpiexec():
    """Return the mpiexec of the environment that runs the tests, or of the machine, or None."""
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def run_ranks(n, script, *arguments, timeout=120, check=True):
    """Run a script of this folder on n ranks; return what became of it, or fail with what it said.

    MPICH's ranks yield the processor while they wait, for they are more than processors, and talk by
    the loopback device only.
    """
    command = [mpiexec(), "-launcher", "fork", "-iface", "lo", "-n", str(n)]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, sys.executable, "-m", f"sharded.{script}", *map(str, arguments)],
        env={**os.environ, "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and done.returncode:
        pytest.fail(
            f"{script} on {n} ranks ended with {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done

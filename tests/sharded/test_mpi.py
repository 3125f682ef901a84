"""The same by MPI: ranks are processes that mpiexec starts."""

from __future__ import annotations

import time

import numpy as np
import pytest

from sharded import cases


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_layouts(ranks, run_ranks):
    done = run_ranks(ranks, "mpi_cases")
    assert f"layouts agree on {ranks} ranks" in done.stdout
    opt, reports = cases.one_process("paper", np.float32, {"sums": "exact"})
    assert f"exact sums: {cases.digest(opt.state_dict(True), reports)}\n" in done.stdout


def test_an_error_of_one_rank_is_raised_by_all(run_ranks):
    done = run_ranks(3, "mpi_faults", "nan")
    assert "raised by 3 ranks" in done.stdout
    assert "is nan, must be finite; nothing was changed on any rank" in done.stdout


def test_a_rank_that_hangs(run_ranks):
    done = run_ranks(3, "mpi_faults", "hang")
    assert "timed out, and went on" in done.stdout


def test_a_rank_that_is_killed_ends_the_job(run_ranks):
    began = time.monotonic()
    done = run_ranks(3, "mpi_faults", "kill", check=False, timeout=60)
    assert done.returncode != 0
    assert "stepped without a rank" not in done.stdout
    assert time.monotonic() - began < 50

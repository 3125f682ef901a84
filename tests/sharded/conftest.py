"""Without MPI the tests that need it are skipped, and say so; with --require-peers they fail."""

from __future__ import annotations

import pytest

from sharded import under_mpi


@pytest.fixture
def run_ranks(request, require_installed):
    """Return `under_mpi.run_ranks`, where there is an MPI."""
    require_installed("mpi4py")
    if under_mpi.mpiexec() is None:
        report = pytest.fail if request.config.getoption("--require-peers") else pytest.skip
        report("there is no mpiexec: pip install mpich")
    return under_mpi.run_ranks

"""Run by mpiexec: every layout beside one process, and what each step costs in exchanges."""

from __future__ import annotations

import sys

import numpy as np
from mpi4py import MPI

from adafactor_native.sharding.channel import Channel
from sharded import cases
from sharded.cuts import LAYOUTS


def require_layout(layout, dtype, tolerance):
    alone, reports = cases.one_process("paper", dtype, {})
    opt, own = cases.on_rank(MPI.COMM_WORLD, layout, "paper", dtype, {})
    found = cases.differences(MPI.COMM_WORLD, layout, opt, alone)
    assert max(found.values(), default=0) <= tolerance, (layout, found)
    for report, expected in zip(own, reports):
        for key, numbers in cases.numbers_of(expected).items():
            rtol = 1e-9 if dtype == np.float64 else 1e-5
            np.testing.assert_allclose(cases.numbers_of(report)[key], numbers, rtol=rtol)
    require_one_digest(layout, opt, own)


def require_one_digest(layout, opt, reports):
    digest = cases.digest(opt.state_dict(True, gather=True), reports)
    digests = set(MPI.COMM_WORLD.allgather(digest))
    assert len(digests) == 1, (layout, digests)
    return digests.pop()


def main():
    exact = set()
    for length in (200, Channel.bucket_length):  # many buckets, then one
        Channel.bucket_length = length
        exact |= {
            require_one_digest(
                layout,
                *cases.on_rank(MPI.COMM_WORLD, layout, "paper", np.float32, {"sums": "exact"}),
            )
            for layout in LAYOUTS
        }
    for layout in LAYOUTS:
        require_layout(layout, np.float64, 1e-10)
        require_layout(layout, np.float32, 2e-2)
    if MPI.COMM_WORLD.rank == 0:
        print("exact sums:", *exact)
        print(f"{len(LAYOUTS)} layouts agree on {MPI.COMM_WORLD.size} ranks")


if __name__ == "__main__":
    sys.exit(main())

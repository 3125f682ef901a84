"""Run by mpiexec: what ranks see of an error, a rank that hangs, and one that is killed."""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np
from mpi4py import MPI

from adafactor_native.sharding import CommunicationError
from sharded import cases
from sharded.test_faults import bytes_of, grads_here

COMM = MPI.COMM_WORLD


def nan():
    """A NaN on rank 1: all raise the same, within a second, and go on."""
    opt, _ = cases.on_rank(COMM, "rows", "paper", np.float64, {})
    before = bytes_of(opt)
    grads = grads_here(COMM, "rows")
    if COMM.rank == 1:
        grads["w"][0, 3] = np.nan
    began = time.monotonic()
    try:
        opt.step(grads)
    except FloatingPointError as error:
        told = str(error)
    waited = COMM.allreduce(time.monotonic() - began, MPI.MAX)
    assert bytes_of(opt) == before
    messages = set(COMM.allgather(told))
    assert len(messages) == 1
    assert opt.step(grads_here(COMM, "rows")).t == cases.N_STEPS + 1
    if COMM.rank == 0:
        print(f"raised by {COMM.size} ranks, {waited:.3f} s: {messages.pop()}")


def hang():
    """Rank 1 comes too late: the others raise after their timeout, and all go on with a state."""
    opt, _ = cases.on_rank(COMM, "rows", "paper", np.float64, {"timeout": 0.5})
    saved = opt.state_dict(True, gather=True)
    before = bytes_of(opt)
    began = time.monotonic()
    if COMM.rank == 1:
        time.sleep(1.5)
    try:
        opt.step(grads_here(COMM, "rows"))
        told = "stepped"
    except CommunicationError as error:
        told = str(error)
        assert bytes_of(opt) == before
    waited = time.monotonic() - began
    told = COMM.allgather((told, waited))
    assert all("the timeout is 0.5 s" in text for text, _ in told), told
    opt.load_state_dict(saved)
    report = opt.step(grads_here(COMM, "rows"))
    assert report.t == cases.N_STEPS + 1
    if COMM.rank == 0:
        print("timed out, and went on:", [round(waited, 2) for _, waited in told])


def kill():
    """Rank 1 is killed before its first exchange: mpiexec ends the others."""
    opt, _ = cases.on_rank(COMM, "rows", "paper", np.float64, {"timeout": 5})
    if COMM.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    opt.step(grads_here(COMM, "rows"))
    print("stepped without a rank", flush=True)


if __name__ == "__main__":
    {"nan": nan, "hang": hang, "kill": kill}[sys.argv[1]]()

"""What a step of GPT-2 small takes in pieces: `mpiexec -n 4 python bench/mpi_steps.py`, or without mpiexec.

On one rank the same model is stepped with `comm=` and without, in turns, by as many threads as there are
processors: that is what the exchanges and agreements cost where there is nobody to speak with. On several
ranks, each of one thread, every matrix is cut by rows at multiples of 64. The times are those of the slowest
rank in each step. On one machine all ranks share its processors and its memory, so they show what it costs
to be several, not what several machines gain.
"""

from __future__ import annotations

import argparse
from statistics import median
from time import perf_counter
from typing import Any

try:
    import numpy as np
    from mpi4py import MPI

    from adafactor_native import Optimizer
    from adafactor_native.sharding import Shard
    from machine import describe_machine
    from models import gpt2_small
    from problems import usable_cores
except ImportError as error:
    raise SystemExit(f'{error}\nThis needs: pip install ".[bench,mpi]" mpich') from error

Arrays = dict[str, "np.ndarray[Any, Any]"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench/mpi_steps.py", description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args().steps
    comm = MPI.COMM_WORLD
    threads = usable_cores() if comm.size == 1 else 1
    params, grads, shards = pieces(comm)
    optimizers = {"comm": Optimizer(params, comm=comm, shards=shards, num_threads=threads)}
    if comm.size == 1:
        copies = {name: param.copy() for name, param in params.items()}
        optimizers["alone"] = Optimizer(copies, num_threads=threads)
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(steps):
        for name, opt in optimizers.items():
            comm.Barrier()
            began = perf_counter()
            opt.step(grads)
            times[name].append(comm.allreduce(perf_counter() - began, MPI.MAX))
    if comm.rank == 0:
        print(describe_machine()["processor"])
        print(report({name: seconds[5:] for name, seconds in times.items()}, comm.size, threads))


def pieces(comm: Any) -> tuple[Arrays, Arrays, dict[str, Shard]]:
    """Return this rank's params, gradients, and where they lie."""
    rng = np.random.default_rng(comm.rank)
    params, grads, shards = {}, {}, {}
    for name, shape in gpt2_small().items():
        blocks = -(-shape[0] // 64)
        start, stop = (
            min(shape[0], blocks * rank // comm.size * 64) for rank in (comm.rank, comm.rank + 1)
        )
        local = (stop - start, *shape[1:])
        params[name] = rng.standard_normal(local, np.float32)
        grads[name] = rng.standard_normal(local, np.float32)
        shards[name] = Shard(shape, (start, *(0 for _ in shape[1:])))
    return params, grads, shards


def report(times: dict[str, list[float]], ranks: int, threads: int) -> str:
    where = f"{ranks} rank{'s' * (ranks > 1)} of {threads} thread{'s' * (threads > 1)}"
    lines = [
        f"GPT-2 small, {where}, {name}: median {median(seconds) * 1e3:.2f} ms, "
        f"{min(seconds) * 1e3:.2f} to {max(seconds) * 1e3:.2f}"
        for name, seconds in times.items()
    ]
    if "alone" in times:
        each = [a / b - 1 for a, b in zip(times["comm"], times["alone"])]
        lines.append(f"comm= costs {median(each):.2%} (median of {len(each)} pairs)")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

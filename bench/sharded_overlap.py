"""What it is worth that a bucket is exchanged while the next tensors are measured.

`python bench/sharded_overlap.py` writes JSON to bench/output/ and prints tables. Matrices are cut by rows, so
that a step exchanges two sums of every column: four million numbers. Every rank has one thread. Steps
with buckets of several lengths and with one bucket are taken in turns, each beside steps that exchange
nothing.

**The networks of the first table are simulated**: an all-reduce is over after a latency and its bytes at a
bandwidth, and takes nothing of the processor. The second table has two processes of this machine, by
gloo and by MPI, where torch and mpi4py are: their network is copies in the memory that the steps read, by
the cores that take the steps, so there is little that could be hidden.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

try:
    import numpy as np
    import numpy.typing as npt

    import ranks
    from adafactor_native import Optimizer
    from adafactor_native.sharding import Shard
    from adafactor_native.sharding.channel import Channel
    from exchange_costs import Network
    from machine import Company, describe_run
    from markdown import table, three_digits
    from output import OUTPUT, write_json
    from simulated_network import Wire, on_two_ranks
except ImportError as error:
    raise SystemExit(f'{error}\nThe benchmarks need: pip install ".[bench]"') from error

Seconds = npt.NDArray[np.float64]

ONE_BUCKET = 1 << 40
LENGTHS = (ONE_BUCKET, Channel.bucket_length, 1 << 18, 1 << 16)
LATENCY_S = 25e-6
GIGABYTES_PER_S = (25.0, 10.0, 5.0, 2.5, 1.0)
NETWORKS = tuple(Network(f"{gb:g} GB/s", LATENCY_S, 1e-9 / gb) for gb in GIGABYTES_PER_S)
EXCHANGED, NOTHING, UNTESTED = "exchanged", "nothing exchanged", "exchanged without test()"

# By exchange and length of buckets: ms of steps, and of these what ranks waited for exchanges.
Times = dict[str, dict[str, dict[str, list[float]]]]


@dataclass(frozen=True)
class Size:
    """Matrices of a model, and how many rows of each a rank has."""

    matrices: int = 72
    rows: int = 32
    columns: int = 28672  # of Llama-3-70B's largest


FULL, QUICK = Size(), Size(matrices=6, rows=8, columns=1 << 16)


@dataclass(frozen=True)
class Way:
    """How steps are taken: numbers of a bucket, and on which network or by which means."""

    bucket_length: int
    exchange: str


class Watched:
    """An engine whose steps exchange, or do as if they had, or never let what is under way move on.

    Attributes
    ----------
    exchange : str
        `NOTHING`, `UNTESTED`, or anything else.
    waited_s : float
        How long steps have waited for exchanges.
    """

    def __init__(self, engine: Any) -> None:
        self.rank, self.size = engine.rank, engine.size
        self.exchange = EXCHANGED
        self.waited_s = 0.0
        self._engine = engine

    def all_reduce(self, array: Any, op: str) -> None:
        self._engine.all_reduce(array, op)

    def start_all_reduce(self, array: Any, op: str) -> Any:
        if self.exchange == NOTHING:
            return Wire().begin(array)
        started = self._engine.start_all_reduce(array, op)
        is_tested = hasattr(started, "test") and self.exchange != UNTESTED
        return Tested(self, started) if is_tested else Started(self, started)


class Started:
    """What has begun, and adds to what its engine has waited."""

    def __init__(self, engine: Watched, started: Any) -> None:
        self._engine = engine
        self._started = started

    def wait(self) -> None:
        began = perf_counter()
        self._started.wait()
        self._engine.waited_s += perf_counter() - began


class Tested(Started):
    """What moves on only within calls of its engine."""

    def test(self) -> None:
        self._started.test()


class Rank:
    """A rank's rows of every matrix, and what steps them.

    Parameters
    ----------
    engine : Engine
    size : Size
    rows : sequence of int
        Of a matrix, on each rank.
    """

    def __init__(self, engine: Any, size: Size, rows: Sequence[int]) -> None:
        rng = np.random.default_rng(engine.rank)
        own = rng.standard_normal((rows[engine.rank], size.columns), np.float32)
        names = [f"matrix {k}" for k in range(size.matrices)]
        params = {name: own.copy() for name in names}
        shard = Shard((sum(rows), size.columns), (sum(rows[: engine.rank]), 0))
        self.engine = Watched(engine)
        self._grads = {name: own * np.float32(1 + k / 64) for k, name in enumerate(names)}
        self._optimizer = Optimizer(
            params, comm=self.engine, shards=dict.fromkeys(names, shard), num_threads=1
        )

    def step(self) -> Seconds:
        """Return what a step took, and of that what it waited for exchanges."""
        began, waited = perf_counter(), self.engine.waited_s
        self._optimizer.step(self._grads)
        return np.array([perf_counter() - began, self.engine.waited_s - waited])


def in_turns(ways: Sequence[Way], turns: int, take: Callable[[Way], Seconds]) -> Times:
    """Time steps of all ways in turns, after one turn that is not counted."""
    times: Times = {}
    kept = Channel.bucket_length
    for turn in range(-1, turns):
        for way in ways:
            Channel.bucket_length = way.bucket_length
            seconds = take(way)
            own = times.setdefault(way.exchange, {})
            of_way = own.setdefault(name_of(way.bucket_length), {"step": [], "waited": []})
            if turn >= 0:
                for name, each in zip(of_way, seconds):
                    of_way[name].append(round(1e3 * each, 4))
    Channel.bucket_length = kept
    return times


def name_of(bucket_length: int) -> str:
    return "one bucket" if bucket_length == ONE_BUCKET else f"2^{bucket_length.bit_length() - 1}"


def on_simulated(size: Size, turns: int) -> Times:
    """Of one rank that is measured; the other, of one row, is always in time."""
    engine, rank = on_two_ranks(lambda engine: Rank(engine, size, (size.rows, 1)))
    networks = {network.name: network for network in NETWORKS}

    def take(way: Way) -> Seconds:
        engine.wire = Wire(networks.get(way.exchange))
        return rank.step()

    ways = [Way(length, name) for name in (NOTHING, *networks) for length in LENGTHS]
    return in_turns(ways, turns, take)


def on_engine(engine: Any, size: Size, turns: int, exchanges: Sequence[str]) -> Times:
    """Of the slowest of an engine's ranks, which begin each step together."""
    rank = Rank(engine, size, (size.rows,) * engine.size)

    def take(way: Way) -> Seconds:
        rank.engine.exchange = way.exchange
        engine.all_reduce(np.zeros(1), "sum")
        seconds = rank.step()
        engine.all_reduce(seconds, "max")
        return seconds

    ways = [Way(length, exchange) for exchange in exchanges for length in LENGTHS]
    return in_turns(ways, turns, take)


def on_gloo(size: dict[str, int], turns: int) -> Times:
    """Called in another process, which knows this module by another name."""
    from adafactor_native.sharding.torch_engine import TorchEngine

    return on_engine(TorchEngine(), Size(**size), turns, (NOTHING, EXCHANGED))


def on_mpi(size: Size, turns: int) -> Times:
    from mpi4py import MPI

    from adafactor_native.sharding.mpi_engine import MPIEngine

    return on_engine(MPIEngine(MPI.COMM_WORLD), size, turns, (NOTHING, EXCHANGED, UNTESTED))


def under_mpiexec(arguments: Sequence[str]) -> Times:
    """Return what the first of two ranks of this script prints."""
    beside = Path(sys.executable).with_name("mpiexec")
    mpiexec = str(beside) if beside.exists() else "mpiexec"
    command = [mpiexec, "-n", "2", sys.executable, __file__, "--under-mpiexec", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    times: Times = json.loads(ran.stdout)
    return times


def report(times: Times) -> str:
    """Return a table: what exchanges add to a step's time, and what of that it waits for them."""
    nothing = times[NOTHING]["one bucket"]["step"]
    lengths = list(times[NOTHING])
    header = ["ms", *(f"{length}: added, waited" for length in lengths)]
    rows = [
        [exchange]
        + [
            f"{signed(added(own[length]['step'], nothing))}, "
            f"{three_digits(median(own[length]['waited']))}"
            for length in lengths
        ]
        for exchange, own in times.items()
    ]
    return f"A step that exchanges nothing: {median(nothing):.4g} ms\n" + table(header, rows)


def signed(ms: float) -> str:
    return ("-" if ms < 0 else "+") + three_digits(abs(ms))


def added(times: Sequence[float], to: Sequence[float]) -> float:
    """Return the median of the differences of steps of one turn."""
    return median(a - b for a, b in zip(times, to))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python bench/sharded_overlap.py", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small matrices and one turn")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--output", type=Path, metavar="JSON", default=OUTPUT / "overlap.json")
    parser.add_argument("--under-mpiexec", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size, turns = (QUICK, 1) if arguments.quick else (FULL, arguments.turns)
    if arguments.under_mpiexec:
        print_on_first_rank(on_mpi(size, turns))
        return
    run, company = describe_run(), Company()
    results: dict[str, Times] = {"simulated networks": on_simulated(size, turns)}
    if find_spec("torch"):
        results["gloo"] = ranks.run(2, "sharded_overlap:on_gloo", vars(size), turns)[0]
    if find_spec("mpi4py"):
        quick = ["--quick"] if arguments.quick else []
        results["MPI"] = under_mpiexec([*quick, "--turns", str(turns)])
    run = {**run, "busy cores of others": company.busy_cores(), "size": vars(size)}
    run = {**run, "latency of simulated networks, s": LATENCY_S, "ms": results}
    write_json(arguments.output, run)
    for name, times in results.items():
        where = "" if NETWORKS[0].name in times else ", 2 ranks of this machine"
        print(f"{name}{where}\n{report(times)}\n")
    print(f"numbers: {arguments.output}")


def print_on_first_rank(times: Times) -> None:
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps(times))


if __name__ == "__main__":
    main()

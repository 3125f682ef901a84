"""What sharded steps cost on more machines than one: exchanges measured here, the rest reckoned.

`python bench/sharding_model.py` times all-reduces of several lengths on two to four ranks of this machine with
gloo, fits the two parameters of a ring to them, and reckons from these, and from two assumed networks, what a
step of Llama-3-70B costs on 8 to 4096 ranks: the sweeps over a rank's own elements, which get shorter with
more ranks, and the one or two rounds of exchange, which do not. Ranks beyond the cores are timed too, and not fitted: they
wait for each other's cores.

**Nothing here was measured on more than one machine.** The picture draws what was measured with points and
full lines, and what is extrapolated dashed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np

import ranks
from adafactor_native.sharding.channel import Channel
from exchange_costs import ALGORITHMS, AllReduce, Network, Timing, fitted, relative_errors
from machine import Company, describe_machine, describe_software
from markdown import table, three_digits
from models import Shape, llama3_70b
from output import OUTPUT, write_json

LENGTHS = (1, 64, 1024, 16384, 131072, 1048576)  # of float64
RANKS = (2, 3, 4)
EXTRAPOLATED = tuple(1 << k for k in range(3, 13))
WORD = 8  # bytes of a float64
HOST = 8  # ranks on one, which share its network
ASSUMED = (
    Network("200 GB/s a host", 10e-6, HOST / 200e9),
    Network("25 GB/s a host", 25e-6, HOST / 25e9),
)
MEMORY_BYTES_PER_S = 25e9  # of one rank, while all others of the host read as well
SWEEPS_BYTES = 20  # for each float32: gradient and param are read twice, the param is written
MEASURED_BYTES = 8  # of these, before the exchange: gradient and param once
READ_BYTES = 4  # of the gradient, once more
WAYS = ("rows", "grid", "flat")
# Of each matrix, in the maxima and sums over all ranks.
SCALARS = {"rows": (15, 12), "grid": (10, 9, 8, 3), "flat": (10, 9, 8, 3)}


@dataclass(frozen=True)
class Cost:
    """Seconds of a step on one of many ranks.

    Attributes
    ----------
    sweeps : float
        Over the rank's own elements, without the next.
    again : float
        The second read of the gradient between two rounds.
    exchange : float
        All rounds.
    """

    sweeps: float
    again: float
    exchange: float

    @property
    def step(self) -> float:
        return self.sweeps + self.again + self.exchange


def messages(shapes: Sequence[Shape], way: str, ranks: int) -> list[tuple[float, int]]:
    """Return the float64s and the number of ranks of each all-reduce of a step, all matrices together.

    Every round begins with a maximum over all ranks, and both have a few numbers of each matrix. Rows: the
    sums of each column, with and without R. A grid of `HOST` columns of ranks: the sums of a rank's own rows,
    over those in its row of the grid, and of its own columns. Flat ranges, of all matrices in one: the sums
    of columns and of the two rows that a range cuts, over the ranks of each matrix that is on several;
    here those of the rank that sends most.
    """
    scalars = [(float(n * len(shapes)), ranks) for n in SCALARS[way]]
    rows = sum(shape[-2] * prod(shape[:-2]) for shape in shapes)
    cols = sum(shape[-1] * prod(shape[:-2]) for shape in shapes)
    if way == "rows":
        most, sums = scalars
        return [most, (sums[0] + 2.0 * cols, ranks)]
    if way == "grid":
        across = min(ranks, HOST)
        down = ranks // across
        return [*scalars, (rows / down, across), (cols / across, down)]
    of_rank: dict[int, list[tuple[float, int]]] = {0: []}
    size = sum(map(prod, shapes)) / ranks
    at = 0
    for shape in shapes:
        first, last = int(at / size), min(int((at + prod(shape) - 1) / size), ranks - 1)
        at += prod(shape)
        if last > first:
            for rank in range(first, last + 1):
                cut = shape[-1] + 2 - (rank == first) - (rank == last)
                of_rank.setdefault(rank, []).append((float(cut), last - first + 1))
    return [*scalars, *max(of_rank.values(), key=lambda sent: sum(n for n, _ in sent))]


def cost(
    shapes: Sequence[Shape], way: str, ranks: int, network: Network, all_reduce: AllReduce
) -> Cost:
    elements = sum(map(prod, shapes)) / ranks
    sent = messages(shapes, way, ranks)
    exchange = sum(all_reduce(WORD * n, size, network) for n, size in sent)
    again = 0.0 if way == "rows" else elements * READ_BYTES / MEMORY_BYTES_PER_S
    return Cost(elements * SWEEPS_BYTES / MEMORY_BYTES_PER_S, again, exchange)


def shown_exchange(
    shapes: Sequence[Shape],
    ranks: int,
    network: Network,
    all_reduce: AllReduce,
    bucket_length: int = Channel.bucket_length,
) -> float:
    """Return the seconds by which the exchange of rows lengthens a step that is cut into equal buckets.

    When a bucket was measured and the maximum before is over, its own maximum begins, and the sum before. The
    network carries one message after the other.
    """
    most, sums = messages(shapes, "rows", ranks)
    n_buckets = ceil(sums[0] / bucket_length)
    max_s, sum_s = (all_reduce(WORD * n / n_buckets, ranks, network) for n, _ in (most, sums))
    measure = sum(map(prod, shapes)) / ranks * MEASURED_BYTES / MEMORY_BYTES_PER_S
    now = free_at = max_over = 0.0
    for bucket in range(n_buckets + 1):
        if bucket < n_buckets:
            now += measure / n_buckets
        now = max(now, max_over)
        if bucket < n_buckets:
            free_at = max_over = max(now, free_at) + max_s
        if bucket > 0:
            free_at = max(now, free_at) + sum_s
    return free_at - measure


def time_exchanges(lengths: Sequence[int], repetitions: int) -> list[float]:
    """On a rank: the seconds of an all-reduce of each length, the median of the slowest rank."""
    from adafactor_native.sharding.torch_engine import TorchEngine

    engine = TorchEngine()
    medians = []
    for length in lengths:
        array = np.ones(length)
        n = max(5, min(repetitions, int(repetitions * 65536 / length)))
        taken = np.empty(n)
        for k in range(-2, n):
            array[:] = 1
            engine.all_reduce(np.zeros(1), "sum")  # all begin together
            start = time.perf_counter()
            engine.all_reduce(array, "sum")
            if k >= 0:
                taken[k] = time.perf_counter() - start
        engine.all_reduce(taken, "max")
        medians.append(float(np.median(taken)))
    return medians


def measured(team_sizes: Sequence[int], lengths: Sequence[int], repetitions: int) -> list[Timing]:
    timings = []
    for n in team_sizes:
        seconds = ranks.run(n, "sharding_model:time_exchanges", list(lengths), repetitions)[0]
        timings += [Timing(n, WORD * length, s) for length, s in zip(lengths, seconds)]
    return timings


def report(run: dict[str, Any]) -> str:
    here = Network(**run["fitted"])
    cores = run["machine"]["cores"]
    own = [
        error for timing, error in zip(run["timings"], run["errors"]) if timing["ranks"] <= cores
    ]
    fit = (
        f"Fitted to the {run['fitted timings']} all-reduces of at most {cores} ranks on "
        f"{run['machine']['processor']}, {cores} cores: "
        f"{here.latency_s * 1e6:.3g} µs a message and {1e-9 / here.s_per_byte:.3g} GB/s a rank; the model is "
        f"off by {100 * np.median(np.abs(own)):.0f} % in the median, {100 * np.max(np.abs(own)):.0f} % at "
        f"most. More ranks share the cores, and were not fitted."
    )
    lines = [fit, "", measured_table(run["timings"], run["errors"]), "", extrapolated_table(here)]
    return "\n".join(lines)


def measured_table(timings: Sequence[dict[str, Any]], errors: Sequence[float]) -> str:
    rows = [
        [
            str(timing["ranks"]),
            str(timing["n_bytes"]),
            f"{three_digits(timing['seconds'] * 1e6)} µs",
            f"{100 * error:+.0f} %",
        ]
        for timing, error in zip(timings, errors)
    ]
    return table(["ranks", "bytes", "measured all-reduce", "the model is off by"], rows)


def extrapolated_table(here: Network) -> str:
    """Milliseconds of a step of Llama-3-70B, by ranks and way of cutting."""
    shapes = list(llama3_70b().values())
    header = ["ranks", "sweeps, ms", "network", "algorithm"]
    header += [f"{way}: exchange, ms" for way in WAYS]
    header += ["rows: of it not hidden by buckets, ms", "grid, flat: read again, ms"]
    rows = []
    for n in (8, 64, 512, 4096):
        for network in (*ASSUMED, here):
            for algorithm, all_reduce in ALGORITHMS.items():
                costs = {way: cost(shapes, way, n, network, all_reduce) for way in WAYS}
                rows.append(
                    [
                        str(n),
                        three_digits(costs["rows"].sweeps * 1e3),
                        network.name,
                        algorithm,
                        *(three_digits(one.exchange * 1e3) for one in costs.values()),
                        three_digits(shown_exchange(shapes, n, network, all_reduce) * 1e3),
                        three_digits(costs["grid"].again * 1e3),
                    ]
                )
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two ranks and short messages only")
    parser.add_argument("--output", type=Path, default=OUTPUT / "sharding-model.json")
    arguments = parser.parse_args()
    machine, company = describe_machine(), Company()
    team_sizes, lengths = ((2,), LENGTHS[:4]) if arguments.quick else (RANKS, LENGTHS)
    timings = measured(team_sizes, lengths, 20 if arguments.quick else 200)
    # More ranks than cores wait for the scheduler as well, which is no property of a network.
    fair = [timing for timing in timings if timing.ranks <= machine["cores"]]
    here = fitted(fair, "as fitted here, gloo")
    run: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": machine,
        "busy cores of others": company.busy_cores(),
        "software": describe_software(),
        "timings": [asdict(timing) for timing in timings],
        "fitted": asdict(here),
        "fitted timings": len(fair),
        "errors": relative_errors(timings, here),
    }
    write_json(arguments.output, run)
    print(report(run))
    from sharding_plot import draw

    picture = arguments.output.with_suffix(".png")
    draw(run, picture)
    print(f"\n{arguments.output}\n{picture}")


if __name__ == "__main__":
    main()

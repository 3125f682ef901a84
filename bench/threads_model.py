"""What a step would cost on more cores: barriers measured here, the rest reckoned from its tasks.

`python bench/threads_model.py` measures what a parallel region costs on this machine, on as many
threads as it has and on more; what one core reads in a second; and what resolve costs for each row and
column. With these it simulates a step: threads take the tasks that the engine cuts, in its own
shares, at the bandwidth that they leave each other, and meet at the end of each region.

What is assumed of the larger machine is printed with the results. Its barrier: libgomp's is one
counter that all threads write, so that it costs a little more for each thread (a line of cache goes
from core to core in 50 to 100 ns), as "How Many Threads will be too Many?" (Iwainsky et al. 2015) found
for GNU's runtime. Its memory: as many GB/s as a socket of twelve DDR5-4800 channels gives in practice.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from time import perf_counter_ns
from typing import Any

import numpy as np

from adafactor_native import AdaFactor
from adafactor_native._runtime import _core
from contenders.roof import Read, sum_in_one_stream
from harness import TIMED_LR, all_on
from markdown import duration, table, three_digits
from models import Shape, gpt2_small
from problems import elements, one_array, usable_cores
from simulated_threads import FLOAT32, TASK_NS, Machine, cost, matrix

TEAMS = (1, 8, 32, 64)
SOCKET_BYTES_PER_NS = 350.0  # of 461 in theory
BARRIER_NS_PER_THREAD = 150.0


def region_ns(threads: int) -> float:
    """Of a parallel region that does nothing: each thread calls free(NULL)."""
    libgomp, libc = ctypes.CDLL("libgomp.so.1"), ctypes.CDLL(None)
    parallel = libgomp.GOMP_parallel
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    nothing = ctypes.cast(libc.free, ctypes.c_void_p)
    return fast_ns(lambda: parallel(nothing, None, threads, 0), 2000)


def fast_ns(call: Any, times: int) -> float:
    """The fastest tenth ends here: what a call takes where no neighbour has the core.

    After a tenth of the calls, which start threads and fill caches.
    """
    taken = []
    for k in range(times + times // 10):
        start = perf_counter_ns()
        call()
        if k >= times // 10:
            taken.append(perf_counter_ns() - start)
    return float(np.percentile(taken, 10))


def core_bytes_per_ns() -> float:
    """What one thread reads from memory."""
    (param,), (grad,), _ = one_array("model", (4096, 4096), 1).arrays()
    read = Read(sum_in_one_stream).update
    with all_on(1):
        read(param, grad)  # compiles
        return grad.nbytes / fast_ns(lambda: read(param, grad), 20)


def line_ns() -> float:
    """What a step costs for each row and column, of matrices of one size on one thread."""
    points = []
    for rows in (64, 128, 256, 1024, 4096):
        cols = (1 << 18) // rows
        (param,), (grad,), _ = one_array("model", (rows, cols), 1).arrays()
        update = AdaFactor(param.shape, TIMED_LR, num_threads=1).update
        points.append((rows + cols, fast_ns(lambda u=update, p=param, g=grad: u(p, g), 200)))
    lines, ns = np.array(points).T
    return max(0.0, float(np.polyfit(lines, ns, 1)[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket-gb-per-s", type=float, default=SOCKET_BYTES_PER_NS)
    parser.add_argument("--barrier-ns-per-thread", type=float, default=BARRIER_NS_PER_THREAD)
    arguments = parser.parse_args()
    if not sys.platform.startswith("linux") or not _core.openmp:
        raise SystemExit("this measures libgomp's parallel regions, and there is no OpenMP here")

    cores = usable_cores()
    call = region_ns(1)
    regions = {n: region_ns(n) - call for n in sorted({2, cores, 2 * cores, 4 * cores}) if n > 1}
    rows = [
        [str(n), "" if n <= cores else "more than cores", duration(ns)] for n, ns in regions.items()
    ]
    print(f"{table(['threads', '', 'an empty parallel region, 10th percentile'], rows)}\n")
    machine = Machine(
        core_bytes_per_ns(),
        arguments.socket_gb_per_s,
        regions[2],
        arguments.barrier_ns_per_thread,
        line_ns(),
    )
    print(
        f"One core reads {machine.core_bytes_per_ns:.1f} GB/s; resolve takes {machine.line_ns:.1f} ns for "
        f"each row and column. Assumed: {machine.socket_bytes_per_ns:g} GB/s of all cores together, "
        f"{machine.per_thread_ns:g} ns more of a region for each thread, {TASK_NS:g} ns to take a task.\n"
    )
    print(of_steps(machine))


def of_steps(machine: Machine) -> str:
    works: dict[str, list[Shape]] = {
        "4096x4096": [(4096, 4096)],
        "GPT-2 small": list(gpt2_small().values()),
    }
    header = [
        "step",
        "threads",
        "tasks of grad",
        "... of apply",
        "measure",
        "resolve",
        "apply",
        "step",
    ]
    header += ["step / evenly cut, without regions", "step, cut by panels of 64 rows"]
    rows = []
    for name, shapes in works.items():
        for carried in (False, True):
            for threads in TEAMS:
                now = cost(shapes, threads, machine, carried)
                panels = cost(shapes, threads, machine, carried, by_panel=True)
                size = sum(map(elements, shapes)) * FLOAT32 * (4 if carried else 5)
                ideal = size / threads / machine.bytes_per_ns(threads)
                counts = [_core.task_counts(*matrix(shape)) for shape in shapes]
                rows.append(
                    [
                        f"{name}{', carried' if carried else ''}",
                        str(threads),
                        *(str(sum(each)) for each in zip(*counts)),
                        *(duration(ns) for ns in (now.measure, now.resolve, now.apply, now.step)),
                        three_digits(now.step / ideal),
                        duration(panels.step),
                    ]
                )
    return table(header, rows)


if __name__ == "__main__":
    main()

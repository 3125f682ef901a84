"""How a step fares in a training loop of torch, whose own OpenMP team works between the steps.

Where both want the same library, whoever is imported first brings it, and chooses for both how its
idle threads wait. So each order of import has a process of its own.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_info
from tqdm import tqdm

from adafactor_native import AdaFactor
from harness import SETTLE_NS, TIMED_LR, summary
from neighbours import ROUNDS, busy_processes, calls_within, stepped
from problems import Array, usable_cores
from stopwatch import stopwatch

ORDERS = ("adafactor_native, torch", "torch, adafactor_native")
COUNTS = (0, 1)
ROWS = 16  # of torch's input: a millisecond or two of work between steps


def measure(seconds: float) -> list[dict[str, Any]] | None:
    """One result for each order of import; None without torch."""
    if find_spec("torch") is None:
        return None
    orders = tqdm(ORDERS, desc="beside torch", leave=False, disable=None)
    return [measure_importing(order, seconds / len(ORDERS)) for order in orders]


def measure_importing(order: str, seconds: float) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-c", f"import {order}, pools; pools.print_times({seconds})"],
        cwd=Path(__file__).parent,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return {"imported": order, **json.loads(run.stdout)}


def print_times(seconds: float) -> None:
    torch: Any = import_module("torch")
    print(
        json.dumps(
            {
                "torch": torch.__version__,
                "times": time_beside(torch, seconds),
                "OpenMP": openmp_runtimes(),
            }
        )
    )


def time_beside(torch: Any, seconds: float) -> list[dict[str, Any]]:
    """Steps after work of torch on no thread, on one, and on all.

    One takes caches and sleeping threads from the steps as all do, but leaves no team behind.
    """
    (param,), (grad,), _ = stepped().arrays()
    update = AdaFactor(param.shape, TIMED_LR).update
    timer = stopwatch("update(param, grad)", update=update, param=param, grad=grad)
    work = training_work(torch, param, grad)
    teams = sorted({0, 1, usable_cores()})
    turn = seconds / (ROUNDS * len(COUNTS) * len(teams))
    times: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
    for _, count in itertools.product(range(ROUNDS), COUNTS):
        with busy_processes(count):
            for team in teams:
                torch.set_num_threads(max(team, 1))
                between = work if team else lambda: None
                calls_within(SETTLE_NS * 1e-9, timer, between)
                times[count, team] += calls_within(turn, timer, between)
    return [
        {"busy processes": count, "torch threads": team, **summary(ns)}
        for (count, team), ns in times.items()
    ]


def training_work(torch: Any, param: Array, grad: Array) -> Callable[[], Any]:
    """Forward and backward through one layer, whose weights and their gradient are our arrays."""
    weights = torch.from_numpy(param).requires_grad_()
    weights.grad = torch.from_numpy(grad)
    inputs = torch.randn(ROWS, param.shape[0])

    def work() -> None:
        weights.grad.zero_()
        torch.relu(inputs @ weights).square().sum().backward()

    return work


def openmp_runtimes() -> list[str]:
    """Each loaded runtime's file, and the package that brought it."""
    pools = (pool for pool in threadpool_info() if pool["user_api"] == "openmp")
    return sorted(named_by_owner(Path(pool["filepath"])) for pool in pools)


def named_by_owner(library: Path) -> str:
    _, _, inside = library.as_posix().partition("-packages/")
    return f"{library.name} of {inside.split('/')[0] or 'the system'}"

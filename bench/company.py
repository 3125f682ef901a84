"""Tables of our step in company: beside busy processes, and between the operations of torch."""

from __future__ import annotations

from typing import Any

from markdown import count, duration, table, times
from names import NATIVE
from recorded import Recorded, Result

QUANTILES = ["median", "p10", "p90", "p99"]
FEWEST_SAMPLES = {"p99": 300}
FEW_SAMPLES = "Of fewer than 300 steps, p99 says nothing and is left out."
WITHOUT_TORCH = 'Steps between torch\'s operations were not measured: `pip install ".[peers]"`.'


def busy_processes(recorded: Recorded) -> str:
    results = recorded.run["neighbours"]
    quiet = {r["contender"]: r["ns"]["median"] for r in results if r["busy processes"] == 0}
    header = ["contender", "busy processes", *QUANTILES, "median / quiet median"]
    rows = [
        [
            r["contender"],
            str(r["busy processes"]),
            *quantiles(r),
            times(r["ns"]["median"] / quiet[r["contender"]]),
        ]
        for r in results
    ]
    return (
        f"## Beside busy processes\n\n{table(header, rows)}\n\n"
        f"1024x1024 in float32 on {count(recorded.cores, 'thread')}, each step timed alone. "
        f"{FEW_SAMPLES}"
    )


def torch(recorded: Recorded) -> str:
    """Beside another library's OpenMP threads: torch's, which work before each timed step."""
    title = "## Between torch's operations"
    orders = recorded.run.get("pools")
    if not orders:
        return f"{title}\n\n{WITHOUT_TORCH}"
    header = ["imported", "threads of torch's work", "busy processes", *QUANTILES]
    rows = [
        [
            order["imported"],
            str(r["torch threads"]),
            str(r["busy processes"]),
            *quantiles(r),
            times(r["ns"]["median"] / quiet_median(order)),
        ]
        for order in orders
        for r in order["times"]
    ]
    loaded = "; ".join(f"{', '.join(o['OpenMP'])} ({o['imported']})" for o in orders)
    return (
        f"{title}\n\n{table([*header, 'median / quiet median'], rows)}\n\n"
        f"The same step of adafactor_native, each after torch {orders[0]['torch']} went forward and "
        "backward through a layer that has the stepped parameter as weights; on 0 threads: without. "
        f"The first import decides how idle threads wait. OpenMP runtimes: {loaded}. {FEW_SAMPLES}"
    )


def in_short(recorded: Recorded) -> str:
    """Both, of our step alone: each condition against the quiet median of the same process."""
    alone = recorded.neighbours_of(NATIVE)
    rows = [short_row("nothing", r, alone[0]["ns"]["median"]) for r in alone]
    orders = recorded.run.get("pools") or []
    for order in orders:
        place = "first" if order["imported"].startswith("torch") else "second"
        rows += [
            short_row(f"torch works, imported {place}", r, quiet_median(order))
            for r in order["times"]
            if r["torch threads"] == recorded.cores
        ]
    header = [
        "between steps of 1024x1024",
        "busy processes beside",
        "p50",
        "p90",
        "p99",
        "p50 / quiet p50",
    ]
    return (
        f"{table(header, rows)}\n\n"
        f"Steps timed one by one. {'' if orders else WITHOUT_TORCH}".rstrip()
    )


def short_row(between: str, result: Result, quiet_ns: float) -> list[str]:
    median, _, p90, p99 = quantiles(result)
    ratio = times(result["ns"]["median"] / quiet_ns)
    return [between, str(result["busy processes"]), median, p90, p99, ratio]


def quiet_median(order: dict[str, Any]) -> float:
    """Without torch's work, and without busy processes, in the same process."""
    return next(
        float(r["ns"]["median"])
        for r in order["times"]
        if (r["busy processes"], r["torch threads"]) == (0, 0)
    )


def quantiles(result: Result) -> list[str]:
    return [
        duration(ns) if result["samples"] >= FEWEST_SAMPLES.get(quantile, 0) else ""
        for quantile, ns in ((quantile, result["ns"][quantile]) for quantile in QUANTILES)
    ]

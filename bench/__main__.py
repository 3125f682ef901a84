"""`python bench`: time the contenders, write JSON, and draw tables and plots from it.

Not `python -m bench`, which would put the source folder in front of the installed package.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

try:
    from tqdm import tqdm

    import call
    import memory
    import names
    import neighbours
    import pools
    from contenders.contender import Contender
    from contenders.peers import absent_packages, load_peers
    from contenders.registry import CONTENDERS, OPTIMIZERS
    from harness import race
    from machine import Company, describe_run
    from output import OUTPUT, write_json
    from problems import Problem, all_problems, quick_problems
    from report import write_report
except ImportError as error:
    raise SystemExit(f'{error}\nThe benchmarks need: pip install ".[bench]"') from error


def main() -> None:
    parser = argparse.ArgumentParser(prog="python bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="fewer problems, in about three minutes"
    )
    parser.add_argument(
        "--only",
        metavar="TEXT",
        nargs="+",
        default=[],
        help="problems with a TEXT in the name, or as group, and nothing else",
    )
    parser.add_argument("--output", type=Path, metavar="JSON", help="default: in bench/output/")
    parser.add_argument(
        "--require-peers", action="store_true", help="fail unless all other libraries take part"
    )
    arguments = parser.parse_args()
    if arguments.require_peers and absent_packages():
        raise SystemExit(f'Not installed: {", ".join(absent_packages())}. pip install ".[peers]"')

    name = "quick" if arguments.quick else "speed"
    output = arguments.output or OUTPUT / f"{name}.json"
    contenders = CONTENDERS + load_peers()
    measure = measure_quickly if arguments.quick else measure_all
    company = Company()
    run = measure(contenders, arguments.only)
    run["busy cores of others"] = company.busy_cores()
    write_json(output, run)
    print(f"numbers: {output}, tables and plots: {write_report(output)}")


def measure_all(contenders: list[Contender], only: list[str]) -> dict[str, Any]:
    run = {
        **description("full"),
        "results": race_all(all_problems(), contenders, only, seconds=0.6),
    }
    if only:
        return run
    return {
        **run,
        "neighbours": neighbours.measure(OPTIMIZERS, seconds=20),
        "pools": pools.measure(seconds=40),
        "calls": call.measure(seconds=1.5),
        "memory": memory.measure(OPTIMIZERS),
    }


def measure_quickly(contenders: list[Contender], only: list[str]) -> dict[str, Any]:
    # numba would spend most of the minute on compiling once more, for its own memory
    without_compiler = [c for c in OPTIMIZERS if c.name != names.NUMBA]
    run = {
        **description("quick"),
        "results": race_all(quick_problems(), contenders, only, seconds=0.2),
    }
    if only:
        return run
    return {
        **run,
        "neighbours": neighbours.measure(OPTIMIZERS, seconds=5),
        "pools": pools.measure(seconds=6),
        "calls": call.measure(seconds=0.3),
        "memory": memory.measure(without_compiler),
    }


def description(mode: str) -> dict[str, Any]:
    return {
        "mode": mode,
        **describe_run(),
        "absent": absent_packages(),
    }


def race_all(
    problems: list[Problem], contenders: list[Contender], only: list[str], seconds: float
) -> list[dict[str, Any]]:
    results = []
    chosen = [
        problem
        for problem in problems
        if not only or any(text in problem.name or text == problem.group for text in only)
    ]
    for problem in (bar := tqdm(chosen, desc="problems")):
        bar.set_postfix_str(f"{problem.name}, threads: {problem.threads}")
        # a turn of a model is a step or two
        results += race(problem, contenders, 2 * seconds if problem.model else seconds)
    return results


if __name__ == "__main__":
    main()

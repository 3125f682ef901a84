"""`python bench`: time the contenders, write JSON, and draw tables and plots from it.

Not `python -m bench`, which would put the source folder in front of the installed package.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

try:
    from tqdm import tqdm

    import memory
    import names
    import neighbours
    import pools
    from contenders.contender import Contender
    from contenders.peers import absent_packages, load_peers
    from contenders.registry import CONTENDERS, OPTIMIZERS
    from harness import race
    from machine import describe_machine, describe_software
    from problems import Problem, all_problems, quick_problems
    from report import RESULTS, write_report
except ImportError as error:
    raise SystemExit(f'{error}\nThe benchmarks need: pip install ".[bench]"') from error


def main() -> None:
    parser = argparse.ArgumentParser(prog="python bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer problems, in about a minute")
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="problems with TEXT in the name or group"
    )
    parser.add_argument("--output", type=Path, metavar="JSON", help="default: in bench/results/")
    parser.add_argument(
        "--require-peers", action="store_true", help="fail unless all other libraries take part"
    )
    arguments = parser.parse_args()
    if arguments.require_peers and absent_packages():
        raise SystemExit(f'Not installed: {", ".join(absent_packages())}. pip install ".[peers]"')

    name = "quick" if arguments.quick else "speed"
    output = arguments.output or RESULTS / f"{name}.json"
    contenders = CONTENDERS + load_peers()
    measure = measure_quickly if arguments.quick else measure_all
    run = measure(contenders, arguments.only)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(run, indent=1) + "\n")
    print(write_report(output))


def measure_all(contenders: list[Contender], only: str) -> dict[str, Any]:
    return {
        **description("full"),
        "results": race_all(all_problems(), contenders, only, seconds=1.2),
        "neighbours": neighbours.measure(OPTIMIZERS, seconds=30),
        "pools": pools.measure(seconds=60),
        "memory": memory.measure(OPTIMIZERS),
    }


def measure_quickly(contenders: list[Contender], only: str) -> dict[str, Any]:
    # numba would spend most of the minute on compiling once more, for its own memory
    without_compiler = [c for c in OPTIMIZERS if c.name != names.NUMBA]
    return {
        **description("quick"),
        "results": race_all(quick_problems(), contenders, only, seconds=0.2),
        "neighbours": neighbours.measure(OPTIMIZERS, seconds=5),
        "pools": pools.measure(seconds=6),
        "memory": memory.measure(without_compiler),
    }


def description(mode: str) -> dict[str, Any]:
    return {
        "mode": mode,
        "date": date.today().isoformat(),
        "machine": describe_machine(),
        "software": describe_software(),
        "absent": absent_packages(),
    }


def race_all(
    problems: list[Problem], contenders: list[Contender], only: str, seconds: float
) -> list[dict[str, Any]]:
    results = []
    chosen = [p for p in problems if only in p.name or only in p.group]
    for problem in (bar := tqdm(chosen, desc="problems")):
        bar.set_postfix_str(f"{problem.name}, threads: {problem.threads}")
        results += race(problem, contenders, seconds)
    return results


if __name__ == "__main__":
    main()

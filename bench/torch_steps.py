"""Steps of torch's optimizers on torch's tensors, ours among them: `python bench/torch_steps.py`.

Times a step of GPT-2 small, in float32 and in bfloat16, and of a thousand tiny tensors, which leave what
Python and each tensor cost: by `adafactor_native.torch`, torch's Adafactor in both of its forms,
transformers' and torch's fused AdamW. They take turns, as in `python bench`. Writes JSON, a table and a
picture to bench/output/, in about a minute.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

try:
    from tqdm import tqdm

    from bounds import asked_and_got, bounds_in_torch
    from contenders.contender import Contender
    from contenders.half import within
    from contenders.peers import load_in_torch
    from harness import race
    from machine import Company, describe_run
    from models import Shape, gpt2_small
    from names import TORCH_COMPILED, TORCH_FOREACH_HALF, TORCH_HALF
    from output import OUTPUT, write_json
    from problems import Problem, usable_cores
    from recorded import IN_TORCH_GROUP, Recorded
    from report import write_report
except ImportError as error:
    raise SystemExit(
        f'{error}\nThis benchmark needs: pip install torch==2.13.0 && pip install ".[bench,peers]"'
    ) from error

SECONDS, QUICK_SECONDS = 1.2, 0.2  # of each contender with each problem
TINY: tuple[Shape, ...] = ((8, 8),) * 500 + ((8,),) * 500


def main() -> None:
    parser = argparse.ArgumentParser(prog="python bench/torch_steps.py", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny tensors, for a short time")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each contender")
    parser.add_argument("--output", type=Path, metavar="JSON", default=OUTPUT / "torch.json")
    arguments = parser.parse_args()
    seconds = QUICK_SECONDS if arguments.quick else arguments.seconds
    run = measure(
        tiny_problems() if arguments.quick else tiny_problems() + large_problems(), seconds
    )
    write_json(arguments.output, {"mode": "quick" if arguments.quick else "full", **run})
    print(f"numbers: {arguments.output}, table and picture: {write_report(arguments.output)}")
    print(asked_and_got(Recorded(arguments.output, run), bounds_in_torch))


def measure(problems: list[Problem], seconds: float) -> dict[str, Any]:
    company = Company()
    described = describe_run()
    contenders = [
        replace(each, takes=everything, allowed_error=allowed_error(each))
        for each in load_in_torch()
        if each.name != TORCH_COMPILED  # minutes for a model
    ]
    results: list[dict[str, Any]] = []
    for problem in (bar := tqdm(problems, desc="problems")):
        bar.set_postfix_str(f"{problem.name}, threads: {problem.threads}")
        results += race(problem, contenders, seconds)
    return {**described, "results": results, "busy cores of others": company.busy_cores()}


def allowed_error(contender: Contender) -> Callable[[Problem], float]:
    """One more unit where torch computes in bfloat16 itself, in so many tensors."""
    if contender.name in (TORCH_HALF, TORCH_FOREACH_HALF):
        return within(2, "bfloat16")
    return contender.allowed_error


def everything(problem: Problem) -> bool:
    return True


def tiny_problems() -> list[Problem]:
    return [
        Problem(IN_TORCH_GROUP, TINY, threads, model="1000 tiny tensors")
        for threads in thread_counts()
    ]


def large_problems() -> list[Problem]:
    shapes = tuple(gpt2_small().values())
    return [
        Problem(IN_TORCH_GROUP, shapes, threads, model="GPT-2 small", half=half)
        for half, all_threads in ((False, thread_counts()), (True, [usable_cores()]))
        for threads in all_threads
    ]


def thread_counts() -> list[int]:
    return sorted({1, usable_cores()})


if __name__ == "__main__":
    main()

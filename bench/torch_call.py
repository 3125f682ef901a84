"""What a step on torch's tensors costs besides the kernels: `python bench/torch_call.py`.

Times, one thread, in turns: a step; the native call in it; that call where it finds all tensors and takes
no step. The first less the second, and the third, are all but the kernels. torch's fused AdamW and its
Adafactor step the same tensors beside. Prints a table, in a quarter of a minute.
"""

from __future__ import annotations

import argparse
import timeit
from typing import Any

try:
    import torch

    from adafactor_native import set_num_threads
    from adafactor_native.torch import Adafactor
    from adafactor_native.torch.stepping import StepCall, all_parts
    from harness import TIMED_LR, summary, time_in_turns
    from markdown import table
    from models import Shape, gpt2_small
    from stopwatch import stopwatch
except ImportError as error:
    raise SystemExit(
        f'{error}\nThis benchmark needs: pip install torch==2.13.0 && pip install ".[bench]"'
    ) from error

SECONDS = 6.0  # of each list
OURS, NATIVE, LOOKS = "step()", "native call", "native call, no step"
LISTS: dict[str, list[Shape]] = {
    "GPT-2's 148 tensors, axes / 16": [
        tuple(max(n // 16, 1) for n in shape) for shape in gpt2_small().values()
    ],
    "1000 of 8x8 and 8": [(8, 8)] * 500 + [(8,)] * 500,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python bench/torch_call.py", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each list of tensors")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    set_num_threads(1)
    rows = []
    for name, shapes in LISTS.items():
        ms = {
            who: summary(each.hot)["ns"]["median"] / 1e6
            for who, each in time_in_turns(timers(shapes), seconds).items()
        }
        besides = ms[OURS] - ms[NATIVE] + ms[LOOKS]
        rows.append([name, f"{besides:.3f}", *(f"{each:.3f}" for each in ms.values())])
    print(table(["ms, one thread", "all but the kernels", *ms], rows))


def timers(shapes: list[Shape]) -> dict[str, timeit.Timer]:
    torch.manual_seed(0)
    params = [torch.randn(shape).requires_grad_() for shape in shapes]
    for p in params:
        p.grad = 0.1 * torch.randn_like(p)
    ours = Adafactor(params, lr=TIMED_LR)
    ours.step()
    call = StepCall(ours, all_parts(ours))
    native = ours._native_steps()
    arguments = {"call": native.step, "groups": call._groups, "state": ours.state}
    timed: dict[str, Any] = {
        OURS: stopwatch("step()", step=ours.step),
        NATIVE: stopwatch(
            "call(groups, state, options)", options=ours._native_options(), **arguments
        ),
        LOOKS: stopwatch(
            "call(groups, state, options)",
            options=ours._native_options(only_looks=True),
            **arguments,
        ),
        "AdamW(fused=True)": stopwatch(
            "step()", step=torch.optim.AdamW(params, lr=TIMED_LR, fused=True).step
        ),
        "torch's Adafactor": stopwatch(
            "step()", step=torch.optim.Adafactor(params, lr=TIMED_LR, foreach=False).step
        ),
    }
    for timer in timed.values():
        timer.timeit(2)
    return timed


if __name__ == "__main__":
    main()

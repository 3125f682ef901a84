"""What a call costs: a 16x16 step from Python beside an empty call of the extension.

`python bench/call.py`
"""

from __future__ import annotations

from adafactor_native import AdaFactor
from adafactor_native._runtime import _core
from harness import TIMED_LR, summary, time_in_turns
from problems import one_array
from stopwatch import stopwatch

SECONDS = 4  # each


def main() -> None:
    (param,), (grad,), _ = one_array("call", (16, 16), threads=1).arrays()
    update = AdaFactor(param.shape, TIMED_LR).update
    timers = {
        "update of 16x16": stopwatch("update(param, grad)", update=update, param=param, grad=grad),
        "empty call": stopwatch("empty()", empty=_core.max_threads),
    }
    for name, times in time_in_turns(timers, SECONDS).items():
        print(name, {quantile: f"{ns:.0f} ns" for quantile, ns in summary(times)["ns"].items()})


if __name__ == "__main__":
    main()

"""Our optimizers of torch's kind, on torch's tensors."""

from __future__ import annotations

from typing import Any

import names
from adafactor_native.torch import Adafactor
from contenders import bytes_moved
from contenders.contender import Contender
from contenders.half import within
from contenders.torch_optim import EPS, adafactor_reference, half_adafactor_reference
from contenders.torch_steps import MakeOptimizer, half_torch_steps, torch_steps
from harness import CHECKED_STEPS


def adafactor(**options: Any) -> MakeOptimizer:
    def make(params: list[Any], lr: float) -> Any:
        return Adafactor(params, lr=lr, eps=EPS, **options)

    return make


CONTENDERS = [
    Contender(
        names.IN_TORCH,
        torch_steps(adafactor()),
        adafactor_reference,
        bytes_moved.adafactor,
    ),
    Contender(
        names.IN_TORCH_HALF,
        half_torch_steps(adafactor()),
        half_adafactor_reference,
        bytes_moved.in_halves(bytes_moved.adafactor),
        allowed_error=within(1, "bfloat16"),
        half=True,
    ),
    Contender(
        names.IN_TORCH_STOCHASTIC,
        half_torch_steps(adafactor(rounding="stochastic")),
        adafactor_reference,
        bytes_moved.in_halves(bytes_moved.adafactor),
        allowed_error=within(CHECKED_STEPS, "bfloat16"),
        half=True,
    ),
]

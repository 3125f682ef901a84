"""torch.optim's Adafactor in each of its forms, and its fused AdamW, what torch has of C++ here."""

from __future__ import annotations

from typing import Any

import torch

import names
from contenders import bytes_moved
from contenders.contender import Contender, Update, but_the_largest
from contenders.half import rounded_after_steps, within
from contenders.references import AdamW, HalfAdamW, TorchAdafactor
from contenders.torch_steps import (
    MakeOptimizer,
    allowed_error,
    compiled_torch_steps,
    half_torch_steps,
    torch_steps,
)
from problems import Array, Problem, usable_cores

COMPILED_SHAPES = {((1024, 1024),), ((4096, 4096),)}
EPS = (TorchAdafactor.floor, 1e-3)  # torch's default for float32, and for float64 here too


def adafactor(foreach: bool) -> MakeOptimizer:
    def make(params: list[Any], lr: float) -> Any:
        return torch.optim.Adafactor(params, lr=lr, eps=EPS, foreach=foreach)

    return make


def adamw(params: list[Any], lr: float) -> Any:
    return torch.optim.AdamW(params, lr=lr, fused=True)


def without_gaps(problem: Problem) -> bool:
    """Of a slice, the fused kernel of torch 2.13 makes something else, off by 5e-3."""
    return problem.layout != "slice"


def worth_compiling(problem: Problem) -> bool:
    """Each shape and each number of threads is compiled anew, for up to a minute."""
    return (
        problem.shapes in COMPILED_SHAPES
        and (problem.dtype, problem.layout) == ("float32", "C")
        and problem.threads == usable_cores()
    )


def adafactor_reference(param: Array, lr: float) -> Update:
    return TorchAdafactor(param, lr).update


half_adafactor_reference = rounded_after_steps(adafactor_reference, "bfloat16")


def adamw_reference(param: Array, lr: float) -> Update:
    return AdamW(param, lr).update


def half_adamw_reference(param: Array, lr: float) -> Update:
    return HalfAdamW(param, lr).update


CONTENDERS = [
    Contender(
        names.TORCH,
        torch_steps(adafactor(foreach=False)),
        adafactor_reference,
        bytes_moved.adafactor,
        allowed_error=allowed_error,
    ),
    Contender(
        names.TORCH_FOREACH,
        torch_steps(adafactor(foreach=True)),
        adafactor_reference,
        bytes_moved.adafactor,
        allowed_error=allowed_error,
        takes=but_the_largest,
    ),
    Contender(
        names.TORCH_COMPILED,
        compiled_torch_steps(adafactor(foreach=True)),  # the other form does not compile whole
        adafactor_reference,
        bytes_moved.adafactor,
        allowed_error=allowed_error,
        takes=worth_compiling,
    ),
    Contender(
        names.TORCH_ADAMW,
        torch_steps(adamw),
        adamw_reference,
        bytes_moved.adamw,
        takes=without_gaps,
    ),
    *(
        Contender(
            name,
            half_torch_steps(adafactor(foreach)),
            half_adafactor_reference,
            bytes_moved.in_halves(bytes_moved.adafactor),
            allowed_error=within(1, "bfloat16"),
            half=True,
        )
        for name, foreach in ((names.TORCH_HALF, False), (names.TORCH_FOREACH_HALF, True))
    ),
    Contender(
        names.TORCH_ADAMW_HALF,
        half_torch_steps(adamw),
        half_adamw_reference,
        bytes_moved.in_halves(bytes_moved.adamw),
        allowed_error=within(1, "bfloat16"),
        half=True,
    ),
]

"""Hugging Face's Adafactor, with the learning rate given and scaled by RMS(param), as in ours."""

from __future__ import annotations

from typing import Any

from transformers.optimization import Adafactor

import names
from contenders import bytes_moved
from contenders.contender import Contender, Update, on_all_cores
from contenders.half import rounded_after_steps, within
from contenders.references import TransformersAdafactor
from contenders.torch_steps import allowed_error, half_torch_steps, torch_steps
from problems import Array


def adafactor(params: list[Any], lr: float) -> Any:
    return Adafactor(params, lr=lr, scale_parameter=True, relative_step=False)


def reference(param: Array, lr: float) -> Update:
    return TransformersAdafactor(param, lr).update


CONTENDERS = [
    Contender(
        names.TRANSFORMERS,
        torch_steps(adafactor),
        reference,
        bytes_moved.adafactor,
        allowed_error=allowed_error,
        takes=on_all_cores,
    ),
    Contender(
        names.TRANSFORMERS_HALF,
        half_torch_steps(adafactor),
        rounded_after_steps(reference, "bfloat16"),
        bytes_moved.in_halves(bytes_moved.adafactor),
        allowed_error=within(1, "bfloat16"),
        half=True,
    ),
]

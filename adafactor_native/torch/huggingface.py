"""transformers.Adafactor and its schedule, stepped by the native extension."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from adafactor_native.torch.optimizer import NativeOptimizer
from adafactor_native.torch.settings import Dialect
from adafactor_native.torch.state import HUGGINGFACE_NAMES


class HuggingFaceAdafactor(NativeOptimizer):
    """A drop-in ``transformers.Adafactor`` for parameters in this machine's memory.

    The formula, the arguments, the groups and the names of the state are those of transformers 5, and
    each class loads the other's ``state_dict()``. transformers need not be installed.

    Parameters
    ----------
    params : iterable of Tensor, of (str, Tensor) or of dict
    lr : float or None
        None with `relative_step`, which chooses it.
    eps : pair of float
        Added to the squared gradient; the least that RMS(param) counts as.
    clip_threshold : float
        RMS(u) is clipped at it.
    decay_rate : float
        ``beta2_t = 1 - t**decay_rate``; <= 0.
    beta1 : float or None
        Keep a first moment of the step.
    weight_decay : float
        Decoupled, times the step size.
    scale_parameter : bool
        The step size is proportional to RMS(param).
    relative_step : bool
        The step size is ``min(1e-2, 1/sqrt(t))``, or with `warmup_init` ``min(1e-6 * t, 1/sqrt(t))``.
    warmup_init : bool
    nonfinite, rounding, masters, momentum_dtype, num_threads, state_dtype, max_grad_norm, seed,
    sums
        See `NativeOptions`; attributes of ``opt.options``.

    Notes
    -----
    Unlike theirs: running means are float64; ``state["RMS"]`` is a float, and is brought up to date only
    where `scale_parameter` needs it.
    """

    _dialect = Dialect(
        "huggingface",
        "lr",
        (
            "eps",
            "clip_threshold",
            "decay_rate",
            "beta1",
            "weight_decay",
            "scale_parameter",
            "relative_step",
            "warmup_init",
        ),
        HUGGINGFACE_NAMES,
    )

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | None = None,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
        **options: Any,
    ) -> None:
        if lr is not None and relative_step:
            raise ValueError("Cannot combine manual `lr` and `relative_step=True` options")
        if warmup_init and not relative_step:
            raise ValueError("`warmup_init=True` requires `relative_step=True`")
        defaults = {
            "lr": lr,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "decay_rate": decay_rate,
            "beta1": beta1,
            "weight_decay": weight_decay,
            "scale_parameter": scale_parameter,
            "relative_step": relative_step,
            "warmup_init": warmup_init,
        }
        super().__init__(params, defaults, options)

    @staticmethod
    def _get_lr(param_group: Mapping[str, Any], param_state: Mapping[str, Any]) -> Any:
        """Return the step size of a parameter's last step, as ``AdafactorSchedule`` asks for it."""
        size = param_group["lr"]
        if param_group["relative_step"]:
            least = 1e-6 * param_state["step"] if param_group["warmup_init"] else 1e-2
            size = min(least, 1.0 / math.sqrt(param_state["step"]))
        if param_group["scale_parameter"]:
            size *= max(param_group["eps"][1], param_state["RMS"])
        return size

    def _placeholder_lr(self, group: Mapping[str, Any]) -> Any:
        return None if group["relative_step"] else 0.0

    def _lr(self, group: Mapping[str, Any]) -> Any:
        if group["relative_step"]:  # whatever a schedule has written there
            return None
        if group["lr"] is None:
            raise ValueError("lr is None, must be a number with relative_step=False")
        return group["lr"]


class AdafactorSchedule(torch.optim.lr_scheduler.LambdaLR):
    """``transformers.optimization.AdafactorSchedule``: shows the step sizes that the optimizer chose.

    For loops that log a scheduler's ``get_lr()``; it sets nothing that a step with `relative_step`
    looks at.

    Parameters
    ----------
    optimizer : HuggingFaceAdafactor
    initial_lr : float
        What is shown before the first step.
    """

    def __init__(self, optimizer: HuggingFaceAdafactor, initial_lr: float = 0.0) -> None:
        for group in optimizer.param_groups:
            group["initial_lr"] = initial_lr
        super().__init__(optimizer, lambda _: initial_lr)
        for group in optimizer.param_groups:
            del group["initial_lr"]

    def get_lr(self) -> list[Any]:
        opt = self.optimizer
        lrs = [
            opt._get_lr(group, opt.state[group["params"][0]])
            for group in opt.param_groups
            if group["params"][0].grad is not None
        ]
        return lrs or self.base_lrs

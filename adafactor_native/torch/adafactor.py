"""torch.optim.Adafactor, stepped by the native extension."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from adafactor_native.torch.optimizer import NativeOptimizer
from adafactor_native.torch.settings import Dialect
from adafactor_native.torch.state import TORCH_NAMES


class Adafactor(NativeOptimizer):
    """A drop-in ``torch.optim.Adafactor`` for parameters in this machine's memory.

    The formula, the arguments, the groups, the names of the state and the errors are torch's, and
    each class loads the other's ``state_dict()``. Parameters and gradients are float32, float64,
    bfloat16 or float16, of any strides, and are changed in place without a temporary of their size.
    A DTensor is stepped as the whole would be, together with all other ranks. What is on another
    device, or of another subclass of Tensor, is stepped by torch's own function.

    Parameters
    ----------
    params : iterable of Tensor, of (str, Tensor) or of dict
        As for every optimizer of torch.
    lr : float or Tensor
        The largest relative step size rho_t, and what weight decay is multiplied by.
    beta2_decay : float
        ``beta2_t = 1 - t**beta2_decay``; <= 0.
    eps : pair of (float or None, float)
        The first clamps ``sqrt(V)`` and the mean of V from below; None is the machine epsilon of the
        parameter's dtype, as in torch. In half precision that is 2**-7 or 2**-10, which makes steps
        of small gradients far too small (75 times, for gradients of 1e-4 in bfloat16): give
        ``eps=(1e-7, 1e-3)`` there. The second is the least that RMS(param) counts as.
    d : float
        RMS(u) is clipped at it; >= 1.
    weight_decay : float
        Decoupled, times lr.
    foreach : bool or None
        Accepted; what torch's own function steps obeys it.
    maximize : bool
        Step uphill.
    nonfinite, rounding, masters, num_threads, state_dtype, max_grad_norm, seed, sums
        See `NativeOptions`; attributes of ``opt.options``. A group may have a ``"rounding"`` or
        ``"masters"`` of its own.

    Notes
    -----
    Unlike torch's: running means are float64 and stay it when they are loaded, so that a resumed run
    has the bits of one that was never stopped, in bfloat16 too; with ``eps=(None, ...)`` every tensor
    has the machine epsilon of its own dtype (torch's has that of the group's first); a
    tensor without elements is stepped over (torch's fails).

    A first step with every lr and every gradient zero makes the state and counts no step, which is
    how distributed checkpoints ask for it.
    """

    _dialect = Dialect(
        "torch",
        "lr",
        ("beta2_decay", "eps", "d", "weight_decay", "maximize"),
        TORCH_NAMES,
        has_others=True,
    )

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        nonfinite: str = "propagate",
        rounding: str = "nearest",
        masters: str | None = None,
        num_threads: int | None = None,
        state_dtype: torch.dtype | str = torch.float64,
        max_grad_norm: float | None = None,
        seed: int = 0,
        sums: str = "fast",
    ) -> None:
        if isinstance(lr, torch.Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if not lr >= 0.0:
            raise ValueError(f"Learning rate should be >= 0 but is: {lr}")
        if not beta2_decay <= 0.0:
            raise ValueError(f"beta2_decay should be <= 0 but is: {beta2_decay}")
        if eps[0] is not None and not eps[0] >= 0.0:
            raise ValueError(f"epsilon1 should be >= 0 but is: {eps[0]}")
        if not eps[1] >= 0.0:
            raise ValueError(f"epsilon2 should be >= 0 but is: {eps[1]}")
        if not d >= 1.0:
            raise ValueError(f"Clipping threshold d should be >= 1 but is: {d}")
        if not weight_decay >= 0.0:
            raise ValueError(f"weight_decay should be >= 0 but is: {weight_decay}")
        defaults = {
            "lr": lr,
            "beta2_decay": beta2_decay,
            "eps": eps,
            "d": d,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
        }
        options = {
            "nonfinite": nonfinite,
            "rounding": rounding,
            "masters": masters,
            "num_threads": num_threads,
            "state_dtype": state_dtype,
            "max_grad_norm": max_grad_norm,
            "seed": seed,
            "sums": sums,
        }
        super().__init__(params, defaults, options)

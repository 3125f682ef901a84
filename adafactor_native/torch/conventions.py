"""optax's, big_vision's and plain NumPy's Adafactor as optimizers of torch's kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from adafactor_native.torch.optimizer import NativeOptimizer
from adafactor_native.torch.settings import Dialect
from adafactor_native.torch.state import TORCH_NAMES

Rate = Any  # a number, or a callable of the count of steps


class OptaxAdafactor(NativeOptimizer):
    """``optax.adafactor`` for torch's parameters.

    Parameters
    ----------
    params : iterable of Tensor, of (str, Tensor) or of dict
    learning_rate : float, callable or None
        ``group["lr"]``, which schedulers of torch set. A callable gets optax's count, t - 1. None is
        1, as there.
    min_dim_size_to_factor : int
        The two largest axes are factored, if both are at least as long.
    decay_rate : float
        ``beta2_t = 1 - t**-decay_rate``.
    decay_offset : int
    multiply_by_parameter_scale : bool
    clipping_threshold : float or None
    momentum : float or None
        Of the step; state ``"exp_avg"``.
    weight_decay_rate : float, callable or None
        Decay that is multiplied by nothing.
    eps : float
    factored : bool
    **options
        See `NativeOptions`; optax's ``dtype_momentum`` is `momentum_dtype`.

    Notes
    -----
    All parameters have one t: the largest count of steps of any. The state has torch's names;
    ``row_var`` and ``col_var`` have the axes that are not factored first.
    """

    _dialect = Dialect(
        "optax",
        "learning_rate",
        (
            "min_dim_size_to_factor",
            "decay_rate",
            "decay_offset",
            "multiply_by_parameter_scale",
            "clipping_threshold",
            "momentum",
            "weight_decay_rate",
            "eps",
            "factored",
        ),
        TORCH_NAMES,
    )

    def __init__(
        self,
        params: Iterable[Any],
        learning_rate: Rate = None,
        min_dim_size_to_factor: int = 128,
        decay_rate: float = 0.8,
        decay_offset: int = 0,
        multiply_by_parameter_scale: bool = True,
        clipping_threshold: float | None = 1.0,
        momentum: float | None = None,
        weight_decay_rate: Rate = None,
        eps: float = 1e-30,
        factored: bool = True,
        **options: Any,
    ) -> None:
        defaults = {
            "lr": 1.0 if learning_rate is None else learning_rate,
            "min_dim_size_to_factor": min_dim_size_to_factor,
            "decay_rate": decay_rate,
            "decay_offset": decay_offset,
            "multiply_by_parameter_scale": multiply_by_parameter_scale,
            "clipping_threshold": clipping_threshold,
            "momentum": momentum,
            "weight_decay_rate": weight_decay_rate,
            "eps": eps,
            "factored": factored,
        }
        super().__init__(params, defaults, options)


class BigVisionAdafactor(NativeOptimizer):
    """big_vision's Adafactor (Zhai et al. 2022) for torch's parameters.

    Parameters
    ----------
    params : iterable of Tensor, of (str, Tensor) or of dict
    lr : float
        Must be given.
    wd : float or callable
        Decay, times the schedule and not times lr. A callable gets t - 1.
    schedule : callable or None
        Of t - 1; multiplies lr and the decay.
    decay_rate, decay_offset, beta2_cap : float, int, float
        ``beta2_t = min(beta2_cap, 1 - (t - decay_offset)**-decay_rate)``.
    clipping_threshold : float or None
    momentum : float or None
        Of u; state ``"exp_avg"``.
    eps : float
    min_dim_size_to_factor : int
    **options
        See `NativeOptions`; big_vision's ``dtype_momentum`` is `momentum_dtype`, torch.bfloat16 there.

    Notes
    -----
    As for `OptaxAdafactor`.
    """

    _dialect = Dialect(
        "big_vision",
        "lr",
        (
            "wd",
            "schedule",
            "decay_rate",
            "decay_offset",
            "beta2_cap",
            "clipping_threshold",
            "momentum",
            "eps",
            "min_dim_size_to_factor",
        ),
        TORCH_NAMES,
    )

    def __init__(
        self,
        params: Iterable[Any],
        lr: Rate,
        wd: Rate = 0.0,
        schedule: Callable[[int], float] | None = None,
        decay_rate: float = 0.8,
        decay_offset: int = 0,
        beta2_cap: float = 0.999,
        clipping_threshold: float | None = None,
        momentum: float | None = 0.9,
        eps: float = 1e-30,
        min_dim_size_to_factor: int = 32,
        **options: Any,
    ) -> None:
        defaults = {
            "lr": lr,
            "wd": wd,
            "schedule": schedule,
            "decay_rate": decay_rate,
            "decay_offset": decay_offset,
            "beta2_cap": beta2_cap,
            "clipping_threshold": clipping_threshold,
            "momentum": momentum,
            "eps": eps,
            "min_dim_size_to_factor": min_dim_size_to_factor,
        }
        super().__init__(params, defaults, options)


class NumpyAdafactor(NativeOptimizer):
    """The twenty lines of NumPy that this package began as, for torch's parameters.

    Parameters
    ----------
    params : iterable of Tensor, of (str, Tensor) or of dict
    lr, beta2, eps, clip_threshold, scale_parameter
        As for `adafactor_native.AdaFactor`: beta2 is a constant, eps is added to the squared gradient
        and to sqrt(V), and with `scale_parameter` a parameter of zeros never moves.
    weight_decay : float
        Times lr.
    **options
        See `NativeOptions`.
    """

    _dialect = Dialect(
        "numpy",
        "lr",
        ("beta2", "eps", "clip_threshold", "scale_parameter", "weight_decay"),
        TORCH_NAMES,
    )

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        beta2: float = 0.999,
        eps: float = 1e-30,
        clip_threshold: float | None = 1.0,
        scale_parameter: bool = True,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        defaults = {
            "lr": lr,
            "beta2": beta2,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "scale_parameter": scale_parameter,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults, options)

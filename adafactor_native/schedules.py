"""Learning rates that depend on t, as callables for ``lr=`` and ``param_groups``.

Each is an object that is called with t, which is 1 at the first step. With `warmup` w it is
``peak * t / w`` up to step w, where it is `peak`; without, it is `peak` at the first step. They can be
pickled with an optimizer, compared and printed. As a factor of another learning rate, for
``schedule=``, give them a peak of 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from adafactor_native import hyperparameters as hyper

__all__ = ["Constant", "Cosine", "InverseRoot", "Linear"]


@dataclass(frozen=True)
class _WarmedUp:
    """A peak that is reached by a line through zero."""

    peak: float
    warmup: int = 0

    def __post_init__(self) -> None:
        self._check("peak", hyper.non_negative("peak", self.peak))
        self._check("warmup", hyper.count("warmup", self.warmup))

    def _check(self, name: str, value: float) -> None:
        object.__setattr__(self, name, value)

    def __call__(self, t: int) -> float:
        """Return the learning rate of step t, which is 1 at first."""
        if t < self.warmup:
            return self.peak * t / self.warmup
        return self._after(t)

    def _after(self, t: int) -> float:
        """Return what it is once the peak was reached."""
        return self.peak


@dataclass(frozen=True)
class Constant(_WarmedUp):
    """`peak` for ever.

    Parameters
    ----------
    peak : float
        Finite, at least 0.
    warmup : int, default 0
        Steps up to and with the first at `peak`.

    Examples
    --------
    >>> from adafactor_native import schedules
    >>> lr = schedules.Constant(0.5, warmup=5)
    >>> [lr(t) for t in (1, 4, 5, 100)]
    [0.1, 0.4, 0.5, 0.5]
    """


@dataclass(frozen=True)
class InverseRoot(_WarmedUp):
    """``peak * sqrt(w / t)`` with w = max(1, warmup): the schedule of "Attention is all you need".

    Parameters
    ----------
    peak, warmup
        As of `Constant`.

    Examples
    --------
    >>> from adafactor_native import schedules
    >>> lr = schedules.InverseRoot(0.5, warmup=4)
    >>> [lr(t) for t in (1, 4, 16, 64)]
    [0.125, 0.5, 0.25, 0.125]
    """

    def _after(self, t: int) -> float:
        first = max(1, self.warmup)
        return self.peak * math.sqrt(first / max(first, t))


@dataclass(frozen=True)
class _Falling(_WarmedUp):
    """From the peak to `final` at step `steps`, and `final` from then on."""

    steps: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("steps", hyper.count("steps", self.steps))
        self._check("final", hyper.non_negative("final", self.final))
        first = max(1, self.warmup)
        if self.steps <= first:
            raise ValueError(
                f"steps is {self.steps}, must be more than {first}: the step at which {self.peak} is "
                "reached"
            )

    def _after(self, t: int) -> float:
        first = max(1, self.warmup)
        progress = min(1.0, max(0, t - first) / (self.steps - first))
        return self.final + (self.peak - self.final) * self._left(progress)

    def _left(self, progress: float) -> float:
        """Return how much of the way from `final` up to `peak` is left, 1 at first and 0 at last."""
        return 1 - progress


@dataclass(frozen=True)
class Linear(_Falling):
    """A line from `peak` down, or up, to `final`.

    Parameters
    ----------
    peak, warmup
        As of `Constant`.
    steps : int
        The step at which `final` is reached, warm-up included: the run's number of steps.
    final : float, default 0
        Finite, at least 0; what it stays at.

    Examples
    --------
    >>> from adafactor_native import schedules
    >>> lr = schedules.Linear(1.0, steps=5)
    >>> [lr(t) for t in (1, 2, 3, 4, 5, 6)]
    [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """


@dataclass(frozen=True)
class Cosine(_Falling):
    """Half a cosine from `peak` down, or up, to `final`.

    Parameters
    ----------
    peak, warmup, steps, final
        As of `Linear`.

    Examples
    --------
    >>> import numpy as np
    >>> from adafactor_native import Optimizer, schedules
    >>> opt = Optimizer([np.ones(3)], lr=schedules.Cosine(0.5, warmup=10, steps=110, final=0.1))
    >>> opt.param_groups[0]["lr"](10), round(opt.param_groups[0]["lr"](60), 9)
    (0.5, 0.3)
    """

    def _left(self, progress: float) -> float:
        return (1 + math.cos(math.pi * progress)) / 2

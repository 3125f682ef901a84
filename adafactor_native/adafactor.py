"""The optimizer of one array."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from math import inf
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from adafactor_native import hyperparameters as hyper
from adafactor_native._runtime import _core
from adafactor_native.hyperparameters import HyperParameter
from adafactor_native.switches import DEFAULTS, rule_of

Float64Array = npt.NDArray[np.float64]


class AdaFactor:
    r"""Adafactor for one parameter array, updated in place.

    With ``q = grad**2 + eps``, a matrix keeps two running means instead of one of its own size::

        exp_row = beta2 * exp_row + (1 - beta2) * mean of q over each row
        exp_col = beta2 * exp_col + (1 - beta2) * mean of q over each column
        V       = outer(exp_row, exp_col) / mean(exp_row)

    Any other shape is unfactored: ``V = v = beta2 * v + (1 - beta2) * q``. Then for all::

        u       = grad / (sqrt(V) + eps)
        u       = u / max(1, RMS(u) / clip_threshold)
        param  -= lr * (RMS(param) if scale_parameter else 1) * u

    where RMS is the root of the mean square, and RMS(param) is that before the step.

    Parameters
    ----------
    shape : sequence of int
        Shape of the parameter. Two axes: factored.
    lr : float
        Learning rate, finite, at least 0; relative to RMS(param) if `scale_parameter`.
    beta2 : float
        Weight of the old means, in [0, 1].
    eps : float
        Added to the squared gradient and to the root of V; finite, at least 0.
    clip_threshold : float or None
        Largest RMS(u), above 0. None turns clipping off.
    scale_parameter : bool
        Whether the step is proportional to RMS(param). A parameter of zeros then never moves.
    num_threads : int or None
        Most threads of a step; None: that of `set_num_threads`. Results do not depend on it.
    nonfinite : {"raise", "skip", "propagate"}
        What becomes of a step that would not be finite: refused with a FloatingPointError, left
        out and counted in `skipped`, or taken as IEEE arithmetic has it. The first two change
        nothing at all.
    carry_param_rms : bool
        Whether RMS(param) is taken over from the step before, which had `param` in hand when it
        wrote it, rather than read once more: the same bits, a fifth less memory traffic. **Wrong
        if anything else writes to** `param` **between steps** (weight decay, clipping, a loaded
        checkpoint), unless you then call `param_changed`. Every step sums a sixteenth of `param`
        again, in rotation, and all of it where a sum differs; so a change of everything is found
        at once, a change of a few elements within 16 steps. Another `param` object, address,
        dtype or strides is noticed at once. (``param.resize`` in place is refused by NumPy: a weak
        reference is kept.)
    rounding : {"nearest", "stochastic"}
        How a param of float16 or bfloat16 is rounded: ties to even, or up or down at random so that
        the mean is right.
    seed : int
        Of the random bits, in [0, 2**63): each is a function of seed, t and the element's position
        in memory.

    Attributes
    ----------
    shape : tuple of int
    factored : bool
    exp_row, exp_col : ndarray of float64, shapes (rows,) and (cols,), or None if unfactored
        The running means themselves, not copies: `update` writes to them.
    v : ndarray of float64, shape `shape`, or None if factored
        Likewise.
    t : int
        Steps taken.
    skipped : int
        Steps left out with ``nonfinite="skip"``.

    All hyper-parameters are attributes too, and can be set between steps.

    Raises
    ------
    TypeError, ValueError
        If an argument, or a hyper-parameter set later, is of the wrong type or out of range.

    Notes
    -----
    The second moment and its factors are Shazeer & Stern's [1]_ (Algorithms 4 and 5), with a
    constant `beta2`, `eps` a second time under the fraction, and no floor under RMS(param). sqrt(V)
    is a product of roots: it remains right where V is less than any float64.

    One object serves one thread at a time. It can be pickled and copied; a copy continues with the
    same bits.

    References
    ----------
    .. [1] N. Shazeer, M. Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
       ICML 2018, https://arxiv.org/abs/1804.04235

    Examples
    --------
    >>> import numpy as np
    >>> from adafactor_native import AdaFactor
    >>> param = np.ones((2, 3), np.float32)
    >>> opt = AdaFactor(param.shape, lr=0.1)
    >>> opt.update(param, np.ones((2, 3))) is param
    True
    >>> param
    array([[0.9, 0.9, 0.9],
           [0.9, 0.9, 0.9]], dtype=float32)
    """

    lr = HyperParameter(hyper.non_negative)
    beta2 = HyperParameter(hyper.fraction)
    eps = HyperParameter(hyper.non_negative)
    clip_threshold = HyperParameter(hyper.positive_or_none)
    scale_parameter = HyperParameter(hyper.boolean)
    num_threads = HyperParameter(hyper.threads_or_none)
    nonfinite = HyperParameter(hyper.nonfinite_policy)
    carry_param_rms = HyperParameter(hyper.boolean)
    rounding = HyperParameter(hyper.one_of("nearest", "stochastic"))
    seed = HyperParameter(hyper.count)

    def __init__(
        self,
        shape: Sequence[SupportsIndex],
        lr: float = 1e-2,
        beta2: float = 0.999,
        eps: float = 1e-30,
        clip_threshold: float | None = 1.0,
        scale_parameter: bool = True,
        *,
        num_threads: int | None = None,
        nonfinite: str = "raise",
        carry_param_rms: bool = False,
        rounding: str = "nearest",
        seed: int = 0,
    ) -> None:
        self._plan: _core.Plan | None = None
        self._shape = _checked_shape(shape)
        self.lr = lr
        self.beta2 = beta2
        self.eps = eps
        self.clip_threshold = clip_threshold
        self.scale_parameter = scale_parameter
        self.num_threads = num_threads
        self.nonfinite = nonfinite
        self.carry_param_rms = carry_param_rms
        self.rounding = rounding
        self.seed = seed

        self._exp_row: Float64Array | None = None
        self._exp_col: Float64Array | None = None
        self._v: Float64Array | None = None
        if len(self._shape) == 2:
            self._exp_row, self._exp_col = (np.zeros(n) for n in self._shape)
        else:
            self._v = np.zeros(self._shape)
        self._hold_state()

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def factored(self) -> bool:
        return self._v is None

    @property
    def exp_row(self) -> Float64Array | None:
        return self._exp_row

    @property
    def exp_col(self) -> Float64Array | None:
        return self._exp_col

    @property
    def v(self) -> Float64Array | None:
        return self._v

    @property
    def t(self) -> int:
        return self._tensors.t

    @property
    def skipped(self) -> int:
        return self._tensors.skipped

    def update(
        self, param: npt.NDArray[Any], grad: npt.NDArray[Any] | np.floating[Any]
    ) -> npt.NDArray[Any]:
        """Take one step: change `param` and the state in place.

        Parameters
        ----------
        param : ndarray of float16, bfloat16, float32 or float64, shape `shape`
            The parameters; overwritten. Any strides, any alignment; writeable, never converted.
            bfloat16 is that of ml_dtypes.
        grad : ndarray of float16, bfloat16, float32 or float64, shape `shape`
            The gradient, only read. Its dtype and strides need not be `param`'s. For a shape of
            no axes a NumPy scalar will do.

        Returns
        -------
        ndarray
            `param` itself.

        Raises
        ------
        TypeError
            If `param` or `grad` is not an array of one of these dtypes.
        ValueError
            If a shape is wrong, a byte order is not the machine's, `param` is read-only, or
            `param`, `grad` and the state share memory.
        FloatingPointError
            With ``nonfinite="raise"``: if `grad` holds a nan or an infinity, or a float64 whose
            square overflows, or `param` does while its RMS is needed, or V is zero where eps is.
            The message has the index of the first such element.
        RuntimeError
            If another thread is in `update` of this object.

        Whatever is raised, `param`, the state and `t` are as before.
        """
        self._update(self._plan or self._new_plan(), param, grad)
        return param

    def param_changed(self) -> None:
        """Say that somebody else has written to `param`: the next step reads all of it.

        Needed with `carry_param_rms` only.
        """
        self._tensors.forget_params()

    def _hold_state(self) -> None:
        self._tensors = _core.Tensors(self._shape, self._exp_row, self._exp_col, self._v)
        self._update = self._tensors.update  # looked up once: a call is all that a small step is

    def _new_plan(self) -> _core.Plan:
        """Return all that a step takes but param and grad, kept until a change."""
        switches = {
            **DEFAULTS,
            "beta2": self.beta2,
            "eps": self.eps,
            "clip_threshold": self.clip_threshold,
            "scale_parameter": self.scale_parameter,
            "rounding": self.rounding,
        }
        self._plan = _core.Plan(
            rules=[rule_of(switches)],
            lr=[self.lr],
            decay=[0.0],
            nonfinite=_core.NonFinite[self.nonfinite],
            all_or_none=True,
            max_grad_norm=inf,
            num_threads=self.num_threads or 0,
            carry_param_rms=self.carry_param_rms,
            seed=self.seed,
        )
        return self._plan

    def _hyper_parameter_changed(self) -> None:
        self._plan = None

    def __repr__(self) -> str:
        values = "".join(
            f", {name}={getattr(self, name)!r}"
            for name, attribute in vars(AdaFactor).items()
            if isinstance(attribute, HyperParameter)
        )
        kind = "factored" if self.factored else "unfactored"
        return f"<AdaFactor(shape={self.shape}{values}), {kind}, t={self.t}>"

    def __getstate__(self) -> dict[str, Any]:
        own = {k: v for k, v in vars(self).items() if k not in ("_tensors", "_update", "_plan")}
        return {**own, "t": self.t, "skipped": self.skipped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = dict(state)
        t, skipped = own.pop("t"), own.pop("skipped")
        vars(self).update(own)
        self._plan = None
        self._hold_state()
        self._tensors.set_counts(t, skipped, [t])

    def __copy__(self) -> AdaFactor:
        """Return a copy with state of its own: two objects must not write to the same arrays."""
        return copy.deepcopy(self)


def _checked_shape(shape: Any) -> tuple[int, ...]:
    must_be = "must be a sequence of ints >= 0"
    try:
        axes = tuple(operator.index(n) for n in shape)
    except TypeError:
        raise TypeError(f"shape is {shape!r}, {must_be}") from None
    if any(n < 0 for n in axes):
        raise ValueError(f"shape is {axes}, {must_be}")
    return axes

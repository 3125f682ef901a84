"""The optimizer of one array."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping, Sequence
from functools import partial
from math import inf
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from adafactor_native import hyperparameters as hyper
from adafactor_native import state_files
from adafactor_native._runtime import _core
from adafactor_native.conventions import CONVENTIONS
from adafactor_native.flat_state import (
    header_array,
    read_state,
    require_same,
    staged_arrays,
    steps,
)
from adafactor_native.gradients import Gradient
from adafactor_native.guards import RunGuard
from adafactor_native.hyperparameters import HyperParameter
from adafactor_native.report import NEWLY_STUCK, SKIPPED
from adafactor_native.rules import rule_of
from adafactor_native.suggestions import KnownAttributes
from adafactor_native.switches import state_dtype as checked_state_dtype
from adafactor_native.taking_over import all_at_once, fill, require_sound, require_writeable

Means = npt.NDArray[Any]  # of float64 or float32

FORMAT = "adafactor_native.AdaFactor"
FORMAT_VERSION = 1

# What a state_dict has of the hyper-parameters: all that the bits of later steps depend on.
_SAVED = ("lr", "beta2", "eps", "clip_threshold", "scale_parameter", "rounding", "seed")


class AdaFactor(KnownAttributes):
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
    lr : float, default 1e-2
        Learning rate, finite, at least 0; relative to RMS(param) if `scale_parameter`.
    beta2 : float, default 0.999
        Weight of the old means, in [0, 1].
    eps : float, default 1e-30
        Added to the squared gradient and to the root of V; finite, at least 0.
    clip_threshold : float or None, default 1.0
        Largest RMS(u), above 0. None turns clipping off.
    scale_parameter : bool, default True
        Whether the step is proportional to RMS(param). A parameter of zeros then never moves, though
        `t` counts its steps, and a `StuckTensorWarning` says so; `Optimizer` with an `eps_scale` above
        0 moves it.
    num_threads : int or None, default None
        Most threads of a step; None: that of `set_num_threads`. Results do not depend on it.
    nonfinite : {"raise", "skip", "propagate"}, default "raise"
        What becomes of a step that would not be finite. "raise" refuses it with a
        FloatingPointError, "skip" leaves it out, counts it in `skipped` and warns by a
        `SkippedStepWarning` at the first and whenever their number has doubled, "propagate" takes it
        as IEEE arithmetic has it. The first two change nothing at all.
    carry_param_rms : bool, default False
        Whether RMS(param) is taken over from the step before, which had `param` in hand when it
        wrote it, rather than read once more: the same bits, a fifth less memory traffic. **Wrong
        if anything else writes to** `param` **between steps** (weight decay, clipping, a loaded
        checkpoint), unless you then call `param_changed`. Every step sums a sixteenth of `param`
        again, in rotation, and all of it where a sum differs; so a change of everything is found
        at once, a change of a few elements within 16 steps. Another `param` object, address,
        dtype or strides is noticed at once. (``param.resize`` in place is refused by NumPy: a weak
        reference is kept.)
    rounding : {"nearest", "stochastic"}, default "nearest"
        How a param of float16 or bfloat16 is rounded: ties to even, or up or down at random so that
        the mean is right.
    seed : int, default 0
        Seed of the random bits of stochastic rounding, in [0, 2**63). Each bit is a function of seed,
        t and the element's position in memory: objects of one seed give all arrays of one shape the
        same bits, so that a loop over the layers of a model needs a seed for each; `Optimizer` has
        bits of its own for each tensor.
    state_dtype : {"float64", "float32"}, default "float64"
        What `exp_row`, `exp_col` and `v` are kept in. float32 halves them, and with `v` a step moves
        32 bytes for each float32 element instead of 44. A step computes as with float64, from what
        is kept; the new means are rounded once, to nearest, when they are kept (see Notes).

    Attributes
    ----------
    shape : tuple of int
    factored : bool
    exp_row, exp_col : ndarray of `state_dtype`, shapes (rows,) and (cols,), or None if unfactored
        The running means themselves, not copies: `update` writes to them.
    v : ndarray of `state_dtype`, shape `shape`, or None if factored
        Likewise.
    state_dtype : dtype
    t : int
        Steps taken.
    skipped : int
        Steps left out with ``nonfinite="skip"``.

    All hyper-parameters are attributes too, and can be set between steps; `state_dtype` cannot.

    Raises
    ------
    TypeError, ValueError
        If an argument, or a hyper-parameter set later, is of the wrong type or out of range.

    Notes
    -----
    The second moment and its factors are Shazeer & Stern's [1]_ (Algorithms 4 and 5), with a
    constant `beta2`, `eps` a second time under the fraction, and no floor under RMS(param). sqrt(V)
    is a product of roots: it remains right where V is less than any float64.

    With ``state_dtype="float32"`` each step adds a rounding of at most 2**-24 to a mean's relative
    error, and keeps of the error before no more than the share ``beta2 * old / new`` of the new mean
    that the old one is: after t steps it is at most t * 2**-24, and 2**-24 / (1 - beta2) where
    means stay about the same (6e-5 at 0.999); u has half of it. What changes a mean by less than half
    a unit in its last place is lost: a mean stays where it is while ``q`` is within
    2**-25 / (1 - beta2) of it, relatively (3e-5 at 0.999), and with beta2 at 1 - 2**-25 or above no
    mean ever falls. Any dtype of `param` may have it, float64 too. A mean above 3.4e38, of gradients above 1.8e19,
    is refused as one that is not finite; below 1.2e-38 means lose digits, and below 7e-46 become 0.

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
        state_dtype: npt.DTypeLike = "float64",
    ) -> None:
        self._plan: _core.Plan | None = None
        self._guard = RunGuard()
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

        dtype = checked_state_dtype("state_dtype", state_dtype)
        self._exp_row: Means | None = None
        self._exp_col: Means | None = None
        self._v: Means | None = None
        if len(self._shape) == 2:
            self._exp_row, self._exp_col = (np.zeros(n, dtype) for n in self._shape)
        else:
            self._v = np.zeros(self._shape, dtype)
        self._hold_state()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        return self._shape

    @property
    def factored(self) -> bool:
        """Whether the second moment is kept as row and column means."""
        return self._v is None

    @property
    def exp_row(self) -> Means | None:
        """Running means over each row, shape (rows,), written by `update`; None if unfactored."""
        return self._seen(self._exp_row)

    @property
    def exp_col(self) -> Means | None:
        """Running means over each column, shape (cols,), written by `update`; None if unfactored."""
        return self._seen(self._exp_col)

    @property
    def v(self) -> Means | None:
        """The second moment itself, of shape `shape`, written by `update`; None if factored."""
        return self._seen(self._v)

    @property
    def state_dtype(self) -> np.dtype[Any]:
        """What the running means are kept in: float64 or float32."""
        means = next(iter(self._arrays().values()))
        return means.dtype

    @property
    def t(self) -> int:
        """Steps taken."""
        return self._tensors.t

    @property
    def skipped(self) -> int:
        """Steps left out with ``nonfinite="skip"``."""
        return self._tensors.skipped

    def update(self, param: npt.NDArray[Any], grad: Gradient) -> npt.NDArray[Any]:
        """Take one step: change `param` and the state in place.

        Parameters
        ----------
        param : ndarray of float16, bfloat16, float32 or float64, shape `shape`
            The parameters; overwritten. Any strides, any alignment; writeable, never converted.
            bfloat16 is that of ml_dtypes.
        grad : ndarray of float16, bfloat16, float32 or float64, shape `shape`
            The gradient, only read. Its dtype and strides need not be `param`'s. For a shape of
            no axes a NumPy scalar will do. So will an object that becomes such an array by
            ``__array__`` or DLPack, without a copy where it can: a tensor of torch on the CPU, of
            bfloat16 too (as float32, a copy, where ml_dtypes is not installed).

        Returns
        -------
        ndarray
            `param` itself.

        Raises
        ------
        TypeError
            If `param` or `grad` is not an array of one of these dtypes.
        ValueError
            If a shape is wrong, a byte order is not the machine's, `param` is read-only, an array of
            the state is read-only now or not of the memory, shape and dtype that it had, or
            `param`, `grad` and the state share memory.
        FloatingPointError
            With ``nonfinite="raise"``: if `grad` holds a nan or an infinity, or a float64 whose
            square overflows, or `param` does while its RMS is needed, or V is zero where eps is, or
            a mean of squares is beyond `state_dtype`. The message has the index of the first such
            element of `grad` or `param`.
        RuntimeError
            If another thread is in `update` of this object.

        Whatever is raised, `param`, the state and `t` are as before.
        """
        if flags := self._update(self._plan or self._new_plan(), param, grad):
            self._say(flags, grad)
        return param

    def _say(self, flags: int, grad: Any) -> None:
        """Say what the user of a step should know of it, and nothing about usual ones."""
        if flags & NEWLY_STUCK:
            remedy = "give it scale_parameter=False, or take an Optimizer with an eps_scale above 0"
            self._guard.stuck(["param"], remedy)
        if flags & SKIPPED:
            is_of_grad = isinstance(grad, np.ndarray) and not np.isfinite(grad).all()
            why = (
                "for grad, which is not finite" if is_of_grad else "because it would not be finite"
            )
            self._guard.skipped(f"{why}: nonfinite is 'skip'", self.skipped, self.t)

    def param_changed(self) -> None:
        """Say that somebody else has written to `param`: the next step reads all of it.

        Needed with `carry_param_rms` only.
        """
        self._tensors.forget_params()

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return copies of all that is remembered, as a flat dict of arrays.

        It goes as it is into ``numpy.savez(path, **state)`` and
        ``safetensors.numpy.save_file(state, path)``, and comes back by ``dict(numpy.load(path))``
        and ``safetensors.numpy.load_file(path)``. The parameter is not part of it.

        Returns
        -------
        dict of str to ndarray
            "exp_row" and "exp_col", or "v", of `state_dtype`; and "header", uint8: JSON with version,
            shape, `state_dtype`, counts and hyper-parameters.

        Examples
        --------
        >>> import numpy as np
        >>> from adafactor_native import AdaFactor
        >>> param, opt = np.ones((2, 3)), AdaFactor((2, 3), lr=0.1)
        >>> _ = opt.update(param, np.ones((2, 3)))
        >>> state = opt.state_dict()
        >>> sorted(state)
        ['exp_col', 'exp_row', 'header']
        >>> other = AdaFactor((2, 3))
        >>> other.load_state_dict(state)
        >>> other.t, other.lr
        (1, 0.1)
        """
        return self._tensors.alone(self._copied_state)

    def save(self, path: state_files.Path) -> None:
        """Write what `state_dict` returns to a file; all is as in `Optimizer.save`.

        Parameters
        ----------
        path : str or path-like
            Where to; it ends in ".npz" or ".safetensors", which chooses the format.

        Raises
        ------
        TypeError, ValueError
            If `path` ends otherwise.
        OSError
            If the file cannot be written. The old one, if there is one, is as before.
        RuntimeError
            If another thread is in `update` of this object.
        """
        self._tensors.alone(lambda: state_files.save(path, self._live_state()))

    def load(self, path: state_files.Path, *, convert: bool = False) -> None:
        """Continue where `save` was called, with the same bits; all is as in `Optimizer.load`.

        Parameters
        ----------
        path : str or path-like
            A file that `save`, ``numpy.savez`` or ``safetensors.numpy.save_file`` wrote.
        convert : bool, default False
            As `load_state_dict` takes it.

        Raises
        ------
        TypeError, ValueError
            If the file is not whole or not such a file, or as by `load_state_dict`. The message says
            what is wrong, and nothing is changed.
        OSError
            If the file cannot be read.
        RuntimeError
            If another thread is in `update` of this object.
        """
        self.load_state_dict(state_files.load(path), convert=convert)

    def _seen(self, state: Means | None) -> Means | None:
        """Return an array that the caller may write to: the next step looks at all of it."""
        self._tensors.state_was_seen()
        return state

    def _copied_state(self) -> dict[str, npt.NDArray[Any]]:
        return {name: array.copy() for name, array in self._live_state().items()}

    def _live_state(self) -> dict[str, npt.NDArray[Any]]:
        header = {
            "t": self.t,
            "skipped": self.skipped,
            "shape": self.shape,
            "state_dtype": self.state_dtype.name,
            "hyper_parameters": {name: getattr(self, name) for name in _SAVED},
        }
        return {"header": header_array(FORMAT, FORMAT_VERSION, header), **self._arrays()}

    def load_state_dict(
        self, state: Mapping[str, npt.NDArray[Any]], *, convert: bool = False
    ) -> None:
        """Continue where `state_dict` was called, with the same bits.

        Hyper-parameters are taken over, but `nonfinite`, `num_threads` and `carry_param_rms` stay as
        they are.

        Parameters
        ----------
        state : mapping of str to ndarray
            What `state_dict` returned, from anywhere; its values are copied.
        convert : bool, default False
            Whether a state of another `state_dtype` is converted to the one here: exactly to
            float64, rounded to nearest to float32.

        Raises
        ------
        TypeError, ValueError
            If an array is missing, unknown, of the wrong dtype or shape, or the state is of another
            shape, `state_dtype`, format or format version. The message names it, and nothing is changed.
        RuntimeError
            If another thread is in `update` of this object.
        """
        types = {"t": int, "skipped": int, "shape": list, "hyper_parameters": dict}
        arrays, header = read_state(state, FORMAT, (FORMAT_VERSION,), types)
        require_same("shape", tuple(header["shape"]), self.shape)
        t, skipped = (steps(f"header[{key!r}]", header[key]) for key in ("t", "skipped"))
        given = header["hyper_parameters"]
        if sorted(given) != sorted(_SAVED):
            raise ValueError(
                f"header['hyper_parameters'] must have {', '.join(_SAVED)} and no others"
            )
        values = {
            name: vars(AdaFactor)[name].check(f"header['hyper_parameters'][{name!r}]", given[name])
            for name in _SAVED
        }
        own = self._arrays()
        if hyper.boolean("convert", convert):
            arrays = {
                name: _converted(array, self.state_dtype) if name in own else array
                for name, array in arrays.items()
            }
        else:
            saved_dtype = header.get("state_dtype", "float64")  # before there was a choice
            remedy = "; convert=True changes how it is stored"
            require_same("state_dtype", saved_dtype, self.state_dtype.name, remedy)
        staged = staged_arrays(arrays, own)
        for name, array in staged.items():
            if self.nonfinite != "propagate":
                require_sound(name, f"state[{name!r}]", array)
        require_writeable({f"{name} of this optimizer": array for name, array in own.items()})

        all_at_once(
            [
                partial(self._tensors.set_counts, t, skipped, [t]),
                partial(vars(self).update, values, _plan=None, _guard=RunGuard()),
                *(fill(array, staged[name]) for name, array in own.items()),
            ]
        )

    def _arrays(self) -> dict[str, Means]:
        """Return the state's arrays that there are, by name."""
        arrays = {"exp_row": self._exp_row, "exp_col": self._exp_col, "v": self._v}
        return {name: array for name, array in arrays.items() if array is not None}

    def _hold_state(self) -> None:
        self._tensors = _core.Tensors(self._shape, self._exp_row, self._exp_col, self._v)
        self._update = self._tensors.update  # looked up once: a call is all that a small step is

    def _new_plan(self) -> _core.Plan:
        """Return all that a step takes but param and grad, kept until a change."""
        switches = {
            **CONVENTIONS["numpy"].defaults,
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
            skip_above=inf,
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
        if self.state_dtype != np.float64:
            values += f", state_dtype={self.state_dtype.name!r}"
        kind = "factored" if self.factored else "unfactored"
        return f"<AdaFactor(shape={self.shape}{values}), {kind}, t={self.t}>"

    def __getstate__(self) -> dict[str, Any]:
        own = {k: v for k, v in vars(self).items() if k not in ("_tensors", "_update", "_plan")}

        def state() -> dict[str, Any]:
            arrays = {"_" + name: array.copy() for name, array in self._arrays().items()}
            return {**own, **arrays, "t": self.t, "skipped": self.skipped}

        return self._tensors.alone(state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = dict(state)
        t, skipped = own.pop("t"), own.pop("skipped")
        vars(self).update({"_guard": RunGuard(), **own, **hyper.checked(type(self), own)})
        self._plan = None
        self._shape = _checked_shape(self._shape)
        if self.nonfinite != "propagate":
            for name, array in self._arrays().items():
                require_sound(name, name, array)
        self._hold_state()
        self._tensors.set_counts(t, skipped, [t])

    def __copy__(self) -> AdaFactor:
        """Return a copy with state of its own: two objects must not write to the same arrays."""
        return copy.deepcopy(self)


def _converted(array: Any, dtype: np.dtype[Any]) -> Any:
    """Return running means in another dtype; what is none is as it was, and refused later."""
    if not isinstance(array, np.ndarray) or array.dtype not in (np.float32, np.float64):
        return array
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return array.astype(dtype)


def _checked_shape(shape: Any) -> tuple[int, ...]:
    must_be = "must be a sequence of ints >= 0"
    try:
        axes = tuple(operator.index(n) for n in shape)
    except TypeError:
        raise TypeError(f"shape is {shape!r}, {must_be}") from None
    if any(n < 0 for n in axes):
        raise ValueError(f"shape is {axes}, {must_be}")
    return axes

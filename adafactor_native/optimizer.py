"""The optimizer of a whole model."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import numpy as np
import numpy.typing as npt

from adafactor_native import changing, state_dict, state_files
from adafactor_native import hyperparameters as hyper
from adafactor_native._runtime import _core
from adafactor_native.accumulation import Accumulated
from adafactor_native.convention import Convention, convention_of, switch_elsewhere
from adafactor_native.conventions import (
    BigVisionArguments,
    HuggingFaceArguments,
    KerasArguments,
    NumpyArguments,
    OptaxArguments,
    PaperArguments,
    T5xArguments,
    TorchArguments,
)
from adafactor_native.elastic import LoadReport, Rename
from adafactor_native.following import follow_params, take_params
from adafactor_native.gradients import in_order
from adafactor_native.group_patterns import by_pattern
from adafactor_native.guards import SkipGuard
from adafactor_native.hyperparameters import HyperParameter
from adafactor_native.param_groups import (
    Array,
    ParamGroup,
    PlanCell,
    Tensor,
    new_groups,
    read_groups,
    writeable,
)
from adafactor_native.read_only import ReadOnlyDict
from adafactor_native.report import StateMemory, StepReport
from adafactor_native.rules import are_constant, rates_at
from adafactor_native.suggestions import KnownAttributes
from adafactor_native.switches import SWITCHES, current_value, table

if TYPE_CHECKING:
    from typing_extensions import Unpack

Params = Any  # a mapping, a sequence or groups of arrays
Copies = Any  # the same of arrays or None
Grads = Any  # the same of arrays or None

_ATOMIC = ("all", "tensor")


class Optimizer(KnownAttributes):
    r"""Adafactor for all parameters of a model, updated in place by one native call a step.

    A tensor with two factored axes keeps running means over each row and each column instead of one
    mean for each element; its other axes are batched. Any other tensor keeps `v`. A step at t is ::

        g       = grad, unscaled, clipped by the global norm, with maximize negated
        exp_row = beta2_t * exp_row + (1 - beta2_t) * mean of g**2 + eps over each row
        exp_col = beta2_t * exp_col + (1 - beta2_t) * mean of g**2 + eps over each column
        V       = outer(exp_row, exp_col) / mean(exp_row)
        v       = V = beta2_t * v + (1 - beta2_t) * (g**2 + eps)       without factored axes
        u       = g / (sqrt(V) + eps)
        u       = u / max(1, RMS(u) / clip_threshold)
        step    = lr_t * max(eps_scale, RMS(param)) * u                lr_t * u without scale_parameter
        m       = beta1 * m + (1 - beta1) * step                       with beta1, and m is the step
        param   = (1 - decay) * param - step

    The dialects of Adafactor differ in more than numbers; a switch chooses wherever they do.

    Parameters
    ----------
    params : mapping of str to ndarray, sequence of ndarray, or list of groups
        The parameters, each of float16, bfloat16 (ml_dtypes'), float32 or float64, any strides; never
        converted, always overwritten in place. They must not share memory. A sequence's names are
        positions in the model: "0", "1". The optimizer keeps the arrays, not the mapping: after
        ``model["w"] = model["w"] * 1.0`` it steps an array that nobody else reads; write
        ``model["w"] *= 1.0`` or ``model["w"][...] = values`` instead, or say so by `replace`.

        A group is a mapping with "params" (of any of these kinds, or one array) and whatever
        hyper-parameters are its own, and "copies". Instead of "params" it may have "match": a
        pattern of names as in `fnmatch`, or a list of them. Such a group takes the tensors of other
        groups whose names match, each tensor goes to the first group that it matches, and all others
        stay where they are: ``[{"params": model}, {"match": "*.bias", "weight_decay": 0.0}]``.
    copies : mapping of str to ndarray, or sequence of ndarray or None
        Arrays of float16 or bfloat16, for any of the parameters of float32, that every step writes
        the new parameter to, rounded. Like `params`, by name or by position.
    convention : str, default "paper"
        "paper", "numpy", "huggingface", "torch", "optax", "keras", "t5x" or "big_vision": whose
        arguments, defaults and formulas hold. "numpy" is the twenty lines of NumPy that `AdaFactor`
        computes; it was called "seed" before version 0.2, as it still may be, and was the default.
        See `adafactor_native.conventions`.
    nonfinite : {"raise", "skip", "propagate"}, default "raise"
        What becomes of a step that would not be finite. "raise" refuses it with a FloatingPointError
        that names tensor and element, "skip" leaves it out, counts it in `skipped` and warns by a
        `SkippedStepWarning` at the first and whenever their number has doubled, "propagate" takes it
        as IEEE arithmetic has it.
    atomic : {"all", "tensor"}, default "all"
        Whether a step that is refused or left out changes nothing in the whole model, or only
        nothing in the tensor at fault. The latter finishes each tensor while it is in cache; with
        `max_grad_norm`, which needs all gradients first, it is the same as the former.
    max_grad_norm : float or None, default None
        The most that the norm of all gradients together may be, above 0; they are scaled down to it
        by ``min(1, max_grad_norm / (norm + 1e-6))``, as ``torch.nn.utils.clip_grad_norm_`` does.
    max_skipped : int or None, default None
        With ``nonfinite="skip"`` the most steps in a row that are left out: one more raises a
        FloatingPointError. None: any number.
    num_threads : int or None, default None
        Most threads of a step; None: that of `set_num_threads`. Results do not depend on it.
    carry_param_rms : bool, default False
        Whether RMS(param) is taken over from the step before. **Wrong if anything else writes to
        params between steps**, unless you then call `params_changed`; see `AdaFactor`.
    seed : int, default 0
        Seed of the random bits of ``rounding="stochastic"``, in [0, 2**63). Each bit is a function of
        seed, the tensor's name and its own count of steps, and the element's position in its memory:
        the order of tensors does not matter. Of a sequence of arrays, positions are the names.
    **hyper_parameters
        The convention's own arguments, and any of the switches below, which count more. The defaults
        below are the paper's. Each can be a group's own.

        SWITCHES

    Attributes
    ----------
    convention : str
    carry_param_rms : bool
    param_groups : tuple of ParamGroup
        Mappings: ``opt.param_groups[0]["lr"] = 0.1`` holds from the next step on.
    names : tuple of str
        The tensors' names, in the order of `params`. All arrays of a report are in this order.
    tensors : tuple of Tensor
        In this order: parameters with their state and axes, as `state` and `params` have them too.
    params, state : dicts by name
        The arrays themselves, and those of the state by kind: "exp_row", "exp_col", "v", "m",
        "master", "low". The dicts are made anew each time and refuse assignments; the arrays can be
        written to.
    t : int
        Steps taken.
    skipped : int
        Steps left out with ``nonfinite="skip"``.
    counts : ndarray of int64, shape (n,)
        Steps that each tensor has taken. A tensor without a gradient does not take the step.
    memory : StateMemory
        Bytes of state, by kind, tensor and element.

    `nonfinite`, `atomic`, `max_grad_norm`, `max_skipped`, `num_threads` and `seed` are attributes too, and can be
    set between steps.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type, out of range, or unknown to the convention.

    Notes
    -----
    A half-precision param or gradient is read as float32, exactly, and all arithmetic is float32 or
    wider; what is written is rounded once, to nearest, ties to even, or stochastically.

    A callable given as a learning rate, schedule or weight decay gets t, which is 1 at the first
    step: the model's count of steps. That holds for the switches of the table and in `param_groups`,
    whatever the convention. Only under a library's own argument it gets that library's count: t - 1
    for optax's `learning_rate` and `weight_decay_rate`, keras's `learning_rate` and `weight_decay`,
    t5x's `learning_rate` and `weight_decay_rate`, and big_vision's `schedule` and `wd`.

    ``bias_correction=True`` multiplies lr by ``sqrt(1 - beta2**t) / (1 - beta2**t)``, at first by
    1 / sqrt(1 - beta2): it enlarges the first steps, where Adam's correction makes them smaller; RMS(u)
    is clipped all the same. ``bias_correction="beta2"`` is what Adam's does to the second moment, as
    tensor2tensor, praxis and lingvo have it: beta2_t is 0 at first and goes to beta2.

    One object serves one thread at a time. It can be pickled and copied, with its parameters: a copy
    has its own, and continues with the same bits. Schedules and masks are pickled with it, which a
    lambda or a function inside of another cannot be; copied they can. Arrays that unpickle
    read-only, as joblib's memory maps, become copies in memory.

    The formulas are Shazeer & Stern's [1]_ (Algorithms 4, 5 and 6); what each convention
    changes in them is in their docstrings.

    References
    ----------
    .. [1] N. Shazeer, M. Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
       ICML 2018, https://arxiv.org/abs/1804.04235

    Examples
    --------
    >>> import numpy as np
    >>> from adafactor_native import Optimizer
    >>> model = {"w": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32)}
    >>> opt = Optimizer(
    ...     [{"params": {"w": model["w"]}}, {"params": {"b": model["b"]}, "lr": 0.5}],
    ...     convention="torch",
    ...     lr=0.1,
    ... )
    >>> report = opt.step({"w": np.ones((2, 3)), "b": np.full(3, -2.0)})
    >>> model["w"][0], model["b"]
    (array([0.9, 0.9, 0.9], dtype=float32), array([1.5, 1.5, 1.5], dtype=float32))
    >>> report["b"]["rms_grad"], report["b"]["step_size"], round(report.grad_norm, 6)
    (2.0, 0.5, 4.242641)
    """

    nonfinite = HyperParameter(hyper.nonfinite_policy)
    atomic = HyperParameter(hyper.one_of(*_ATOMIC))
    max_grad_norm = HyperParameter(hyper.positive_or_none)
    max_skipped = HyperParameter(hyper.at_least_one_or_none)
    num_threads = HyperParameter(hyper.threads_or_none)
    seed = HyperParameter(hyper.count)
    _accumulated: Accumulated

    @overload
    def __init__(
        self,
        params: Params,
        convention: Literal["paper"] = ...,
        **arguments: Unpack[PaperArguments],
    ) -> None: ...
    @overload
    def __init__(
        self,
        params: Params,
        convention: Literal["numpy", "seed"],
        **arguments: Unpack[NumpyArguments],
    ) -> None: ...
    @overload
    def __init__(
        self,
        params: Params,
        convention: Literal["huggingface"],
        **arguments: Unpack[HuggingFaceArguments],
    ) -> None: ...
    @overload
    def __init__(
        self, params: Params, convention: Literal["torch"], **arguments: Unpack[TorchArguments]
    ) -> None: ...
    @overload
    def __init__(
        self, params: Params, convention: Literal["optax"], **arguments: Unpack[OptaxArguments]
    ) -> None: ...
    @overload
    def __init__(
        self, params: Params, convention: Literal["keras"], **arguments: Unpack[KerasArguments]
    ) -> None: ...
    @overload
    def __init__(
        self, params: Params, convention: Literal["t5x"], **arguments: Unpack[T5xArguments]
    ) -> None: ...
    @overload
    def __init__(
        self,
        params: Params,
        convention: Literal["big_vision"],
        **arguments: Unpack[BigVisionArguments],
    ) -> None: ...
    def __init__(
        self,
        params: Params,
        convention: str = "paper",
        *,
        copies: Copies = None,
        nonfinite: str = "raise",
        atomic: str = "all",
        max_grad_norm: float | None = None,
        max_skipped: int | None = None,
        num_threads: int | None = None,
        carry_param_rms: bool = False,
        seed: int = 0,
        **hyper_parameters: Any,
    ) -> None:
        self._start()
        self._convention: Convention = convention_of(convention)
        self.nonfinite = nonfinite
        self.atomic = atomic
        self.max_grad_norm = max_grad_norm
        self.max_skipped = max_skipped
        if self.max_skipped is not None and self.nonfinite != "skip":
            raise ValueError(
                f"max_skipped is {max_skipped}, must be None with nonfinite={nonfinite!r}, which skips "
                "no step"
            )
        self.num_threads = num_threads
        self.seed = seed
        self._carry_param_rms = hyper.boolean("carry_param_rms", carry_param_rms)
        self._defaults = hyper_parameters
        self._add_groups(self._new_groups(by_pattern(read_groups(params, copies))))

    @property
    def convention(self) -> str:
        """Whose arguments, defaults and formulas hold."""
        return self._convention.name

    @property
    def carry_param_rms(self) -> bool:
        """Whether RMS(param) is taken over from the step before."""
        return self._carry_param_rms

    @property
    def param_groups(self) -> tuple[ParamGroup, ...]:
        """Mappings of hyper-parameters: ``opt.param_groups[0]["lr"] = 0.1`` holds from the next step."""
        return self._groups

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, in the order of all arrays of a report."""
        return self._names

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The parameters with their state and factored axes, in the order of `names`."""
        return tuple(tensor for group in self._groups for tensor in group.tensors)

    @property
    def params(self) -> dict[str, Array]:
        """The parameters themselves, by name; write to the arrays, then call `params_changed`."""
        return ReadOnlyDict(
            {tensor.name: tensor.param for tensor in self.tensors},
            "opt.params cannot be assigned to: write into the array, opt.params[name][...] = values, "
            "then call opt.params_changed()",
        )

    @property
    def state(self) -> dict[str, dict[str, Array]]:
        """The arrays of the state themselves, by name and kind; write to the arrays only."""
        instead = (
            "opt.state cannot be assigned to: write into the array, "
            "opt.state[name][kind][...] = values, or use opt.load_state_dict(state)"
        )
        states = {tensor.name: ReadOnlyDict(tensor.state, instead) for tensor in self.tensors}
        return ReadOnlyDict(cast("dict[str, dict[str, Array]]", states), instead)

    @property
    def t(self) -> int:
        """Steps taken."""
        return self._tensors.t

    @property
    def skipped(self) -> int:
        """Steps left out with ``nonfinite="skip"``."""
        return self._tensors.skipped

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Steps that each tensor has taken, int64, shape (n,); read-only, a load sets them."""
        counts = self._tensors.counts()
        counts.flags.writeable = False
        return counts

    @property
    def memory(self) -> StateMemory:
        """Bytes of state, by kind, tensor and element."""
        by_tensor = {
            name: {kind: array.nbytes for kind, array in state.items()}
            for name, state in self.state.items()
        }
        for name, array in self._accumulated.sums.items():
            by_tensor[name]["sum"] = array.nbytes
        return StateMemory(by_tensor, sum(param.size for param in self.params.values()))

    def step(
        self, grads: Grads = None, grad_scale: float = 1.0, *, reduce: str | None = None
    ) -> StepReport:
        """Take one step: change params and the state in place.

        Parameters
        ----------
        grads : mapping, list or tuple, or list of one for each group
            The gradients, each an ndarray of float16, bfloat16, float32 or float64 of its
            parameter's shape, only read; dtype and strides need not be the parameter's, and for a
            parameter of no axes a NumPy scalar will do, and an object that becomes such an array by
            ``__array__`` or DLPack, without a copy where it can: a tensor of torch on the CPU. None
            leaves a tensor out. Either as `params` was, or of all tensors in one mapping by name or
            one list or tuple. Without it the step takes what `accumulate` has added up.
        grad_scale : float
            What the gradients were multiplied by, with the loss; finite, above 0. They are divided
            by it before anything else.
        reduce : {"mean", "sum"}, default "mean"
            Of accumulated gradients, whether their sum is divided by the number of calls.

        Returns
        -------
        StepReport
            The numbers of this step, by tensor.

        Raises
        ------
        TypeError
            If a gradient is not an array of one of these dtypes.
        ValueError
            If a name is missing or unknown, a shape is wrong, a parameter, a copy or an array of the
            state is read-only now or not of the memory, shape, strides and dtype that it had, or a
            gradient shares memory with a parameter or the state.
        FloatingPointError
            With ``nonfinite="raise"``: if a gradient holds a nan or an infinity, or the step would
            not be finite for another reason. The message has tensor and index. With
            ``nonfinite="skip"``: if `max_skipped` steps in a row were left out before; this one is
            left out and counted too.
        RuntimeError
            If another thread is in a step of this object.

        Whatever is raised, params, state and t are as before; except that with ``atomic="tensor"``
        a FloatingPointError leaves the tensors before the one at fault stepped.

        Notes
        -----
        The first step after the optimizer was made, got more tensors or loaded a state looks
        whether each param is still what its master rounds to. Where somebody has written other
        weights to it, the master follows the param: weights are never reverted. After an overwrite
        at any other time call `params_changed`.
        """
        if self._params_are_new:
            self._follow_params()
        scale = hyper.positive("grad_scale", grad_scale)
        if grads is None and self._accumulated.n:
            ordered: Sequence[Any] = [self._accumulated.sums.get(name) for name in self._names]
            scale *= self._accumulated.divisor(reduce)
        elif reduce is not None:
            raise ValueError(f"reduce is {reduce!r}, must be None without accumulated gradients")
        else:
            if self._accumulated.n:
                self._accumulated.require_none("which has gradients of its own")
            ordered = in_order(grads, self._groups, self._names)
        report = self._tensors.step(
            self._cell.plan or self._new_plan(),
            ordered,
            scale,
            partial(StepReport, self._names, lr=self._cell.lr),
        )
        if grads is None:
            self._accumulated = Accumulated()
        if report.skipped:
            self._guard.skipped(report, ordered, self._tensors.skipped, self.max_skipped)
        else:
            self._guard.in_a_row = 0
        return report

    def accumulate(self, grads: Grads) -> None:
        """Add gradients to those that the next ``step()`` takes, for a batch in several parts.

        Parameters
        ----------
        grads : mapping, list or tuple, or list of one for each group; or None
            As `step` takes them. A tensor that is None adds nothing, and one that always was is left
            out of the step. None instead of all drops what has been added up.

        Raises
        ------
        TypeError, ValueError
            As by `step`; nothing is changed.
        RuntimeError
            If another thread is in a step of this object.

        Notes
        -----
        The sums are of float32, or of float64 where the parameter or a gradient is, whatever else
        the dtypes are. They are arrays of the optimizer's own, which `memory` shows as "sum" and a
        step frees, also one that is left out; after a step that raises they are there as before. A
        state is not saved or loaded beside them.

        Examples
        --------
        >>> import numpy as np
        >>> from adafactor_native import Optimizer
        >>> opt = Optimizer({"w": np.ones(3)})
        >>> opt.accumulate({"w": np.full(3, 1.0, np.float16)})
        >>> opt.accumulate({"w": np.full(3, 2.0, np.float16)})
        >>> report = opt.step()
        >>> report["w"]["rms_grad"]
        1.5
        """
        self._tensors.alone(lambda: self._accumulate(grads))

    def _accumulate(self, grads: Grads) -> None:
        if grads is None:
            self._accumulated = Accumulated()
        else:
            self._accumulated.add(self.tensors, in_order(grads, self._groups, self._names))

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add tensors to the model, behind the others, with a state of zeros.

        Parameters
        ----------
        group : mapping
            "params" (a mapping, a sequence or an array), "copies" if there are, and
            hyper-parameters, which count more than those given to the optimizer.

        Raises
        ------
        TypeError, ValueError
            As by the constructor. Nothing is changed.
        """
        if not isinstance(group, Mapping):
            raise TypeError(f"group is a {type(group).__name__}, must be a mapping with 'params'")
        self._add_groups(self._new_groups([("group[{!r}]", group)]))

    def replace(self, name: str, array: Array, *, copy: Array | None = None) -> None:
        """Step another array of the same shape from now on, with the state of the one before.

        This is what to say after ``model["w"] = new``. Masters and lower halves follow the new values
        where they are not those of the old array, and the copy is written, rounded to nearest.

        Parameters
        ----------
        name : str
            Which of `names`.
        array : ndarray
            Of the parameter's shape and dtype, any strides; kept, and overwritten by steps.
        copy : ndarray or None
            Instead of the tensor's old one of `copies`, which stays where it is None.

        Raises
        ------
        TypeError, ValueError
            If the name is unknown, or an array is not such a one, read-only, or shares memory with
            others of the model. Nothing is changed.
        RuntimeError
            If another thread is in a step of this object.
        """
        self._tensors.alone(lambda: changing.replace_param(self, name, array, copy))

    def resize(self, name: str, array: Array, axis: int = 0, *, copy: Array | None = None) -> None:
        """Step an array with more or fewer lines from now on: a vocabulary that grew.

        Lines that were there keep their state: the first ones, where the array is shorter. The running
        means of new lines are the means of the old ones, for after zeros the first step would be too
        large by 1 / sqrt(1 - beta2). Their first moments are 0, and their masters the new values.
        V of the elements that stay does not change; where other axes are factored in the new shape,
        it is factored anew. The tensor's count of steps stays, but for arrays without elements.

        Parameters
        ----------
        name : str
            Which of `names`.
        array : ndarray
            Of the parameter's dtype, and of its shape but for `axis`; kept, and overwritten by
            steps. Its values count; those of the old array are not copied to it.
        axis : int, default 0
            Any axis, also a batched one; a negative one counts from the last.
        copy : ndarray or None
            An array of the new shape, where the tensor has one of `copies`; it is written.

        Raises
        ------
        TypeError, ValueError
            As by `replace`. Nothing is changed.
        RuntimeError
            If another thread is in a step of this object.

        Examples
        --------
        >>> import numpy as np
        >>> from adafactor_native import Optimizer
        >>> model = {"embedding": np.ones((3, 2))}
        >>> opt = Optimizer(model)
        >>> report = opt.step({"embedding": np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])})
        >>> model["embedding"] = np.vstack([model["embedding"], np.zeros((1, 2))])
        >>> opt.resize("embedding", model["embedding"])
        >>> opt.state["embedding"]["exp_row"].round(3)
        array([1.   , 4.   , 9.   , 4.667])
        """
        self._tensors.alone(lambda: changing.resize(self, name, array, axis, copy))

    def remove(self, name: str) -> None:
        """Let a tensor leave the model and its group; names, state and counts of others stay.

        A group that it was alone in stays, without tensors. The names of a sequence stay the
        positions that they were.

        Parameters
        ----------
        name : str
            Which of `names`.

        Raises
        ------
        TypeError, ValueError
            If the name is unknown, or the tensor the only one. Nothing is changed.
        RuntimeError
            If another thread is in a step of this object.
        """
        self._tensors.alone(lambda: changing.remove(self, name))

    def reset(
        self,
        name: str,
        rows: int | slice | Sequence[int] | npt.NDArray[Any] | None = None,
        axis: int = 0,
    ) -> None:
        """Start the state of a tensor anew, or of some of its rows: re-initialised neurons.

        Params are not written to. Masters become what they are now (split: the lower halves become
        zeros), and the copy is written, rounded to nearest; with `rows`, both only there.

        Parameters
        ----------
        name : str
            Which of `names`.
        rows : int, slice, sequence of int, ndarray of int or bool, or None
            Which lines. Their running means become the means of the other lines, and their first
            moments 0, as `resize` gives to new lines; V of other lines does not change. None, or all
            lines: the tensor's whole state is one of zeros, and its count of steps 0.
        axis : int, default 0
            Of which axis; 1 for the columns of a matrix.

        Raises
        ------
        TypeError, ValueError
            If the name is unknown, or there are no such lines. Nothing is changed.
        RuntimeError
            If another thread is in a step of this object.
        """
        self._tensors.alone(lambda: changing.reset(self, name, rows, axis))

    def state_dict(self, params: bool = False) -> dict[str, Array]:
        """Return copies of all that is remembered, as a flat dict of arrays.

        It goes as it is into ``numpy.savez(path, **state)`` and
        ``safetensors.numpy.save_file(state, path)``, and comes back by ``dict(numpy.load(path))``
        and ``safetensors.numpy.load_file(path)``.

        Parameters
        ----------
        params : bool
            Whether the parameters are part of it, so that one file is the whole checkpoint. All
            arrays are copies: until they are dropped, the memory for the parameters is needed twice.

        Returns
        -------
        dict of str to ndarray
            "exp_row/name", "exp_col/name", "v/name", "m/name", "master/name", "low/name" and
            "param/name", those that there are, C-contiguous, bfloat16 as the uint16 of its bits,
            for neither format knows it; "t", the steps of each tensor, int64; and "header", uint8:
            JSON with version, convention, hyper-parameters, counts and what each tensor is.

        Examples
        --------
        >>> import numpy as np
        >>> from adafactor_native import Optimizer
        >>> opt = Optimizer({"w": np.ones((2, 3)), "b": np.ones(3)}, lr=0.1)
        >>> report = opt.step({"w": np.ones((2, 3)), "b": np.ones(3)})
        >>> state = opt.state_dict()
        >>> sorted(state)
        ['exp_col/w', 'exp_row/w', 'header', 't', 'v/b']
        >>> other = Optimizer({"w": np.ones((2, 3)), "b": np.ones(3)})
        >>> other.load_state_dict(state)
        >>> other.t, other.param_groups[0]["lr"]
        (1, 0.1)
        """
        with_params = hyper.boolean("params", params)
        return self._tensors.alone(lambda: state_dict.state_dict(self, with_params))

    def load_state_dict(
        self,
        state: Mapping[str, Array],
        *,
        strict: bool = True,
        rename: Rename | None = None,
        keep: Collection[str] = (),
        convert: bool = False,
    ) -> LoadReport | None:
        """Continue where `state_dict` was called, with the same bits.

        Hyper-parameters are taken over, `max_grad_norm` among them; a callable stays this
        optimizer's own, and must have been one. `nonfinite`, `atomic`, `max_skipped`,
        `num_threads` and `carry_param_rms` stay as they are. So do params, unless the state has them.

        Parameters
        ----------
        state : mapping of str to ndarray
            What `state_dict` returned, from anywhere; its values are copied. Tensors are found by
            name, in any order.
        strict : bool, default True
            Whether the state must have exactly these tensors. If not, those that have the same name,
            shape, dtype, axes, group and kinds of state are loaded, others stay as they are; where
            none is loaded it is an error.
        rename : mapping or callable of str to str, or None
            What a name in the state is here: ``lambda name: name.removeprefix("module.")``. A
            mapping leaves other names as they are.
        keep : collection of str
            What stays this optimizer's: switches by name ("lr", "schedule", "clip_threshold"),
            "weight_decay_mask", "max_grad_norm", "seed", and "groups": which groups there are, which
            tensors are in them, and all their switches.
        convert : bool, default False
            Whether a state that is stored otherwise is converted: first moments of another dtype,
            or new (they begin at zero) or gone; masters switched on (they are the param), off, or
            from one kind to the other (exact if the state has the params); statistics of float32.

        Returns
        -------
        LoadReport or None
            With ``strict=False`` what was loaded, missing, unexpected and mismatched.

        Raises
        ------
        TypeError, ValueError
            If an array is missing, unknown, of the wrong dtype or shape, or the state is of another
            format version, convention, or model: other names, shapes, dtypes, groups, factored axes,
            masks, or another choice of callables; or holds numbers that no step leaves, unless
            `nonfinite` is "propagate"; or if an array of ours is read-only. The message names it,
            and nothing is changed.
        RuntimeError
            If another thread is in a step of this object.

        Notes
        -----
        Copies of all arrays are checked before the first of ours is written, so that a load takes
        as much memory again as the state; then all are written without a byte code of Python between,
        so that no signal handler of CPython sees or leaves a mixture. A thread that begins a step
        meanwhile is not kept out.

        Where params hold other weights than those the state was saved beside, their masters follow
        the params at the next step; `copies` are written if the state has the params.
        """
        return state_dict.load_state_dict(
            self,
            state,
            hyper.boolean("strict", strict),
            rename,
            keep,
            hyper.boolean("convert", convert),
        )

    def save(self, path: state_files.Path, params: bool = False) -> None:
        """Write what `state_dict` returns to a file, array by array, without a copy of it all.

        The file is what ``numpy.savez`` or ``safetensors.numpy.save_file`` of it would hold, and can
        be read by ``numpy.load`` or ``safetensors.numpy.load_file``. It is written beside `path`, as a
        file whose name begins with a dot and ends in ".tmp", to the disk, and only then put in its
        place: a crash at any moment leaves the old file or the new one whole. An error removes the
        file that was begun; what a killed process has left of one can be deleted.

        Parameters
        ----------
        path : str or path-like
            Where to; it ends in ".npz" or ".safetensors", which chooses the format. A file that is
            there is replaced and its permissions are kept.
        params : bool, default False
            Whether the parameters are part of it, so that one file is the whole checkpoint.

        Raises
        ------
        TypeError, ValueError
            If `path` ends otherwise, or a tensor's name is one that a ".npz" cannot hold: with a
            zero byte, of more than 65,000 bytes, or "name.npy" beside "name".
        OSError
            If the file cannot be written.
        RuntimeError
            If another thread is in a step of this object; none may begin one meanwhile.

        Notes
        -----
        Memory above the model: nothing for arrays in C order; one array for any other.

        Examples
        --------
        >>> import numpy as np, os, tempfile
        >>> from adafactor_native import Optimizer
        >>> opt = Optimizer({"w": np.ones((2, 3))}, lr=0.1)
        >>> report = opt.step({"w": np.ones((2, 3))})
        >>> other = Optimizer({"w": np.zeros((2, 3))})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     opt.save(os.path.join(folder, "checkpoint.npz"), params=True)
        ...     other.load(os.path.join(folder, "checkpoint.npz"))
        >>> other.t, bool((other.params["w"] == opt.params["w"]).all())
        (1, True)
        """
        with_params = hyper.boolean("params", params)
        self._tensors.alone(
            lambda: state_files.save(path, state_dict.live_arrays(self, with_params))
        )

    def load(
        self,
        path: state_files.Path,
        *,
        strict: bool = True,
        rename: Rename | None = None,
        keep: Collection[str] = (),
        convert: bool = False,
    ) -> LoadReport | None:
        """Continue where `save` was called, with the same bits.

        Parameters
        ----------
        path : str or path-like
            A file that `save`, ``numpy.savez`` or ``safetensors.numpy.save_file`` wrote; it ends in
            ".npz" or ".safetensors".
        strict, rename, keep, convert
            As `load_state_dict` takes them.

        Returns
        -------
        LoadReport or None
            With ``strict=False`` what was loaded, missing, unexpected and mismatched.

        Raises
        ------
        TypeError, ValueError
            If the file is not whole or not such a file, or as by `load_state_dict`. The message says
            what is wrong, and nothing is changed.
        OSError
            If the file cannot be read.
        RuntimeError
            If another thread is in a step of this object.

        Notes
        -----
        Nothing in the file is executed, and no more is allocated than the file's size. A compressed
        ".npz" is refused: ``opt.load_state_dict(dict(numpy.load(path)))`` reads it. Memory above the
        model: that of the file.
        """
        choices = (
            hyper.boolean("strict", strict),
            rename,
            keep,
            hyper.boolean("convert", convert),
        )
        return state_dict.load_state_dict(self, state_files.load(path), *choices, is_ours=True)

    def params_changed(self) -> None:
        """Say that somebody else has written to params: the next step reads all of them.

        Needed with `carry_param_rms`; with `masters`, which become what params are now (split: the
        lower halves become zeros); and with `copies`, which are written, rounded to nearest.
        """
        self._tensors.forget_params()
        for tensor in self.tensors:
            take_params(tensor)
        self._params_are_new = False

    def _follow_params(self) -> None:
        self._tensors.forget_params()  # or raise, if another thread is in a step
        for group in self._groups:
            follow_params(group.tensors, group["rounding"] == "stochastic")
        self._params_are_new = False

    def _set_counts(self, t: int, skipped: int, counts: Sequence[int]) -> None:
        self._tensors.set_counts(t, skipped, counts)

    def _start(self) -> None:
        """Begin as a model without tensors."""
        self._cell = PlanCell()
        self._tensors = _core.Tensors()
        self._groups: tuple[ParamGroup, ...] = ()
        self._names: tuple[str, ...] = ()
        self._guard = SkipGuard()
        self._accumulated = Accumulated()
        self.max_skipped = None
        self._params_are_new = False  # whether the next step looks if masters are still theirs
        self._removed: frozenset[str] = frozenset()  # names of tensors that were here

    def _new_groups(self, given: Sequence[tuple[str, Mapping[str, Any]]]) -> list[ParamGroup]:
        return new_groups(
            given, self._convention, self._defaults, self._names, self._cell, self._removed
        )

    def _add_groups(self, groups: Iterable[ParamGroup]) -> None:
        """Take these groups behind the old ones; on an error change nothing."""
        added = tuple(groups)
        self._tensors.add([group.tensors for group in added])
        self._groups += added
        self._names += tuple(tensor.name for group in added for tensor in group.tensors)
        self._params_are_new = True
        self._cell.plan = None

    def _new_plan(self) -> _core.Plan:
        """Return all that a step takes but gradients, kept until a change if it does not depend on t."""
        rates = [rates_at(group.switches, self.t + 1) for group in self._groups]
        plan = _core.Plan(
            rules=[group.rule for group in self._groups],
            lr=[lr for lr, _ in rates],
            decay=[decay for _, decay in rates],
            nonfinite=_core.NonFinite[self.nonfinite],
            all_or_none=self.atomic == "all",
            max_grad_norm=inf if self.max_grad_norm is None else self.max_grad_norm,
            num_threads=self.num_threads or 0,
            carry_param_rms=self._carry_param_rms,
            seed=self.seed,
        )
        if all(are_constant(group.switches) for group in self._groups):
            self._cell.plan = plan
        self._cell.lr = tuple(lr for lr, _ in rates)
        return plan

    def _hyper_parameter_changed(self) -> None:
        self._cell.plan = None

    def _unknown_attribute(self, name: str) -> str:
        switch = name if name in SWITCHES else switch_elsewhere(name)
        if switch is None:
            return super()._unknown_attribute(name)
        return (
            f"Optimizer has no attribute {name!r}: hyper-parameters are each group's, "
            f"opt.param_groups[0][{switch!r}]"
        )

    def __repr__(self) -> str:
        elements = sum(param.size for param in self.params.values())
        return (
            f"<Optimizer(convention={self.convention!r}), groups={len(self._groups)}, "
            f"tensors={len(self._names)}, elements={elements}, t={self.t}>"
        )

    def __getstate__(self) -> dict[str, Any]:
        _require_picklable(self._defaults, "{}")
        for g, group in enumerate(self._groups):
            _require_picklable(group.switches, f"param_groups[{g}][{{!r}}]")
        return self._all_of_it()

    def _all_of_it(self) -> dict[str, Any]:
        """Return all that `__setstate__` needs."""
        made_anew = ("_tensors", "_cell", "_names", "_groups", "_convention")
        own = {k: v for k, v in vars(self).items() if k not in made_anew}
        groups = [(group.tensors, group.switches) for group in self._groups]
        counts = self._tensors.alone(lambda: (self.t, self.skipped, self.counts))
        return {**own, "convention": self.convention, "groups": groups, "counts": counts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = dict(state)
        convention, groups, counts = (own.pop(k) for k in ("convention", "groups", "counts"))
        self._start()
        self._convention = convention_of(convention)
        vars(self).update(own)
        self._defaults = _current(self._defaults)
        self._add_groups(
            ParamGroup(
                [writeable(tensor) for tensor in tensors],
                _current(switches),
                self._convention,
                self._cell,
            )
            for tensors, switches in groups
        )
        self._tensors.set_counts(*counts)

    def __deepcopy__(self, memo: dict[int, Any]) -> Optimizer:
        """Return a copy, callables and all: they need not be picklable for that."""
        new = object.__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self._all_of_it(), memo))
        return new

    def __copy__(self) -> Optimizer:
        """Return a copy with parameters and state of its own: two must not write to one array."""
        return copy.deepcopy(self)


# Under -OO there is no docstring to complete.
Optimizer.__doc__ = (Optimizer.__doc__ or "").replace("SWITCHES", table("        ").lstrip())


def _require_picklable(values: Mapping[str, Any], shown: str) -> None:
    """Raise an error that names the callable that pickle cannot write, and what to do."""
    for name, value in values.items():
        if not callable(value):
            continue
        try:
            pickle.dumps(value)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise pickle.PicklingError(
                f"{shown.format(name)} is {value!r}, must be a function of a module or an object of "
                f"a class, to be pickled with its optimizer ({error}); opt.state_dict() needs no "
                "pickle"
            ) from None


def _current(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return hyper-parameters as an older version pickled them by the words of this one."""
    return {name: current_value(name, value) for name, value in values.items()}

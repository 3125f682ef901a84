"""The optimizer of a whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from adafactor_native import hyperparameters as hyper
from adafactor_native.accumulation import Accumulated
from adafactor_native.convention import Convention, convention_of
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
from adafactor_native.following import take_params
from adafactor_native.given_params import read_groups
from adafactor_native.gradients import in_order
from adafactor_native.group_patterns import by_pattern
from adafactor_native.guards import why_skipped
from adafactor_native.model_arrivals import ModelArrivals
from adafactor_native.model_changes import ModelChanges
from adafactor_native.model_copies import ModelCopies
from adafactor_native.model_states import ModelStates
from adafactor_native.report import NEWLY_STUCK, StepReport
from adafactor_native.sharding.engine import OneRank
from adafactor_native.sharding.model_sharding import ModelSharding, require_alone
from adafactor_native.switches import table

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from adafactor_native.sharding.shards import FlatShard, Shard

_check_sums = hyper.one_of("fast", "exact")

Params = Any  # a mapping, a sequence or groups of arrays
Copies = Any  # the same of arrays or None
Grads = Any  # the same of arrays or None


class Optimizer(ModelArrivals, ModelChanges, ModelStates, ModelCopies, ModelSharding):
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
    params : mapping of str to ndarray, sequence of ndarray, tree of these, or list of groups
        The parameters, each of float16, bfloat16 (ml_dtypes'), float32 or float64, any strides; never
        converted, always overwritten in place. They must not share memory. A sequence's names are
        positions in the model: "0", "1"; pairs of a name and an array are named by themselves, as
        torch's ``named_parameters()``. Mappings and sequences may have others in them, and names tell
        the way: "dense/kernel", "layers/0/w". The optimizer keeps the arrays, not the mapping: after
        ``model["w"] = model["w"] * 1.0`` it steps an array that nobody else reads; write
        ``model["w"] *= 1.0`` or ``model["w"][...] = values`` instead, or say so by `replace`.

        A group is a mapping with "params" (any of these but groups, or one array) and whatever
        hyper-parameters are its own, and "copies". Instead of "params" it may have "match": a
        pattern of names as in `fnmatch`, or a list of them. Such a group takes the tensors of other
        groups whose names match, each tensor goes to the first group that it matches, and all others
        stay where they are: ``[{"params": model}, {"match": "*.bias", "weight_decay": 0.0}]``.
    copies : mapping of str to ndarray, sequence of ndarray or None, or tree of these
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
        `max_grad_norm` or `skip_above`, which need all gradients first, it is the same as the former.
    max_grad_norm : float or None, default None
        The most that the norm of all gradients together may be, above 0; they are scaled down to it
        by ``min(1, max_grad_norm / (norm + 1e-6))``, as ``torch.nn.utils.clip_grad_norm_`` does.
    max_skipped : int or None, default None
        With ``nonfinite="skip"`` or `skip_above` the most steps in a row that are left out: one more
        raises a FloatingPointError. None: any number.
    skip_above : float or None, default None
        A number above 1: a step is left out, counted and said as with ``nonfinite="skip"``, if the
        norm of all its gradients is more than so many times the median of the norms of the last 64
        steps. Those that were left out for their norm are among them, so that a lasting change is
        followed after 32 steps at most. The rule holds once 16 norms are known, and not where the
        median is 0. What is not finite is the affair of `nonfinite`.
    num_threads : int or None, default None
        Most threads of a step; None: that of `set_num_threads`. Results do not depend on it.
    carry_param_rms : bool, default False
        Whether RMS(param) is taken over from the step before. **Wrong if anything else writes to
        params between steps**, unless you then call `params_changed`; see `AdaFactor`.
    seed : int, default 0
        Seed of the random bits of ``rounding="stochastic"``, in [0, 2**63). Each bit is a function of
        seed, the tensor's name and its own count of steps, and the element's position in its memory:
        the order of tensors does not matter. Of a sequence of arrays, positions are the names.
    comm : mpi4py.MPI.Intracomm, torch.distributed.ProcessGroup, Engine or None, default None
        The processes ("ranks") over which the model is spread, which together take the steps of one
        process. Then the constructor, `step`, `state_dict`, `load_state_dict`, `save` and `load` are
        collective: all ranks call them, in the same order. `names`, counts and reports are those of all
        tensors; `params` and `state` have this rank's parts, and arrays without elements of tensors
        that it has nothing of. See `adafactor_native.sharding`.
    shards : mapping of str to Shard or FlatShard, or None, default None
        Which part of a larger tensor a param is, for those that are one. With `comm` a param that is
        not in it is whole, on all ranks alike (replicas, whose gradients must be the same) or on one
        that has it alone.
    timeout : float or None, default None
        Seconds that ranks wait for one another before a `CommunicationError`, above 0. None: 1800
        with MPI, which has no timeouts of its own, and what the process group has with torch.
    sums : {"fast", "exact"}, default "fast"
        How sums over the elements of a tensor are added up. "exact": as integers, so that params,
        state and reports have the same bits however the tensors are cut and on any number of ranks,
        also without `comm`. That takes more exchanges and time. What "fast" promises is in the Notes.
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
        Steps left out with ``nonfinite="skip"`` or for `skip_above`.
    counts : ndarray of int64, shape (n,)
        Steps that each tensor has taken. A tensor without a gradient does not take the step.
    memory : StateMemory
        Bytes of state, by kind, tensor and element.

    `nonfinite`, `atomic`, `max_grad_norm`, `max_skipped`, `skip_above`, `num_threads` and `seed` are
    attributes too, and can be set between steps.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type, out of range, or unknown to the convention.

    Notes
    -----
    A half-precision param or gradient is read as float32, exactly, and all arithmetic is float32 or
    wider; what is written is rounded once, to nearest, ties to even, or stochastically.

    ``state_dtype="float32"`` halves exp_row, exp_col and v, for params of any dtype. What that costs in
    accuracy is in the notes of `AdaFactor`.

    A callable given as a learning rate, schedule or weight decay gets t, which is 1 at the first
    step: the model's count of steps. That holds for the switches of the table and in `param_groups`,
    whatever the convention. Only under a library's own argument it gets that library's count: t - 1
    for optax's `learning_rate` and `weight_decay_rate`, keras's `learning_rate` and `weight_decay`,
    t5x's `learning_rate` and `weight_decay_rate`, and big_vision's `schedule` and `wd`.

    ``bias_correction=True`` multiplies lr by ``sqrt(1 - beta2**t) / (1 - beta2**t)``, at first by
    1 / sqrt(1 - beta2): it enlarges the first steps, where Adam's correction makes them smaller; RMS(u)
    is clipped all the same. ``bias_correction="beta2"`` is what Adam's does to the second moment, as
    tensor2tensor, praxis and lingvo have it: beta2_t is 0 at first and goes to beta2.

    With `comm`, params of float32 and half precision have the bits of one process, and so have state and
    reports, where matrices are cut by rows at multiples of 64, and unfactored tensors at multiples of
    1024 elements, as long as the squares of gradients in the 64-row panels of a column do not span
    more than 2^29 divided by their number: float32 sums of panels are then added up exactly in float64. Otherwise results agree to
    rounding; ``sums="exact"`` has the same bits always.

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

    Layers in a list are a tree, and so are their gradients.

    >>> layers = [{"w": np.ones((2, 3)), "b": np.ones(3)}, {"w": np.ones((3, 1))}]
    >>> opt = Optimizer(layers)
    >>> opt.names
    ('0/w', '0/b', '1/w')
    >>> report = opt.step([{"w": np.ones((2, 3)), "b": None}, {"w": np.ones((3, 1))}])
    >>> opt.counts
    array([1, 0, 1])
    """

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
        skip_above: float | None = None,
        num_threads: int | None = None,
        carry_param_rms: bool = False,
        seed: int = 0,
        comm: Any = None,
        shards: Mapping[str, Shard | FlatShard] | None = None,
        timeout: float | None = None,
        sums: str = "fast",
        **hyper_parameters: Any,
    ) -> None:
        self._start()

        def given(may_be_empty: bool = False) -> Sequence[tuple[str, Mapping[str, Any]]]:
            """Take the settings, and return the groups of tensors; both checked."""
            self._convention: Convention = convention_of(convention)
            self.nonfinite = nonfinite
            self.atomic = atomic
            self.max_grad_norm = max_grad_norm
            self.max_skipped = max_skipped
            self.skip_above = skip_above
            if max_skipped is not None and self.nonfinite != "skip" and self.skip_above is None:
                raise ValueError(
                    f"max_skipped is {max_skipped}, must be None with nonfinite={nonfinite!r} and "
                    "without skip_above: no step is skipped"
                )
            self.num_threads = num_threads
            self.seed = seed
            self._carry_param_rms = hyper.boolean("carry_param_rms", carry_param_rms)
            self._sums = _check_sums("sums", sums)
            self._defaults = hyper_parameters
            return by_pattern(read_groups(params, copies, may_be_empty))

        if comm is None:
            require_alone(shards, timeout)
        if comm is None and sums != "exact":
            self._add_groups(self._new_groups(given()))
        else:
            one_or_more = OneRank() if comm is None else comm
            self._join(one_or_more, shards, timeout, lambda: given(may_be_empty=comm is not None))

    def step(
        self, grads: Grads = None, grad_scale: float = 1.0, *, reduce: str | None = None
    ) -> StepReport:
        """Take one step: change params and the state in place.

        Parameters
        ----------
        grads : mapping, list or tuple, tree of these, or list of one for each group
            The gradients, each an ndarray of float16, bfloat16, float32 or float64 of its
            parameter's shape, only read; dtype and strides need not be the parameter's, and for a
            parameter of no axes a NumPy scalar will do, and an object that becomes such an array by
            ``__array__`` or DLPack, without a copy where it can: a tensor of torch on the CPU, of
            bfloat16 too (as float32, a copy, where ml_dtypes is not installed). None
            leaves a tensor out, or a whole part of a tree. Either as `params` was, or of all tensors
            in one mapping by name, in pairs of name and gradient, or in one list or tuple. What was
            taken by `measure` or `step_tensor` already may be missing in a mapping. Without it the
            step takes what `accumulate` has added up and `measure` has measured, and ends the step
            that `step_tensor` has begun.
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
            gradient shares memory with a parameter or the state; or as `measure` and `step_tensor` say.
        FloatingPointError
            With ``nonfinite="raise"``: if a gradient holds a nan or an infinity, or the step would
            not be finite for another reason. The message has tensor and index. With
            ``nonfinite="skip"`` or `skip_above`: if `max_skipped` steps in a row were left out
            before; this one is left out and counted too.
        RuntimeError
            If another thread is in a step of this object.
        CommunicationError
            With `comm`: if the ranks could not exchange their sums, or one has not come in time. Then,
            and until a state is loaded, steps are refused, for other ranks may be a step ahead.

        Whatever is raised, params, state and t are as before, on all ranks; except that with ``atomic="tensor"``
        a FloatingPointError leaves the tensors before the one at fault stepped.

        Notes
        -----
        The first step after the optimizer was made, got more tensors or loaded a state looks
        whether each param is still what its master rounds to; every other step looks at a sixteenth
        of each, in rotation. Where somebody has written other weights to it, the master follows the
        param: weights that are overwritten as a whole are never reverted. After an overwrite of some
        elements call `params_changed`. What follows is kept until the step is certain, a copy of such
        masters: where it raises or is left out, they are as before.

        A step is refused, too, where a finite gradient would make a number infinite: of param, of
        its copy, or of the first moment. Bounds that the step knows anyway decide that for nothing,
        nearly always; only where they leave it open are the numbers looked at. Where param is rounded
        at random, has a copy or is split, and there is no `scale_parameter`, a bound of its numbers
        is carried from step to step, and a sixteenth of them is looked at in each.

        Arrays of the state that hold what no step leaves there (a nan, an infinity, a negative mean
        of squares) are refused. They are looked at whole where somebody may have written to them:
        after `state` or `tensors` was asked for or a state loaded, and while somebody holds such an
        array; otherwise a sixteenth at each step. To hold an array of first moments makes every step
        read them once more.
        """
        n_waiting = self._accumulated.n
        none_left = (
            Accumulated() if n_waiting else self._accumulated
        )  # nothing may fail after a step
        if self._ranks is not None:
            given = partial(self._given, grads, grad_scale, reduce, self._ranks.absent)
            report = self._sharded_step(self._ranks, given)
        else:
            ordered, scale, measured_scale = self._given(grads, grad_scale, reduce)
            plan = self._plan_of_open_step() if self._tensors.waits else None
            report = self._tensors.step(
                plan or self._cell.plan or self._new_plan(),
                ordered,
                scale,
                partial(StepReport, self._names, lr=self._cell.lr),
                self._followed,
                measured_scale,
                self._params_are_new,
            )
        self._accumulated = none_left
        if self._params_are_new:
            self._params_are_new = report.skipped  # masters of what is left out follow nothing
        if report._flags:  # what its properties read, without their calls
            self._say(report)
        else:
            self._guard.in_a_row = 0
        return report

    def _given(
        self,
        grads: Grads,
        grad_scale: float,
        reduce: str | None,
        absent: frozenset[str] = frozenset(),
    ) -> tuple[Sequence[Any], float, float]:
        """Return the gradients in the order of `names`, and what they and measured ones are divided by.

        Tensors that are `absent` here may be missing in mappings.
        """
        scale = hyper.positive("grad_scale", grad_scale)
        waiting = self._accumulated
        if reduce is not None and (grads is not None or not waiting.n):
            raise ValueError(f"reduce is {reduce!r}, must be None without accumulated gradients")
        some_wait = self._tensors.waits
        divisor = 1
        if grads is None and waiting.n:
            ordered: Sequence[Any] = [waiting.sums.get(name) for name in self._names]
            divisor = waiting.divisor(reduce)
        elif grads is None and some_wait:
            ordered = [None] * len(self._names)
        else:
            if waiting.n:
                waiting.require_none("which has gradients of its own")
            taken = self._taken() if some_wait else ()
            ordered = in_order(grads, self._groups, self._names, absent.union(taken))
        return ordered, scale * divisor, scale

    def _say(self, report: StepReport) -> None:
        """Say what the user of a step should know of it, and nothing about usual ones."""
        if report.flags & NEWLY_STUCK:
            names = [f"params[{self._names[i]!r}]" for i in np.flatnonzero(report.stuck)]
            self._guard.stuck(names, "give their group eps_scale=1e-3 or scale_parameter=False")
        if report.skipped:
            why = why_skipped(report, self._tensors.given())
            self._guard.skipped(why, self.skipped, report.t, self.max_skipped)
        else:
            self._guard.in_a_row = 0

    def accumulate(self, grads: Grads) -> None:
        """Add gradients to those that the next ``step()`` takes, for a batch in several parts.

        Parameters
        ----------
        grads : mapping, list or tuple, tree of these, or list of one for each group; or None
            As `step` takes them. A tensor that is None adds nothing, and one that always was is left
            out of the step; so it must be where `measure` or `step_tensor` has a gradient of it. None
            instead of all drops what has been added up.

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
            taken = self._taken()
            absent = frozenset() if self._ranks is None else self._ranks.absent
            ordered = in_order(grads, self._groups, self._names, absent.union(taken))
            for name, grad in zip(self._names, ordered):
                if grad is not None and name in taken:
                    raise ValueError(
                        f"grads[{name!r}] must be None, as the next step has a gradient of it by "
                        "opt.measure or opt.step_tensor: take that step by opt.step()"
                    )
            self._accumulated.add(self._all_tensors(), self._tensors.arrays(ordered))

    def params_changed(self) -> None:
        """Say that somebody else has written to params: the next step reads all of them.

        Needed with `carry_param_rms`; with `masters`, which become what params are now (split: the
        lower halves become zeros); and with `copies`, which are written, rounded to nearest.
        """
        self._tensors.forget_params()
        for tensor in self._all_tensors():
            take_params(tensor)
        self._params_are_new = False


# Under -OO there is no docstring to complete.
Optimizer.__doc__ = (Optimizer.__doc__ or "").replace("SWITCHES", table("        ").lstrip())

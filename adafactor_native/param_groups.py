"""The tensors of a model, and the groups that step by the same switches."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from adafactor_native._runtime import _core
from adafactor_native.convention import Convention, switch_elsewhere
from adafactor_native.factoring import Axes, axes_of
from adafactor_native.given_params import copies_by_name, named_arrays
from adafactor_native.halves import is_half, low_halves
from adafactor_native.rules import rule_of
from adafactor_native.suggestions import closest
from adafactor_native.switches import SETTLED, SWITCHES, Values, check_switches
from adafactor_native.taking_over import all_at_once

if TYPE_CHECKING:
    from adafactor_native.sharding.tensor_shard import TensorShard

Array = npt.NDArray[Any]

# Each is an array of the tensor's state, if it keeps one.
KINDS = ("exp_row", "exp_col", "v", "m", "master", "low")

# What a group is given beside its hyper-parameters.
_ARRAYS = ("params", "copies")

# Switches that a Rule does not hold: they are told to every step.
_RATES = frozenset(("lr", "schedule"))


@dataclass(frozen=True, eq=False)
class Tensor:
    """A parameter and what is remembered of its gradients.

    Attributes
    ----------
    name : str
    param : ndarray
        The user's own.
    axes : Axes or None
        The factored ones.
    exp_row, exp_col : ndarrays of `state_dtype`, or None if unfactored
        Running means over each row and each column: param's other axes, then (rows,) or (cols,).
    v : ndarray of `state_dtype`, param's shape, or None if factored
    m : ndarray, param's shape and order of axes, or None without beta1
        Of `momentum_dtype`, or of param's, but float32 for a narrower one.
    master : ndarray of float32, param's shape and order of axes, or None
        What a param of half precision is rounded from, with ``masters="float32"``.
    low : ndarray of uint16, param's shape and strides, or None
        The lower 16 bits of what param has the upper ones of, with ``masters="split"``.
    decays : bool
        Whether the group's weight decay holds for it.
    copy : ndarray of float16 or bfloat16, param's shape, or None
        The user's own: every step writes a param of float32 there, rounded.
    part : Part or None
        Which part of a tensor over several ranks these arrays are, if they are: `axes` are of the
        global shape then. See `adafactor_native.sharding`.
    """

    name: str
    param: Array
    axes: Axes | None
    exp_row: Array | None
    exp_col: Array | None
    v: Array | None
    m: Array | None
    master: Array | None
    low: Array | None
    decays: bool
    copy: Array | None = None
    part: _core.Part | None = None

    @property
    def state_dtype(self) -> np.dtype[Any]:
        """What the running means are kept in: float64 or float32."""
        means = self.exp_row if self.v is None else self.v
        assert means is not None
        return means.dtype

    @property
    def state(self) -> dict[str, Array]:
        """The arrays that there are, by kind."""
        arrays = ((kind, getattr(self, kind)) for kind in KINDS)
        return {kind: array for kind, array in arrays if array is not None}


def new_tensor(
    name: str,
    param: Array,
    switches: Mapping[str, Any],
    copy: Array | None = None,
    shard: TensorShard | None = None,
    decays: bool | None = None,
) -> Tensor:
    """Return a tensor with a state of zeros, and only the arrays that its switches use.

    Where it is a part of one over several ranks, `shard` says which, and `decays` is what its owners
    say.
    """
    axes = axes_by(switches, name, param.shape) if shard is None else shard.axes
    dtype = switches["state_dtype"]
    exp_row = exp_col = v = m = master = low = None
    if axes is None:
        v = np.zeros(param.shape, dtype)
    else:
        shapes = axes.state_shapes(param.shape) if shard is None else shard.state_shapes()
        exp_row, exp_col = (np.zeros(shape, dtype) for shape in shapes)
    if switches["beta1"] is not None:
        m = np.zeros_like(param, _momentum_dtype(name, param, switches), subok=False)
    masters = switches["masters"] if is_half(param.dtype) else None
    if masters == "split" and param.dtype == np.float16:
        raise TypeError(
            f"masters is 'split', must be None or 'float32' for params[{name!r}] of float16: only a "
            "bfloat16 is half a float32"
        )
    if masters == "split":
        low = low_halves(param)
    if masters == "float32":
        master = np.array(param, np.float32, order="K", subok=False)
    if decays is None:
        decays = is_in(switches["weight_decay_mask"], name)
    part = None if shard is None else shard.part()
    return Tensor(name, param, axes, exp_row, exp_col, v, m, master, low, decays, copy, part)


def axes_by(switches: Mapping[str, Any], name: str, shape: Sequence[int]) -> Axes | None:
    """Return the axes of a tensor of this shape that are factored by these switches."""
    rule, least = switches["factored_axes"], switches["min_dim_size_to_factor"]
    return axes_of(name, tuple(shape), rule, least)


def writeable(tensor: Tensor) -> Tensor:
    """Return a tensor as it is, but copies of its read-only arrays: memory maps from a pickle."""
    copies: dict[str, Any] = {
        field.name: np.array(array, order="K", subok=False)
        for field in fields(tensor)
        if isinstance(array := getattr(tensor, field.name), np.ndarray)
        and not array.flags.writeable
    }
    return replace(tensor, **copies)


def _momentum_dtype(name: str, param: Array, switches: Mapping[str, Any]) -> np.dtype[Any]:
    dtype: np.dtype[Any] | None = switches["momentum_dtype"]
    choices = ("float64",) if param.dtype == np.float64 else ("float32", "bfloat16")
    if dtype is None:
        return np.dtype(choices[0])
    if dtype.name not in choices:
        raise TypeError(
            f"momentum_dtype is {dtype}, must be {' or '.join(choices)} or None for "
            f"params[{name!r}] of {param.dtype}"
        )
    return dtype


def is_in(mask: Any, name: str) -> bool:
    if mask is None:
        return True
    if isinstance(mask, frozenset):
        return name in mask
    if isinstance(mask, Mapping) and name not in mask:
        raise ValueError(f"weight_decay_mask has no {name!r}, must have every name of the group")
    decays = mask[name] if isinstance(mask, Mapping) else mask(name)
    if not isinstance(decays, (bool, np.bool_)):
        raise TypeError(
            f"weight_decay_mask of {name!r} is a {type(decays).__name__}, must be a bool"
        )
    return bool(decays)


class PlanCell:
    """Where an optimizer keeps its plan; its groups empty it when they change."""

    def __init__(self) -> None:
        self.plan: _core.Plan | None = None
        self.lr: tuple[float, ...] = ()  # of each group, in the last plan
        # Of the step that step_tensor has begun last.
        self.of_open_step: _core.Plan | None = None
        # Of what ranks have to agree on, and its hash.
        self.agreed: tuple[tuple[Any, ...], int] | None = None
        # What was made of these, to measure by; and of these names.
        self.measuring: tuple[tuple[Any, ...], _core.Plan] | None = None
        self.positions: tuple[tuple[str, ...], dict[str, int]] | None = None


class ParamGroup(MutableMapping[str, Any]):
    """Tensors that step by the same switches, as a mapping: ``group["lr"] = 0.1``.

    "params" is a tuple of the arrays, "names" of their names; all other keys are the switches, by
    the names of `Optimizer`'s table whatever the convention, and can be set between steps. `update`
    sets several at once, which matters where one requires another. ``repr`` shows the switches that
    differ from the convention's defaults, ``dict`` all of them.

    Raises
    ------
    KeyError
        If there is no such key.
    TypeError, ValueError
        If a value is refused, or cannot be changed any more: which axes are factored, whether there
        is a first moment and what decays are settled when a group is added. Nothing is changed.
    """

    def __init__(
        self, tensors: Sequence[Tensor], switches: Values, convention: Convention, cell: PlanCell
    ) -> None:
        self.tensors = tuple(tensors)
        self.switches = switches
        self._convention = convention
        self._cell = cell
        self._rule: _core.Rule | None = None

    @property
    def rule(self) -> _core.Rule:
        """What the extension is told of the switches."""
        if self._rule is None:
            self._rule = rule_of(self.switches)
        return self._rule

    def __getitem__(self, key: str) -> Any:
        if key == "params":
            return tuple(tensor.param for tensor in self.tensors)
        if key == "names":
            return tuple(tensor.name for tensor in self.tensors)
        return self.switches[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.replace({key: value})

    def update(self, *others: Any, **values: Any) -> None:
        self.replace(dict(*others, **values))

    def replace(self, values: Mapping[str, Any]) -> None:
        """Set all these switches, or on an error none."""
        for key in values:
            if key in ("params", "names"):
                raise TypeError(f"{key} cannot be set, must be given when the group is added")
            if key not in SWITCHES:
                guess = switch_elsewhere(key) or closest(key, SWITCHES)
                instead = f"did you mean {guess!r}?" if guess else "must be a key of the group"
                raise KeyError(f"{key} is no switch, {instead}")
        if _RATES.issuperset(values):
            self.switches.update({k: SWITCHES[k].check(k, value) for k, value in values.items()})
            self._cell.plan = None
        else:
            self.take(self.checked(values))

    def checked(self, values: Mapping[str, Any], shown: str = "{}") -> Values:
        """Return all switches with these values, known to be right; `shown` as messages show them."""
        switches = check_switches(
            {**self.switches, **values}, {name: shown.format(name) for name in values}
        )
        for name in SETTLED:
            if switches[name] != self.switches[name]:
                raise ValueError(
                    f"{name} is settled when a group is added, must stay {self.switches[name]!r}"
                )
        if (switches["beta1"] is None) != (self.switches["beta1"] is None):
            must = "stay None" if self.switches["beta1"] is None else "be a number in [0, 1)"
            raise ValueError(
                f"{shown.format('beta1')} is {switches['beta1']}, must {must}: whether there is a "
                "first moment is settled when a group is added"
            )
        return switches

    def taking(self, switches: Values) -> tuple[partial[None], partial[None]]:
        """Return the writes that set all switches to what `checked` returned."""
        return (
            partial(vars(self).update, switches=switches, _rule=None),
            partial(vars(self._cell).update, plan=None),
        )

    def take(self, switches: Values) -> None:
        """Set all switches to what `checked` returned."""
        all_at_once(self.taking(switches))

    def __delitem__(self, key: str) -> None:
        raise TypeError(f"{key} cannot be deleted, must be set")

    def __iter__(self) -> Iterator[str]:
        yield from ("params", "names", *self.switches)

    def __len__(self) -> int:
        return 2 + len(self.switches)

    def __repr__(self) -> str:
        values = "".join(
            f", {name}={value!r}"
            for name, value in self.switches.items()
            if value != self._convention.defaults[name]
        )
        elements = sum(prod(tensor.param.shape) for tensor in self.tensors)
        return (
            f"<ParamGroup(convention={self._convention.name!r}{values}), "
            f"tensors={len(self.tensors)}, elements={elements}>"
        )


class GivenGroup(NamedTuple):
    """A group as it was given: its arrays by name, and all its switches."""

    arrays: dict[str, Array]
    copies: dict[str, Array]
    switches: Values


def read_given(
    given: Sequence[tuple[str, Mapping[str, Any]]],
    convention: Convention,
    defaults: Mapping[str, Any],
    taken: Sequence[str],
    removed: Collection[str] = (),
) -> list[GivenGroup]:
    """Return groups as `read_groups` gave them, checked, beside tensors of the names `taken`.

    Names that were `removed` may stand in masks, and are free; but positions go on behind them.
    """
    groups = []
    names = set(taken)
    for where, group in given:
        if "params" not in group:
            raise ValueError(f"{where.format('params')} is missing, must be given")
        own = {key: value for key, value in group.items() if key not in _ARRAYS}
        switches = convention.switches(("{}", defaults), (where, own))
        first = len(names.union(removed))
        arrays = named_arrays(where.format("params"), group["params"], first)
        for name in arrays:
            if name in names:
                raise ValueError(f"params[{name!r}] is given twice, names must be unique")
            names.add(name)
        copies = copies_by_name(where.format("copies"), group.get("copies"), arrays, first)
        groups.append(GivenGroup(arrays, copies, switches))
    return groups


def new_groups(
    given: Sequence[tuple[str, Mapping[str, Any]]],
    convention: Convention,
    defaults: Mapping[str, Any],
    taken: Sequence[str],
    cell: PlanCell,
    removed: Collection[str] = (),
) -> list[ParamGroup]:
    """Return groups as `read_groups` gave them, as new ones with a state of zeros; see `read_given`."""
    groups = []
    for arrays, copies, switches in read_given(given, convention, defaults, taken, removed):
        tensors = [
            new_tensor(name, param, switches, copies.get(name)) for name, param in arrays.items()
        ]
        groups.append(ParamGroup(tensors, switches, convention, cell))
    names = {*taken, *removed, *(name for group in groups for name in group["names"])}
    for group in groups:
        require_known_names(group["weight_decay_mask"], names)
    return groups


def require_known_names(mask: Any, names: Collection[str]) -> None:
    """Raise a ValueError if a collection of the names that decay has others than these."""
    if isinstance(mask, frozenset) and not mask.issubset(names):
        unknown = ", ".join(sorted(map(repr, mask.difference(names))))
        raise ValueError(f"weight_decay_mask has {unknown}, must have names of params only")

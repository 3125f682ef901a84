"""The native tensors of parameters that lie in pieces, over the memory of torch's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from adafactor_native._runtime import _core
from adafactor_native.halves import bfloat16
from adafactor_native.param_groups import Tensor
from adafactor_native.sharding.tensor_shard import TensorShard
from adafactor_native.torch.sharded_params import array_of, local_of
from adafactor_native.torch.sharded_state import CutState
from adafactor_native.torch.state import StateNames

Array = npt.NDArray[Any]


@dataclass
class Held:
    """A parameter, its part here, and its state as a step finds it.

    Attributes
    ----------
    place : int
        Its group's index.
    name : str
    param : Tensor
    local : Tensor
        This rank's own.
    state : CutState
    values : dict
        Its state: that of the optimizer, or what becomes it with the first step.
    """

    place: int
    name: str
    param: torch.Tensor
    local: torch.Tensor
    state: CutState
    values: dict[str, Any]

    @property
    def shard(self) -> TensorShard:
        return self.state.shard

    def is_as(self, other: Held) -> bool:
        """Whether a step finds the same memory."""
        return (
            self.param is other.param
            and self.place == other.place
            and self.shard is other.shard
            and self.local.data_ptr() == other.local.data_ptr()
            and self.local.stride() == other.local.stride()
            and self.state.places == other.state.places
            and all(self.values[key] is other.values[key] for key in self.state.places)
        )

    def local_values(self) -> dict[str, torch.Tensor]:
        """Return this rank's own tensors of the state."""
        return {key: local_of(self.values[key]) for key in self.state.places}


@dataclass
class ShardedModel:
    """The native tensors of all parameters, for as long as they lie where they do.

    Attributes
    ----------
    held : list of Held
    tensors : _core.Tensors
        In the same order.
    groups : list of (int, torch.dtype)
        The native ones: the index of a group of the optimizer, and the dtype of its parameters.
    counts : list of int
        Steps that each parameter has taken.
    """

    held: list[Held]
    tensors: _core.Tensors
    groups: list[tuple[int, torch.dtype]]
    counts: list[int] = field(default_factory=list)

    def is_of(self, held: Sequence[Held]) -> bool:
        return len(held) == len(self.held) and all(map(Held.is_as, self.held, held))


def model_of(held: list[Held], names: StateNames) -> ShardedModel:
    """Return new native tensors; those of one group and dtype must follow each other."""
    by_group: dict[tuple[int, torch.dtype], list[Tensor]] = {}
    for one in held:
        tensor = _tensor(one, names)
        by_group.setdefault((one.place, one.param.dtype), []).append(tensor)
    tensors = _core.Tensors()
    tensors.add(list(by_group.values()))
    return ShardedModel(held, tensors, list(by_group))


def muted_model(
    params: Sequence[tuple[int, torch.dtype, str, CutState]], names: StateNames
) -> ShardedModel:
    """Return native tensors of a rank that has nothing, whose arrays of a round are as long as others'."""
    by_group: dict[tuple[int, torch.dtype], list[Tensor]] = {}
    for place, dtype, name, state in params:
        tensor = _empty_tensor(name, _numpy_dtype(dtype), state, names)
        by_group.setdefault((place, dtype), []).append(tensor)
    tensors = _core.Tensors()
    tensors.add(list(by_group.values()))
    return ShardedModel([], tensors, list(by_group))


def _tensor(one: Held, names: StateNames) -> Tensor:
    """Return what the extension is told of a parameter: NumPy arrays of torch's memory."""
    shard = one.shard
    param = array_of(one.local)
    if not shard.is_owner and param.shape != shard.local_shape:
        param = np.zeros(shard.local_shape, param.dtype)
    arrays = {key: array_of(local) for key, local in one.local_values().items()}
    row = col = None
    if shard.axes is not None:
        rows, cols = shard.state_shapes()
        row, col = _shaped(arrays[names.row], rows), _shaped(arrays[names.col], cols)
    full, moment, master, low = (
        _shaped(arrays.get(key), param.shape)
        for key in (names.full, names.moment, names.master, names.low)
    )
    return Tensor(
        one.name, param, shard.axes, row, col, full, moment, master, low, True, None, shard.part()
    )


def _shaped(array: Array | None, shape: Sequence[int]) -> Array | None:
    """Return an array in another shape, in the same memory; one of its own for a rank without elements."""
    if array is None or array.shape == tuple(shape):
        return array
    return array.reshape(shape) if array.size == prod(shape) else np.zeros(shape, array.dtype)


def _empty_tensor(name: str, dtype: np.dtype[Any], state: CutState, names: StateNames) -> Tensor:
    nothing = state.shard.without_elements()
    shape = nothing.local_shape
    param = np.zeros(shape, dtype)
    row = col = full = moment = None
    width = _numpy_dtype(next(iter(state.places.values())).dtype)
    if nothing.axes is None:
        full = np.zeros(shape, width)
    else:
        row, col = (np.zeros(each, width) for each in nothing.state_shapes())
    if names.moment in state.places:
        moment = np.zeros(shape, np.float64 if dtype == np.float64 else np.float32)
    return Tensor(
        *(name, param, nothing.axes, row, col, full, moment, None, None, True, None),
        nothing.part(),
    )


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    if dtype == torch.bfloat16:
        return bfloat16("a sharded parameter of torch.bfloat16")
    found: np.dtype[Any] = torch.empty(0, dtype=dtype).numpy().dtype
    return found

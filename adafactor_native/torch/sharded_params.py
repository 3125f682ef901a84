"""Parameters of which this process has a part: what they are, and how their state is cut as they are."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from adafactor_native.halves import bfloat16
from adafactor_native.sharding.pieces import Piece, Shape
from adafactor_native.torch.state import StateNames, axes_of_means

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from adafactor_native.factoring import Axes

PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))
_FSDP1 = "torch.distributed.fsdp._flat_param"
_FSDP1_MARK = "_fsdp_flattened"  # that it sets on what it cuts


@dataclass(frozen=True)
class Cut:
    """How a parameter lies on the ranks.

    Attributes
    ----------
    shape : tuple of int
        Of all of it.
    pieces : dict of int to Box or FlatRange
        By global rank.
    like : DTensor or None
        Whose mesh and placements it has; None: it is flat, or whole.
    shown : str
        How, as a message tells it.
    is_whole : bool
        It is this process's own, and a plain tensor.
    """

    shape: Shape
    pieces: Mapping[int, Piece]
    like: Any
    shown: str
    is_whole: bool = False

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """The global ranks that it lies on, in their order."""
        return tuple(sorted(self.pieces))

    def wrapped(
        self, local: torch.Tensor, shape: Shape, axes: Sequence[int | None]
    ) -> torch.Tensor:
        """Return this rank's part of an array of the state as a tensor that knows of the others.

        Parameters
        ----------
        local : Tensor
            Its memory is shared.
        shape : tuple of int
            Of all of it.
        axes : sequence of (int or None)
            Of each of its axes, which one of the parameter's it is; None: of length 1.
        """
        if self.like is None:
            return local
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(
            local,
            self.like.device_mesh,
            placements_by(self.like.placements, axes),
            run_check=False,
            shape=torch.Size(shape),
            stride=torch.empty(shape, device="meta").stride(),
        )


def placements_by(placements: Sequence[Any], axes: Sequence[int | None]) -> tuple[Any, ...]:
    """Return a parameter's placements for an array that has some of its axes."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.placement_types import _StridedShard

    from adafactor_native.torch.dtensor_boxes import is_cut

    found: list[Any] = []
    for placement in placements:
        if not is_cut(placement):
            found.append(placement)
        elif placement.dim not in axes:
            found.append(Replicate())
        elif isinstance(placement, _StridedShard):
            where = axes.index(placement.dim)
            found.append(_StridedShard(where, split_factor=placement.split_factor))
        else:
            found.append(type(placement)(axes.index(placement.dim)))
    return tuple(found)


def axes_of_state(names: StateNames, axes: Axes | None, ndim: int) -> dict[str, list[int | None]]:
    """Return, of each array of the state, which axes of the parameter its axes are."""
    every: list[int | None] = list(range(ndim))
    found = {key: every for key in (names.full, names.moment, names.master, names.low)}
    if axes is not None:
        found[names.row], found[names.col] = axes_of_means(names, axes, ndim)
    return found


def may_be_sharded(params: Iterable[torch.Tensor]) -> bool:
    """Whether any parameter is perhaps a part of one over several ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    if "torch.distributed.tensor" in sys.modules and not PLAIN.issuperset(map(type, params)):
        return True
    return _FSDP1 in sys.modules and any(map(is_of_fsdp1, params))


def is_of_fsdp1(param: torch.Tensor) -> bool:
    """Whether FSDP1 has cut a parameter, or wrapped it and left it whole."""
    return hasattr(param, _FSDP1_MARK)


def is_dtensor(value: Any) -> bool:
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's own tensor, of the same memory."""
    if not is_dtensor(tensor):
        return tensor.detach()
    with torch.no_grad():
        local: torch.Tensor = tensor.to_local()
    wait = getattr(local, "wait", None)  # of a collective that is still under way
    return local if wait is None else wait()


def local_grad(param: torch.Tensor) -> torch.Tensor | None:
    """Return this rank's part of a gradient, cut as the parameter is."""
    grad = param.grad
    if grad is None or not is_dtensor(param):
        return grad
    if tuple(grad.placements) != tuple(param.placements):
        grad = grad.redistribute(param.device_mesh, param.placements)
    return local_of(grad)


def array_of(tensor: torch.Tensor) -> npt.NDArray[np.generic]:
    """Return a NumPy array of the same memory."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        dtype = bfloat16("a sharded parameter or gradient of torch.bfloat16")
        halves: npt.NDArray[np.generic] = tensor.view(torch.int16).numpy().view(dtype)
        return halves
    if tensor.dtype == torch.uint16:
        low: npt.NDArray[np.generic] = tensor.view(torch.int16).numpy().view("uint16")
        return low
    array: npt.NDArray[np.generic] = tensor.numpy()
    return array

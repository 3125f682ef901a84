"""The state of a parameter that lies in pieces: cut as the parameter is, of one shape on all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from adafactor_native.factoring import Axes, axes_of
from adafactor_native.sharding.pieces import Box
from adafactor_native.sharding.tensor_shard import TensorShard
from adafactor_native.torch.sharded_params import Cut, axes_of_state, is_dtensor, local_of
from adafactor_native.torch.state import (
    Kept,
    Place,
    StateNames,
    new_count,
    places,
    require_no_overflow,
    scalars_taken_over,
)


class CutState:
    """What the state of one parameter has to be.

    Parameters
    ----------
    names : StateNames
    kept : Kept
    shown : str
        What a message calls the parameter.
    param : Tensor
    cut : Cut
    shard : TensorShard
    """

    def __init__(
        self,
        names: StateNames,
        kept: Kept,
        shown: str,
        param: torch.Tensor,
        cut: Cut,
        shard: TensorShard,
    ) -> None:
        self._names, self._kept, self._shown, self._cut, self.shard = names, kept, shown, cut, shard
        self._own = param
        whole = torch.empty(cut.shape, dtype=param.dtype, device="meta")
        self.places: dict[str, Place] = places(names, kept, shown, whole)
        self._axes = axes_of_state(names, shard.axes, len(cut.shape))

    @property
    def _local(self) -> torch.Tensor:
        return local_of(self._own)

    def require_local_shape(self) -> None:
        """Raise a ValueError if this rank's own tensor is not what the placements say."""
        box = self.shard.pieces[self.shard.rank]
        wanted = box.shape if isinstance(box, Box) else (box.length,)
        if tuple(self._local.shape) != wanted:
            raise ValueError(
                f"{self._shown} has a local tensor of shape {tuple(self._local.shape)}, must be {wanted} "
                "by its placements"
            )

    def local_shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of this rank's part of an array of the state."""
        if self._cut.is_whole:
            return self.places[key].shape
        if self._cut.like is None and key in (self._names.row, self._names.col):
            return self.shard.state_shapes()[key == self._names.col]
        if self._cut.like is None:
            return tuple(self._local.shape)
        return tuple(1 if axis is None else self._local.shape[axis] for axis in self._axes[key])

    def is_copied_to_nothing(self, key: str) -> bool:
        """Whether a rank without elements has a copy of a part of an array of means."""
        if self._cut.like is None or key not in self.places:
            return False
        nothing = [
            piece for piece in self.shard.pieces if isinstance(piece, Box) and not piece.size
        ]
        kept = [axis for axis in self._axes[key] if axis is not None]
        return any(all(piece.shape[axis] for axis in kept) for piece in nothing)

    def begun(self) -> dict[str, Any]:
        """Return the state of a parameter that has taken no step."""
        made = {key: self._made(key) for key in self.places}
        begun: dict[str, Any] = {self._names.step: new_count(self._names), **made}
        if self._names.rms_param is not None:
            begun[self._names.rms_param] = 0
        return begun

    def taken_over(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return what has to replace values of a state so that a step can use it.

        A whole tensor, as of a run on one machine, is cut; a DTensor that is cut otherwise is
        redistributed, in which all ranks take part.

        Raises
        ------
        TypeError, ValueError
            If something is missing, or is no state of this parameter.
        """
        replaced = scalars_taken_over(
            given, self._names, self.places, self._kept, self._shown, self._own.dtype
        )
        for key in self.places:
            if key not in given:
                replaced[key] = self._made(key)
            elif not self._fits(key, given[key]):
                replaced[key] = self._fitted(key, given[key])
        return replaced

    def _made(self, key: str, value: torch.Tensor | None = None) -> torch.Tensor:
        """Return a new array of the state, of zeros or with this rank's part of its numbers."""
        place = self.places[key]
        if key == self._names.low:
            local = torch.empty_strided(
                self._local.shape, self._local.stride(), dtype=torch.int16
            ).zero_()
            local = local.view(torch.uint16)
        elif key == self._names.master and value is None:
            local = self._local.to(torch.float32, copy=True)
        else:
            local = torch.zeros(self.local_shape(key), dtype=place.dtype)
        if value is not None and key == self._names.low:
            local.view(torch.int16).copy_(value.view(torch.int16))
        elif value is not None:
            local.copy_(value)
            require_no_overflow(f"{key!r} of {self._shown}", local, value)
        return self._cut.wrapped(local, place.shape, self._axes[key])

    def _fits(self, key: str, value: Any) -> bool:
        place = self.places[key]
        if is_dtensor(value) != (self._cut.like is not None):
            return False
        if not isinstance(value, torch.Tensor) or value.dtype != place.dtype:
            return False
        if is_dtensor(value):
            wanted = self._cut.wrapped(value._local_tensor, place.shape, self._axes[key])
            if (value.device_mesh, value.placements) != (wanted.device_mesh, wanted.placements):
                return False
        local = local_of(value)
        return (
            tuple(local.shape) == self.local_shape(key)
            and local.device.type == "cpu"
            and (not place.is_contiguous or local.is_contiguous())
            and (key != self._names.low or local.stride() == self._local.stride())
        )

    def _fitted(self, key: str, value: Any) -> torch.Tensor:
        place, shown = self.places[key], f"{key!r} of {self._shown}"
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{shown} is a {type(value).__name__}, must be a tensor")
        halves = key == self._names.low
        if value.is_floating_point() == halves:
            raise TypeError(f"{shown} has dtype {value.dtype}, must be {place.dtype}")
        value = value.detach()
        like = self._cut.like
        if like is None:
            if tuple(value.shape) != self.local_shape(key):
                why = (
                    ""
                    if self._cut.is_whole
                    else (
                        ": the state of flat parameters loads on as many ranks as it was saved on"
                    )
                )
                raise ValueError(
                    f"{shown} has shape {tuple(value.shape)}, must be {self.local_shape(key)}{why}"
                )
            return self._made(key, value)
        if tuple(value.shape) != place.shape:
            raise ValueError(f"{shown} has shape {tuple(value.shape)}, must be {place.shape}")
        wanted = self._cut.wrapped(
            torch.empty(self.local_shape(key), dtype=value.dtype), place.shape, self._axes[key]
        )
        if is_dtensor(value):
            if halves:
                value = _as_int32(value)
            local = local_of(value.redistribute(wanted.device_mesh, wanted.placements))
            return self._made(key, local.to(torch.int16) if halves else local)
        return self._made(key, value[self.own_slices(key)])

    def own_slices(self, key: str) -> tuple[slice, ...]:
        """Return where this rank's part of an array of the state is in all of it."""
        box: Any = self.shard.pieces[self.shard.rank]
        return tuple(
            slice(None) if axis is None else box.slices()[axis] for axis in self._axes[key]
        )


def _as_int32(halves: Any) -> Any:
    """Return a DTensor of 16 bits with 32, which backends send."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local_of(halves).view(torch.int16).to(torch.int32),
        halves.device_mesh,
        halves.placements,
        run_check=False,
        shape=halves.shape,
        stride=halves.stride(),
    )


def factored_axes(kept: Kept, shown: str, cut: Cut) -> Axes | None:
    """Return the axes of a parameter that are factored, by its shape as a whole."""
    return axes_of(shown, cut.shape, kept.factored_axes, kept.min_dim_size_to_factor)

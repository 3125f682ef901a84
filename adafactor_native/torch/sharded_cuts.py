"""How the parameters of an optimizer are cut, and what their states have to be: found once of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.utils.weak import WeakIdKeyDictionary

from adafactor_native.sharding.pieces import Box
from adafactor_native.sharding.tensor_shard import TensorShard
from adafactor_native.torch.sharded_params import Cut, is_dtensor
from adafactor_native.torch.sharded_state import CutState, factored_axes
from adafactor_native.torch.state import Kept, StateNames

if TYPE_CHECKING:
    from adafactor_native.torch.fsdp1_ranges import FlatParam


class Cuts:
    """What is known of parameters, for as long as they live."""

    def __init__(self) -> None:
        self._flat: Any = WeakIdKeyDictionary()  # by parameter: FlatParam, or None of a whole one
        self._cuts: Any = WeakIdKeyDictionary()  # Cut by parameter, and what it was told from
        self._states: Any = WeakIdKeyDictionary()  # CutState by parameter, and what it was made of

    def take_flat(self, found: Sequence[tuple[torch.Tensor, FlatParam | None]]) -> None:
        """Know these parameters of FSDP1 from now on."""
        for param, flat in found:
            self._flat[param] = flat

    def is_cut(self, param: torch.Tensor) -> bool:
        """Whether a parameter lies in pieces, as far as is known."""
        return is_dtensor(param) or self._flat.get(param) is not None

    def require_known(self, name: str | int, param: torch.Tensor) -> None:
        """Raise a ValueError where FSDP1 has cut a parameter, and nobody has said how."""
        if param not in self._flat:
            raise ValueError(
                f"params[{name!r}] is a part of a parameter of FullyShardedDataParallel, whose shape it does "
                "not tell: call opt.take_flat_shards(module) with the wrapped module, or use fully_shard"
            )

    def cut_of(self, name: str | int, param: torch.Tensor) -> Cut:
        """Return how a parameter lies on the ranks; a plain one on this alone."""
        known = self._cuts.get(param)
        spec = param._spec if is_dtensor(param) else None
        if known is not None and known[0] == (spec, param.shape):
            cut: Cut = known[1]
            return cut
        shape = tuple(param.shape)
        if spec is not None:
            from adafactor_native.torch.dtensor_boxes import boxes_of

            shown = f"{tuple(spec.placements)} of a mesh of {tuple(spec.mesh.shape)}"
            cut = Cut(shape, boxes_of(f"params[{name!r}]", param), param.detach(), shown)
        elif self._flat.get(param) is not None:
            flat = self._flat[param]
            cut = Cut(flat.shape, flat.ranges, None, "a range of FSDP1")
        else:
            cut = Cut(shape, {0: Box((0,) * len(shape), shape)}, None, "whole", is_whole=True)
        self._cuts[param] = (spec, param.shape), cut
        return cut

    def state_of(
        self, names: StateNames, kept: Kept, name: str | int, param: torch.Tensor
    ) -> CutState:
        """Return what the state of a parameter has to be, in a group that keeps these."""
        cut = self.cut_of(name, param)
        known = self._states.get(param)
        if known is not None and known[0] is cut and known[1] == (kept, param.dtype):
            state: CutState = known[2]
            return state
        pieces = [cut.pieces[rank] for rank in cut.ranks]
        own = 0 if cut.is_whole else cut.ranks.index(dist.get_rank())
        axes = factored_axes(kept, f"params[{name!r}]", cut)
        shard = TensorShard(str(name), cut.shape, pieces, own, axes)
        state = CutState(names, kept, f"params[{name!r}]", param, cut, shard)
        self._states[param] = cut, (kept, param.dtype), state
        return state

"""Masters and lower halves of parameters that somebody else wrote to; as adafactor_native.following."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from adafactor_native.torch.state import HALVES, StateNames


class Followers:
    """Knows which parameters somebody has written to since their last step.

    A parameter's version counts what is written through torch, and its address says whether it has
    other memory. What is written through ``p.data`` or NumPy is not seen.
    """

    def __init__(self) -> None:
        self._seen: Any = WeakIdKeyDictionary()  # of each master or lower half

    def follow(
        self,
        params: Iterable[torch.Tensor],
        states: Any,
        names: StateNames,
        stochastic: bool,
        all_of_them: bool = False,
    ) -> None:
        """Let what lies beside each written parameter follow it."""
        for p in params:
            if p.dtype not in HALVES:
                continue
            state = states.get(p) or {}
            beside = state.get(names.master, state.get(names.low))
            if beside is None or (not all_of_them and self._seen.get(beside) == _version(p)):
                continue
            if beside.dtype == torch.float32:
                follow_master(p.detach(), beside, stochastic)
            else:
                follow_low(p.detach(), beside)
            self._seen[beside] = _version(p)

    def saw(self, stepped: Iterable[torch.Tensor], states: Any, names: StateNames) -> None:
        """Note the parameters that a step has just written."""
        for p in stepped:
            state = states[p]
            beside = state.get(names.master, state.get(names.low))
            if beside is not None:
                self._seen[beside] = _version(p)


def _version(p: torch.Tensor) -> tuple[int, int]:
    return -1 if p.is_inference() else p._version, p.data_ptr()


def follow_master(param: torch.Tensor, master: torch.Tensor, stochastic: bool) -> None:
    """Make those elements of a float32 master what the parameter is that it does not round to.

    With stochastic rounding a parameter may be either neighbour of its master.
    """
    nearest = master.to(param.dtype)
    differs = nearest.view(torch.int16) != param.view(torch.int16)
    if not differs.any():
        return
    differs &= ~(param.isnan() & master.isnan())
    if stochastic:
        magnitude = param.abs()
        gap = torch.nextafter(magnitude, torch.full_like(magnitude, torch.inf)) - magnitude
        differs &= ~((param.float() - master).abs() < gap.float())
    master.copy_(torch.where(differs, param.float(), master))


def follow_low(param: torch.Tensor, low: torch.Tensor) -> None:
    """Zero lower halves that the parameter cannot have: there is none below a zero."""
    bits = low.view(torch.int16)
    below_zero = ((param.view(torch.int16) & 0x7FFF) == 0) & (bits < 0)
    bits.masked_fill_(below_zero, 0)

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

    def saw(self, stepped: Iterable[torch.Tensor], states: Any, names: StateNames) -> None:
        """Note the parameters that a step has just written."""
        for p in stepped:
            beside = _beside(p, states, names)
            if beside is not None:
                self._seen[beside] = _version(p)


class Following:
    """What lies beside parameters and follows them, in a step that may yet fail.

    What it was is kept until `keep` or `give_back`; nothing is, where nothing follows.
    """

    def __init__(self, followers: Followers, states: Any, names: StateNames) -> None:
        self._seen, self._states, self._names = followers._seen, states, names
        self._old: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, float | None]] = []

    def follow(
        self, params: Iterable[torch.Tensor], stochastic: bool, all_of_them: bool = False
    ) -> None:
        """Let what lies beside each written parameter follow it, where a step could use it."""
        for p in params:
            beside = _beside(p, self._states, self._names)
            if beside is None or (not all_of_them and self._seen.get(beside) == _version(p)):
                continue
            new = followed(p.detach(), beside, stochastic)
            if new is None:
                self._seen[beside] = _version(p)
                continue
            self._old.append(
                (p, beside, beside.detach().clone(), count_in(self._states, p, self._names))
            )
            write(beside, new)

    def keep(self) -> None:
        """The step took place: let all that followed be as it is."""
        for p, beside, _, _ in self._old:
            self._seen[beside] = _version(p)
        self._old.clear()

    def give_back(self) -> None:
        """The step was not taken: let all be as before that is beside parameters without a step."""
        for p, beside, old, count in self._old:
            if count_in(self._states, p, self._names) == count:
                write(beside, old)
        self._old.clear()


def count_in(states: Any, p: torch.Tensor, names: StateNames) -> float | None:
    """Return how many steps a parameter has taken, or None where its state does not say."""
    count = (states.get(p) or {}).get(names.step)
    return float(count) if isinstance(count, (torch.Tensor, int, float)) else None


def write(beside: torch.Tensor, values: torch.Tensor) -> None:
    """Write all of a master or of lower halves."""
    if beside.dtype == torch.uint16:
        beside, values = beside.view(torch.int16), values.view(torch.int16)
    with torch.no_grad():
        beside.copy_(values)


def _beside(p: torch.Tensor, states: Any, names: StateNames) -> torch.Tensor | None:
    """Return the master or the lower halves of a parameter, where they are what a step could use."""
    if p.dtype not in HALVES:
        return None
    state = states.get(p) or {}
    found = state.get(names.master, state.get(names.low))
    dtype = torch.float32 if names.master in state else torch.uint16
    fits = isinstance(found, torch.Tensor) and found.dtype == dtype and found.shape == p.shape
    return found if fits else None


def _version(p: torch.Tensor) -> tuple[int, int]:
    return -1 if p.is_inference() else p._version, p.data_ptr()


def followed(param: torch.Tensor, beside: torch.Tensor, stochastic: bool) -> torch.Tensor | None:
    """Return what a master or lower halves would be if they followed, or None where they do.

    Nothing is written to. With stochastic rounding a parameter may be either neighbour of its master.
    """
    if beside.dtype == torch.float32:
        return _followed_master(param, beside.detach(), stochastic)
    return _followed_low(param, beside.detach())


def _followed_master(
    param: torch.Tensor, master: torch.Tensor, stochastic: bool
) -> torch.Tensor | None:
    """Those elements of a float32 master become the parameter's that it does not round to."""
    nearest = master.to(param.dtype)
    differs = nearest.view(torch.int16) != param.view(torch.int16)
    if not differs.any():
        return None
    differs &= ~(param.isnan() & master.isnan())
    if stochastic:
        magnitude = param.abs()
        gap = torch.nextafter(magnitude, torch.full_like(magnitude, torch.inf)) - magnitude
        differs &= ~((param.float() - master).abs() < gap.float())
    return torch.where(differs, param.float(), master) if differs.any() else None


def _followed_low(param: torch.Tensor, low: torch.Tensor) -> torch.Tensor | None:
    """Lower halves that the parameter cannot have become zero: below a zero, and of an infinity."""
    bits, magnitude = low.view(torch.int16), param.view(torch.int16) & 0x7FFF
    foreign = ((magnitude == 0) & (bits < 0)) | ((magnitude == 0x7F80) & (bits != 0))
    return bits.masked_fill(foreign, 0).view(torch.uint16) if foreign.any() else None

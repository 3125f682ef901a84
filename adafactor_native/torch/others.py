"""Parameters that are no plain tensors in this machine's memory: torch's own function steps them."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch.optim._adafactor import adafactor

from adafactor_native.torch.state import TORCH_NAMES, new_count

_KEYS = (TORCH_NAMES.row, TORCH_NAMES.col, TORCH_NAMES.full)


def require_supported(params: Sequence[torch.Tensor]) -> None:
    """Raise torch's errors of what its Adafactor does not step."""
    for param in params:
        if torch.is_complex(param):
            raise RuntimeError("Adafactor does not support complex parameters")
        if param.grad is not None and param.grad.is_sparse:
            raise RuntimeError("Adafactor does not support sparse gradients")


def begin(state: MutableMapping[str, Any], param: torch.Tensor) -> None:
    """Fill an empty state as ``torch.optim.Adafactor`` does."""
    grad = param.grad
    state["step"] = new_count(TORCH_NAMES)
    if grad.dim() > 1:
        state["row_var"] = grad.new_zeros([*grad.shape[:-1], 1])
        state["col_var"] = grad.new_zeros([*grad.shape[:-2], 1, grad.shape[-1]])
    else:
        state["variance"] = torch.zeros_like(grad, memory_format=torch.preserve_format)


def step(
    params: Sequence[torch.Tensor], states: Mapping[torch.Tensor, Any], group: Mapping[str, Any]
) -> None:
    """Take one step of each parameter, by the group's values, on the state that the others have too."""
    eps1, eps2 = group["eps"]
    for param in params:
        state, grad = states[param], param.grad
        if not state:
            begin(state, param)
        for key in _KEYS:
            value = state.get(key)
            if value is not None and (value.dtype, value.device) != (grad.dtype, grad.device):
                state[key] = value.to(device=grad.device, dtype=grad.dtype)
        if not isinstance(state["step"], torch.Tensor):
            state["step"] = torch.tensor(float(state["step"]))
        # One by one, for each has the machine epsilon of its own dtype.
        adafactor(
            [param],
            [grad],
            [state.get("row_var")],
            [state.get("col_var")],
            [state.get("variance")],
            [state["step"]],
            foreach=group.get("foreach"),
            d=group["d"],
            lr=group["lr"],
            beta2_decay=group["beta2_decay"],
            weight_decay=group["weight_decay"],
            eps1=eps1,
            eps2=eps2,
            maximize=group["maximize"],
        )

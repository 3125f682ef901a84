"""What torch.compile makes of a step: one operator that changes the parameters, without a break."""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from adafactor_native.torch.optimizer import NativeOptimizer

_optimizers: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def number_of_new(opt: NativeOptimizer) -> int:
    """Return the number by which the operator finds an optimizer, which a graph can hold."""
    number = next(_numbers)
    _optimizers[number] = opt
    return number


def trace_step(opt: NativeOptimizer) -> None:
    """Put the operator into the graph that is being traced."""
    params, grads, positions = [], [], []
    position = 0
    for group in opt.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                params.append(p)
                grads.append(p.grad)
                positions.append(position)
            position += 1
    torch.ops.adafactor_native.step(params, grads, positions, opt._number)


def _step(
    params: list[torch.Tensor], grads: list[torch.Tensor], positions: list[int], number: int
) -> None:
    """Step tensors that stand for the parameters at these positions.

    Values of groups are read now and state is the optimizer's: neither is in the graph, so that
    a new learning rate needs no new one.
    """
    from adafactor_native.torch.stepping import Part, StepCall, all_parts

    opt = _optimizers[number]
    opt._settle()
    if opt.options.sums == "exact":
        raise ValueError(
            "sums is 'exact', must be 'fast' for a compiled step: call opt.step() outside torch.compile"
        )
    if opt._is_to_be_skipped():
        return
    given = dict(zip(positions, zip(params, grads)))
    parts, states = [], {}
    for part in all_parts(opt):
        for k, own in enumerate(part.params):
            if part.first + k in given:
                param, grad = given[part.first + k]
                names = None if part.names is None else [part.names[k]]
                parts.append(Part(part.place, part.group, [param], part.first + k, names, [grad]))
                states[param] = opt.state[own]
    with opt._lock():
        StepCall(opt, parts, states=states).take()


torch.library.define(
    "adafactor_native::step",
    "(Tensor(a!)[] params, Tensor[] grads, int[] positions, int number) -> ()",
)
torch.library.impl("adafactor_native::step", "CPU")(_step)


def _step_of_shapes(
    params: list[torch.Tensor], grads: list[torch.Tensor], positions: list[int], number: int
) -> None:
    """What the operator returns of tensors that are only described."""


torch.library.register_fake("adafactor_native::step", _step_of_shapes)

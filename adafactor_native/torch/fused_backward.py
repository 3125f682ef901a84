"""Steps inside backward: each gradient is consumed and freed as soon as it is complete."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adafactor_native.torch.backward_hooks import BackwardHooks
from adafactor_native.torch.stepping import Part

if TYPE_CHECKING:
    import torch

    from adafactor_native.torch.optimizer import NativeOptimizer

_SHOWN = 5  # names in a message


def require_no_norm(opt: NativeOptimizer) -> None:
    if opt.options.max_grad_norm is not None:
        raise ValueError(
            f"max_grad_norm is {opt.options.max_grad_norm}, must be None with fuse_backward: the norm "
            "is that of all gradients, which never exist at once; measure_in_backward has it"
        )


class FusedBackward(BackwardHooks):
    """Steps an optimizer's parameters inside backward, until `remove`."""

    def __init__(self, opt: NativeOptimizer) -> None:
        super().__init__(opt)
        self._t = 0  # the step of the model that this backward takes
        self._stepped: list[str] = []

    def _begin(self, opt: NativeOptimizer) -> None:
        self._t = opt._steps_taken() + 1
        self._stepped = []

    def _arrive(self, opt: NativeOptimizer, p: torch.Tensor, index: int, i: int) -> None:
        if getattr(opt, "grad_scale", None) is not None:
            raise ValueError(
                "grad_scale is set, must be None with fuse_backward: a scaler learns too late whether "
                "all gradients are finite"
            )
        require_no_norm(opt)
        position = i + sum(len(group["params"]) for group in opt.param_groups[:index])
        group = opt.param_groups[index]
        names = group.get("param_names")
        part = Part(index, group, [p], position, [names[i]] if names else None)
        try:
            opt._take_step([part], t=self._t)
        except FloatingPointError as error:
            raise FloatingPointError(self._with_earlier(str(error))) from None
        self._stepped.append(repr(names[i]) if names else str(position))
        p.grad = None

    def _with_earlier(self, message: str) -> str:
        message = message.replace("; nothing was changed", "; it was not changed")
        if not self._stepped:
            return f"{message}, nor was any other parameter in this backward"
        shown = ", ".join(self._stepped[:_SHOWN]) + (", ..." if len(self._stepped) > _SHOWN else "")
        return (
            f"{message}; {len(self._stepped)} parameters had been stepped in this backward and stay so: "
            f"params[...] of {shown}"
        )

"""Steps inside backward: each gradient is consumed and freed as soon as it is complete."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from adafactor_native.torch.stepping import Part

if TYPE_CHECKING:
    from adafactor_native.torch.optimizer import NativeOptimizer

_SHOWN = 5  # names in a message


class FusedBackward:
    """Steps an optimizer's parameters inside backward, until `remove`.

    Attributes
    ----------
    accumulates : bool
        Gradients are added up and nothing is stepped.
    """

    def __init__(self, opt: NativeOptimizer) -> None:
        self._opt = weakref.ref(opt)  # a parameter's hook must not keep its optimizer alive
        self._hooks: dict[int, tuple[Any, Any]] = {}  # of a parameter's id: a reference, the hook
        self._places: dict[int, tuple[int, int]] = {}  # of its id: where it was last
        self._depth = 0
        self._pass: int | None = None  # which backward it is
        self._t = 0  # the step of the model that it takes
        self._stepped: list[str] = []

    @property
    def accumulates(self) -> bool:
        return self._depth > 0

    def watch(self, index: int, group: dict[str, Any]) -> None:
        """Step the parameters of a group that require a gradient and are not watched yet."""
        for i, p in enumerate(group["params"]):
            self._places[id(p)] = index, i
            known = self._hooks.get(id(p))
            if p.requires_grad and (known is None or known[0]() is not p):
                hook = p.register_post_accumulate_grad_hook(self._take)
                self._hooks[id(p)] = weakref.ref(p), hook

    def remove(self) -> None:
        """Step no more inside backward; ``step()`` steps all again."""
        for _, hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()
        self._places.clear()
        opt = self._opt()
        if opt is not None and opt.__dict__.get("_fused") is self:
            del opt.__dict__["_fused"]

    @contextlib.contextmanager
    def accumulating(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def _take(self, p: torch.Tensor) -> None:
        opt = self._opt()
        if opt is None or self._depth > 0:
            return
        place = self._place_of(opt, p)
        if place is None:  # it was taken out of the groups
            return
        index, i = place
        position = i + sum(len(group["params"]) for group in opt.param_groups[:index])
        if getattr(opt, "grad_scale", None) is not None:
            raise ValueError(
                "grad_scale is set, must be None with fuse_backward: a scaler learns too late whether "
                "all gradients are finite"
            )
        self._begin_pass(opt)
        group = opt.param_groups[index]
        names = group.get("param_names")
        shown = repr(names[i]) if names else str(position)
        part = Part(index, group, [p], position, [names[i]] if names else None)
        try:
            opt._take_step([part], t=self._t)
        except FloatingPointError as error:
            raise FloatingPointError(self._with_earlier(str(error))) from None
        self._stepped.append(shown)
        p.grad = None

    def _place_of(self, opt: NativeOptimizer, p: torch.Tensor) -> tuple[int, int] | None:
        """Return the group of a parameter and its index there: where it was, if it still is."""
        groups = opt.param_groups
        index, i = self._places.get(id(p), (0, 0))
        params = groups[index]["params"] if index < len(groups) else []
        if i < len(params) and params[i] is p:
            return index, i
        for index, group in enumerate(groups):
            for i, other in enumerate(group["params"]):
                if other is p:
                    self._places[id(p)] = index, i
                    return index, i
        return None

    def _begin_pass(self, opt: NativeOptimizer) -> None:
        task = torch._C._current_graph_task_id()
        if task == self._pass:
            return
        self._pass = task
        self._t = opt._steps_taken() + 1
        self._stepped = []

    def _with_earlier(self, message: str) -> str:
        message = message.replace("; nothing was changed", "; it was not changed")
        if not self._stepped:
            return f"{message}, nor was any other parameter in this backward"
        shown = ", ".join(self._stepped[:_SHOWN]) + (", ..." if len(self._stepped) > _SHOWN else "")
        return (
            f"{message}; {len(self._stepped)} parameters had been stepped in this backward and stay so: "
            f"params[...] of {shown}"
        )

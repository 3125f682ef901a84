"""What is done with gradients inside backward, as each is complete: which parameter, which backward."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from adafactor_native.torch.optimizer import NativeOptimizer


class BackwardHooks:
    """Watches the parameters of an optimizer inside backward, until `remove`.

    Attributes
    ----------
    accumulates : bool
        Gradients are added up and nothing else is done with them.
    """

    def __init__(self, opt: NativeOptimizer) -> None:
        self._opt = weakref.ref(opt)  # a parameter's hook must not keep its optimizer alive
        self._hooks: dict[int, tuple[Any, Any]] = {}  # of a parameter's id: a reference, the hook
        self._places: dict[int, tuple[int, int]] = {}  # of its id: where it was last
        self._depth = 0
        self._pass: int | None = None  # which backward it is

    @property
    def accumulates(self) -> bool:
        return self._depth > 0

    def watch(self, index: int, group: dict[str, Any]) -> None:
        """Watch the parameters of a group that require a gradient and are not watched yet."""
        for i, p in enumerate(group["params"]):
            self._places[id(p)] = index, i
            known = self._hooks.get(id(p))
            if p.requires_grad and (known is None or known[0]() is not p):
                hook = p.register_post_accumulate_grad_hook(self._complete)
                self._hooks[id(p)] = weakref.ref(p), hook

    def remove(self) -> None:
        """Do nothing more inside backward: ``step()`` does all."""
        for _, hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()
        self._places.clear()
        opt = self._opt()
        if opt is not None and opt.__dict__.get("_hooked") is self:
            del opt.__dict__["_hooked"]

    @contextlib.contextmanager
    def accumulating(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def _complete(self, p: torch.Tensor) -> None:
        opt = self._opt()
        if opt is None or self._depth > 0:
            return
        place = self._place_of(opt, p)
        if place is None:  # it was taken out of the groups
            return
        task = torch._C._current_graph_task_id()
        if task != self._pass:
            self._pass = task
            self._begin(opt)
        self._arrive(opt, p, *place)

    def _begin(self, opt: NativeOptimizer) -> None:
        """Prepare for the gradients of another backward."""
        raise NotImplementedError

    def _arrive(self, opt: NativeOptimizer, p: torch.Tensor, index: int, i: int) -> None:
        """Do what is to be done with the gradient of the i-th parameter of a group."""
        raise NotImplementedError

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

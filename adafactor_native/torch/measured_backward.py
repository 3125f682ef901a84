"""The first of a step's two sweeps inside backward, over each gradient while it is in cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adafactor_native._runtime import _core
from adafactor_native.torch.backward_hooks import BackwardHooks

if TYPE_CHECKING:
    import torch

    from adafactor_native.torch.optimizer import NativeOptimizer


class MeasuredBackward(BackwardHooks):
    """Measures gradients inside backward, until `remove`, for the step that takes them.

    Attributes
    ----------
    taken : int
        Of how many gradients the last step has taken over what was measured. It has measured the
        others itself: small ones, and all that somebody has written to since.
    """

    def __init__(self, opt: NativeOptimizer) -> None:
        super().__init__(opt)
        self.taken = 0
        self._measured = _core.TorchMeasured()
        self._options: _core.TorchOptions | None = None
        self._groups: dict[int, _core.TorchGroup] = {}  # by index, in this backward

    @property
    def waiting(self) -> int:
        """How many gradients are measured and wait for the step."""
        self._measured.drop_gone()
        return len(self._measured)

    @property
    def n_bytes(self) -> int:
        """Bytes of what is kept of them; no gradient is kept."""
        self._measured.drop_gone()
        return self._measured.n_bytes

    def remove(self) -> None:
        """Measure no more inside backward, and drop what waits."""
        super().remove()
        self._measured = _core.TorchMeasured()

    def hand_over(self) -> _core.TorchMeasured:
        """Return what waits for a step, which then waits no more."""
        measured, self._measured = self._measured, _core.TorchMeasured()
        return measured

    def _begin(self, opt: NativeOptimizer) -> None:
        self._measured.drop_gone()
        self._groups.clear()
        t = 0
        for index, group in enumerate(opt.param_groups):
            one = opt._settings(index, group)
            self._groups[index] = one.native
            if one.switches["t_scope"] == "model" and t == 0:
                t = opt._steps_taken() + 1
        self._options = opt._native_options(t)

    def _arrive(self, opt: NativeOptimizer, p: torch.Tensor, index: int, i: int) -> None:
        if opt.options.sums == "exact":  # since measure_in_backward was called
            return
        # Neither lr nor the weight decay enters, and a wrong guess of what does is seen by the step.
        group: tuple[Any, ...] = (self._groups[index], 0.0, 0.0, [p], 0, None, None)
        assert self._options is not None
        opt._native_steps().measure([group], opt.state, self._options, self._measured)

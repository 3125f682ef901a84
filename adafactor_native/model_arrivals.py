"""The methods of an optimizer that take gradients one by one, as backward makes them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from adafactor_native import hyperparameters as hyper
from adafactor_native.model import Model
from adafactor_native.report import StepReport
from adafactor_native.suggestions import no_such_name

if TYPE_CHECKING:
    from adafactor_native._core import Plan


class ModelArrivals(Model):
    """A model whose steps begin before backward ends."""

    def measure(self, name: str, grad: Any, *, grad_scale: float | None = None) -> None:
        """Take the first of a step's two sweeps over one tensor, while its gradient is in cache.

        Said of each gradient as soon as it exists, it leaves ``step()`` less to read: the next step
        takes what was measured, and measures what was not. The step is the same, to the bit, as
        ``step(grads)``: `max_grad_norm`, `nonfinite` and `atomic` hold as ever, and nothing is
        written before all gradients are known to be well.

        Parameters
        ----------
        name : str
            Which of `names`.
        grad : ndarray
            As `step` takes it. **Until the step nobody may write to it, nor to the parameter and its
            state**: the optimizer holds the array, does not copy it, and reads it again.
        grad_scale : float or None
            The `grad_scale` of the step, where it is known: another one is then an error. Where it
            is not said, and is not 1, the step measures again.

        Raises
        ------
        TypeError, ValueError
            If the name is unknown; if the tensor is measured already, was taken by `step_tensor`, or
            has gradients that were accumulated; or as by `step`. Nothing is changed.
        RuntimeError
            If another thread is in a step of this object.

        Notes
        -----
        ``step()`` takes all that was measured, and leaves tensors out that were not;
        ``step(grads)`` takes the rest from `grads`, where names that were measured may be missing,
        None, or the same array. Another array in the place of one that was measured is refused, and so is a
        step after a first, middle or last element of a gradient or a parameter was written to.

        The step measures again, with the same result, where what was measured does not hold any
        more: after a hyper-parameter that enters it was changed (eps, beta2, `scale_parameter`; not
        lr), after `params_changed`, where `max_grad_norm` scales the gradients down, and
        after a step that raised. Gradients that such a step has not taken wait for the next one.

        `memory` shows what is held of each tensor as "measured": about 30 bytes for each row and
        column, none of a tensor below 4096 elements, which the step measures as fast. The gradients
        themselves are the caller's. While gradients wait, there is no state to save or load, no copy
        or pickle, and no tensor can be replaced, resized, removed or reset.

        Examples
        --------
        >>> import numpy as np
        >>> from adafactor_native import Optimizer
        >>> opt = Optimizer({"w": np.ones((64, 128)), "b": np.ones(3)}, max_grad_norm=1.0)
        >>> opt.measure("w", np.full((64, 128), 0.5))
        >>> opt.memory.by_tensor["w"]["measured"] > 0
        True
        >>> report = opt.step({"b": np.ones(3)})
        >>> report.stepped.tolist(), round(report.grad_norm, 3)
        ([True, True], 45.288)
        """
        scale = None if grad_scale is None else hyper.positive("grad_scale", grad_scale)
        position = self._position(name)
        self._require_no_sum(name)
        self._tensors.measure(
            self._measuring_plan(), position, grad, scale, self._followed, self._params_are_new
        )
        if self._params_are_new:
            self._params_are_new = False

    def discard_measured(self) -> None:
        """Drop all that was measured since the last step, and let go of the gradients.

        Raises
        ------
        RuntimeError
            If another thread is in a step of this object.
        """
        self._tensors.discard_measured()

    def step_tensor(self, name: str, grad: Any, grad_scale: float = 1.0) -> StepReport:
        """Step one tensor now, as a part of the model's next step, which ``step()`` ends.

        The gradient can be freed at once: memory for one gradient is enough for a model. All tensors
        that are stepped before ``step()`` is called take one step of the model: t, schedules and
        beta2_t are those of one ``step(grads)``, whatever the convention, and so are the bits.

        Parameters
        ----------
        name : str
            Which of `names`; each once in a step of the model.
        grad : ndarray
            As `step` takes it.
        grad_scale : float
            What the gradient was multiplied by, with the loss.

        Returns
        -------
        StepReport
            That of the model's step so far: the same object at each call, and what ``step()`` returns
            in the end. `grad_norm` is nan until then, `t` that of the step.

        Raises
        ------
        TypeError, ValueError
            If the name is unknown; if the tensor was taken by `step_tensor` in this step already,
            is measured, or has gradients that were accumulated; with `max_grad_norm` or
            `skip_above`, which need all gradients first (`measure` takes them one by one); or as
            by `step`.
        FloatingPointError
            With ``nonfinite="raise"``, as by `step`.
        RuntimeError
            If another thread is in a step of this object.

        Whatever is raised, this tensor is as it was; those before it are stepped, and the message of a
        FloatingPointError says which. The step of the model goes on: another gradient can be given, or
        ``step()`` ends it without the tensor.

        Notes
        -----
        All or nothing holds for each tensor, as with ``atomic="tensor"``, whatever `atomic` is. With
        ``nonfinite="skip"`` a tensor with a fault is left out, and the step of the model is counted
        in `skipped` and warned of when it ends.

        The first call of a step fixes hyper-parameters and schedules for all of it; what is set
        meanwhile holds from the next step on. Until ``step()`` there is no state to save or load, no
        copy or pickle, and no tensor can be added, replaced, resized, removed or reset.
        ``step(grads)`` takes the rest of the gradients; names that were stepped may be missing or None.

        Examples
        --------
        >>> import numpy as np
        >>> from adafactor_native import Optimizer
        >>> opt = Optimizer({"w": np.ones((2, 3)), "b": np.ones(3)})
        >>> for name in ("b", "w"):
        ...     report = opt.step_tensor(name, np.ones(opt.params[name].shape))
        >>> opt.t, report.t, report.grad_norm
        (0, 1, nan)
        >>> report = opt.step()
        >>> opt.t, report.stepped.tolist(), report.grad_norm
        (1, [True, True], 3.0)
        """
        self._require_one_process("opt.step_tensor", "opt.measure takes gradients as they appear")
        for of_all in ("max_grad_norm", "skip_above"):
            if getattr(self, of_all) is not None and not self._tensors.is_open:
                raise ValueError(
                    f"{of_all} is {getattr(self, of_all)}, must be None for opt.step_tensor, as the "
                    "norm needs all gradients first: use opt.measure as they appear, then opt.step()"
                )
        scale = hyper.positive("grad_scale", grad_scale)
        position = self._position(name)
        self._require_no_sum(name)
        report: StepReport = self._tensors.step_tensor(
            self._plan_of_open_step() or self._open_step(),
            position,
            grad,
            scale,
            partial(StepReport, self._names, lr=self._cell.lr),
            self._followed,
            self._params_are_new,
        )
        if self._params_are_new:
            self._params_are_new = report.skipped  # masters of what is left out follow nothing
        return report

    def _open_step(self) -> Plan:
        """Fix what all tensors of the next step go by."""
        plan = self._cell.plan or self._new_plan()
        self._cell.of_open_step = plan
        return plan

    def _measuring_plan(self) -> Plan:
        """Return a plan with the rules of the next step, for which no callable is called."""
        if self._cell.plan is not None:
            return self._cell.plan
        rules = [group.rule for group in self._groups]
        key = (self.num_threads, *rules)
        if self._cell.measuring is None or self._cell.measuring[0] != key:
            self._cell.measuring = (key, self._plan_with([(0.0, 0.0)] * len(rules)))
        return self._cell.measuring[1]

    def _position(self, name: str) -> int:
        """Return which tensor is called so."""
        if self._cell.positions is None or self._cell.positions[0] is not self._names:
            by_name = {known: k for k, known in enumerate(self._names)}
            self._cell.positions = (self._names, by_name)
        if not isinstance(name, str):
            raise TypeError(f"name is a {type(name).__name__}, must be a str of opt.names")
        position = self._cell.positions[1].get(name)
        if position is None:
            raise no_such_name(name, self._names)
        return position

    def _require_no_sum(self, name: str) -> None:
        if name in self._accumulated.sums:
            raise ValueError(
                f"grads[{name!r}] has been accumulated, which waits for a step: take it by opt.step(), "
                "or drop it by opt.accumulate(None)"
            )

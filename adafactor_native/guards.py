"""What an unattended run is told of steps that were left out and of tensors that cannot move."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import numpy as np

from adafactor_native.report import StepReport


class AdafactorWarning(RuntimeWarning):
    """What a run should know of a step that was not refused."""


class SkippedStepWarning(AdafactorWarning):
    """A step was left out, as ``nonfinite="skip"`` or ``skip_above`` asks for.

    An optimizer warns at its first such step, and whenever their number has doubled. An error of
    this category (``warnings.simplefilter("error", SkippedStepWarning)``) comes after the step was
    left out and counted.
    """


class StuckTensorWarning(AdafactorWarning):
    """A tensor of zeros cannot move, for its step size is RMS(param).

    An optimizer names each such tensor once. An error of this category comes after the step.
    """


class RunGuard:
    """Counts the steps left out in a row and knows the tensors that are stuck, and says so.

    Attributes
    ----------
    in_a_row : int
        Since the last step that was taken.
    """

    def __init__(self) -> None:
        self.in_a_row = 0
        self._named: set[str] = set()  # tensors that a warning has named

    def skipped(self, why: str, total: int, t: int, max_skipped: int | None = None) -> None:
        """Count a step that was left out, the `total`-th; warn, or raise if they were too many.

        Raises
        ------
        FloatingPointError
            If `max_skipped` steps in a row were left out before this one.
        """
        self.in_a_row += 1
        if max_skipped is not None and self.in_a_row > max_skipped:
            raise FloatingPointError(
                f"{self.in_a_row} steps in a row were left out, max_skipped is {max_skipped}, this one "
                f"{why}; t is {t}"
            )
        if total & (total - 1) == 0:  # 1, 2, 4, ...
            count = (
                "a step was left out" if total == 1 else f"{total} steps were left out, this one"
            )
            warnings.warn(f"{count} {why}; t is {t}", SkippedStepWarning, stacklevel=4)

    def stuck(self, names: Iterable[str], remedy: str) -> None:
        """Name tensors that stepped and cannot move, unless they have been named."""
        new = [name for name in names if name not in self._named]
        self._named.update(new)
        if new:
            more = f" and {len(new) - 5} more" if len(new) > 5 else ""
            text = (
                f"{', '.join(new[:5])}{more} cannot move: all zeros, and the step size is RMS(param); "
                f"{remedy}"
            )
            warnings.warn(text, StuckTensorWarning, stacklevel=4)


def why_skipped(report: StepReport, given: Sequence[bool]) -> str:
    """Return what a message says of a step that was left out: what was at fault.

    `given` says which tensors had a gradient.
    """
    if report.spike:
        return (
            f"because the norm of its gradients is {report.grad_norm:.6g}, above {report.norm_limit:.6g}, "
            "which is skip_above times the usual"
        )
    for numbers in (report.rms_grad, report.rms_u):
        wrong = np.array(given, bool) & ~np.isfinite(np.asarray(numbers))
        if wrong.any():
            name = report.names[int(np.argmax(wrong))]
            return f"for params[{name!r}], which would not be finite: nonfinite is 'skip'"
    return "because it would not be finite: nonfinite is 'skip'"

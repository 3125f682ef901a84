"""What an unattended run is told of steps that were left out, and when it ends."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from adafactor_native.report import StepReport


class SkippedStepWarning(RuntimeWarning):
    """A step was left out, as ``nonfinite="skip"`` asks for.

    An optimizer warns at its first such step, and whenever their number has doubled. An error of
    this category (``warnings.simplefilter("error", SkippedStepWarning)``) comes after the step was
    left out and counted.
    """


class SkipGuard:
    """Counts the steps left out in a row, and says so.

    Attributes
    ----------
    in_a_row : int
        Since the last step that was taken.
    """

    def __init__(self) -> None:
        self.in_a_row = 0

    def skipped(
        self, report: StepReport, grads: Sequence[Any], total: int, max_skipped: int | None
    ) -> None:
        """Count a step that was left out, the `total`-th; warn, or raise if they were too many.

        Raises
        ------
        FloatingPointError
            If `max_skipped` steps in a row were left out before this one.
        """
        self.in_a_row += 1
        if max_skipped is not None and self.in_a_row > max_skipped:
            raise FloatingPointError(
                f"{self.in_a_row} steps in a row were left out, max_skipped is {max_skipped}{_at_fault(report, grads)}; "
                f"t is {report.t}"
            )
        if total & (total - 1) == 0:  # 1, 2, 4, ...
            count = "a step was" if total == 1 else f"{total} steps were"
            warnings.warn(
                f"{count} left out, as nonfinite is 'skip'{_at_fault(report, grads)}; t is {report.t}",
                SkippedStepWarning,
                stacklevel=4,
            )


def _at_fault(report: StepReport, grads: Sequence[Any]) -> str:
    """Return what a message says of the first tensor at fault, if the report's numbers show it."""
    given = np.array([grad is not None for grad in grads], bool)
    for numbers in (report.rms_grad, report.rms_u):
        wrong = given & ~np.isfinite(np.asarray(numbers))
        if wrong.any():
            return f", this one for params[{report.names[int(np.argmax(wrong))]!r}]"
    return ""

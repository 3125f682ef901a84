"""The numbers of a step, and the memory of a model's state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

# What a step did that not every step does, as the extension has it.
SKIPPED, SPIKE, NEWLY_STUCK = 1, 2, 4

COLUMNS = ("rms_grad", "rms_u", "clip_divisor", "rms_param", "step_size")
_LINES = 12  # of a printed report


class Column(np.ndarray[Any, np.dtype[Any]]):
    """One number of each tensor, which a tensor's name finds as well: ``report.rms_u["w"]``.

    Parts of it and results of arithmetic are found by position only.
    """

    _names: Sequence[str] | None = None

    @classmethod
    def of(cls, array: npt.NDArray[Any], names: Sequence[str]) -> Column:
        column = array.view(cls)
        column._names = names
        return column

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        if self._names is None:
            raise IndexError(
                f"{key!r} is a name, must be a position: only a whole column of a report goes by name"
            )
        if key not in self._names:
            raise KeyError(key)
        return super().__getitem__(self._names.index(key))


class StepReport:
    """The numbers that a step has computed for its own use.

    ``report["name"]`` has those of one tensor, ``report.rms_u["name"]`` one of them. Arrays are in the
    order of `names`, with nan for what a step did not compute: all of a tensor without a gradient, and RMS(param) where no step size
    depends on it. With ``rms_scope="matrix"`` a tensor's `clip_divisor` and `step_size` are those of
    its matrix with the largest step size, the rest is of the whole tensor.

    Attributes
    ----------
    names : tuple of str
    rms_grad : ndarray of float64, shape (n,)
        RMS of the gradient, divided by `grad_scale`, before any clipping.
    rms_u : ndarray of float64, shape (n,)
        RMS(u) before it is clipped.
    clip_divisor : ndarray of float64, shape (n,)
        What u was divided by: 1, or RMS(u) / clip_threshold.
    rms_param : ndarray of float64, shape (n,)
        RMS(param), before the step and without its floor.
    step_size : ndarray of float64, shape (n,)
        What the clipped u was multiplied by: lr_t, times RMS(param) with `scale_parameter`.
    lr : tuple of float
        Each group's lr times its schedule, as they were at this step; before ``relative_step`` and
        ``bias_correction``, which `step_size` has in it.
    grad_norm : float
        Root of the sum of the squares of all gradients, likewise.
    norm_limit : float
        The norm above which `skip_above` leaves a step out; infinity where it leaves out none.
    stepped : ndarray of bool, shape (n,)
        Whether the tensor took the step.
    stuck : ndarray of bool, shape (n,)
        Whether it did and yet cannot move: with `scale_parameter` its step size is 0, as RMS(param)
        is and `eps_scale` does not raise it. A tensor of zeros stays so for ever; give its group an
        `eps_scale`, or ``scale_parameter=False``.
    skipped : bool
        Whether ``nonfinite="skip"`` left the step out, or with ``atomic="tensor"`` a tensor; or
        whether `spike`.
    spike : bool
        Whether the step was left out for `grad_norm` being above `norm_limit`.
    t : int
        Steps that the model has taken, this one included.
    """

    __slots__ = ("_flags", "_norms", "_numbers", "_stepped", "_stuck", "_t", "lr", "names")

    def __init__(
        self,
        names: tuple[str, ...],
        numbers: Float64Array,
        norms: Float64Array,
        stepped: npt.NDArray[np.bool_],
        stuck: npt.NDArray[np.bool_],
        t: npt.NDArray[np.int64],
        flags: npt.NDArray[np.uint8],
        lr: tuple[float, ...],
    ) -> None:
        # The step fills the arrays later: after it nothing has to be allocated, which might fail.
        self.names = names
        self._numbers = numbers
        self._norms = norms
        self._stepped = stepped
        self._stuck = stuck
        self._t = t
        self._flags = flags
        self.lr = lr

    @property
    def grad_norm(self) -> float:
        """Root of the sum of the squares of all gradients, divided by `grad_scale`."""
        return float(self._norms[0])

    @property
    def norm_limit(self) -> float:
        """The norm above which `skip_above` leaves a step out, or infinity."""
        return float(self._norms[1])

    @property
    def skipped(self) -> bool:
        """Whether anything was left out, for a number that is not finite or as a `spike`."""
        return bool(self.flags & SKIPPED)

    @property
    def spike(self) -> bool:
        """Whether the step was left out for `grad_norm` being above `norm_limit`."""
        return bool(self.flags & SPIKE)

    @property
    def flags(self) -> int:
        """What was unusual, by bits: SKIPPED, SPIKE, NEWLY_STUCK; 0 for most steps."""
        return int(self._flags)

    @property
    def t(self) -> int:
        """Steps that the model has taken, this one included."""
        return int(self._t)

    @property
    def rms_grad(self) -> Column:
        """RMS of the gradient, divided by `grad_scale`, before any clipping; (n,)."""
        return Column.of(self._numbers[:, 0], self.names)

    @property
    def rms_u(self) -> Column:
        """RMS(u) before it is clipped; (n,)."""
        return Column.of(self._numbers[:, 1], self.names)

    @property
    def clip_divisor(self) -> Column:
        """What u was divided by: 1, or RMS(u) / clip_threshold; (n,)."""
        return Column.of(self._numbers[:, 2], self.names)

    @property
    def rms_param(self) -> Column:
        """RMS(param), before the step and without its floor; (n,)."""
        return Column.of(self._numbers[:, 3], self.names)

    @property
    def step_size(self) -> Column:
        """What the clipped u was multiplied by: lr_t, times RMS(param) with `scale_parameter`; (n,)."""
        return Column.of(self._numbers[:, 4], self.names)

    @property
    def stepped(self) -> Column:
        """Whether each tensor took the step, bool; (n,)."""
        return Column.of(self._stepped, self.names)

    @property
    def stuck(self) -> Column:
        """Whether each tensor stepped and yet cannot move, bool; (n,)."""
        return Column.of(self._stuck, self.names)

    def __getitem__(self, name: str) -> dict[str, Any]:
        """Return one tensor's five numbers, whether it stepped, and whether it is stuck.

        Raises
        ------
        KeyError
            If there is no tensor of that name.
        """
        try:
            i = self.names.index(name)
        except ValueError:
            raise KeyError(name) from None
        flags = {"stepped": bool(self.stepped[i]), "stuck": bool(self.stuck[i])}
        return dict(zip(COLUMNS, self._numbers[i].tolist())) | flags

    def as_dict(self) -> dict[str, float | None]:
        """Return all numbers as one flat dict, "rms_grad/name" and so on, ready to be logged.

        It is strict JSON: None stands for what the step did not compute, and with
        ``nonfinite="propagate"`` for what is not finite. Beside the tensors' columns it has "t",
        "grad_norm", "skipped" and "spike" (bools), "norm_limit" and "lr", or "lr/0" and so on where groups are several.
        """
        lr = {"lr": self.lr[0]} if len(self.lr) == 1 else _numbered("lr", self.lr)
        total = {
            "t": self.t,
            "grad_norm": self.grad_norm,
            "norm_limit": self.norm_limit,
            "skipped": self.skipped,
            "spike": self.spike,
            **lr,
        }
        columns = self._numbers.T.tolist()
        numbers = total | {
            f"{column}/{name}": value
            for column, values in zip(COLUMNS, columns)
            for name, value in zip(self.names, values)
        }
        return {name: x if math.isfinite(x) else None for name, x in numbers.items()}

    def __repr__(self) -> str:
        return (
            f"<StepReport: t={self.t}, grad_norm={self.grad_norm:.4g}, "
            f"stepped={np.count_nonzero(self.stepped)} of {len(self.names)}, "
            f"stuck={np.count_nonzero(self.stuck)}, skipped={self.skipped}>"
        )

    def __str__(self) -> str:
        """Return a table of the tensors, if there are many of those that were clipped most.

        Below it stand the names of the tensors that are stuck, also at most twelve.
        """
        order = np.argsort(-np.nan_to_num(self.clip_divisor), kind="stable")[:_LINES]
        rows = [
            [self.names[i], *(f"{number:.4g}" for number in self._numbers[i])]
            for i in sorted(order.tolist())
        ]
        lines = _table(["", *COLUMNS], rows)
        left_out = len(self.names) - len(rows)
        if left_out:
            lines.append(f"and {left_out} that were not clipped more")
        return "\n".join([repr(self), *lines, *self._stuck_lines()])

    def _stuck_lines(self) -> list[str]:
        names = [self.names[i] for i in np.flatnonzero(self.stuck)]
        if not names:
            return []
        more = f" and {len(names) - _LINES} more" if len(names) > _LINES else ""
        listed = ", ".join(names[:_LINES])
        return [f"stuck at zero, as the step size is RMS(param) and eps_scale is 0: {listed}{more}"]


def _numbered(name: str, values: Sequence[float]) -> dict[str, float]:
    return {f"{name}/{i}": value for i, value in enumerate(values)}


class StateMemory:
    """Bytes of an optimizer's state, without the parameters and without what a step borrows.

    Attributes
    ----------
    by_tensor : dict of str to dict of str to int
        For each tensor the bytes of each kind that it keeps: "exp_row", "exp_col", "v", "m",
        "master", "low"; "sum", of gradients that were accumulated for the next step; and
        "measured", of what `measure` found for it.
    by_kind : dict of str to int
        Those of all tensors.
    total : int
    elements : int
        Numbers in all parameters.
    per_element : float
        Bytes of state for each of them; nan if there is none.
    """

    def __init__(self, by_tensor: Mapping[str, Mapping[str, int]], elements: int) -> None:
        self.by_tensor = {name: dict(kinds) for name, kinds in by_tensor.items()}
        self.by_kind: dict[str, int] = {}
        for kinds in by_tensor.values():
            for kind, n_bytes in kinds.items():
                self.by_kind[kind] = self.by_kind.get(kind, 0) + n_bytes
        self.total = sum(self.by_kind.values())
        self.elements = elements
        self.per_element = self.total / elements if elements else float("nan")

    def __repr__(self) -> str:
        kinds = ", ".join(f"{kind}={n_bytes}" for kind, n_bytes in self.by_kind.items())
        return (
            f"<StateMemory: {self.total} bytes ({kinds}), {self.per_element:.4g} for each of "
            f"{self.elements} elements>"
        )


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    return [
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in (header, *rows)
    ]

"""What all conversions share: arrays of others checked against ours, then taken over at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from adafactor_native.given_arrays import as_array
from adafactor_native.halves import is_half
from adafactor_native.optimizer import Optimizer
from adafactor_native.param_groups import Array, Tensor
from adafactor_native.taking_over import all_at_once, fill, require_sound, require_writeable

MakeArray = Callable[[Array], Any]
Incoming = list[tuple[Array, Array]]  # views of ours, and what they are to hold


def array_maker(array: MakeArray | None) -> MakeArray:
    if array is not None and not callable(array):
        raise TypeError(f"array is a {type(array).__name__}, must be a callable or None")
    return array or (lambda values: values)


def require_one_process(opt: Optimizer) -> None:
    """Raise a ValueError for a model in pieces, whose arrays are not those that other libraries know."""
    opt._require_one_process(
        "a conversion",
        "load its state, opt.state_dict(gather=True), into an optimizer without comm, and convert that",
    )


def count_of(shown: str, value: Any) -> int:
    try:
        number = float(as_array(_readable(value)))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{shown} is a {type(value).__name__}, must be an int >= 0") from None
    if not number.is_integer() or not 0 <= number <= 2**53:
        raise ValueError(f"{shown} is {number}, must be an int >= 0")
    return int(number)


def add_incoming(
    incoming: Incoming, own: Array, value: Any, shown: str, kind: str, finite: bool
) -> None:
    """Add to `incoming` an array of ours, as theirs has its axes, and what it is to hold; checked."""
    try:
        # Lists come from JSON, which writes a float32 so that it comes back the same.
        dtype = own.dtype if isinstance(value, (list, tuple)) else None
        theirs = np.asarray(_readable(value), dtype)
    except (
        TypeError,
        ValueError,
        RuntimeError,
        OverflowError,
    ) as error:  # torch: on other devices, with a graph
        raise TypeError(
            f"{shown} is no array for numpy.asarray, give what .detach().cpu().float() returns if "
            f"it is a tensor: {error}"
        ) from None
    if theirs.shape != own.shape:
        raise ValueError(f"{shown} has shape {theirs.shape}, must be {own.shape}")
    # "V": bfloat16, which is no type of NumPy's own
    if theirs.dtype.kind not in "fV" or not np.can_cast(theirs.dtype, own.dtype):
        instead = ": make the optimizer with state_dtype='float64'" if kind != "m" else ""
        raise TypeError(
            f"{shown} has dtype {theirs.dtype}, must be one that {own.dtype} can hold{instead}"
        )
    staged = np.array(theirs, own.dtype, subok=False)
    if finite:
        require_sound(kind, shown, staged)
    incoming.append((own, staged))


def _readable(value: Any) -> Any:
    """Return torch's bfloat16, which NumPy cannot read, as the float32 of the same value."""
    is_bfloat16 = str(getattr(value, "dtype", None)) == "torch.bfloat16"
    return value.detach().cpu().float() if is_bfloat16 else value


def dtype_there(param: Array) -> np.dtype[Any]:
    """Return the dtype that state leaves with: param's, but not one that would lose most of it."""
    return np.dtype(np.float32) if is_half(param.dtype) else param.dtype


def exchanged(tensor: Tensor) -> dict[str, Array]:
    """Return the state that goes over: all but masters and lower halves, which stay with param."""
    return {kind: array for kind, array in tensor.state.items() if kind not in ("master", "low")}


def take_over(opt: Optimizer, incoming: Incoming, t: int, counts: Sequence[int]) -> None:
    """Write all that comes in; the next step lets masters follow params."""
    for name, state in opt.state.items():
        require_writeable(
            {f"{kind}/{name} of this optimizer": array for kind, array in state.items()}
        )
    all_at_once(
        [
            partial(opt._tensors.set_counts, t, opt.skipped, list(counts)),
            partial(vars(opt).update, _params_are_new=True),
            *(fill(own, theirs) for own, theirs in incoming),
        ]
    )

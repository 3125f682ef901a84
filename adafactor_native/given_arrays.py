"""What a user gives in an array's place, such as a list of ints."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from adafactor_native.halves import Array


def as_array(values: Any) -> Array:
    """Return what ``numpy.asarray`` makes of values, without a warning.

    Of lists of several lengths NumPy before 1.24 warns, and makes an array of objects, where later ones
    raise a ValueError. Whoever asks refuses both.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Creating an ndarray from ragged nested sequences")
        return np.asarray(values)

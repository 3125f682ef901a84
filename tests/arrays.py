"""Numbers for parameters and gradients, the same at every call."""

import numpy as np

DTYPES = (np.float32, np.float64)
DTYPE_PAIRS = [(p, g) for p in DTYPES for g in DTYPES]


def normal(shape, dtype=np.float64, seed=0, scale=1.0):
    """Standard normal numbers times ``scale``."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


def spread(shape, dtype=np.float64, seed=0, smallest=1e-12, largest=1e6):
    """Normal numbers whose size runs from smallest to largest over rows and columns.

    Every seventh row and every fifth column is dead: all zeros, from its fourth and third on.
    """
    values = normal(shape, np.float64, seed)
    middle = np.sqrt(smallest * largest)
    for axis, n in enumerate(shape):
        half = (largest / smallest) ** (0.5 / len(shape))
        along = [n if k == axis else 1 for k in range(len(shape))]
        values *= np.geomspace(1 / half, half, n).reshape(along)
    values *= middle
    if values.ndim == 2:
        values[3::7] = 0
        values[:, 2::5] = 0
    return values.astype(dtype)

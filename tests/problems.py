"""Parameters and gradients to step with, the same at every call."""

import hashlib

import numpy as np

import adafactor_native as an

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


def digest(opt, param):
    """SHA-256 of a parameter, in C order, and of everything its optimizer remembers."""
    sha = hashlib.sha256(param.tobytes())
    for part in (opt.exp_row, opt.exp_col, opt.v, np.int64(opt.t)):
        sha.update(b"-" if part is None else part.tobytes())
    return sha.hexdigest()


def digest_of_model(opt):
    """SHA-256 of all that steps of an Optimizer change: params, state and counts."""
    sha = hashlib.sha256(repr((opt.t, opt.skipped, opt.counts.tolist())).encode())
    for name, param in opt.params.items():
        for array in (param, *opt.state[name].values()):
            sha.update(array.tobytes())
    return sha.hexdigest()


def digest_of_run(threads=None, shape=(1031, 517), steps=2):
    """Take steps in float32, on as many threads, and return the digest at the end."""
    opt = an.AdaFactor(shape, num_threads=threads)
    param = normal(shape, np.float32, seed=1)
    for t in range(steps):
        opt.update(param, normal(shape, np.float32, seed=2 + t))
    return digest(opt, param)

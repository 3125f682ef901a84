"""The truth of half precision: rounding, and the random bits it is done by, in NumPy integers.

Philox2x32-10 is that of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011);
SplitMix64 that of Steele, Lea and Flood (2014).
"""

import ml_dtypes
import numpy as np

bfloat16 = np.dtype(ml_dtypes.bfloat16)
float16 = np.dtype(np.float16)
HALVES = (bfloat16, float16)

_MASK64 = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def is_half(dtype):
    return dtype in HALVES


def all_halves(dtype):
    """Return all 2**16 numbers of a dtype."""
    return np.arange(2**16, dtype=np.uint16).view(dtype)


def bits(array):
    return np.ascontiguousarray(array).view(np.uint16)


def nearest(values, dtype):
    """Return float32 values rounded by ml_dtypes, or by NumPy."""
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32).astype(dtype)


def stochastic(values, dtype, random):
    """Return float32 values rounded away from zero where the part that is lost, in units of 2**-16
    of the distance of the two neighbours, and a random word below 2**16 add up to 2**16."""
    values = np.asarray(values, np.float32)
    size = np.abs(values.astype(np.float64))
    digits, smallest, largest = (7, -133, 2.0**128) if dtype == bfloat16 else (10, -24, 2.0**16)
    with np.errstate(all="ignore"):
        exponent = np.maximum(np.frexp(size)[1] - 1 - digits, smallest)
        steps = np.ldexp(size, -exponent)  # of the distance to the next number
        whole = np.floor(steps)
        lost = np.floor((steps - whole) * 2**16)
        rounded = np.ldexp(whole + (lost + random >= 2**16), exponent)
        rounded = np.where(rounded >= largest, np.inf, rounded)
        rounded = np.where(np.isnan(values), np.nan, np.where(np.isinf(values), np.inf, rounded))
        return np.copysign(rounded, values).astype(np.float32).astype(dtype)


def random_words(seed, t, name, n):
    """Return the words below 2**16 of elements 0 to n - 1 of a run that a tensor's step begins with.

    `t` is the tensor's own count of steps, that one included. `AdaFactor` has the name "0".

    Sixteen words of 32 bits are for 64 elements: four take 16 neighbouring bits each of the same one.
    """
    key = _fnv1a(name.encode())
    mixed = _splitmix((_splitmix((_splitmix(seed) + t) & _MASK64) + key) & _MASK64)
    n_groups = -(-n // 64)
    left, right = philox(
        np.arange(8 * n_groups, dtype=np.uint64), mixed & 0xFFFFFFFF, key=mixed >> 32
    )
    words = np.stack([left, right], axis=1).reshape(n_groups, 16).astype(np.int64)
    turned = [words, words >> 16, words >> 8, words >> 24 | words << 8]
    return (np.concatenate(turned, axis=1) & 0xFFFF).ravel()[:n]


def philox(left, right, key):
    left = np.array(left, np.uint64)
    right = np.zeros_like(left) + np.uint64(right)
    for _ in range(10):
        product = left * np.uint64(0xD256D193)
        left = (product >> np.uint64(32)) ^ np.uint64(key) ^ right
        right = product & np.uint64(0xFFFFFFFF)
        key = (key + 0x9E3779B9) & 0xFFFFFFFF
    return left, right


def _fnv1a(text):
    found = 0xCBF29CE484222325
    for byte in text:
        found = (found ^ byte) * 0x100000001B3 & _MASK64
    return found


def _splitmix(x):
    x = (x + _GOLDEN) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)

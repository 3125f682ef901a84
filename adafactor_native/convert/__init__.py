"""State from other libraries' Adafactor, and back: a run started there continues here, and vice versa.

None of them is imported. Their arrays may be of any kind that `numpy.asarray` takes; ours leave as
NumPy arrays, or as what ``array=`` makes of them (``torch.as_tensor``, ``jax.numpy.asarray``).

Only what is remembered goes over, steps included. What is loaded is widened where our statistics are
float64, and taken as it is where they are float32 by ``state_dtype``; what leaves is rounded to param's
dtype, but not below float32. Hyper-parameters do not: give both sides the same.
"""

from adafactor_native.convert.optax_trees import load_optax, to_optax
from adafactor_native.convert.torch_dicts import (
    load_huggingface,
    load_torch,
    to_huggingface,
    to_torch,
)

__all__ = [
    "load_huggingface",
    "load_optax",
    "load_torch",
    "to_huggingface",
    "to_optax",
    "to_torch",
]

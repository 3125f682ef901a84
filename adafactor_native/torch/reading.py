"""How the extension finds torch's tensors: by DLPack's exchange table, or by their own methods."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from typing import Any

import torch

from adafactor_native._runtime import _core

_DTYPES = ("float32", "float64", "float16", "bfloat16", "uint16")


@functools.cache
def make_reader(by_methods: bool = False) -> _core.TorchReader:
    """Return the reader for the torch that is installed.

    Parameters
    ----------
    by_methods : bool
        Ask ``data_ptr()``, ``shape`` and ``stride()`` even where torch has the exchange table (2.10
        and later), as with versions that do not.
    """
    table: Any = None if by_methods else getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    return _core.TorchReader(
        tensor_type=torch.Tensor,
        parameter_type=torch.nn.Parameter,
        strided=torch.strided,
        exchange=table,
        dtypes={name: getattr(torch, name) for name in _DTYPES},
    )


def reader() -> _core.TorchReader:
    """Return the reader that optimizers use; ``ADAFACTOR_TORCH_READER=methods`` chooses the slower."""
    choice = os.environ.get("ADAFACTOR_TORCH_READER", "exchange")
    if choice not in ("exchange", "methods"):
        raise ValueError(f"ADAFACTOR_TORCH_READER is {choice!r}, must be 'exchange' or 'methods'")
    return make_reader(choice == "methods")


@functools.cache
def _versions_go_up_together() -> bool:
    """Whether ``increment_version`` takes a list, as in later versions of torch."""
    try:
        torch.autograd.graph.increment_version([])
    except TypeError:
        return False
    return True


def increment_versions(params: Iterable[torch.Tensor]) -> None:
    """Tell autograd that parameters were written to: a backward that needs the old ones must fail."""
    if _versions_go_up_together():
        torch.autograd.graph.increment_version(params)
        return
    for param in params:
        torch.autograd.graph.increment_version(param)

"""Adafactor for PyTorch's parameters in this machine's memory, stepped by the native extension.

`Adafactor` is a `torch.optim.Optimizer` with the arguments, groups, state names and numbers of
``torch.optim.Adafactor``; beside it are `HuggingFaceAdafactor` (and its `AdafactorSchedule`),
`OptaxAdafactor`, `BigVisionAdafactor` and `NumpyAdafactor`, each with the arguments and numbers of the
library that it is named after.

    from adafactor_native.torch import Adafactor

    opt = Adafactor(model.parameters(), lr=1e-2)

Nothing of the extension is built against torch: it asks torch at every step where its tensors lie.
Torch 2.5 or later is needed, the first that has an Adafactor.
"""

try:
    import torch as _torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "adafactor_native.torch needs PyTorch 2.5 or later, which is not installed: pip install "
        "'adafactor-native[torch]'",
        name="torch",
    ) from None

if not hasattr(_torch.optim, "Adafactor"):
    raise ImportError(
        f"adafactor_native.torch needs PyTorch 2.5 or later, which has an Adafactor to stand in for; "
        f"this is {_torch.__version__}"
    )

from adafactor_native.torch.adafactor import Adafactor
from adafactor_native.torch.conventions import (
    BigVisionAdafactor,
    NumpyAdafactor,
    OptaxAdafactor,
)
from adafactor_native.torch.huggingface import AdafactorSchedule, HuggingFaceAdafactor

__all__ = [
    "Adafactor",
    "AdafactorSchedule",
    "BigVisionAdafactor",
    "HuggingFaceAdafactor",
    "NumpyAdafactor",
    "OptaxAdafactor",
]

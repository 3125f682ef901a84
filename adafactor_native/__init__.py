"""The Adafactor optimizer as a native extension: in place on NumPy arrays.

`Optimizer` is the optimizer of a whole model, by every library's convention, and `convert` takes their
state over and gives it back; `schedules` has learning rates that depend on t; `AdaFactor` is the optimizer of one array. `set_num_threads` and
`get_num_threads` set and get the limit of their threads, `show_config` shows how the extension was
built and what it runs on.
"""

from typing import TYPE_CHECKING

from adafactor_native import _runtime, convert, schedules  # _runtime first: it may refuse
from adafactor_native.adafactor import AdaFactor
from adafactor_native.config import show_config
from adafactor_native.elastic import LoadReport
from adafactor_native.guards import AdafactorWarning, SkippedStepWarning, StuckTensorWarning
from adafactor_native.optimizer import Optimizer
from adafactor_native.param_groups import ParamGroup
from adafactor_native.report import StateMemory, StepReport
from adafactor_native.suggestions import closest
from adafactor_native.threads import get_num_threads, set_num_threads

__version__: str = _runtime._core.version

__all__ = [
    "AdaFactor",
    "AdafactorWarning",
    "LoadReport",
    "Optimizer",
    "ParamGroup",
    "SkippedStepWarning",
    "StateMemory",
    "StepReport",
    "StuckTensorWarning",
    "__version__",
    "convert",
    "get_num_threads",
    "schedules",
    "set_num_threads",
    "show_config",
]

if not TYPE_CHECKING:  # a type checker would take any name for known

    def __getattr__(name: str) -> object:
        if name.lower() == "adafactor":  # as most libraries spell it
            raise AttributeError(
                f"adafactor_native has no {name!r}: AdaFactor is the optimizer of one array; "
                'Optimizer(params, convention="torch") or "huggingface" steps a model as those '
                "libraries' Adafactor does"
            )
        guess = None if name.startswith("_") else closest(name, __all__)
        instead = f", did you mean {guess!r}?" if guess else ""
        raise AttributeError(f"module 'adafactor_native' has no attribute {name!r}{instead}")

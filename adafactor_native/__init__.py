"""The Adafactor optimizer as a native extension: in place on NumPy arrays.

`Optimizer` is the optimizer of a whole model, by every library's convention, and `convert` takes their
state over and gives it back; `AdaFactor` is the optimizer of one array. `set_num_threads` and
`get_num_threads` limit the threads of all of them, `show_config` tells how the extension was built and
what it runs on.
"""

from adafactor_native import convert
from adafactor_native._runtime import _core
from adafactor_native.adafactor import AdaFactor
from adafactor_native.config import show_config
from adafactor_native.optimizer import Optimizer
from adafactor_native.param_groups import ParamGroup
from adafactor_native.report import StateMemory, StepReport
from adafactor_native.threads import get_num_threads, set_num_threads

__version__: str = _core.version

__all__ = [
    "AdaFactor",
    "Optimizer",
    "ParamGroup",
    "StateMemory",
    "StepReport",
    "__version__",
    "convert",
    "get_num_threads",
    "set_num_threads",
    "show_config",
]

"""What is stepped: shapes, dtypes, memory layouts and thread counts."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from models import MODELS, Shape

Array = npt.NDArray[Any]


def elements(shape: Shape) -> int:
    return math.prod(shape)


@dataclass(frozen=True)
class Problem:
    """The parameters that one step changes: a single array, or all those of a model."""

    group: str  # the table or the plot that it belongs to
    shapes: tuple[Shape, ...]
    threads: int
    dtype: str = "float32"
    layout: str = "C"  # of param and grad: "C", "Fortran", or "slice" of a matrix twice as wide
    model: str | None = None
    half: bool = False  # values that bfloat16 and float16 hold too, for contenders that use these

    @property
    def name(self) -> str:
        name = self.model or "x".join(map(str, self.shapes[0]))
        if self.dtype != "float32":
            name += f" {self.dtype}"
        if self.layout != "C":
            name += f" {self.layout}"
        if self.half:
            name += " half"
        return name

    @property
    def size(self) -> int:
        return sum(map(elements, self.shapes))

    @property
    def itemsize(self) -> int:
        return np.dtype(self.dtype).itemsize

    def arrays(self) -> tuple[list[Array], list[Array], list[Array]]:
        """Parameters, and two lists of gradients for them."""
        rng = np.random.default_rng(0)
        params = [self._laid_out(rng.standard_normal(s, np.float32)) for s in self.shapes]
        grads = [[self._laid_out(uneven(s, rng)) for s in self.shapes] for _ in range(2)]
        return params, grads[0], grads[1]

    def _laid_out(self, values: Array) -> Array:
        if self.layout == "slice":
            rows, cols = values.shape
            wide = np.zeros((rows, 2 * cols), self.dtype)
            laid_out = wide[:, cols // 2 : cols // 2 + cols]
        elif self.layout == "Fortran":
            laid_out = np.empty(values.shape, self.dtype, order="F")
        else:
            laid_out = np.empty(values.shape, self.dtype)
        laid_out[...] = held_by_halves(values) if self.half else values
        return laid_out


def held_by_halves(values: Array) -> Array:
    """The nearest bfloat16, and of that the nearest float16, which is a bfloat16 again."""
    return values.astype(ml_dtypes.bfloat16).astype(np.float16)


def uneven(shape: Shape, rng: np.random.Generator) -> Array:
    """Rows and columns differ a thousandfold in scale; more axes, a millionfold between them."""
    values = rng.standard_normal(shape, np.float32)
    spread = min(1.5, 3 / len(shape))
    for axis, n in enumerate(shape):
        scale = 10 ** rng.uniform(-spread, spread, n).astype(np.float32)
        values *= scale.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    return values


def one_array(
    group: str, shape: Shape, threads: int, dtype: str = "float32", layout: str = "C"
) -> Problem:
    return Problem(group, (shape,), threads, dtype, layout)


def half(shape: Shape, threads: int) -> Problem:
    return Problem("half", (shape,), threads, half=True)


def model(name: str, threads: int) -> Problem:
    return Problem("model", tuple(MODELS[name]().values()), threads, model=name)


def many_small(threads: int) -> list[Problem]:
    """Two hundred tensors, and one of as many elements; two thousand smaller ones."""
    return [
        Problem("model", ((256, 64),) * 200, threads, model="200 of 256x64"),
        Problem("model", ((200 * 256, 64),), threads, model="one of 51200x64"),
        Problem("model", ((200 * 16, 1024),), threads, model="one of 3200x1024"),
        Problem("model", ((32, 32),) * 2000, threads, model="2000 of 32x32"),
    ]


def usable_cores() -> int:
    return len(os.sched_getaffinity(0))


def all_problems() -> list[Problem]:
    cores = usable_cores()
    return [
        *(one_array("size", (n, n), cores) for n in (16, 64, 256, 1024, 2048, 4096)),
        one_array("size", (8192, 4096), cores),
        *(one_array("float64", (n, n), cores, dtype="float64") for n in (1024, 4096)),
        one_array("shape", (50257, 768), cores),
        one_array("shape", (65536, 64), cores),
        one_array("shape", (64, 65536), cores),
        one_array("shape", (8192, 2048), cores),
        one_array("shape", (2048, 8192), cores),
        *(one_array("vector", (n,), cores) for n in (10**4, 10**6, 10**7)),
        *(
            one_array("layout", (4096, 4096), cores, layout=layout)
            for layout in ("Fortran", "slice")
        ),
        *(
            one_array("threads", shape, threads)
            for shape in ((1024, 1024), (2048, 2048), (4096, 4096), (8192, 4096), (50257, 768))
            for threads in thread_counts(cores)
        ),
        half((4096, 4096), cores),
        *many_small(cores),
        *(model(name, cores) for name in MODELS),
        *(model("GPT-2 small", threads) for threads in thread_counts(cores)),
    ]


def quick_problems() -> list[Problem]:
    """One of each kind and the smallest model: enough for a run of a few minutes."""
    cores = usable_cores()
    return [
        *(one_array("size", (n, n), cores) for n in (16, 64, 256, 1024, 2048)),
        one_array("vector", (10**6,), cores),
        one_array("layout", (1024, 1024), cores, layout="slice"),
        *(one_array("threads", (1024, 1024), threads) for threads in thread_counts(cores)),
        half((1024, 1024), cores),
        model("ResNet-50", cores),
    ]


def thread_counts(cores: int) -> list[int]:
    """Powers of two below all cores; "size" has the run with all of them."""
    return [1 << i for i in range(cores.bit_length()) if 1 << i < cores]

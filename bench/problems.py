"""What is stepped: shapes, dtypes, memory layouts and thread counts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Problem:
    group: str  # the table or the plot that it belongs to
    shape: tuple[int, ...]
    threads: int
    dtype: str = "float32"
    layout: str = "C"  # of param and grad: "C", "Fortran", or "slice" of a matrix twice as wide

    @property
    def name(self) -> str:
        name = "x".join(map(str, self.shape))
        if self.dtype != "float32":
            name += f" {self.dtype}"
        if self.layout != "C":
            name += f" {self.layout}"
        return name

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def itemsize(self) -> int:
        return np.dtype(self.dtype).itemsize

    @property
    def factored(self) -> bool:
        return len(self.shape) == 2

    def arrays(self) -> tuple[Array, Array, Array]:
        """A parameter and two gradients, whose rows and columns differ a thousandfold in scale."""
        rng = np.random.default_rng(0)
        param = self._laid_out(rng.standard_normal(self.shape, np.float32))
        grads = []
        for _ in range(2):
            grad = rng.standard_normal(self.shape, np.float32)
            for axis, n in enumerate(self.shape):
                scale = 10 ** rng.uniform(-1.5, 1.5, n).astype(np.float32)
                grad *= scale.reshape([-1 if i == axis else 1 for i in range(grad.ndim)])
            grads.append(self._laid_out(grad))
        return param, grads[0], grads[1]

    def _laid_out(self, values: Array) -> Array:
        if self.layout == "slice":
            rows, cols = self.shape
            wide = np.zeros((rows, 2 * cols), self.dtype)
            laid_out = wide[:, cols // 2 : cols // 2 + cols]
        elif self.layout == "Fortran":
            laid_out = np.empty(self.shape, self.dtype, order="F")
        else:
            laid_out = np.empty(self.shape, self.dtype)
        laid_out[...] = values
        return laid_out


def usable_cores() -> int:
    return len(os.sched_getaffinity(0))


def all_problems() -> list[Problem]:
    cores = usable_cores()
    return [
        *(Problem("size", (n, n), cores) for n in (16, 64, 256, 1024, 2048, 4096)),
        Problem("size", (8192, 4096), cores),
        *(Problem("float64", (n, n), cores, dtype="float64") for n in (1024, 4096)),
        Problem("shape", (65536, 64), cores),
        Problem("shape", (64, 65536), cores),
        *(Problem("vector", (n,), cores) for n in (10**4, 10**6, 10**7)),
        *(Problem("layout", (4096, 4096), cores, layout=layout) for layout in ("Fortran", "slice")),
        *(
            Problem("threads", (n, n), threads)
            for n in (1024, 2048, 4096)
            for threads in thread_counts(cores)
        ),
    ]


def quick_problems() -> list[Problem]:
    """One of each kind that numba can compile, and the seed step, within a minute."""
    cores = usable_cores()
    return [
        *(Problem("size", (n, n), cores) for n in (16, 64, 256, 1024, 2048)),
        Problem("vector", (10**6,), cores),
        Problem("layout", (1024, 1024), cores, layout="slice"),
        *(Problem("threads", (1024, 1024), threads) for threads in thread_counts(cores)),
    ]


def thread_counts(cores: int) -> list[int]:
    """Powers of two below all cores; "size" has the run with all of them."""
    return [1 << i for i in range(cores.bit_length()) if 1 << i < cores]

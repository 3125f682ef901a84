"""A torch optimizer at work: one object over all parameters, on the very memory of NumPy's arrays."""

from __future__ import annotations

import timeit
from collections.abc import Callable
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import torch

from contenders import contender
from contenders.contender import Start
from problems import Array, Problem
from stopwatch import stopwatch

MakeOptimizer = Callable[[list[Any], float], Any]  # of tensors and a learning rate


def allowed_error(problem: Problem) -> float:
    """For what takes RMS(u) and RMS(param) from torch's norm, which sums in float32, in long chains.

    Of random numbers in order, it is off by 1e-5 for 2**20 of them, and by 6e-4 for 2**24; the worst
    step here was off by 1e-4, of a slice of 2**24.
    """
    error = contender.allowed_error(problem)
    return max(error, 1e-11 * problem.size) if problem.dtype == "float32" else error


class TorchSteps:
    def __init__(self, make: MakeOptimizer, params: list[Array], lr: float) -> None:
        self._arrays = params
        self._tensors = [self.tensor(param) for param in params]
        self._step = make(self._tensors, lr).step

    def use(self, grads: list[Array]) -> None:
        for tensor, grad in zip(self._tensors, grads):
            tensor.grad = self.tensor(grad)

    def timer(self) -> timeit.Timer:
        return stopwatch("step()", step=self._step)

    def params(self) -> list[Array]:
        return self._arrays

    @staticmethod
    def tensor(array: Array) -> Any:
        return torch.from_numpy(array)


class HalfTorchSteps(TorchSteps):
    """Parameters, gradients, and what the optimizer makes of them: all bfloat16."""

    def params(self) -> list[Array]:
        return [tensor.float().numpy() for tensor in self._tensors]

    @staticmethod
    def tensor(array: Array) -> Any:
        """A copy in memory of NumPy's, as all others have it, whose bfloat16 torch does not take."""
        bits = array.astype(ml_dtypes.bfloat16).view(np.int16)
        return torch.from_numpy(bits).view(torch.bfloat16)


class CompiledTorchSteps(TorchSteps):
    """The whole step as one graph, by inductor."""

    def __init__(self, make: MakeOptimizer, params: list[Array], lr: float) -> None:
        super().__init__(make, params, lr)
        torch.compiler.reset()  # what was compiled for other optimizers counts against a limit
        self._step = torch.compile(self._step, fullgraph=True)


def torch_steps(make: MakeOptimizer) -> Start:
    return partial(TorchSteps, make)


def half_torch_steps(make: MakeOptimizer) -> Start:
    return partial(HalfTorchSteps, make)


def compiled_torch_steps(make: MakeOptimizer) -> Start:
    return partial(CompiledTorchSteps, make)

"""What a contender is: how it starts, what it is checked against, how many bytes it has to move."""

from __future__ import annotations

import timeit
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from contenders.sweeps import SweepsOf
from models import Shape
from problems import Array, Problem, elements, usable_cores
from stopwatch import stopwatch

Update = Callable[[Array, Array], Any]  # update(param, grad) changes param in place
Make = Callable[[Array, float], Update]  # for this parameter and learning rate

# Against the same steps in float64, relative to the largest parameter.
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}


def allowed_error(problem: Problem) -> float:
    return TOLERANCE[problem.dtype]


def on_all_cores(problem: Problem) -> bool:
    """For those who would only make the runs on fewer threads longer."""
    return problem.threads == usable_cores()


LARGE = 2 * 10**8


def but_the_largest(problem: Problem) -> bool:
    """For those whose time others stand for, where a step takes seconds."""
    return on_all_cores(problem) and problem.size < LARGE


class Steps(Protocol):
    """A contender at work on some parameters, in arrays of ours or copies of its own."""

    def use(self, grads: list[Array]) -> None:
        """Step with these gradients from now on."""

    def timer(self) -> timeit.Timer:
        """Of one step: nothing else is timed, and nothing else is checked."""

    def params(self) -> list[Array]:
        """The parameters as the steps so far have left them."""


Start = Callable[[list[Array], float], Steps]  # on these parameters, with this learning rate


@dataclass(frozen=True)
class Contender:
    name: str
    start: Start
    reference: Make  # the same for one parameter, in plain NumPy, called with float64
    bytes_of: Callable[[Shape, int], float]  # per parameter of this shape and item size
    sweeps_of: SweepsOf | None = None  # None: nobody asks how near its limit it is
    takes: Callable[[Problem], bool] = lambda problem: True
    allowed_error: Callable[[Problem], float] = allowed_error
    roof: bool = False  # not an optimizer
    half: bool = False  # steps the problems in half precision, and no others

    def bytes_per_param(self, problem: Problem) -> float:
        moved = sum(
            elements(shape) * self.bytes_of(shape, problem.itemsize) for shape in problem.shapes
        )
        return round(moved / problem.size, 2)

    def sweeps(self, problem: Problem) -> dict[str, float] | None:
        """Of a step, by the names of `Sweeps`; None where nobody asks for its limit."""
        if self.sweeps_of is None:
            return None
        total: Counter[str] = Counter()
        for shape in problem.shapes:
            for name, times in self.sweeps_of(shape, problem.itemsize)._asdict().items():
                total[name] += times * elements(shape) / problem.size
        return {name: round(times, 4) for name, times in total.items()}


class ArrayByArray:
    """An optimizer of a single array: as many of them as there are parameters."""

    def __init__(self, make: Make, params: list[Array], lr: float) -> None:
        self._params = params
        self._updates = [make(param, lr) for param in params]

    def use(self, grads: list[Array]) -> None:
        self._grads = grads

    def timer(self) -> timeit.Timer:
        calls = list(zip(self._updates, self._params, self._grads))
        if len(calls) == 1:  # a loop would show beside a call of a microsecond
            update, param, grad = calls[0]
            return stopwatch("update(param, grad)", update=update, param=param, grad=grad)
        return stopwatch("for update, param, grad in calls: update(param, grad)", calls=calls)

    def params(self) -> list[Array]:
        return self._params


def array_by_array(make: Make) -> Start:
    return partial(ArrayByArray, make)

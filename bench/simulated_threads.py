"""A step on any number of cores, simulated from the tasks that the engine cuts and the machine's figures.

Threads take tasks in their own shares at the bandwidth that they leave each other, help those who have
tasks left, and meet at the end of each parallel region.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from adafactor_native._runtime import _core
from models import Shape
from problems import elements

FLOAT32 = 4
TASK_NS = 60.0  # to take a task: an exchange of one word, its line often another core's
# as csrc/engine has them: elements of a wave, of a tensor that is one by itself, of a thread's least work
WAVE, ALONE, PER_THREAD = 1 << 19, 1 << 17, 1 << 16
PANEL_ROWS = 64


@dataclass(frozen=True)
class Machine:
    core_bytes_per_ns: float  # what one core reads
    socket_bytes_per_ns: float
    region_ns: float  # of a parallel region of two threads
    per_thread_ns: float
    line_ns: float  # of resolve, for each row and column

    def region(self, threads: int) -> float:
        return 0.0 if threads == 1 else self.region_ns + self.per_thread_ns * (threads - 2)

    def bytes_per_ns(self, threads: int) -> float:
        """For each of so many threads at work."""
        return min(self.core_bytes_per_ns, self.socket_bytes_per_ns / threads)


@dataclass(frozen=True)
class Sweep:
    tasks: list[float]  # bytes of each

    def ns(self, threads: int, machine: Machine) -> float:
        """Shares of neighbours, each from its first task; who is done takes others' last ones.

        Those at work share the memory: when few are left, each has as much as one core can read.
        """
        n = len(self.tasks)
        shares = [self.tasks[k * n // threads : (k + 1) * n // threads] for k in range(threads)]
        left = {thread: task for thread in range(threads) if (task := next_task(shares, thread))}
        now = 0.0
        while left:
            speed = machine.bytes_per_ns(len(left))
            first_done = min(left.values())
            now += first_done / speed + TASK_NS / len(left)
            for thread in list(left):
                left[thread] -= first_done
                if left[thread] <= 0:
                    task = next_task(shares, thread)
                    if task is None:
                        del left[thread]
                    else:
                        left[thread] = task
        return now + machine.region(threads)


def next_task(shares: list[list[float]], thread: int) -> float | None:
    if shares[thread]:
        return shares[thread].pop(0)
    for k in range(1, len(shares)):
        share = shares[(thread + k) % len(shares)]
        if share:
            return share.pop()
    return None


def team_size(size: int, limit: int) -> int:
    return max(1, min(size // PER_THREAD, limit))


def measure_tasks(shape: Shape, measures_param: bool, by_panel: bool = False) -> list[float]:
    """Bytes of each turn: a group of grad's rows at its place among the tiles of param."""
    rows, cols = matrix(shape)
    n_groups, n_tiles = _core.task_counts(rows, cols)
    if by_panel:
        n_groups = max(n_groups, math.ceil(rows / PANEL_ROWS))
    size = elements(shape) * FLOAT32
    turns = max(n_groups, n_tiles) if measures_param else n_groups
    tasks = [0.0] * turns
    for n in [n_groups, n_tiles] if measures_param else [n_groups]:
        for k in range(n):
            tasks[k * turns // n] += size / n
    return tasks


def apply_tasks(shape: Shape) -> list[float]:
    """A floor: 12 bytes of each 8 are reads, and a write costs as much as a read."""
    _, n_tiles = _core.task_counts(*matrix(shape))
    return [3 * elements(shape) * FLOAT32 / n_tiles] * n_tiles


def matrix(shape: Shape) -> tuple[int, int]:
    return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])


def waves(shapes: list[Shape]) -> list[list[Shape]]:
    """Small tensors that follow each other share their regions; a large one has its own."""
    made: list[list[Shape]] = []
    for shape in shapes:
        size = elements(shape)
        fits = made and size <= ALONE and sum(map(elements, made[-1])) + size <= WAVE
        if fits and elements(made[-1][-1]) <= ALONE:
            made[-1].append(shape)
        else:
            made.append([shape])
    return made


@dataclass(frozen=True)
class Cost:
    measure: float
    resolve: float
    apply: float

    @property
    def step(self) -> float:
        return self.measure + self.resolve + self.apply


def cost(
    shapes: list[Shape], threads: int, machine: Machine, carried: bool, by_panel: bool = False
) -> Cost:
    """In ns, all or nothing: all waves are measured and resolved, then all applied at once."""
    measure = resolve = 0.0
    for wave in waves(shapes):
        team = team_size(sum(map(elements, wave)), threads)
        tasks = [t for shape in wave for t in measure_tasks(shape, not carried, by_panel)]
        measure += Sweep(tasks).ns(team, machine)
        lines = max(sum(matrix(shape)) for shape in wave)
        resolve += lines * machine.line_ns + machine.region(team)
    team = team_size(sum(map(elements, shapes)), threads)
    apply = Sweep([t for shape in shapes for t in apply_tasks(shape)]).ns(team, machine)
    return Cost(measure, resolve, apply)

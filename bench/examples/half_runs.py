"""One training of a task, with its parameters stored in one way, on one order of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import Any

import ml_dtypes
import numpy as np

from adafactor_native import Optimizer
from examples.half_tasks import TASKS
from examples.transformer import Arrays

FLOAT32 = "float32"
STOCHASTIC = "bfloat16, stochastic"
MASTERS = 'bfloat16, masters="float32"'
SPLIT = 'bfloat16, masters="split"'
STORAGES: dict[str, dict[str, Any]] = {
    FLOAT32: {},
    "bfloat16, nearest": {"rounding": "nearest"},
    STOCHASTIC: {"rounding": "stochastic"},
    MASTERS: {"masters": "float32"},
    SPLIT: {"masters": "split"},
}
AS_GOOD = (STOCHASTIC, MASTERS, SPLIT)


@dataclass(frozen=True)
class Job:
    task: str
    storage: str
    order: int
    steps: int


@dataclass(frozen=True)
class Run:
    job: Job
    losses: list[float]  # at each step
    held_out_loss: float
    accuracy: float | None
    bytes_per_parameter: float  # of parameters and state
    seconds: float

    @property
    def training_loss(self) -> float:
        """Mean over the last tenth of the steps."""
        return float(np.mean(self.losses[-math.ceil(len(self.losses) / 10) :]))


def train(job: Job) -> Run:
    start = perf_counter()
    task = TASKS[job.task]()
    dtype = np.float32 if job.storage == FLOAT32 else ml_dtypes.bfloat16
    params = {name: param.astype(dtype) for name, param in task.start.items()}
    optimizer = Optimizer(
        task.groups(params),
        num_threads=1,
        seed=job.order,
        momentum_dtype=None if job.storage == FLOAT32 else "bfloat16",
        **task.options,
        **STORAGES[job.storage],
    )
    losses = []
    for batch in islice(task.batches(job.order), job.steps):
        loss, grads = task.loss_and_grads(as_float32(params), batch)
        optimizer.step({name: grad.astype(dtype) for name, grad in grads.items()})
        losses.append(loss)

    held_out_loss, accuracy = task.held_out(as_float32(params))
    stored = sum(param.nbytes for param in params.values()) + optimizer.memory.total
    bytes_per_parameter = stored / optimizer.memory.elements
    seconds = perf_counter() - start
    return Run(job, losses, held_out_loss, accuracy, bytes_per_parameter, seconds)


def as_float32(params: Arrays) -> Arrays:
    return {name: param.astype(np.float32, copy=False) for name, param in params.items()}

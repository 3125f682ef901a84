"""Train the networks of digits.py and characters.py in bfloat16: what it costs, and what saves it.

`python bench/half_training.py` trains both in float32 and in bfloat16, rounded to nearest, rounded
stochastically, and with either kind of masters: from one start, on the same several orders of the
data, both at a small learning rate, the transformer also at its own. It prints the losses at the end and their distances from float32's,
in standard deviations of its runs; draws the losses; writes the numbers as JSON; and fails if
stochastic rounding or masters end farther off than another order of the data might.

Forward and backward are float32, of float32 copies of the parameters. In a bfloat16 run parameters,
gradients and first moments are bfloat16; only masters are more.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

try:
    import ml_dtypes
    import numpy as np
    from threadpoolctl import threadpool_limits
    from tqdm import tqdm

    import characters
    import digits
    from adafactor_native import Optimizer
    from half_training_plot import Panel, draw
except ImportError as error:
    raise SystemExit(f'{error}\nThis example needs: pip install ".[bench,bfloat16]"') from error

from machine import describe_machine, describe_software
from prose import manual
from transformer import Arrays, Size, initial_params, loss_and_grads

DIGITS, CHARACTERS, USUAL = "digits, small lr", "characters, small lr", "characters, usual lr"
STEPS = {DIGITS: 160, CHARACTERS: 250, USUAL: 250}
QUICK_STEPS = {DIGITS: 8, CHARACTERS: 6, USUAL: 6}
ORDERS, QUICK_ORDERS = 4, 2  # of the data: the runs of each storage
WORKERS = 2  # processes, each of one thread: the matrices are small

# Relative to RMS(param), as half a unit of bfloat16 is 2e-3 to 4e-3 relative to its number.
DIGITS_LR = 1e-3
CHARACTERS_LR = 0.05  # times those of characters.py, of which that of the weights is 0.05, too
WARM_UP = 20  # steps
WIDTH = 64  # of the transformer, half of that in characters.py: it is trained forty times

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
DEVIATIONS = 1  # of single float32 runs, from their mean: farther off is out of their spread


@dataclass(frozen=True)
class Task:
    """A network, its data, and how it is trained."""

    start: Arrays  # in float32
    batches: Callable[[int], Iterator[Any]]  # of an order: without end
    loss_and_grads: Callable[[Arrays, Any], tuple[float, Arrays]]
    held_out: Callable[[Arrays], tuple[float, float | None]]  # loss; accuracy, of digits
    groups: Callable[[Arrays], list[dict[str, Any]]]
    options: dict[str, Any]  # of Optimizer


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


@dataclass(frozen=True)
class Spread:
    """Of a loss, over the orders of the data."""

    mean: float
    lowest: float
    highest: float
    deviation: float  # of a single run
    distance: float  # of the mean from float32's, in deviations of that

    @classmethod
    def of(cls, values: list[float], reference: list[float]) -> Spread:
        mean = float(np.mean(values))
        distance = (mean - float(np.mean(reference))) / float(np.std(reference, ddof=1))
        deviation = float(np.std(values, ddof=1))
        return cls(mean, min(values), max(values), deviation, distance)

    def __str__(self) -> str:
        return f"{self.mean:.4f} ({self.lowest:.4f} to {self.highest:.4f}){self.distance:+8.2f}"


@dataclass(frozen=True)
class Ending:
    """Where the runs of a storage end."""

    task: str
    storage: str
    training_loss: Spread
    held_out_loss: Spread
    accuracy: float | None
    bytes_per_parameter: float

    @classmethod
    def of(cls, runs: list[Run], reference: list[Run]) -> Ending:
        job = runs[0].job
        accuracies = [run.accuracy for run in runs if run.accuracy is not None]
        return cls(
            job.task,
            job.storage,
            Spread.of([r.training_loss for r in runs], [r.training_loss for r in reference]),
            Spread.of([r.held_out_loss for r in runs], [r.held_out_loss for r in reference]),
            float(np.mean(accuracies)) if accuracies else None,
            runs[0].bytes_per_parameter,
        )

    def is_off(self) -> bool:
        spreads = (self.training_loss, self.held_out_loss)
        return not all(abs(spread.distance) <= DEVIATIONS for spread in spreads)

    def __str__(self) -> str:
        accuracy = "" if self.accuracy is None else f"{self.accuracy:.2%}"
        return (
            f"  {self.storage:26}{self.training_loss!s:>35}{self.held_out_loss!s:>35}{accuracy:>10}"
            f"{self.bytes_per_parameter:13.2f}"
        )


@dataclass(frozen=True)
class Trainings:
    """All runs of a network."""

    task: str
    runs: list[Run]

    def by_storage(self, storage: str) -> list[Run]:
        return [run for run in self.runs if run.job.storage == storage]

    @cached_property
    def endings(self) -> list[Ending]:
        reference = self.by_storage(FLOAT32)
        return [Ending.of(self.by_storage(storage), reference) for storage in STORAGES]

    def table(self) -> str:
        heading = f"{self.task}, {self.runs[0].job.steps} steps"
        columns = f"{'training loss':>35}{'held-out loss':>35}{'accuracy':>10}{'bytes/param':>13}"
        return "\n".join([f"{heading:28}{columns}", *map(str, self.endings)])

    def panel(self) -> Panel:
        losses = {s: np.array([run.losses for run in self.by_storage(s)]) for s in STORAGES}
        reference = losses.pop(FLOAT32)
        return Panel(self.task.capitalize(), reference, losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps, which prove nothing")
    parser.add_argument("--output", type=Path, metavar="PNG", help="and JSON beside it")
    arguments = parser.parse_args()
    steps = QUICK_STEPS if arguments.quick else STEPS
    orders = QUICK_ORDERS if arguments.quick else ORDERS
    default_name = "quick-half-training.png" if arguments.quick else "half-training.png"
    output = arguments.output or Path(__file__).parent / "results" / default_name

    described = {
        "mode": "quick" if arguments.quick else "full",
        "date": date.today().isoformat(),
        "machine": describe_machine(),
        "software": describe_software(),
    }
    start = perf_counter()
    trainings = train_all(steps, orders)
    seconds = perf_counter() - start

    for training in trainings:
        print(training.table())
    print(
        f"Losses in nats: mean ({orders} orders of the data: lowest to highest), and how far the "
        f"mean is from {FLOAT32}'s,\nin standard deviations of one {FLOAT32} run. {seconds:.0f} s."
    )
    draw([training.panel() for training in trainings], FLOAT32, output)
    numbers = output.with_suffix(".json")
    numbers.write_text(json.dumps({**described, **recorded(trainings)}, indent=1) + "\n")
    print(f"plot: {output}, numbers: {numbers}")
    if not arguments.quick:
        check(trainings)


def train_all(steps: dict[str, int], orders: int) -> list[Trainings]:
    jobs = [
        Job(task, storage, order, steps[task])
        for task in TASKS
        for storage in STORAGES
        for order in range(orders)
    ]
    spawning = multiprocessing.get_context("spawn")  # threads do not survive a fork
    with ProcessPoolExecutor(WORKERS, spawning, one_blas_thread) as pool:
        runs = list(tqdm(pool.map(train, jobs), total=len(jobs), unit="training"))
    return [Trainings(task, [run for run in runs if run.job.task == task]) for task in TASKS]


def one_blas_thread() -> None:
    threadpool_limits(1, user_api="blas")


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


def digits_task() -> Task:
    data = digits.split_digits()

    def batches(order: int) -> Iterator[Any]:
        rng = np.random.default_rng(order)
        while True:
            shuffled = rng.permutation(len(data.labels))
            for first in range(0, len(shuffled) - digits.BATCH + 1, digits.BATCH):
                chosen = shuffled[first : first + digits.BATCH]
                yield data.images[chosen], data.labels[chosen]

    def gradients(params: Arrays, batch: Any) -> tuple[float, Arrays]:
        loss, grads = digits.backpropagate(as_layers(params), *batch)
        return loss, as_params(grads)

    def held_out(params: Arrays) -> tuple[float, float]:
        layers = as_layers(params)
        loss, _ = digits.backpropagate(layers, data.test_images, data.test_labels)
        guesses = digits.forward(layers, data.test_images)[-1].argmax(axis=1)
        return loss, float(np.mean(guesses == data.test_labels))

    def groups(params: Arrays) -> list[dict[str, Any]]:
        weights = {name: param for name, param in params.items() if param.ndim == 2}
        biases = {name: param for name, param in params.items() if param.ndim == 1}
        return [{"params": weights}, {"params": biases, "scale_parameter": False}]

    start = as_params(digits.initial_layers(np.random.default_rng(0)))
    options = {"convention": "numpy", "lr": DIGITS_LR, "schedule": warm_up}
    return Task(start, batches, gradients, held_out, groups, options)


def as_params(layers: list[digits.Layer]) -> Arrays:
    return {
        f"layer{k}.{kind}": array
        for k, layer in enumerate(layers)
        for kind, array in zip(("weights", "biases"), layer)
    }


def as_layers(params: Arrays) -> list[digits.Layer]:
    arrays = list(params.values())
    return list(zip(arrays[::2], arrays[1::2]))


def characters_task(lr: float, schedule: Callable[[int], float]) -> Task:
    """`lr`: times those of characters.py."""
    prose = manual()

    def batches(order: int) -> Iterator[Any]:
        rng = np.random.default_rng(order)
        while True:
            yield characters.drawn_batch(prose, rng)

    def gradients(params: Arrays, batch: Any) -> tuple[float, Arrays]:
        return loss_and_grads(params, *batch)

    def held_out(params: Arrays) -> tuple[float, None]:
        return characters.validation_loss(params, prose), None

    def groups(params: Arrays) -> list[dict[str, Any]]:
        return [{**group, "lr": group["lr"] * lr} for group in characters.groups(params)]

    size = Size(len(prose.alphabet), characters.CONTEXT, width=WIDTH)
    start = initial_params(size, np.random.default_rng(0))
    options = {**characters.OPTIONS, "schedule": schedule}
    return Task(start, batches, gradients, held_out, groups, options)


def warm_up(t: int) -> float:
    """Of lr, which stays as it is from then on."""
    return min(t / WARM_UP, 1)


TASKS: dict[str, Callable[[], Task]] = {
    DIGITS: digits_task,
    CHARACTERS: partial(characters_task, CHARACTERS_LR, warm_up),
    USUAL: partial(characters_task, 1, partial(characters.schedule, steps=STEPS[USUAL])),
}


def recorded(trainings: list[Trainings]) -> dict[str, Any]:
    return {
        "deviations allowed": DEVIATIONS,
        "endings": [asdict(ending) for training in trainings for ending in training.endings],
        "runs": [
            {
                **asdict(run.job),
                "training_loss": run.training_loss,
                "held_out_loss": run.held_out_loss,
                "accuracy": run.accuracy,
                "seconds": round(run.seconds, 2),
            }
            for training in trainings
            for run in training.runs
        ],
    }


def check(trainings: list[Trainings]) -> None:
    endings = [ending for training in trainings for ending in training.endings]
    off = [f"{e.task} in {e.storage}" for e in endings if e.storage in AS_GOOD and e.is_off()]
    if off:
        raise SystemExit(f"more than {DEVIATIONS} deviation from {FLOAT32}: {'; '.join(off)}")
    print(f"stochastic rounding and masters end within {DEVIATIONS} deviation of {FLOAT32}")


if __name__ == "__main__":
    main()

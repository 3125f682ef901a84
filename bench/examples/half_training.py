"""Train the networks of digits.py and characters.py in bfloat16: what it costs, and what saves it.

`python bench/train.py half` trains both in float32 and in bfloat16: rounded to nearest, rounded
stochastically, and with either kind of masters. All begin from one start, on the same several orders
of the data, at a small learning rate; the transformer is trained at its own, too. It prints the
losses at the end and their distances from float32's, in standard deviations of its runs; draws the
losses; writes the numbers as JSON; and fails if stochastic rounding or masters end farther off than
another order of the data might.

Forward and backward are float32, of float32 copies of the parameters. In a bfloat16 run parameters,
gradients and first moments are bfloat16; only masters are more.
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter

from threadpoolctl import threadpool_limits
from tqdm import tqdm

from examples.half_endings import DEVIATIONS, Trainings, recorded
from examples.half_runs import AS_GOOD, FLOAT32, STORAGES, Job, train
from examples.half_tasks import QUICK_STEPS, STEPS, TASKS
from examples.half_training_plot import draw
from machine import describe_run
from output import OUTPUT, write_json

ORDERS, QUICK_ORDERS = 4, 2  # of the data: the runs of each storage
WORKERS = 2  # processes, each of one thread: the matrices are small


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="a few steps, which prove nothing")
    parser.add_argument(
        "--output",
        type=Path,
        default=OUTPUT / "half-training.png",
        metavar="PNG",
        help="the losses, and JSON beside it; default: in bench/output/",
    )


def run(arguments: argparse.Namespace) -> None:
    steps = QUICK_STEPS if arguments.quick else STEPS
    orders = QUICK_ORDERS if arguments.quick else ORDERS

    described = {
        "mode": "quick" if arguments.quick else "full",
        **describe_run(),
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
    draw([training.panel() for training in trainings], FLOAT32, arguments.output)
    numbers = arguments.output.with_suffix(".json")
    write_json(numbers, {**described, **recorded(trainings)})
    print(f"plot: {arguments.output}, numbers: {numbers}")
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


def check(trainings: list[Trainings]) -> None:
    endings = [ending for training in trainings for ending in training.endings]
    off = [f"{e.task} in {e.storage}" for e in endings if e.storage in AS_GOOD and e.is_off()]
    if off:
        raise SystemExit(f"more than {DEVIATIONS} deviation from {FLOAT32}: {'; '.join(off)}")
    print(f"stochastic rounding and masters end within {DEVIATIONS} deviation of {FLOAT32}")

"""Train a transformer to write English, character by character, with `Optimizer` and with NumPy.

`python bench/train.py characters` trains both from the same start and on the same batches. It resumes
the former from its checkpoint half-way; prints how well they did, how long they took and whether the
resumed training has the same bits; and draws the losses and what `Optimizer.step` reports. The
model is plain NumPy, the text is Python's own manual.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from adafactor_native import Optimizer
from contenders.numpy_groups import NumpyGroups
from examples.characters_plot import Drawn, draw
from examples.prose import Prose, decode, encode, manual
from examples.transformer import (
    Array,
    Arrays,
    Size,
    initial_params,
    log_softmax,
    loss,
    loss_and_grads,
    model,
)
from names import IN_PLACE, NATIVE
from output import OUTPUT

STEPS, QUICK_STEPS = 800, 80
BATCH, CONTEXT = 16, 64  # texts, and characters of each
WARM_UP = 0.04  # of the steps

# Weights step in proportion to their size, and decay. Gains and biases step by lr itself, as those
# of zero would not move otherwise, and so does what is looked up by character or by position.
WEIGHTS = {"lr": 0.05, "scale_parameter": True, "weight_decay": 0.05}
OTHERS = {"lr": 0.005, "scale_parameter": False, "weight_decay": 0.0}
LOOKED_UP = ("characters", "positions")
BOTH: dict[str, Any] = {"beta1": 0.9, "max_grad_norm": 1.0}
OPTIONS = {"convention": "paper", "relative_step": False, "factored_axes": "last_two", **BOTH}

# Relative, of the losses in so many steps as --quick takes. What rounds differently gives 3e-8 there.
TOLERANCE = 1e-5

PROMPT, WRITTEN, TEMPERATURE = "The ", 400, 0.7


@dataclass
class Training:
    name: str
    params: Arrays
    optimizer: Any  # step(grads) changes params
    prose: Prose
    losses: list[float] = field(default_factory=list)  # at each step
    reports: list[Any] = field(default_factory=list)  # what step returns
    model_seconds: list[float] = field(default_factory=list)
    optimizer_seconds: list[float] = field(default_factory=list)

    def step(self) -> None:
        start = perf_counter()
        nats, grads = loss_and_grads(self.params, *batch(self.prose, self.optimizer.t))
        between = perf_counter()
        report = self.optimizer.step(grads)
        self.optimizer_seconds.append(perf_counter() - between)
        self.model_seconds.append(between - start)
        self.losses.append(nats)
        self.reports.append(report)

    def final_loss(self) -> float:
        """Mean over the last twentieth of the steps."""
        return float(np.mean(self.losses[-math.ceil(len(self.losses) / 20) :]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float64"),
        default="float32",
        help="float64: both optimizers then differ by their equations alone",
    )
    parser.add_argument("--output", type=Path, metavar="PNG", help="default: in bench/output/")


def run(arguments: argparse.Namespace) -> None:
    steps = QUICK_STEPS if arguments.quick else arguments.steps
    output = arguments.output or OUTPUT / "characters.png"
    # A second thread of BLAS gains nothing on matrices of this size, and spins beside the optimizer.
    threadpool_limits(1, user_api="blas")

    prose = manual()
    size = Size(len(prose.alphabet), CONTEXT)

    def start(seed: int) -> Arrays:
        return initial_params(size, np.random.default_rng(seed), arguments.dtype)

    numpy = numpy_training(IN_PLACE, start(seed=0), prose, steps)
    native = native_training(NATIVE, start(seed=0), prose, steps)
    resumed = native_training("resumed", start(seed=1), prose, steps)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.npz"
        advance([numpy, native], to=steps // 2)
        save_checkpoint(checkpoint, native.optimizer)
        advance([numpy, native], to=steps)
        with np.load(checkpoint) as state:
            resumed.optimizer.load_state_dict(state)  # writes to its params, too
    advance([resumed], to=steps)

    print(comparison(native, numpy))
    print(f"Written after {PROMPT!r}:")
    print(textwrap.indent(textwrap.fill(written(native), 96), "    "))
    draw(drawn(native, numpy, steps), output)
    print(f"plot: {output}")
    if not same_bits(native, resumed):
        raise SystemExit("the resumed training has other bits")
    print(f"resumed at step {steps // 2}: same losses, parameters and state, to the bit")
    if apart(native, numpy)[:QUICK_STEPS].max() > TOLERANCE:
        raise SystemExit(f"the losses differ by more than {TOLERANCE} from the first steps on")


def advance(trainings: list[Training], to: int) -> None:
    """In turns, so that what else the machine does slows all of them."""
    names = " and ".join(training.name for training in trainings)
    for _ in tqdm(range(trainings[0].optimizer.t, to), desc=names, unit="step"):
        for training in trainings:
            training.step()


def drawn(native: Training, numpy: Training, steps: int) -> Drawn:
    factors = [schedule(t, steps) for t in range(1, steps + 1)]
    return Drawn(
        losses={training.name: training.losses for training in (numpy, native)},
        resumed_at=steps // 2,
        rates={
            name: [group["lr"] * factor for factor in factors]
            for name, group in (("weights", WEIGHTS), ("all else", OTHERS))
        },
        reports=native.reports,
        max_grad_norm=BOTH["max_grad_norm"],
    )


def native_training(name: str, params: Arrays, prose: Prose, steps: int) -> Training:
    optimizer = Optimizer(
        groups(params),
        schedule=partial(schedule, steps=steps),
        **OPTIONS,
    )
    return Training(name, params, optimizer, prose)


def numpy_training(name: str, params: Arrays, prose: Prose, steps: int) -> Training:
    optimizer = NumpyGroups(groups(params), schedule=partial(schedule, steps=steps), **BOTH)
    return Training(name, params, optimizer, prose)


def groups(params: Arrays) -> list[dict[str, Any]]:
    weights = {
        name: param for name, param in params.items() if param.ndim >= 2 and name not in LOOKED_UP
    }
    others = {name: param for name, param in params.items() if name not in weights}
    return [{"params": weights, **WEIGHTS}, {"params": others, **OTHERS}]


def schedule(t: int, steps: int) -> float:
    """Of lr: up in a line, down in half a cosine."""
    return min(t / (WARM_UP * steps), (1 + math.cos(math.pi * t / (steps + 1))) / 2)


def batch(prose: Prose, t: int) -> tuple[Array, Array]:
    """What the model reads at a step and what follows; t alone decides, so a resumed run has it."""
    return drawn_batch(prose, np.random.default_rng(t))


def drawn_batch(prose: Prose, rng: np.random.Generator) -> tuple[Array, Array]:
    starts = rng.integers(len(prose.training) - CONTEXT, size=(BATCH, 1))
    windows = prose.training[starts + np.arange(CONTEXT + 1)]
    return windows[:, :-1], windows[:, 1:]


def validation_loss(params: Arrays, prose: Prose) -> float:
    text = prose.validation
    starts = np.arange(0, len(text) - CONTEXT, CONTEXT)
    windows = text[starts[:, None] + np.arange(CONTEXT + 1)]
    parts = np.array_split(windows, math.ceil(len(windows) / BATCH))
    losses = [loss(params, part[:, :-1], part[:, 1:]) for part in parts]
    return float(np.average(losses, weights=[len(part) for part in parts]))


def written(training: Training) -> str:
    """Text that the model makes up, each character drawn by its probability."""
    alphabet, rng = training.prose.alphabet, np.random.default_rng(0)
    text = encode(PROMPT, alphabet)
    for _ in range(WRITTEN):
        scores, _ = model(training.params, text[None, -CONTEXT:])
        log_likelihoods = log_softmax(scores[0, -1].astype(np.float64) / TEMPERATURE)
        text = np.append(text, rng.choice(len(alphabet), p=np.exp(log_likelihoods)))
    return decode(text, alphabet)


def save_checkpoint(path: Path, optimizer: Optimizer) -> None:
    """Parameters and state, whole or not at all: whoever dies in here leaves the last checkpoint."""
    part = path.with_name(f"{path.name}.part")
    state: dict[str, Any] = optimizer.state_dict(params=True)
    with part.open("wb") as file:
        np.savez(file, **state)
        file.flush()
        os.fsync(file.fileno())  # the disk has the bytes before the name points to them
    os.replace(part, path)


def same_bits(whole: Training, resumed: Training) -> bool:
    after = len(whole.losses) - len(resumed.losses)
    states = (training.optimizer.state_dict(params=True) for training in (whole, resumed))
    bits = [{name: array.tobytes() for name, array in state.items()} for state in states]
    return whole.losses[after:] == resumed.losses and bits[0] == bits[1]


def apart(native: Training, numpy: Training) -> Array:
    """Relative differences of the losses, which rounding errors feed over the steps."""
    difference: Array = np.abs(np.array(native.losses) / np.array(numpy.losses) - 1)
    return difference


def comparison(native: Training, numpy: Training) -> str:
    elements = sum(param.size for param in native.params.values())
    lines = [
        f"{elements} parameters in {len(native.params)} tensors, "
        + f"{len(native.losses)} steps of {BATCH} x {CONTEXT} characters",
        f"{'':44}{numpy.name:>18}{native.name:>18}",
    ]

    def line(label: str, of: Callable[[Training], float], digits: int, note: str = "") -> None:
        values = "".join(f"{of(training):18.{digits}f}" for training in (numpy, native))
        lines.append(f"{label:44}{values}{note}")

    def optimizer_ms(training: Training) -> float:
        return 1e3 * median(training.optimizer_seconds)

    nats = {
        training.name: validation_loss(training.params, training.prose)
        for training in (numpy, native)
    }
    gain = f"   {optimizer_ms(numpy) / optimizer_ms(native):.1f} times faster"
    line("training loss at the end, nats per character", Training.final_loss, 4)
    line("validation loss, nats per character", lambda training: nats[training.name], 4)
    line("... bits per character", lambda training: nats[training.name] / math.log(2), 4)
    line("optimizer, ms per step", optimizer_ms, 3, gain)
    line("forward and backward, ms per step", lambda t: 1e3 * median(t.model_seconds), 1)
    memory = native.optimizer.memory
    kinds = ", ".join(f"{kind} {n / memory.elements:.2g}" for kind, n in memory.by_kind.items())
    lines.append(f"state of Optimizer: {memory.per_element:.3g} bytes per parameter ({kinds})")
    lines.append(f"largest relative difference of the losses: {apart(native, numpy).max():.1e}")
    return "\n".join(lines)

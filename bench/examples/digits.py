"""Train a network on handwritten digits twice: with the optimizer in plain NumPy, and with AdaFactor.

Both have the same loop, start and batches. `python bench/digits.py` prints the accuracies, the
difference between the trained parameters and the time spent in the optimizers, and draws both loss
curves.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from adafactor_native import AdaFactor
from contenders.plain_numpy import PlainAdaFactor
from names import NATIVE, PLAIN
from output import OUTPUT
from style import LINES

Array = npt.NDArray[Any]
Layer = tuple[Array, Array]  # weights (inputs, outputs) and biases (outputs,)

WIDTHS = (64, 1024, 1024, 1024, 10)  # 8x8 pixels, three hidden layers, ten digits
BATCH = 96
LR = 1e-2  # falls to zero over the training


@dataclass
class Digits:
    images: Array
    labels: Array
    test_images: Array
    test_labels: Array


@dataclass
class Training:
    name: str
    layers: list[Layer]
    losses: list[float]  # at each step
    seconds: list[float]  # from the start to the end of each step
    optimizer_seconds: float
    accuracy: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument(
        "--output",
        type=Path,
        default=OUTPUT / "digits.png",
        metavar="PNG",
        help="the loss curves; default: in bench/output/",
    )


def run(arguments: argparse.Namespace) -> None:
    digits = split_digits()
    plain = train(PLAIN, PlainAdaFactor, digits, arguments.epochs)
    native = train(NATIVE, AdaFactor, digits, arguments.epochs)
    print(comparison(plain, native))
    draw_losses(plain, native, arguments.output)
    print(f"loss curves: {arguments.output}")


def split_digits() -> Digits:
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    parts = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
    images, test_images, labels, test_labels = parts
    return Digits(images, labels, test_images, test_labels)


def train(name: str, optimizer: Any, digits: Digits, epochs: int) -> Training:
    rng = np.random.default_rng(0)
    layers = initial_layers(rng)
    # A step in proportion to RMS(param) would leave biases of zero where they are.
    optimizers = [
        (optimizer(weights.shape), optimizer(biases.shape, scale_parameter=False))
        for weights, biases in layers
    ]

    batches_per_epoch = len(digits.labels) // BATCH
    steps = epochs * batches_per_epoch
    losses, seconds, optimizer_seconds = [], [], 0.0
    start = perf_counter()
    for step in tqdm(range(steps), desc=name, unit="step"):
        batch = step % batches_per_epoch
        if batch == 0:
            order = rng.permutation(len(digits.labels))
        chosen = order[batch * BATCH : (batch + 1) * BATCH]
        loss, gradients = backpropagate(layers, digits.images[chosen], digits.labels[chosen])

        before = perf_counter()
        for layer, gradient, pair in zip(layers, gradients, optimizers):
            for param, grad, opt in zip(layer, gradient, pair):
                opt.lr = LR * (1 - step / steps)
                opt.update(param, grad)
        optimizer_seconds += perf_counter() - before
        losses.append(loss)
        seconds.append(perf_counter() - start)

    predicted = forward(layers, digits.test_images)[-1].argmax(axis=1)
    accuracy = float(np.mean(predicted == digits.test_labels))
    return Training(name, layers, losses, seconds, optimizer_seconds, accuracy)


def initial_layers(rng: np.random.Generator) -> list[Layer]:
    return [
        (
            rng.standard_normal((inputs, outputs), np.float32) * np.float32(inputs**-0.5),
            np.zeros(outputs, np.float32),
        )
        for inputs, outputs in zip(WIDTHS, WIDTHS[1:])
    ]


def forward(layers: list[Layer], images: Array) -> list[Array]:
    """The images, what each hidden layer makes of them, and the scores of the ten digits.

    The layers bend with tanh rather than ReLU, at whose corner the last bit of a sum decides
    whether a unit learns at all: two trainings then part ways even with the same optimizer.
    """
    activations = [images]
    for weights, biases in layers[:-1]:
        activations.append(np.tanh(activations[-1] @ weights + biases))
    weights, biases = layers[-1]
    return [*activations, activations[-1] @ weights + biases]


def backpropagate(layers: list[Layer], images: Array, labels: Array) -> tuple[float, list[Layer]]:
    """Mean cross-entropy of softmax(scores), and its gradient in each layer."""
    *activations, scores = forward(layers, images)
    each = np.arange(len(labels))
    scores -= scores.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(scores).sum(axis=1, keepdims=True))
    log_likelihoods = scores - log_sums
    loss = -float(log_likelihoods[each, labels].mean())

    delta = np.exp(log_likelihoods)
    delta[each, labels] -= 1
    delta /= len(labels)
    gradients = []
    for (weights, _), inputs in zip(reversed(layers), reversed(activations)):
        gradients.append((inputs.T @ delta, delta.sum(axis=0)))
        delta = (delta @ weights.T) * (1 - inputs**2)
    return loss, gradients[::-1]


def comparison(plain: Training, native: Training) -> str:
    params = [(a, b) for layers in zip(plain.layers, native.layers) for a, b in zip(*layers)]
    difference = max(float(np.abs(a - b).max()) for a, b in params)
    largest = max(float(np.abs(a).max()) for a, _ in params)
    ratio = plain.optimizer_seconds / native.optimizer_seconds
    return (
        f"{'':26}{plain.name:>18}{native.name:>18}\n"
        f"{'test accuracy':26}{plain.accuracy:18.2%}{native.accuracy:18.2%}\n"
        f"{'seconds in the optimizer':26}"
        f"{plain.optimizer_seconds:18.3f}{native.optimizer_seconds:18.3f}"
        f"   {ratio:.1f} times faster\n"
        f"{'seconds in all':26}{plain.seconds[-1]:18.2f}{native.seconds[-1]:18.2f}\n"
        f"largest difference between the trained parameters: {difference:.1e}, "
        f"{difference / largest:.1e} of the largest parameter"
    )


def draw_losses(plain: Training, native: Training, path: Path) -> None:
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    by_step, by_time = figure.subplots(1, 2, sharey=True)
    styles: list[dict[str, Any]] = [
        {"color": LINES[PLAIN]["color"], "linewidth": 4, "alpha": 0.45},
        {"color": LINES[NATIVE]["color"], "linewidth": 1.2},
    ]
    for training, style in zip((plain, native), styles):
        by_step.semilogy(training.losses, label=training.name, **style)
        by_time.semilogy(training.seconds, training.losses, label=training.name, **style)
    by_step.set(title="The same losses, step by step ...", xlabel="step", ylabel="training loss")
    by_time.set(title="... sooner", xlabel="seconds, in network and optimizer")
    by_time.legend(frameon=False)
    for axes in (by_step, by_time):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e4e4")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)

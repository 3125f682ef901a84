"""What is trained in half precision: the networks of digits.py and characters.py, as tasks of one form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from examples import characters, digits
from examples.prose import manual
from examples.transformer import Arrays, Size, initial_params, loss_and_grads

DIGITS, CHARACTERS, USUAL = "digits, small lr", "characters, small lr", "characters, usual lr"
STEPS = {DIGITS: 160, CHARACTERS: 250, USUAL: 250}
QUICK_STEPS = {DIGITS: 8, CHARACTERS: 6, USUAL: 6}

# Relative to RMS(param), as half a unit of bfloat16 is 2e-3 to 4e-3 relative to its number.
DIGITS_LR = 1e-3
CHARACTERS_LR = 0.05  # times those of characters.py, of which that of the weights is 0.05, too
WARM_UP = 20  # steps
WIDTH = 64  # of the transformer, half of that in characters.py: it is trained forty times


@dataclass(frozen=True)
class Task:
    """A network, its data, and how it is trained."""

    start: Arrays  # in float32
    batches: Callable[[int], Iterator[Any]]  # of an order: without end
    loss_and_grads: Callable[[Arrays, Any], tuple[float, Arrays]]
    held_out: Callable[[Arrays], tuple[float, float | None]]  # loss; accuracy, of digits
    groups: Callable[[Arrays], list[dict[str, Any]]]
    options: dict[str, Any]  # of Optimizer


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

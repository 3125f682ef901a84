"""Trainings of one network of torch: its start, and what each optimizer makes of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from adafactor_native.torch import Adafactor
from examples.finetuning_plot import DEFAULT_EPS
from examples.prose import Array, Prose
from examples.source_code import standard_library
from examples.torch_network import CONTEXT, Network, loss
from names import IN_TORCH, TORCH, TORCH_ADAMW, TRANSFORMERS

BATCH = 16  # texts
HELD_OUT_TEXTS = 64
WARM_UP = 0.05  # of the steps

LR, ADAMW_LR = 0.04, 4e-3  # an Adafactor's is times RMS(param)

Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


@dataclass
class Training:
    """What one optimizer did in one dtype.

    Attributes
    ----------
    at_steps, held_out_losses : list
        The loss of held-out text after so many steps, in nats per character.
    step_ms, model_ms : float
        Medians of the optimizer's step, and of the forward and backward pass before it.
    state_bytes : int
        Of the optimizer's state.
    """

    optimizer: str
    option: str
    dtype: str
    parameters: int = 0
    at_steps: list[int] = field(default_factory=list)
    held_out_losses: list[float] = field(default_factory=list)
    step_ms: float = math.nan
    model_ms: float = math.nan
    state_bytes: int = 0


@dataclass
class Trained:
    training: Training
    network: Network
    optimizer: torch.optim.Optimizer


def contestants(dtype: torch.dtype) -> dict[tuple[str, str], Make]:
    """Optimizers by name and option: each with the best of learning rates that were tried in float32, each twice the last.

    Ours and torch's Adafactor have the same small eps, transformers' has its own; in bfloat16 torch's
    runs with its default, too, which is 2**-7 there.
    """
    eps = (1e-7, 1e-3)

    def native(**options: Any) -> Make:
        return lambda params: Adafactor(params, lr=LR, eps=eps, **options)

    makes: dict[tuple[str, str], Make] = {(IN_TORCH, ""): native()}
    if dtype == torch.bfloat16:
        makes = {
            (IN_TORCH, 'masters="float32"'): native(masters="float32"),
            (IN_TORCH, 'rounding="stochastic"'): native(rounding="stochastic"),
            (IN_TORCH, 'rounding="nearest"'): native(),
        }
    makes[TORCH, ""] = lambda params: torch.optim.Adafactor(params, lr=LR, eps=eps)
    if dtype == torch.bfloat16:
        makes[TORCH, DEFAULT_EPS] = lambda params: torch.optim.Adafactor(params, lr=LR)
    if find_spec("transformers"):
        theirs = import_module("transformers.optimization").Adafactor
        makes[TRANSFORMERS, ""] = lambda params: theirs(
            params, lr=LR, scale_parameter=True, relative_step=False
        )
    makes[TORCH_ADAMW, ""] = lambda params: torch.optim.AdamW(params, lr=ADAMW_LR, fused=True)
    return makes


def pretrained(prose: Prose, steps: int) -> Network:
    """A network that has read the source code of Python's standard library."""
    torch.manual_seed(0)
    network = Network(len(prose.alphabet))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, fused=True)
    code = standard_library(prose.alphabet)
    scheduler = warm_up_and_cosine(optimizer, steps)
    with tqdm(range(steps), desc="reads source code", unit="step") as bar:
        for t in bar:
            optimizer.zero_grad()
            nats = loss(network, batch(code, t))
            nats.backward()
            optimizer.step()
            scheduler.step()
            bar.set_postfix(loss=f"{nats.item():.3f}")
    return network


def trained(
    start: Network,
    prose: Prose,
    who: tuple[str, str],
    make: Make,
    dtype: torch.dtype,
    steps: int,
    evaluated_every: int,
) -> Trained:
    """Fine-tune a copy of `start` on prose."""
    torch.manual_seed(0)
    network = copy.deepcopy(start).to(dtype)
    parameters = list(network.parameters())
    optimizer = make(parameters)
    scheduler = warm_up_and_cosine(optimizer, steps)
    name = str(dtype).removeprefix("torch.")
    training = Training(*who, name, sum(param.numel() for param in parameters))
    with tqdm(range(steps), desc=", ".join(filter(None, (*who, name))), unit="step") as bar:
        for t in bar:
            if t % evaluated_every == 0:
                note(training, network, prose, t)
                bar.set_postfix(held_out_loss=f"{training.held_out_losses[-1]:.3f}")
            optimizer.zero_grad()
            loss(network, batch(prose.training, t)).backward()
            optimizer.step()
            scheduler.step()
    note(training, network, prose, steps)
    training.state_bytes = bytes_of_state(optimizer)
    return Trained(training, network, optimizer)


def warm_up_and_cosine(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda t: min((t + 1) / (WARM_UP * steps), (1 + math.cos(math.pi * t / steps)) / 2),
    )


def batch(text: Array, t: int) -> torch.Tensor:
    """What all trainings read at step t."""
    return windows(text, np.random.default_rng(t).integers(len(text) - CONTEXT, size=BATCH))


def windows(text: Array, starts: Array) -> torch.Tensor:
    return torch.from_numpy(text[starts[:, None] + np.arange(CONTEXT + 1)])


def note(training: Training, network: Network, prose: Prose, t: int) -> None:
    starts = np.linspace(0, len(prose.validation) - CONTEXT - 1, HELD_OUT_TEXTS).astype(int)
    with torch.no_grad():
        training.held_out_losses.append(loss(network, windows(prose.validation, starts)).item())
    training.at_steps.append(t)


def bytes_of_state(optimizer: torch.optim.Optimizer) -> int:
    values = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


def time_in_turns(all_trained: list[Trained], prose: Prose, rounds: int) -> None:
    """Note what a step takes after a forward and a backward pass of its own network.

    In turns, so that what else the machine does slows all of them; after the trainings, and at a
    learning rate of 0, which a schedule ends with.
    """
    samples: list[list[tuple[float, float]]] = [[] for _ in all_trained]
    for t in tqdm(range(rounds + 1), desc="steps in turns", unit="round"):
        for each, times in zip(all_trained, samples):
            each.optimizer.zero_grad()
            start = perf_counter()
            loss(each.network, batch(prose.training, t)).backward()
            between = perf_counter()
            each.optimizer.step()
            times.append((perf_counter() - between, between - start))
    for each, times in zip(all_trained, samples):
        steps, models = zip(*times[1:])  # the first may have what others left
        each.training.step_ms = round(1e3 * median(steps), 4)
        each.training.model_ms = round(1e3 * median(models), 3)

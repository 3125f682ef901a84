"""Train the digits network with its layers in pieces, and see that it ends where one process does.

`mpiexec -n 4 python bench/digits_mpi.py`: each rank keeps some rows of every layer, with the state of
these rows only, and works on its part of every batch. Before a step it sends each rank the gradients of
that rank's rows. One process then trains the same network, which adds up the gradients of the same
parts of batches in the same order.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import numpy.typing as npt
from mpi4py import MPI
from threadpoolctl import threadpool_limits

from adafactor_native import Optimizer
from adafactor_native.sharding import Shard
from examples.digits import BATCH, Digits, backpropagate, forward, initial_layers, split_digits

Array = npt.NDArray[Any]

LR = 1e-2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=int, default=4)


def run(arguments: argparse.Namespace) -> None:
    comm = MPI.COMM_WORLD
    digits = split_digits()
    with threadpool_limits(1):  # ranks are the threads here
        opt = train(digits, arguments.epochs, comm.size, comm)
        whole = opt.state_dict(params=True, gather=True)
        if comm.rank:
            return
        alone = train(digits, arguments.epochs, comm.size, None).state_dict(params=True)
    print(comparison(digits, opt, whole, alone, comm.size))


def train(digits: Digits, epochs: int, parts: int, comm: Any) -> Optimizer:
    """Return the optimizer after the training, on a rank of `comm` or, if it is None, alone.

    Each batch is in `parts`, of which a rank has one and a process alone all, one after the other.
    """
    rng = np.random.default_rng(0)
    model = named(initial_layers(rng))
    rows = {name: rows_here(param, comm) for name, param in model.items()}
    params = {name: param[rows[name]].copy() for name, param in model.items()}
    shards = {
        name: Shard(param.shape, (rows[name].start, 0)[: param.ndim])
        for name, param in model.items()
    }
    batches_per_epoch = len(digits.labels) // BATCH
    steps = epochs * batches_per_epoch
    opt = Optimizer(
        params,
        lr=lambda t: LR * (1 - (t - 1) / steps),
        num_threads=1,
        **({} if comm is None else {"comm": comm, "shards": shards}),
    )
    for step in range(steps):
        batch = step % batches_per_epoch
        if batch == 0:
            order = rng.permutation(len(digits.labels))
        chosen = order[batch * BATCH : (batch + 1) * BATCH].reshape(parts, -1)
        layers = layered({name: whole(param, comm) for name, param in params.items()})
        mine = range(parts) if comm is None else [comm.rank]
        given = [gradients(layers, digits, chosen[part]) for part in mine]
        opt.step(
            {name: summed([grads[name] for grads in given], rows[name], comm) for name in params}
        )
    return opt


def named(layers: Any) -> dict[str, Array]:
    return {
        f"{i}/{kind}": array
        for i, layer in enumerate(layers)
        for kind, array in zip(("weights", "biases"), layer)
    }


def layered(model: dict[str, Array]) -> list[tuple[Array, Array]]:
    return [(model[f"{i}/weights"], model[f"{i}/biases"]) for i in range(len(model) // 2)]


def rows_here(param: Array, comm: Any) -> slice:
    """Return this rank's rows, all of them without ranks.

    Ranks have whole blocks as far as they go, of 64 rows of a matrix or 1024 elements of a vector: cut so,
    a step has the bits of one process.
    """
    n = len(param)
    if comm is None:
        return slice(0, n)
    block = 64 if param.ndim == 2 else 1024
    n_blocks = -(-n // block)
    at = [min(n, n_blocks * rank // comm.size * block) for rank in (comm.rank, comm.rank + 1)]
    return slice(*at)


def whole(param: Array, comm: Any) -> Array:
    """Return a layer's rows of all ranks."""
    return param if comm is None else np.concatenate(comm.allgather(param))


def gradients(layers: Any, digits: Digits, chosen: Array) -> dict[str, Array]:
    _, grads = backpropagate(layers, digits.images[chosen], digits.labels[chosen])
    return named(grads)


def summed(given: list[Array], rows: slice, comm: Any) -> Array:
    """Return the mean of the gradients of all parts of a batch, of these rows, added in their order."""
    parts = given if comm is None else [grad[rows] for grad in comm.allgather(given[0])]
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total / np.float32(len(parts))


def comparison(
    digits: Digits, opt: Optimizer, state: dict[str, Array], alone: dict[str, Array], ranks: int
) -> str:
    def accuracy(of: dict[str, Array]) -> float:
        model = {
            key[len("param/") :]: array for key, array in of.items() if key.startswith("param/")
        }
        scores = forward(layered(model), digits.test_images)[-1]
        return float(np.mean(scores.argmax(axis=1) == digits.test_labels))

    arrays = [key for key, array in alone.items() if array.dtype.kind == "f"]
    largest = max(
        float(np.abs(state[key] - alone[key]).max() / np.abs(alone[key]).max()) for key in arrays
    )
    same = sum(np.array_equal(state[key], alone[key]) for key in arrays)
    kept = opt.memory.total / sum(alone[key].nbytes for key in arrays if key[:5] != "param")
    return (
        f"{ranks} ranks: {accuracy(state):.2%} of the test digits right after {opt.t} steps, one process "
        f"{accuracy(alone):.2%}\n{same} of {len(arrays)} arrays of params and state have the same bits, "
        f"the largest difference is {largest:.1e} of an array's largest number\n"
        f"rank 0 keeps {kept:.0%} of the state"
    )

"""A transformer of torch in training on several ranks, and in one process: both end at the same place.

    torchrun --standalone --nproc-per-node 4 bench/sharded_transformer.py

Each rank holds a part of every parameter (``fully_shard``) and takes its part of every batch. Rank 0 then
trains the same model whole, on the whole batches. The task is to say which token of a sequence comes
first. It prints both losses and how far the parameters are apart, and fails if they are not the same to
1e-9 of the largest.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from adafactor_native.torch import Adafactor

TOKENS, LENGTH, WIDTH, HEADS, LAYERS, BATCH = 29, 12, 32, 4, 2, 48
APART = 1e-9


def make_model() -> nn.Module:
    """Return a model of float64, so that the order of sums does not hide a wrong step."""
    torch.manual_seed(0)
    layers = [
        nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=True)
        for _ in range(LAYERS)
    ]
    model = nn.Sequential(
        nn.Embedding(TOKENS, WIDTH), *layers, nn.Flatten(), nn.Linear(LENGTH * WIDTH, TOKENS)
    )
    return model.double()


def batch_of(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(TOKENS, (BATCH, LENGTH), generator=generator)
    return tokens, tokens[:, 0]


def train(model: nn.Module, steps: int, rank: int = 0, size: int = 1) -> tuple[float, float]:
    """Train on this rank's part of each batch; return the mean loss of the first and the last step."""
    # The keys' biases have gradients of nothing but rounding errors, which differ by the order of sums:
    # with the smallest eps a step would blow them up.
    opt = Adafactor(model.named_parameters(), lr=0.05, eps=(1e-6, 1e-3), weight_decay=0.01)
    losses = []
    for step in range(steps):
        tokens, first = (each.chunk(size)[rank] for each in batch_of(step))
        loss = nn.functional.cross_entropy(model(tokens), first)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.detach())
    ends = torch.stack([losses[0], losses[-1]])
    if size > 1:
        dist.all_reduce(ends)
    first_loss, last_loss = (ends / size).tolist()
    return first_loss, last_loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args().steps
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    if BATCH % size:
        sys.exit(f"{size} ranks, must divide the batch of {BATCH}")

    model = make_model()
    mesh = init_device_mesh("cpu", (size,))
    for layer in model:
        if isinstance(layer, nn.TransformerEncoderLayer):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    first, last = train(model, steps, rank, size)
    whole = {
        name: p.detach().full_tensor()
        for name, p in model.named_parameters()
        if isinstance(p, DTensor)
    }
    failed = torch.zeros(1)
    if rank == 0:
        alone = make_model()
        first_alone, last_alone = train(alone, steps)
        apart = max(
            float((whole[name] - p.detach()).abs().max() / p.detach().abs().max())
            for name, p in alone.named_parameters()
        )
        print(f"{size} ranks:     loss {first:.6f} to {last:.6f} in {steps} steps")
        print(f"one process: loss {first_alone:.6f} to {last_alone:.6f}")
        print(f"the parameters are apart by {apart:.1e} of the largest, must be at most {APART:g}")
        failed += not apart <= APART
    dist.broadcast(failed, 0)
    dist.barrier()
    dist.destroy_process_group()
    if failed:
        sys.exit(f"{Path(__file__).name}: the ranks do not end where one process ends")


if __name__ == "__main__":
    main()

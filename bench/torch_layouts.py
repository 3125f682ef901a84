"""Parameters of torch that lie in pieces on ranks, in every way that people cut them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

Full = Mapping[str, torch.Tensor]


def random_tensors(
    shapes: Mapping[str, Sequence[int]],
    seed: int,
    dtype: torch.dtype = torch.float64,
    scales: bool = False,
) -> dict[str, torch.Tensor]:
    """Return the same numbers on all ranks; with scales, of 1e-4 to 1 along the first axis."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=generator, dtype=torch.float64)
        if scales:
            exponents = torch.linspace(-4, 0, shape[0], dtype=torch.float64)
            tensor *= (10.0**exponents).reshape(-1, *[1] * (len(shape) - 1))
        made[name] = tensor.to(dtype)
    return made


class Sharded:
    """A model whose parameters each rank has a piece of.

    Attributes
    ----------
    params : dict of str to Parameter
        What an optimizer of this rank is given.
    """

    def __init__(self, params: dict[str, torch.nn.Parameter]) -> None:
        self.params = params

    def set_grads(self, grads: Full) -> None:
        """Give each parameter its part of a gradient."""
        raise NotImplementedError

    def prepare(self, optimizer: Any) -> None:
        """Tell an optimizer what its parameters do not, if it can be told."""

    def full(self) -> dict[str, torch.Tensor]:
        """Return the whole parameters, on all ranks."""
        return {name: whole(p) for name, p in self.params.items()}


def whole(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor without its cuts: all ranks take part."""
    value = value.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value.clone()


class Distributed(Sharded):
    """DTensors made by ``distribute_tensor``."""

    def __init__(
        self, tensors: Full, mesh: DeviceMesh, placements: Callable[[torch.Tensor], Sequence[Any]]
    ) -> None:
        self._mesh, self._placements = mesh, placements
        super().__init__(
            {name: torch.nn.Parameter(self._cut(tensor)) for name, tensor in tensors.items()}
        )

    def _cut(self, tensor: torch.Tensor) -> torch.Tensor:
        return distribute_tensor(tensor, self._mesh, self._placements(tensor))

    def set_grads(self, grads: Full) -> None:
        for name, p in self.params.items():
            p.grad = self._cut(grads[name].to(p.dtype))


class Products(torch.nn.Module):
    """The sum of all parameters times what is to be their gradients."""

    def __init__(self, tensors: Full) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, torch.nn.Parameter(tensor.clone()))

    def forward(self, grads: Full) -> torch.Tensor:
        sums = [(p * grads[name.split(".")[-1]]).sum() for name, p in self.named_parameters()]
        return torch.stack(sums).sum()


class Fsdp2(Sharded):
    """``fully_shard``; the gradients come out of a backward."""

    def __init__(self, tensors: Full, mesh: DeviceMesh) -> None:
        self._module = Products(tensors)
        fully_shard(self._module, mesh=mesh)
        super().__init__(dict(self._module.named_parameters()))

    def set_grads(self, grads: Full) -> None:
        self._module.zero_grad()
        self._module(grads).backward()


class Fsdp1(Sharded):
    """``FullyShardedDataParallel(use_orig_params=True)``: each parameter is a range of a flat one."""

    def __init__(self, tensors: Full) -> None:
        self._module = FullyShardedDataParallel(
            Products(tensors), use_orig_params=True, device_id=torch.device("cpu")
        )
        super().__init__({name.split(".")[-1]: p for name, p in self._module.named_parameters()})

    def set_grads(self, grads: Full) -> None:
        self._module.zero_grad()
        self._module(grads).backward()

    def prepare(self, optimizer: Any) -> None:
        if hasattr(optimizer, "take_flat_shards"):
            optimizer.take_flat_shards(self._module)

    def full(self) -> dict[str, torch.Tensor]:
        with FullyShardedDataParallel.summon_full_params(self._module):
            return {
                name.split(".")[-1]: p.detach().clone()
                for name, p in self._module.named_parameters()
            }


def _line() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def _square(names: tuple[str, str]) -> DeviceMesh:
    size = dist.get_world_size()
    if size % 2:
        raise ValueError(f"{size} ranks, must be even for a mesh of two axes")
    return init_device_mesh("cpu", (2, size // 2), mesh_dim_names=names)


def _last(tensor: torch.Tensor) -> list[Any]:
    return [Shard(tensor.ndim - 1)] if tensor.ndim else [Replicate()]


def _first(tensor: torch.Tensor) -> list[Any]:
    return [Shard(0)] if tensor.ndim else [Replicate()]


def _grid(tensor: torch.Tensor) -> list[Any]:
    return [*_first(tensor), Shard(1) if tensor.ndim > 1 else Replicate()]


LAYOUTS: dict[str, Callable[[Full], Sharded]] = {
    "Shard(0)": lambda full: Distributed(full, _line(), _first),
    "Shard(-1)": lambda full: Distributed(full, _line(), _last),
    "Shard(0), Shard(1)": lambda full: Distributed(full, _square(("rows", "cols")), _grid),
    "Replicate(), Shard(0)": lambda full: Distributed(
        full, _square(("copies", "rows")), lambda tensor: [Replicate(), *_first(tensor)]
    ),
    "fully_shard": lambda full: Fsdp2(full, _line()),
    "fully_shard, HSDP": lambda full: Fsdp2(full, _square(("copies", "rows"))),
    "FSDP1, use_orig_params": lambda full: Fsdp1(full),
}
NEEDS_SQUARE = ("Shard(0), Shard(1)", "Replicate(), Shard(0)", "fully_shard, HSDP")


def layouts_for(size: int) -> list[str]:
    """Return the layouts that so many ranks can have, those that differ from each other."""
    return [name for name in LAYOUTS if name not in NEEDS_SQUARE or (size % 2 == 0 and size > 2)]

"""What test_sharded_checkpoints.py runs on ranks: states that are saved on one grid and loaded on another."""

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from adafactor_native.torch import Adafactor, HuggingFaceAdafactor
from sharded_torch.step_cases import tensors
from torch_layouts import Products, whole

MAKERS = {
    "torch": lambda p: Adafactor(p, lr=0.02),
    "huggingface": lambda p: HuggingFaceAdafactor(p, beta1=0.9),
}
BEFORE, AFTER = 3, 2


def made(mesh_shape, kind, seed):
    """Return a module that is sharded by a mesh, and its optimizer."""
    from torch.distributed.fsdp import fully_shard

    module = Products(tensors(seed))
    if mesh_shape is not None:
        names = ("copies", "rows")[-len(mesh_shape) :]
        fully_shard(module, mesh=init_device_mesh("cpu", mesh_shape, mesh_dim_names=names))
    return module, MAKERS[kind](module.parameters())


def train(module, opt, steps):
    for k in steps:
        module.zero_grad()
        module(tensors(1 + k, scales=True)).backward()
        opt.step()


def save(folder, mesh_shape, kind):
    """Train for some steps and save; go on and return what the parameters are then."""
    module, opt = made(mesh_shape, kind, 0)
    train(module, opt, range(BEFORE))
    state = {
        "model": get_model_state_dict(module),
        "optim": get_optimizer_state_dict(module, opt),
    }
    dcp.save(state, checkpoint_id=folder)
    train(module, opt, range(BEFORE, BEFORE + AFTER))
    return {name: whole(p) for name, p in module.named_parameters()}


def load(folder, mesh_shape, kind):
    """Load on another grid, go on, and return what the parameters are then, and the counts."""
    module, opt = made(mesh_shape, kind, 99)
    state = {
        "model": get_model_state_dict(module),
        "optim": get_optimizer_state_dict(module, opt),
    }
    dcp.load(state, checkpoint_id=folder)
    set_model_state_dict(module, state["model"])
    set_optimizer_state_dict(module, opt, state["optim"])
    counts = {int(mine["step"]) for mine in opt.state.values()}
    train(module, opt, range(BEFORE, BEFORE + AFTER))
    return {name: whole(p) for name, p in module.named_parameters()}, counts


def load_whole(kind):
    """A plain ``state_dict()`` of one process loads on ranks that have parts."""
    module, opt = made(None, kind, 0)
    train(module, opt, range(BEFORE))
    begin = {name: p.detach().clone() for name, p in module.named_parameters()}
    from torch.distributed.fsdp import fully_shard

    sharded = Products(begin)
    fully_shard(sharded, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    opt_sharded = MAKERS[kind](sharded.parameters())
    opt_sharded.load_state_dict(opt.state_dict())
    train(module, opt, range(BEFORE, BEFORE + AFTER))
    train(sharded, opt_sharded, range(BEFORE, BEFORE + AFTER))
    apart = [
        float((whole(p) - q.detach()).abs().max() / (q.detach() - begin[name]).abs().max())
        for (name, p), q in zip(sharded.named_parameters(), module.parameters())
    ]
    return max(apart)


def refused():
    """What is said of states that only another optimizer can continue: of one process, then on ranks."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def made(is_cut, **options):
        p = torch.ones(8, 6, dtype=torch.bfloat16)
        if is_cut:
            p = distribute_tensor(p, mesh, [Shard(0)])
        return Adafactor([torch.nn.Parameter(p)], eps=(1e-7, 1e-3), **options)

    def message(opt, state_dict):
        try:
            opt.load_state_dict(state_dict)
        except ValueError as error:
            return str(error)
        return None

    def stepped(**options):
        opt = made(False, **options)
        (p,) = opt.param_groups[0]["params"]
        p.grad = torch.ones_like(p)
        opt.step()
        return opt.state_dict()

    with_masters, with_large = stepped(masters="float32"), stepped()
    with_large["state"][0]["row_var"] *= 1e200
    return [
        (
            message(made(is_cut), with_masters),
            message(made(is_cut, state_dtype="float32"), with_large),
        )
        for is_cut in (False, True)
    ]


def tensor_parallel():
    """``fully_shard`` over tensor parallelism, uneven: how far from one process, and placements."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    def model():
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Linear(10, 26, bias=True), torch.nn.Tanh(), torch.nn.Linear(26, 7)
        ).double()

    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("dp", "tp"))
    x = torch.randn(6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    alone, sharded = model(), model()
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallelize_module(sharded, mesh["tp"], plan)
    fully_shard(sharded, mesh=mesh["dp"])
    begin = {name: p.detach().clone() for name, p in alone.named_parameters()}
    opt, opt_sharded = Adafactor(alone.parameters()), Adafactor(sharded.parameters())
    for _ in range(4):
        for each, by in ((alone, opt), (sharded, opt_sharded)):
            each.zero_grad()
            each(x).square().sum().backward()
            by.step()
    apart = {
        name: float((whole(p) - q.detach()).abs().max() / (q.detach() - begin[name]).abs().max())
        for (name, p), q in zip(sharded.named_parameters(), alone.parameters())
    }
    placements = {name: str(p.placements) for name, p in sharded.named_parameters()}
    return apart, placements

"""What test_exact_sums.py runs, on ranks and in its own process: hashes of all that steps leave."""

import hashlib

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

from adafactor_native import Optimizer
from adafactor_native.sharding import Shard
from adafactor_native.torch import (
    Adafactor,
    BigVisionAdafactor,
    HuggingFaceAdafactor,
    NumpyAdafactor,
    OptaxAdafactor,
)
from torch_layouts import LAYOUTS, layouts_for, random_tensors

SHAPES = {
    "matrix": (130, 70),
    "wide": (3, 200),
    "vector": (301,),
    "batch": (5, 24, 36),
    "row": (1, 5),  # on a grid some ranks have no element of it
    "one": (1,),
}
STEPS = 3
HALF = {"eps": (1e-7, 1e-3)}

# By case: the dtype, the class, its arguments, and NumPy's for the same.
CASES = {
    "torch": (
        torch.float32,
        Adafactor,
        {"lr": 0.02, "weight_decay": 0.1, "max_grad_norm": 0.5},
        "torch",
    ),
    "torch, float64": (torch.float64, Adafactor, {"lr": 0.02}, "torch"),
    "torch, stochastic": (
        torch.bfloat16,
        Adafactor,
        {"lr": 0.02, "rounding": "stochastic", **HALF},
        "torch",
    ),
    "torch, masters": (torch.bfloat16, Adafactor, {"lr": 0.02, "masters": "float32", **HALF}, None),
    "torch, split": (torch.bfloat16, Adafactor, {"lr": 0.02, "masters": "split", **HALF}, None),
    "torch, state_dtype": (torch.float32, Adafactor, {"state_dtype": "float32"}, "torch"),
    "huggingface": (
        torch.float32,
        HuggingFaceAdafactor,
        {"beta1": 0.9, "weight_decay": 0.01},
        "huggingface",
    ),
    "optax": (
        torch.float32,
        OptaxAdafactor,
        {"learning_rate": 0.02, "min_dim_size_to_factor": 3, "momentum": 0.9},
        None,
    ),
    "big_vision": (
        torch.float32,
        BigVisionAdafactor,
        {"lr": 0.02, "min_dim_size_to_factor": 2},
        None,
    ),
    "numpy": (torch.float32, NumpyAdafactor, {"lr": 0.02}, "numpy"),
}
LARGEST_AXES = ("optax", "big_vision")  # factored, which FSDP1's ranges cannot be


def _numbers(dtype):
    begin = random_tensors(SHAPES, 0, dtype)
    return begin, [random_tensors(SHAPES, 1 + k, dtype, scales=True) for k in range(STEPS)]


def _bytes(array):
    return np.ascontiguousarray(array).tobytes()


def _of_tensor(value):
    value = value.detach()
    is_low = value.dtype == torch.uint16
    if isinstance(value, DTensor) and is_low:  # which gloo does not know
        mesh, placements = value.device_mesh, value.placements
        halves = value.to_local().view(torch.int16).to(torch.int32)
        value = DTensor.from_local(
            halves, mesh, placements, shape=value.shape, stride=value.stride()
        )
        value = value.full_tensor().to(torch.int16)
    value = value.full_tensor() if isinstance(value, DTensor) else value
    return _bytes(value.contiguous().reshape(-1).view(torch.uint8).numpy())


def _digest(params, states, norms):
    """Of params and, where they are whole here, states: each a dict of bytes by name."""
    of_params, of_states = hashlib.sha256(repr(norms).encode()), hashlib.sha256()
    for name in SHAPES:
        of_params.update(params[name])
        if states is not None:
            of_states.update(b"".join(states[name]))
    return of_params.hexdigest(), None if states is None else of_states.hexdigest()


def _state_of(opt, p):
    """Return the arrays of a state: the same, in the same order, for all classes."""
    names, state = opt._dialect.names, opt.state[p]
    keys = (names.row, names.col, names.full, names.moment, names.master, names.low)
    return [_of_tensor(state[key]) for key in keys if key in state]


def plain(case):
    """One process with plain tensors, whatever else there is."""
    dtype, make, arguments, _ = CASES[case]
    begin, steps = _numbers(dtype)
    params = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in begin.items()}
    opt = make(params.items(), sums="exact", **arguments)
    norms = []
    for grads in steps:
        for name, p in params.items():
            p.grad = grads[name].clone()
        opt.step()
        norms.append(opt.grad_norm)
    found = {name: _of_tensor(p) for name, p in params.items()}
    return _digest(found, {name: _state_of(opt, p) for name, p in params.items()}, norms)


def cut(case, layout):
    """The same by ranks; the state is None where each rank has parts that do not tell of the others."""
    dtype, make, arguments, _ = CASES[case]
    begin, steps = _numbers(dtype)
    sharded = LAYOUTS[layout](begin)
    opt = make(sharded.params.items(), sums="exact", **arguments)
    sharded.prepare(opt)
    norms = []
    for grads in steps:
        if isinstance(next(iter(sharded.params.values())), DTensor):  # not by a mean, which rounds
            for name, p in sharded.params.items():
                p.grad = distribute_tensor(grads[name], p.device_mesh, p.placements)
        else:
            sharded.set_grads(grads)
        opt.step()
        norms.append(opt.grad_norm)
    found = {name: _of_tensor(tensor) for name, tensor in sharded.full().items()}
    if layout.startswith("FSDP1") and dist.get_world_size() > 1:
        return _digest(found, None, norms)
    return _digest(found, {name: _state_of(opt, p) for name, p in sharded.params.items()}, norms)


def numpy_optimizer(case, comm=None):
    """`adafactor_native.Optimizer` on the same numbers, by rows where there are ranks."""
    dtype, _, arguments, convention = CASES[case]
    begin, steps = _numbers(dtype)
    size, rank = (1, 0) if comm is None else (comm.size(), comm.rank())
    params, shards, own = {}, {}, {}
    for name, tensor in begin.items():
        cuts = np.linspace(0, tensor.shape[0], size + 1).astype(int)
        own[name] = slice(cuts[rank], cuts[rank + 1])
        params[name] = _array(tensor)[own[name]].copy()
        shards[name] = Shard(tuple(tensor.shape), (int(cuts[rank]), *[0] * (tensor.ndim - 1)))
    more = {} if comm is None else {"comm": comm, "shards": shards}
    opt = Optimizer(params, convention, sums="exact", **arguments, **more)
    norms = []
    for grads in steps:
        pieces = {name: _array(grad)[own[name]] for name, grad in grads.items()}
        report = opt.step({name: piece if piece.size else None for name, piece in pieces.items()})
        norms.append(report.grad_norm)
    state = opt.state_dict(params=True, gather=comm is not None)
    kinds = ("exp_row", "exp_col", "v", "m")
    states = {
        name: [_bytes(state[f"{kind}/{name}"]) for kind in kinds if f"{kind}/{name}" in state]
        for name in SHAPES
    }
    return _digest({name: _bytes(state[f"param/{name}"]) for name in SHAPES}, states, norms)


def _array(tensor):
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    import ml_dtypes

    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def by_ranks():
    """Return all hashes of a number of ranks, by case and what has made them."""
    found = {}
    for case, (*_, convention) in CASES.items():
        every = layouts_for(dist.get_world_size())
        for layout in every if case == "torch" else (every[1], every[-1]):
            if case in LARGEST_AXES and layout.startswith("FSDP1") and dist.get_world_size() > 1:
                continue
            if layout.startswith("FSDP1") and dist.get_world_size() == 3:
                continue  # its gradients are means, and thirds are rounded
            found[case, layout] = cut(case, layout)
        if convention is not None:
            found[case, "NumPy"] = numpy_optimizer(case, dist.group.WORLD)
    found["torch", "plain"] = plain("torch")
    return found


def beside_plain_ones():
    """What is raised where parameters are neither all in pieces nor all plain, and whether it changed any."""
    (begin, (grads, *_)) = _numbers(torch.float32)
    sharded = LAYOUTS["Shard(0)"](begin)
    sharded.set_grads(grads)
    q = torch.nn.Parameter(torch.ones(3))
    if dist.get_rank() == 1:
        q.grad = torch.ones(3)
    opt = Adafactor([*sharded.params.items(), ("q", q)], sums="exact")
    try:
        opt.step()
    except ValueError as error:
        same = all(torch.equal(sharded.full()[name], begin[name]) for name in SHAPES)
        return str(error), same
    return None

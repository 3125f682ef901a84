"""What test_sharded_steps.py runs on ranks: each function returns what its test looks at."""

import hashlib
import warnings

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from adafactor_native import Optimizer
from adafactor_native.sharding import Shard as NumpyShard
from adafactor_native.torch import (
    Adafactor,
    BigVisionAdafactor,
    HuggingFaceAdafactor,
    NumpyAdafactor,
    OptaxAdafactor,
)
from torch_layouts import LAYOUTS, layouts_for, random_tensors, whole

SHAPES = {
    "matrix": (130, 70),
    "wide": (3, 200),
    "tall": (201, 2),
    "vector": (301,),
    "batch": (5, 24, 36),
    "small": (2, 3),
    "row": (1, 5),  # on a grid some ranks have no element of it
    "one": (1,),
}
NUMPY_SHAPES = {"w": (131, 40), "b": (17,)}
STEPS = 4

MAKERS = {
    "torch": lambda p, **o: Adafactor(p, lr=0.02, weight_decay=0.1, **o),
    "huggingface": lambda p, **o: HuggingFaceAdafactor(p, beta1=0.9, weight_decay=0.01, **o),
    "optax": lambda p, **o: OptaxAdafactor(p, 0.02, min_dim_size_to_factor=3, momentum=0.9, **o),
    "big_vision": lambda p, **o: BigVisionAdafactor(p, 0.02, min_dim_size_to_factor=2, **o),
    "numpy": lambda p, **o: NumpyAdafactor(p, lr=0.02, **o),
}


def tensors(seed, dtype=torch.float64, scales=False, shapes=SHAPES):
    return random_tensors(shapes, seed, dtype, scales)


def by_one(make, begin, steps, **options):
    """Return the parameters and the optimizer of one process that steps them whole."""
    alone = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in begin.items()}
    opt = make(alone.items(), **options)
    for grads in steps:
        for name, p in alone.items():
            p.grad = grads[name].clone()
        opt.step()
    return alone, opt


def farthest(ours, theirs, begin=None):
    """Return the largest difference over the largest change, or number, of any tensor."""
    ratios = []
    for name, p in theirs.items():
        p = p.detach().double()
        largest = p if begin is None else p - begin[name].double()
        ratios.append(float((ours[name].double() - p).abs().max() / largest.abs().max()))
    return max(ratios)


def states_apart(sharded, by_ranks, alone, opt):
    """Return how far states are apart, relative to the largest number of each array."""
    worst = 0.0
    for name, p in alone.items():
        mine, theirs = by_ranks.state[sharded.params[name]], opt.state[p]
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            own = mine[key]
            if isinstance(own, torch.Tensor) and own.ndim:
                if not isinstance(own, DTensor):
                    continue  # of FSDP1: lines that this rank touches
                own = own.full_tensor()
                assert own.shape == value.shape
                assert own.dtype == value.dtype
            own, value = torch.as_tensor(own).double(), torch.as_tensor(value).double()
            scale = max(float(value.abs().max()), 1e-300)
            worst = max(worst, float((own - value).abs().max()) / scale)
    return worst


def beside_one_process(dtype):
    """By layout and class, how far parameters and states are from those of one process."""
    warnings.simplefilter("ignore")
    found = {}
    for layout in layouts_for(dist.get_world_size()):
        for kind, make in MAKERS.items():
            begin = tensors(0, dtype)
            steps = [tensors(1 + k, dtype, scales=True) for k in range(STEPS)]
            alone, opt = by_one(make, begin, steps)
            sharded = LAYOUTS[layout](begin)
            by_ranks = make(sharded.params.items())
            sharded.prepare(by_ranks)
            try:
                for grads in steps:
                    sharded.set_grads(grads)
                    by_ranks.step()
            except ValueError as error:
                found[layout, kind] = str(error)
                continue
            found[layout, kind] = (
                farthest(sharded.full(), alone, begin),
                farthest(sharded.full(), alone),
                states_apart(sharded, by_ranks, alone, opt),
                by_ranks.grad_norm / opt.grad_norm - 1,
            )
    return found


def beside_one_process_in(dtype):
    return beside_one_process(getattr(torch, dtype))


def options_beside_one_process(layout):
    """The same with options: by each, how far parameters are from those of one process."""
    found = {}
    every = {
        "max_grad_norm": (torch.float64, {"max_grad_norm": 0.5}),
        "float32": (torch.float32, {}),
        "state_dtype": (torch.float32, {"state_dtype": "float32"}),
        "raise": (torch.float64, {"nonfinite": "raise"}),
        "bfloat16": (torch.bfloat16, {"eps": (1e-7, 1e-3)}),
        "masters": (torch.bfloat16, {"eps": (1e-7, 1e-3), "masters": "float32"}),
        "split": (torch.bfloat16, {"eps": (1e-7, 1e-3), "masters": "split"}),
        "stochastic": (torch.bfloat16, {"eps": (1e-7, 1e-3), "rounding": "stochastic"}),
    }
    shapes = {"matrix": (256, 70), "vector": (256,), "batch": (4, 64, 36)}
    for name, (dtype, options) in every.items():
        begin = tensors(0, dtype, shapes=shapes)
        steps = [tensors(1 + k, dtype, scales=True, shapes=shapes) for k in range(STEPS)]
        alone, _ = by_one(lambda p, **o: Adafactor(p, lr=0.02, **o), begin, steps, **options)
        sharded = LAYOUTS[layout](begin)
        by_ranks = Adafactor(sharded.params.items(), lr=0.02, **options)
        sharded.prepare(by_ranks)
        for grads in steps:
            sharded.set_grads(grads)
            by_ranks.step()
        full = sharded.full()
        equal = {key: torch.equal(full[key], p.detach()) for key, p in alone.items()}
        found[name] = farthest(full, alone, begin), equal
    return found


def rounds():
    """How many all-reduces a step has, for one tensor and for many, by layout."""
    found = {}
    for layout in layouts_for(dist.get_world_size()):
        for n in (1, 40):
            begin = {f"w{k}": torch.randn(24, 16, dtype=torch.float64) for k in range(n)}
            sharded = LAYOUTS[layout](begin)
            opt = Adafactor(sharded.params.values())
            sharded.prepare(opt)
            sharded.set_grads(begin)
            opt.step()
            sharded.set_grads(begin)
            calls = []
            plain = dist.all_reduce

            def counted(*arguments, plain=plain, calls=calls, **more):
                calls.append(arguments[0].numel())
                return plain(*arguments, **more)

            dist.all_reduce = counted
            for channel in opt._sharded._channels.values():
                channel._engine._all_reduce = counted
            opt.step()
            dist.all_reduce = plain
            found[layout, n] = len(calls)
    return found


def nonfinite(policy):
    """One rank's gradient has a nan: what is raised, and whether anything has changed."""
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    p = torch.nn.Parameter(
        distribute_tensor(torch.ones(8, 6, dtype=torch.float64), mesh, [Shard(0)])
    )
    opt = Adafactor([("w", p)], nonfinite=policy)
    p.grad = distribute_tensor(torch.ones(8, 6, dtype=torch.float64), mesh, [Shard(0)])
    opt.step()
    before = [_plain(x).detach().clone() for x in (p, *opt.state[p].values())]
    bad = torch.ones(8, 6, dtype=torch.float64)
    bad[7, 2] = torch.nan
    p.grad = distribute_tensor(bad, mesh, [Shard(0)])
    message = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            opt.step()
        except FloatingPointError as error:
            message = str(error)
    after = [_plain(x) for x in (p, *opt.state[p].values())]
    same = all(torch.equal(x, y) for x, y in zip(before, after))
    p.grad = distribute_tensor(torch.ones(8, 6, dtype=torch.float64), mesh, [Shard(0)])
    opt.step()
    return (
        rank,
        message,
        same,
        opt.skipped,
        float(opt.state[p]["step"]),
        bool(whole(p).isfinite().all()),
    )


def _plain(value):
    return value._local_tensor if isinstance(value, DTensor) else value


def errors_of_one_rank():
    """What all ranks raise where one of them has an error of its own."""
    rank, size = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (size,))

    def made(**options):
        p = torch.nn.Parameter(distribute_tensor(torch.ones(8, 6), mesh, [Shard(0)]))
        p.grad = distribute_tensor(torch.ones(8, 6), mesh, [Shard(0)])
        return p, Adafactor([("w", p)], **options)

    def message(opt):
        try:
            opt.step()
        except Exception as error:  # noqa: BLE001 (which one is what is looked at)
            return f"{type(error).__name__}: {error}"
        return None

    found = {}
    p, opt = made()
    if rank == 1:
        p.grad = None
    found["no gradient on one"] = message(opt), whole(p).sum().item()
    p, opt = made(lr=0.01 if rank else 0.02)
    found["another lr"] = message(opt), whole(p).sum().item()
    p, opt = made()
    opt.step()
    if rank == 1:
        opt.state[p]["row_var"] = "text"
    found["a bad state on one"] = message(opt), float(opt.state[p]["step"])
    p, opt = made()
    opt.step()
    if rank == size - 1:
        opt.state[p]["step"].fill_(7)
    found["another count"] = message(opt), None
    for name, key, value in (
        ("a bad lr on one", "lr", float("nan")),
        ("a bad eps on one", "eps", (-1.0, 1e-3)),
    ):
        p, opt = made()
        good = opt.param_groups[0][key]
        if rank == 1:
            opt.param_groups[0][key] = value
        found[name] = message(opt), whole(p).sum().item()
        opt.param_groups[0][key] = good
        opt.step()
        found[f"{name}, then a step"] = float(opt.state[p]["step"])
    p, opt = made()
    p.grad = None
    found["no gradient on all"] = message(opt), len(opt.state)
    return found


def refused():
    """What is refused, on all ranks alike."""
    size = dist.get_world_size()
    mesh = init_device_mesh("cpu", (size,))
    found = {}

    def message(name, call):
        try:
            call()
        except (ValueError, TypeError) as error:
            found[name] = str(error)

    p = torch.nn.Parameter(DTensor.from_local(torch.ones(4, 3), mesh, [Partial()]))
    p.grad = p.detach().clone()
    message("partial", Adafactor([p]).step)
    p = torch.nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)]))
    p.grad = p.detach().clone()
    opt = Adafactor([p])
    message("single", lambda: opt.step_param(p, opt.param_groups[0]))
    message("backward", opt.fuse_backward)
    q = torch.nn.Parameter(torch.ones(3))
    q.grad = torch.ones(3)
    message("mixed", Adafactor([("p", p), ("q", q)], nonfinite="raise").step)
    flat = LAYOUTS["FSDP1, use_orig_params"]({"w": torch.ones(6, 5)})
    flat.set_grads({"w": torch.ones(6, 5)})
    message("not told", Adafactor(flat.params.values()).step)
    message("no FSDP1", lambda: opt.take_flat_shards(torch.nn.Linear(2, 2)))
    return found


def beside_plain_ones():
    """A plain parameter beside a DTensor is stepped as torch steps it: on its own."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    p = torch.nn.Parameter(distribute_tensor(torch.ones(8, 3), mesh, [Shard(0)]))
    q = torch.nn.Parameter(torch.full((3,), 2.0))
    opt = Adafactor([("p", p), ("q", q)])
    p.grad = distribute_tensor(torch.ones(8, 3), mesh, [Shard(0)])
    q.grad = torch.full((3,), 1.0 + dist.get_rank())
    opt.step()
    return whole(p)[0, 0].item(), q[0].item(), [float(opt.state[x]["step"]) for x in (p, q)]


def first_steps_beside_plain_ones():
    """Counts after a first step with lr 0 whose gradients are zero of none, of the DTensor, of both."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    found = {}
    for zero in "none", "p", "p and q":
        p = torch.nn.Parameter(distribute_tensor(torch.ones(8, 3), mesh, [Shard(0)]))
        q = torch.nn.Parameter(torch.ones(3))
        opt = Adafactor([("p", p), ("q", q)], lr=0.0)
        p.grad = distribute_tensor(torch.full((8, 3), float("p" not in zero)), mesh, [Shard(0)])
        q.grad = torch.full((3,), float("q" not in zero))
        opt.step()
        found[zero] = [float(opt.state[x]["step"]) for x in (p, q)]
    return found


def replicas():
    """Whether replicas have the same bits after some steps, and which placements states have."""
    size = dist.get_world_size()
    mesh = init_device_mesh("cpu", (2, size // 2))
    begin = tensors(0, torch.float32)
    placements = {
        "rows": [Replicate(), Shard(0)],
        "grid": [Shard(0), Shard(1)],
    }
    found = {}
    for name, places in placements.items():
        p = torch.nn.Parameter(distribute_tensor(begin["matrix"], mesh, places))
        opt = Adafactor([p])
        for k in range(3):
            p.grad = distribute_tensor(tensors(1 + k, torch.float32)["matrix"], mesh, places)
            opt.step()
        state = opt.state[p]
        pieces = [None] * size
        everything = [p, state["row_var"], state["col_var"]]
        own = [x.to_local().detach().numpy().tobytes() for x in everything]
        dist.all_gather_object(pieces, own)
        found[name] = pieces, [str(state[key].placements) for key in ("row_var", "col_var")]
    return found


def frozen_and_late():
    """Parameters without gradients have no state; one that gets its first later counts for itself."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def made():
        return torch.nn.Parameter(distribute_tensor(torch.ones(8, 3), mesh, [Shard(0)]))

    p, q, r = made(), made(), made()
    r.requires_grad_(False)
    opt = Adafactor([p, q, r])
    counts = []
    for k in range(3):
        p.grad = distribute_tensor(torch.ones(8, 3), mesh, [Shard(0)])
        q.grad = distribute_tensor(torch.ones(8, 3), mesh, [Shard(0)]) if k == 2 else None
        opt.step()
        counts.append(
            [float(opt.state[x]["step"]) if opt.state.get(x) else None for x in (p, q, r)]
        )
    return counts, whole(r).sum().item()


def replaced_and_moved():
    """State that somebody replaces, and parameters that get other memory, are followed."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    begin = tensors(0)["matrix"]
    grads = [tensors(1 + k)["matrix"] for k in range(3)]
    alone, _ = by_one(
        lambda p, **o: Adafactor(p, **o), {"w": begin}, [{"w": grad} for grad in grads]
    )
    p = torch.nn.Parameter(distribute_tensor(begin, mesh, [Shard(0)]))
    opt = Adafactor([p])
    for k, grad in enumerate(grads):
        p.grad = distribute_tensor(grad, mesh, [Shard(0)])
        opt.step()
        if k == 0:
            opt.state[p] = {key: value.clone() for key, value in opt.state[p].items()}
        if k == 1:
            p.data = p.data.clone()
            opt.state[p]["row_var"] = opt.state[p]["row_var"].full_tensor()  # of one machine
    return farthest({"w": whole(p)}, alone, {"w": begin}), np.isfinite(opt.grad_norm)


def scaled():
    """A GradScaler's infinity on one rank leaves the step out on all."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    p = torch.nn.Parameter(distribute_tensor(torch.ones(8, 3), mesh, [Shard(0)]))
    opt = Adafactor([p])
    p.grad = distribute_tensor(torch.ones(8, 3), mesh, [Shard(0)])
    opt.found_inf = torch.tensor(float(dist.get_rank() == 1))
    opt.step()
    left_out = whole(p).sum().item()
    opt.found_inf = torch.tensor(0.0)
    opt.grad_scale = torch.tensor(4.0)
    opt.step()
    return left_out, opt.grad_norm, float(opt.state[p]["step"])


def numpy_optimizer(sums):
    """`Optimizer(comm=group)` on rows of NumPy arrays: the hash of all params and states after some steps."""
    group = dist.group.WORLD
    rank, size = (group.rank(), group.size()) if dist.get_world_size() > 1 else (0, 1)
    begin = {name: x.numpy() for name, x in tensors(0, torch.float32, shapes=NUMPY_SHAPES).items()}
    cuts = np.linspace(0, NUMPY_SHAPES["w"][0], size + 1).astype(int)
    rows = slice(cuts[rank], cuts[rank + 1])
    params = {"w": begin["w"][rows].copy(), "b": begin["b"].copy()}
    shards = {"w": NumpyShard(NUMPY_SHAPES["w"], (int(cuts[rank]), 0))}
    opt = Optimizer(params, "torch", lr=0.02, comm=group, shards=shards, sums=sums)
    for k in range(STEPS):
        grads = {
            n: x.numpy() for n, x in tensors(1 + k, torch.float32, shapes=NUMPY_SHAPES).items()
        }
        opt.step({"w": grads["w"][rows], "b": grads["b"]})
    gathered = opt.state_dict(params=True, gather=True)
    digest = hashlib.sha256()
    for key in sorted(gathered):
        if isinstance(gathered[key], np.ndarray) and gathered[key].dtype.kind == "f":
            digest.update(key.encode() + np.ascontiguousarray(gathered[key]).tobytes())
    return digest.hexdigest()

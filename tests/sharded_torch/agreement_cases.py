"""What test_agreement.py runs on ranks: one rank does what the others do not."""

import warnings

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from adafactor_native.torch import Adafactor, HuggingFaceAdafactor
from torch_layouts import whole


def _mesh():
    return init_device_mesh("cpu", (dist.get_world_size(),))


def _param(value=1.0):
    p = torch.nn.Parameter(distribute_tensor(torch.full((8, 6), value), _mesh(), [Shard(0)]))
    _give_grad(p)
    return p


def _give_grad(p, value=1.0):
    p.grad = distribute_tensor(torch.full((8, 6), value), p.device_mesh, p.placements)


def _message(call):
    try:
        call()
    except Exception as error:  # noqa: BLE001 (which one is what is looked at)
        return f"{type(error).__name__}: {error}"
    return None


def changed_on_one_rank():
    """By what rank 1 changes after a first step: what the next raises, then the sum of p after one more."""
    is_one = dist.get_rank() == 1
    found = {}

    def frozen(opt, p, q):
        if is_one:
            q.requires_grad_(False)
            q.grad = None
        return lambda: q.requires_grad_(True)

    def sums(opt, p, q):
        if is_one:
            opt.options.sums = "exact"
        return lambda: setattr(opt.options, "sums", "fast")

    def state_dtype(opt, p, q):
        if is_one:
            opt.options.state_dtype = torch.float32
        return lambda: setattr(opt.options, "state_dtype", torch.float64)

    def another_group(opt, p, q):
        if is_one:
            opt.add_param_group({"params": [("r", _local_param(p))]})
        return lambda: opt.param_groups.pop() if is_one else None

    def partial_grad(opt, p, q):
        if is_one:
            q.grad = DTensor.from_local(torch.ones(8, 6), q.device_mesh, [Partial()])
        return lambda: _give_grad(q)

    for change in (frozen, sums, state_dtype, another_group, partial_grad):
        p, q = _param(), _param()
        opt = Adafactor([("p", p), ("q", q)])
        opt.step()
        before = [whole(p), whole(q)]
        undo = change(opt, p, q)
        message = _message(opt.step)
        same = all(map(torch.equal, before, [whole(p), whole(q)]))
        undo()
        for x in (p, q):
            _give_grad(x)
        again = _message(opt.step)
        found[change.__name__] = message, same, again, float(opt.state[p]["step"])
    return found


def _local_param(like):
    """A parameter like another, which one rank makes without the others."""
    local = torch.ones_like(like._local_tensor)
    p = torch.nn.Parameter(
        DTensor.from_local(local, like.device_mesh, like.placements, run_check=False)
    )
    p.grad = p.detach().clone()
    return p


def changed_on_all_ranks():
    """Freezing, exact sums and another group, on all ranks alike: the counts of p and q."""
    p, q = _param(), _param()
    opt = Adafactor([("p", p), ("q", q)])
    counts = []

    def step():
        opt.step()
        counts.append([float(opt.state[x]["step"]) for x in (p, q)])

    step()
    q.requires_grad_(False)
    q.grad = None
    step()
    opt.options.sums = "exact"
    step()
    q.requires_grad_(True)
    _give_grad(q)
    opt.add_param_group({"params": [("r", _local_param(p))]})
    step()
    return counts


def differs_from_the_first():
    """By what rank 1 has otherwise when it makes its optimizer: what the first step raises."""
    is_one = dist.get_rank() == 1
    found = {}
    p, q = _param(), _param()
    found["fewer"] = _message(Adafactor([("p", p)] if is_one else [("p", p), ("q", q)]).step)
    p, q = _param(), _param(2.0)
    order = [("q", q), ("p", p)] if is_one else [("p", p), ("q", q)]
    found["order"] = _message(Adafactor(order).step)
    p = _param()
    found["sums"] = _message(Adafactor([("p", p)], sums="exact" if is_one else "fast").step)
    found["sum of p"] = float(whole(p).sum())
    return found


def state_on_one_rank():
    """Rank 1 has lost its state, or alone has one, and asks for no more than a new one."""
    is_one = dist.get_rank() == 1
    found = {}
    p = _param()
    opt = Adafactor([("p", p)], lr=0.0)
    opt.step()
    _give_grad(p, 0.0)
    if is_one:
        opt.state.clear()
    found["lost"] = _message(opt.step)
    p = _param()
    _give_grad(p, 0.0)
    opt = Adafactor([("p", p)], lr=0.0)
    opt.step()  # makes the state, and counts nothing
    found["begun"] = float(opt.state[p]["step"])
    if is_one:
        opt.state.clear()
    found["lost, of no steps"] = _message(opt.step), float(opt.state[p]["step"])
    p = _param()
    _give_grad(p, 0.0)
    opt = HuggingFaceAdafactor([("p", p)], relative_step=False, lr=0.0 if is_one else 1.0)
    found["another lr"] = _message(opt.step)
    return found


def found_inf_on_one_rank():
    """Rank 1 alone has been told of an infinity, or of none; the others know of no scaler."""
    is_one = dist.get_rank() == 1
    p = _param()
    opt = Adafactor([("p", p)])
    counts = []
    for told in (1.0, 0.0):
        if is_one:
            opt.found_inf = torch.tensor(told)
        opt.step()
        counts.append(float(opt.state[p]["step"]) if opt.state.get(p) else 0.0)
    return counts


def plain_grad_on_one_rank():
    """Rank 1 alone has a gradient of a plain parameter, with what needs all in pieces."""
    p, q = _param(), torch.nn.Parameter(torch.ones(3))
    opt = Adafactor([("p", p), ("q", q)], nonfinite="raise")
    if dist.get_rank() == 1:
        q.grad = torch.ones(3)
    message = _message(opt.step)
    q.grad = None
    return message, _message(opt.step), float(opt.state[p]["step"])


def uncut_grads():
    """A gradient in other placements, where a rank has no elements of the parameter."""
    mesh = _mesh()
    p = torch.nn.Parameter(distribute_tensor(torch.ones(2, 3), mesh, [Shard(0)]))
    opt = Adafactor([p])
    p.grad = DTensor.from_local(torch.ones(2, 3), mesh, [Partial()])
    opt.step()
    return opt.grad_norm, float(whole(p)[0, 0])


def masters_follow(masters):
    """A parameter that somebody writes to, on one rank, before and after a load."""
    mesh = _mesh()
    found = {}
    for when in ("after a step", "after a load", "said", "said after a load"):
        p = torch.nn.Parameter(
            distribute_tensor(torch.ones(8, 6, dtype=torch.bfloat16), mesh, [Shard(0)])
        )
        opt = Adafactor([("p", p)], masters=masters, lr=1e-6, eps=(1e-7, 1e-3))
        _give_half_grad(p)
        opt.step()
        if "load" in when:
            opt.load_state_dict(opt.state_dict())
        if "said" in when:
            if dist.get_rank() == 1:
                p._local_tensor.data[0, 0] = 5.0  # which no version shows
            opt.params_changed()
        elif dist.get_rank() == 1:
            with torch.no_grad():
                p._local_tensor[0, 0] = 5.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opt.step()
        found[when] = float(p.to_local()[0, 0])
    return found


def _give_half_grad(p):
    ones = torch.ones(8, 6, dtype=torch.bfloat16)
    p.grad = distribute_tensor(ones, p.device_mesh, p.placements)


def everything():
    """Return what each case of two ranks does, by its name, in one run."""
    cases = (
        *(changed_on_one_rank, changed_on_all_ranks, differs_from_the_first),
        *(state_on_one_rank, found_inf_on_one_rank, plain_grad_on_one_rank),
    )
    found = {case.__name__: case() for case in cases}
    return found, {masters: masters_follow(masters) for masters in ("float32", "split")}

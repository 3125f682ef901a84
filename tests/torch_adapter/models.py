"""Parameters, gradients and runs for the tests of adafactor_native.torch."""

import torch

SHAPES = {
    "matrix": (48, 33),
    "tall": (130, 3),
    "vector": (17,),
    "scalar": (),
    "kernel": (5, 4, 3, 3),
    "stack": (3, 8, 6),
    "one": (1, 1),
}


def parameters(dtype=torch.float32, shapes=SHAPES, seed=0):
    """Return a list of leaves that require a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes.values()
    ]


def copies(params, dtype=None):
    return [p.detach().clone().to(dtype or p.dtype).requires_grad_() for p in params]


def gradients(params, step, absent=()):
    """Return a gradient for each parameter at a step, None for those at the positions in `absent`."""
    generator = torch.Generator().manual_seed(1000 + step)
    grads = [
        (torch.randn(p.shape, generator=generator, dtype=torch.float64) * 10.0 ** (-(k % 4))).to(
            p.dtype
        )
        for k, p in enumerate(params)
    ]
    return [None if k in absent else grad for k, grad in enumerate(grads)]


def take_step(opt, params, step, absent=()):
    """One step of an optimizer with the gradients of a step."""
    for p, grad in zip(params, gradients(params, step, absent)):
        p.grad = grad
    opt.step()


def assert_close(ours, theirs, tolerance):
    """The difference is at most `tolerance` times the largest parameter, for each tensor."""
    for position, (p, q) in enumerate(zip(ours, theirs)):
        if p.numel() == 0:
            continue
        p, q = p.detach().double(), q.detach().double()
        assert (p - q).abs().max() <= tolerance * q.abs().max(), position


def assert_same_bits(ours, theirs):
    for position, (p, q) in enumerate(zip(ours, theirs)):
        assert p.dtype == q.dtype
        assert torch.equal(p.detach(), q.detach()), position


def digest(opt):
    """Return all numbers of an optimizer's parameters and state."""
    params = [p for group in opt.param_groups for p in group["params"]]
    return [p.detach().clone() for p in params] + [
        torch.as_tensor(value).clone() for p in params for _, value in sorted(opt.state[p].items())
    ]

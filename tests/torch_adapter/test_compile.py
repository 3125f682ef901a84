"""torch.compile around a step: no break in the graph, and the bits of the eager step."""

import pytest
import torch

from adafactor_native.torch import Adafactor
from torch_adapter.models import assert_same_bits, digest, gradients, parameters

CASES = {
    "float32": (torch.float32, {}),
    "stochastic": (torch.bfloat16, {"rounding": "stochastic"}),
    "masters": (torch.bfloat16, {"masters": "float32"}),
}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("case", CASES)
def test_fullgraph(case, backend):
    dtype, options = CASES[case]
    ours, theirs = parameters(dtype), parameters(dtype)
    a, b = Adafactor(ours, **options), Adafactor(theirs, **options)

    @torch.compile(fullgraph=True, backend=backend)
    def step():
        a.step()

    for t in range(4):
        for p, q, grad in zip(ours, theirs, gradients(ours, t)):
            p.grad, q.grad = grad, grad.clone()
        for opt in a, b:
            opt.param_groups[0]["lr"] = 0.1 / (t + 1)
        step()
        b.step()
        assert_same_bits(digest(a), digest(b))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_whole_training_step():
    """Forward, backward and step under one torch.compile, with the breaks that backward makes."""

    def train(compiles):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        opt = Adafactor(model.parameters(), lr=0.05)

        def step(x):
            opt.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            opt.step()
            return loss

        step = torch.compile(step, backend="eager") if compiles else step
        for t in range(4):
            step(torch.randn(16, 4, generator=torch.Generator().manual_seed(t)))
        return digest(opt)

    assert_same_bits(train(True), train(False))


def test_an_eager_step_beside_a_compiled_model():
    model = torch.nn.Linear(4, 2)
    opt = Adafactor(model.parameters())
    run = torch.compile(model, backend="eager")
    for _ in range(2):
        opt.zero_grad()
        run(torch.ones(3, 4)).sum().backward()
        opt.step()
    assert all(opt.state[p]["step"] == 2 for p in model.parameters())

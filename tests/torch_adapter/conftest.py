"""What the tests of adafactor_native.torch have in common. Without torch they are skipped, and say so."""

import importlib.util

import pytest

HAS_TORCH = importlib.util.find_spec("torch") is not None


class WithoutTorch(pytest.File):
    """Stands for a file whose imports need torch."""

    def collect(self):
        yield Missing.from_parent(self, name="torch")


class Missing(pytest.Item):
    def runtest(self):
        reason = "not installed: torch (pip install '.[trainers]')"
        if self.config.getoption("--require-peers"):
            pytest.fail(reason)
        pytest.skip(reason)


def pytest_pycollect_makemodule(module_path, parent):
    if not HAS_TORCH and module_path.name.startswith("test_"):
        return WithoutTorch.from_parent(parent, path=module_path)
    return None


@pytest.fixture
def skip_for_old_torch(request):
    """Return a function of a reason that skips; with --require-peers, which is with a new torch, fails."""
    return pytest.fail if request.config.getoption("--require-peers") else pytest.skip


@pytest.fixture
def needs_names(skip_for_old_torch):
    """Skip where torch's optimizers take no parameters with names."""
    import torch

    try:
        torch.optim.SGD([("w", torch.zeros(1))], lr=1.0)
    except TypeError:
        skip_for_old_torch("this torch's optimizers take no names")


@pytest.fixture
def require_split(skip_for_old_torch):
    """Return a function of options that skips where they have lower halves, which torch cannot save."""
    from adafactor_native.torch.options import saves_uint16

    def check(options):
        if options.get("masters") == "split" and not saves_uint16():
            skip_for_old_torch("this torch saves no uint16")

    return check


@pytest.fixture(params=["exchange", "methods"])
def each_reader(request, monkeypatch):
    """Run the test with both ways to find tensors: of torch 2.10 and later, and of older ones."""
    monkeypatch.setenv("ADAFACTOR_TORCH_READER", request.param)
    return request.param

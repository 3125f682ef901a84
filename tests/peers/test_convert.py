"""A run started in another library continues here, and the other way round, as if never moved.

Ten steps there and twenty here are the thirty there, to the rounding of the wider of the two.
"""

import importlib

import numpy as np
import pytest

from adafactor_native import Optimizer, convert
from arrays import normal

SHAPES = {
    "scalar": (),
    "vector": (7,),
    "tall": (9, 4),
    "wide": (4, 9),
    "square": (5, 5),
    "kernel": (6, 2, 5),
    "deep": (3, 8, 2, 6),
}
START, STEPS = 10, 30


def params(dtype=np.float64):
    return {name: normal(shape, dtype, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}


def gradients(t, dtype=np.float64):
    return {
        name: normal(shape, dtype, seed=1000 * t + i, scale=10.0 ** (i - 3))
        for i, (name, shape) in enumerate(SHAPES.items())
    }


class Ours:
    """A run of ours with the interface of theirs below."""

    def __init__(self, convention, arguments, start=None):
        self.params = params() if start is None else {k: np.array(v) for k, v in start.items()}
        self.opt = Optimizer(self.params, convention, **arguments)

    def step(self, grads):
        self.opt.step(grads)


class OfTorch:
    """A run of a torch optimizer, torch's own or transformers'."""

    def __init__(self, cls, arguments, start=None):
        self.torch = importlib.import_module("torch")
        start = params() if start is None else start
        self.tensors = {
            name: self.torch.nn.Parameter(self.torch.tensor(x)) for name, x in start.items()
        }
        self.opt = cls(list(self.tensors.values()), **arguments)

    @property
    def params(self):
        return {name: x.detach().numpy() for name, x in self.tensors.items()}

    def step(self, grads):
        for name, x in self.tensors.items():
            grad = grads[name]
            x.grad = None if grad is None else self.torch.tensor(grad)
        self.opt.step()


@pytest.fixture
def optax(require_installed):
    """The package, while arrays of JAX may be of float64."""
    require_installed("jax", "optax")
    with importlib.import_module("jax").enable_x64(True):
        yield importlib.import_module("optax")


@pytest.fixture
def torch(require_installed):
    require_installed("torch", "transformers")
    return importlib.import_module("torch")


class OfOptax:
    """A run of optax, in float64; `build` nests the parameters as a tree."""

    def __init__(self, arguments, start=None, build=dict, read=dict):
        jax, self.optax = (importlib.import_module(name) for name in ("jax", "optax"))
        self.jit, self.jnp, self.build, self.read = jax.jit, jax.numpy, build, read
        start = params() if start is None else start
        self.tree = build({name: self.jnp.asarray(x) for name, x in start.items()})
        if "momentum" in arguments:
            arguments = {**arguments, "dtype_momentum": self.jnp.float64}
        self.transform(self.optax.adafactor(**arguments))

    def transform(self, transformation):
        self.update = self.jit(transformation.update)
        self.state = transformation.init(self.tree)

    @property
    def params(self):
        return {name: np.asarray(x) for name, x in self.read(self.tree).items()}

    def step(self, grads):
        grads = self.build({name: self.jnp.asarray(x) for name, x in grads.items()})
        updates, self.state = self.update(grads, self.state, self.tree)
        self.tree = self.optax.apply_updates(self.tree, updates)


def run(one, first, last, left_out=None):
    """Take these steps; one tensor has no gradient in every third."""
    for t in range(first, last):
        grads = gradients(t)
        if left_out is not None and t % 3 == 1:
            grads[left_out] = None
        one.step(grads)


def assert_same(one, other, rtol):
    for name, x in other.params.items():
        error = np.max(np.abs(one.params[name] - x)) / np.max(np.abs(x))
        assert error <= rtol, f"{name} is off by {error:.3g}"


TORCH = [
    {},
    {"lr": 0.5, "eps": (1e-2, 0.1), "weight_decay": 0.1, "d": 1.5, "beta2_decay": -0.5},
    {"maximize": True},
]
HUGGINGFACE = [
    {},
    {"warmup_init": True, "weight_decay": 0.1},
    {"lr": 1e-2, "relative_step": False, "beta1": 0.9, "weight_decay": 0.1},
    {"eps": (1e-6, 0.1), "beta1": 0.5, "clip_threshold": 0.5},
]
TORCH_RUNS = [("torch", x) for x in TORCH] + [("huggingface", x) for x in HUGGINGFACE]


def class_of(convention):
    if convention == "torch":
        return importlib.import_module("torch").optim.Adafactor
    return importlib.import_module("transformers").Adafactor


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("left_out", [None, "wide"])
@pytest.mark.parametrize("convention, arguments", TORCH_RUNS)
def test_from_torch_and_transformers(convention, arguments, left_out):
    theirs = OfTorch(class_of(convention), arguments)
    run(theirs, 0, START, left_out)
    ours = Ours(convention, arguments, theirs.params)
    getattr(convert, f"load_{convention}")(ours.opt, theirs.opt.state_dict())
    assert ours.opt.t == START
    for one in (ours, theirs):
        run(one, START, STEPS, left_out)
    assert_same(ours, theirs, 1e-12)


@pytest.mark.parametrize("left_out", [None, "wide"])
@pytest.mark.parametrize("convention, arguments", TORCH_RUNS)
def test_to_torch_and_transformers(convention, arguments, left_out, torch):
    never_moved = OfTorch(class_of(convention), arguments)
    run(never_moved, 0, STEPS, left_out)
    ours = Ours(convention, arguments)
    run(ours, 0, START, left_out)
    state = getattr(convert, f"to_{convention}")(ours.opt, array=torch.as_tensor)
    theirs = OfTorch(class_of(convention), {}, ours.params)
    theirs.opt.load_state_dict(state)
    run(theirs, START, STEPS, left_out)
    assert_same(theirs, never_moved, 1e-12)


def test_groups_and_another_order_of_torch(torch):
    """Two groups there, of hyper-parameters of their own, in another order than here."""
    there = OfTorch(torch.optim.Adafactor, {})
    names = ["wide", "scalar", "deep", "vector", "kernel", "tall", "square"]

    def regrouped(run):
        tensors = [run.tensors[name] for name in names]
        groups = [{"params": tensors[:3], "lr": 0.5}, {"params": tensors[3:], "d": 2.0}]
        run.opt = torch.optim.Adafactor(groups)

    regrouped(there)
    run(there, 0, START)

    ours = Ours("torch", {}, there.params)
    mine = ours.params
    ours.opt = Optimizer(
        [
            {"params": {name: mine[name] for name in sorted(names[:3])}, "lr": 0.5},
            {"params": {name: mine[name] for name in sorted(names[3:])}, "d": 2.0},
        ],
        "torch",
    )
    convert.load_torch(ours.opt, there.opt.state_dict(), names)
    for one in (ours, there):
        run(one, START, 2 * START)
    assert_same(ours, there, 1e-12)

    back = OfTorch(torch.optim.Adafactor, {}, ours.params)
    regrouped(back)
    for group in back.opt.param_groups:
        group["lr"] = 9.0
    back.opt.load_state_dict(convert.to_torch(ours.opt, torch.as_tensor, names))
    assert [(group["lr"], group["d"]) for group in back.opt.param_groups] == [(0.5, 1), (0.01, 2)]
    for one in (back, there):
        run(one, 2 * START, STEPS)
    assert_same(back, there, 1e-12)


def test_float32_of_torch(torch):
    """Statistics there are float32; here they go on in float64."""
    start = params(np.float32)
    theirs = OfTorch(torch.optim.Adafactor, {}, start)
    for t in range(START):
        theirs.step(gradients(t, np.float32))
    ours = Ours("torch", {}, theirs.params)
    convert.load_torch(ours.opt, theirs.opt.state_dict())
    for t in range(START, STEPS):
        for one in (ours, theirs):
            one.step(gradients(t, np.float32))
    assert_same(ours, theirs, 3e-6)
    state = convert.to_torch(ours.opt, torch.as_tensor)["state"]
    assert {x.dtype for one in state.values() for x in one.values()} == {torch.float32}


def nested(tree):
    """As a neural network in JAX has them: dicts of dicts and lists."""
    names = list(tree)
    return {
        "first": {name: tree[name] for name in names[:3]},
        "rest": [tree[name] for name in names[3:]],
    }


def flat(tree):
    named = {**tree["first"], **dict(zip(list(SHAPES)[3:], tree["rest"]))}
    return {name: named[name] for name in SHAPES}


def nested_names(values):
    names = list(SHAPES)
    here = [f"first/{name}" for name in names[:3]] + [f"rest/{i}" for i in range(len(names) - 3)]
    return dict(zip(here, values))


OPTAX = [
    {},
    {"learning_rate": 0.1, "min_dim_size_to_factor": 4},
    {"learning_rate": 0.1, "min_dim_size_to_factor": 2, "momentum": 0.9, "weight_decay_rate": 1e-3},
    {
        "learning_rate": lambda count: 0.1 / (count + 1),
        "min_dim_size_to_factor": 0,
        "momentum": 0.5,
    },
    {"learning_rate": 0.1, "factored": False, "clipping_threshold": None},
]


@pytest.mark.usefixtures("optax")
@pytest.mark.parametrize("arguments", OPTAX)
def test_from_optax(arguments):
    theirs = OfOptax(arguments)
    run(theirs, 0, START)
    ours = Ours("optax", arguments, theirs.params)
    convert.load_optax(ours.opt, theirs.state)
    assert ours.opt.t == START
    for one in (ours, theirs):
        run(one, START, STEPS)
    assert_same(ours, theirs, 3e-7)


@pytest.mark.usefixtures("optax")
@pytest.mark.parametrize("arguments", OPTAX)
def test_to_optax(arguments):
    never_moved = OfOptax(arguments)
    run(never_moved, 0, STEPS)
    ours = Ours("optax", arguments)
    run(ours, 0, START)
    theirs = OfOptax(arguments, ours.params)
    theirs.state = convert.to_optax(ours.opt, theirs.state, array=theirs.jnp.asarray)
    run(theirs, START, STEPS)
    assert_same(theirs, never_moved, 3e-7)


@pytest.mark.usefixtures("optax")
def test_a_nested_tree_of_optax_and_back():
    arguments = {"learning_rate": 0.1, "min_dim_size_to_factor": 2, "momentum": 0.9}
    theirs = OfOptax(arguments, build=nested, read=flat)
    run(theirs, 0, START)
    ours = Ours("optax", arguments, theirs.params)
    ours.opt = Optimizer(nested_names(ours.params.values()), "optax", **arguments)
    convert.load_optax(ours.opt, theirs.state)
    for t in range(START, 2 * START):
        theirs.step(gradients(t))
        ours.step(list(gradients(t).values()))
    assert_same(ours, theirs, 3e-7)

    back = OfOptax(arguments, ours.params, build=nested, read=flat)
    back.state = convert.to_optax(ours.opt, back.state, back.jnp.asarray)
    for one in (back, theirs):
        run(one, 2 * START, STEPS)
    assert_same(back, theirs, 3e-7)


def test_the_parts_of_optax_as_big_vision_chains_them(optax):
    theirs = OfOptax({})
    jnp = theirs.jnp
    chain = optax.chain(
        optax.scale_by_factored_rms(
            decay_rate=0.8,
            min_dim_size_to_factor=2,
            decay_rate_fn=lambda i, e: jnp.minimum(1 - (i + 1.0) ** -e, 0.999),
        ),
        optax.ema(0.9, debias=False, accumulator_dtype=jnp.float64),
        optax.scale(0.1),
        optax.add_decayed_weights(0.01),
        optax.scale_by_schedule(lambda count: -0.5 / (count + 1)),
    )
    theirs.transform(chain)
    run(theirs, 0, START)
    ours = Ours(
        "big_vision",
        {
            "lr": 0.1,
            "wd": 0.01,
            "schedule": lambda count: 0.5 / (count + 1),
            "min_dim_size_to_factor": 2,
        },
        theirs.params,
    )
    convert.load_optax(ours.opt, theirs.state)
    for one in (ours, theirs):
        run(one, START, 2 * START)
    assert_same(ours, theirs, 3e-7)
    theirs.tree = {name: jnp.asarray(x) for name, x in ours.params.items()}
    theirs.state = convert.to_optax(ours.opt, theirs.state, jnp.asarray)
    for one in (ours, theirs):
        run(one, 2 * START, STEPS)
    assert_same(ours, theirs, 3e-7)

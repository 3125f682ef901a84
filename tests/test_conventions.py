"""Optimizer beside the reference: every switch, alone and with others, and every convention.

The reference is beside the libraries themselves in peers/test_peers.py.
"""

import random

import numpy as np
import pytest

import adafactor_native as an
from arrays import DTYPE_PAIRS, DTYPES, normal, spread
from buffers import LAYOUTS, Buffer
from compare import Trail, assert_state_close
from oracle.convention_settings import SETTINGS
from oracle.switches_reference import Run
from peers import tensors
from peers.cases import CASES

IN_FLOAT64 = 1e-12
IN_FLOAT32 = 3e-6

MASK = {name: index % 3 > 0 for index, name in enumerate(tensors.SHAPES)}

# Values besides the default; those that need another switch are given with it
SWITCHES = {
    "lr": [{"lr": 0.3}, {"lr": 0.0}, {"lr": lambda t: 0.1 / t}],
    "beta2": [{"beta2": 0.0}, {"beta2": 0.5}],
    "decay_rate": [
        {"decay_rate": -0.8},
        {"decay_rate": -0.8, "beta2": 1.0},
        {"decay_rate": -0.5, "beta2": 0.6},
        {"decay_rate": 0.0},
    ],
    "decay_offset": [{"decay_offset": 4, "decay_rate": -0.8}],
    "bias_correction": [
        {"bias_correction": correction, **beta2}
        for correction in (True, "beta2")
        for beta2 in ({}, {"beta2": 0.7}, {"beta2": 0.0})
    ],
    "eps": [{"eps": 1e-3}, {"eps": 0.5}, {"eps": None}],
    "eps_mode": [
        {"eps_mode": mode, "eps": eps}
        for mode in ("grad_squared", "clamp", "root")
        for eps in (1e-30, 1e-8, 0.5, None)
    ],
    "factored_axes": [
        {"factored_axes": axes}
        for axes in ("last_two", "two_largest", "none", (0, 1), (1, 0), (-1, 0), (0, -1), (-1, -2))
    ],
    "min_dim_size_to_factor": [
        {"min_dim_size_to_factor": least, "factored_axes": axes}
        for least in (1, 4, 5)
        for axes in ("matrix", "last_two", "two_largest", (0, 1))
    ],
    "clip_threshold": [{"clip_threshold": None}, {"clip_threshold": 0.3}, {"clip_threshold": 9.0}],
    "rms_scope": [
        {"rms_scope": "matrix", "factored_axes": axes}
        for axes in ("matrix", "last_two", "two_largest", (1, 0), "none")
    ],
    "scale_parameter": [{"scale_parameter": False}],
    "eps_scale": [{"eps_scale": 1e-3}, {"eps_scale": 0.9}],
    "relative_step": [{"relative_step": True}, {"relative_step": True, "lr": 0.4}],
    "warmup_init": [{"relative_step": True, "warmup_init": True}],
    "beta1": [{"beta1": 0.9}, {"beta1": 0.0}],
    "momentum_of": [{"beta1": 0.9, "momentum_of": "u", "lr": lambda t: 0.1 / t}],
    "weight_decay": [
        {"weight_decay": 0.1, "lr": 0.1},
        {"weight_decay": lambda t: 0.1 / t, "weight_decay_mode": "alone"},
    ],
    "weight_decay_mode": [
        {"weight_decay": 0.1, "weight_decay_mode": mode, "lr": 0.1, "schedule": lambda t: 0.9**t}
        for mode in ("lr", "step", "alone", "schedule")
    ],
    "weight_decay_mask": [{"weight_decay": 0.5, "weight_decay_mask": MASK}],
    "weight_decay_lr_exponent": [
        {
            "weight_decay": 0.5,
            "weight_decay_mode": "alone",
            "weight_decay_lr_exponent": 0.5,
            "lr": lambda t: 0.1 / t,
        }
    ],
    "schedule": [{"schedule": lambda t: 1 / t}],
    "scale_after_decay": [
        {
            "scale_after_decay": True,
            "weight_decay": 0.9,
            "weight_decay_mode": mode,
            "lr": 0.5,
            "eps_scale": 1e-3,
        }
        for mode in ("lr", "alone")
    ]
    + [{"scale_after_decay": True, "weight_decay": 1.5, "weight_decay_mode": "alone"}],
    "maximize": [{"maximize": True}],
    "t_scope": [{"t_scope": "model", "decay_rate": -0.8, "relative_step": True, "lr": 1.0}],
}
SINGLE = {f"{name}, {index}": s for name, of in SWITCHES.items() for index, s in enumerate(of)}


def assert_same_steps(opt, run, steps, tolerance=IN_FLOAT64, **of_steps):
    """Take the steps with both; params after each and the state at the end must be the same."""
    trail = Trail(opt.params, tolerance)
    for grads in steps:
        run.step(grads, **of_steps)
        opt.step(grads, **of_steps)
        trail.check(opt.params, run.params)
    assert opt.t == run.t
    assert dict(zip(opt.names, opt.counts)) == run.counts
    for name, state in opt.state.items():
        if run.counts[name] and opt.params[name].size:
            assert_state_close(state, run.state(name), tolerance)


@pytest.mark.parametrize("switches", SINGLE.values(), ids=SINGLE)
def test_every_switch(switches):
    """Of two tensors some gradients are missing: their t is not the model's, or is by t_scope."""
    steps = tensors.gradients()[:10]
    for index in (2, 3, 6):
        steps[index].update({"tall": None, "kernel": None})
    opt = an.Optimizer(tensors.params(), convention="numpy", **switches)
    assert_same_steps(opt, Run(opt.params, **switches), steps)


@pytest.mark.parametrize("seed", range(100))
def test_switches_together(seed):
    """Any value of each, in two groups, some tensors without some gradients."""
    rng = random.Random(seed)
    params = tensors.params()
    names = sorted(params)
    rng.shuffle(names)
    groups = []
    for mine in names[:8], names[8:]:
        groups.append({"params": {name: params[name] for name in mine}, **any_switches(rng)})
    of_model = {"max_grad_norm": rng.choice([None, 1.0, 1e3])}
    steps = [
        {name: None if rng.random() < 0.1 else grad for name, grad in grads.items()}
        for grads in tensors.gradients()[:10]
    ]
    opt, run = an.Optimizer(groups, convention="numpy", **of_model), Run(groups, **of_model)
    assert_same_steps(opt, run, steps, grad_scale=rng.choice([1.0, 1024.0, 0.3]))


def any_switches(rng):
    """Return switches, each with even odds of its default, that Optimizer takes together."""
    switches = {}
    for options in SWITCHES.values():
        if rng.random() < 0.5:
            switches.update(rng.choice(options))
    if switches.get("bias_correction"):
        switches.pop("decay_rate", None)
        switches["beta2"] = 0.9
    if switches.get("weight_decay_mode") != "alone":
        switches.pop("weight_decay_lr_exponent", None)
    if switches.get("weight_decay_mode") == "step" and callable(switches.get("weight_decay")):
        del switches["weight_decay"]
    if switches.get("weight_decay_mode") == "step":
        switches.pop("scale_after_decay", None)
    return switches


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_conventions(case, dtype):
    """Each convention and set of options that peers/test_peers.py has, where no peer is installed."""
    ours = CASES[case]
    opt = an.Optimizer(ours.our_groups(dtype), ours.convention, **ours.ours)
    tolerance = IN_FLOAT64 if dtype == np.float64 else IN_FLOAT32
    assert_same_steps(opt, ours.reference(dtype), ours.gradients(dtype), tolerance)


@pytest.mark.parametrize("convention", SETTINGS)
def test_whose_steps_a_convention_counts(convention):
    """Missing gradients, in which those libraries differ that know of them."""
    ours = {"t5x": {"learning_rate": 0.5}, "big_vision": {"lr": 0.5}}.get(convention, {})
    steps = tensors.gradients()[:10]
    for index in (0, 1, 2, 5):
        steps[index].update({"tall": None, "kernel": None})
    opt = an.Optimizer(tensors.params(), convention, **ours)
    assert_same_steps(opt, Run(opt.params, **SETTINGS[convention](**ours)), steps)


def test_keras_without_relative_step():
    """keras itself does not obey; its documentation does."""
    ours = {"learning_rate": 0.5, "relative_step": False}
    opt = an.Optimizer(tensors.params(), "keras", **ours)
    run = Run(opt.params, **SETTINGS["keras"](**ours))
    assert_same_steps(opt, run, tensors.gradients()[:10])


PAIRS = [(row, col) for row in range(3) for col in range(3) if row != col]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axes", PAIRS, ids=str)
def test_layouts_of_batched_matrices(axes, layout):
    """Any two axes of three, in any layout; not one byte outside the view touched."""
    shapes = {"small": (3, 4, 5), "longer": (2, 70, 9), "wide": (33, 2, 40)}
    params = {name: Buffer(normal(shape), layout) for name, shape in shapes.items()}
    steps = [
        {
            name: Buffer(spread(shape, seed=t, smallest=1e-3, largest=10), layout).array
            for name, shape in shapes.items()
        }
        for t in range(3)
    ]
    opt = an.Optimizer(
        {name: buffer.array for name, buffer in params.items()},
        convention="numpy",
        factored_axes=axes,
    )
    assert_same_steps(opt, Run(opt.params, factored_axes=axes), steps)
    for buffer in params.values():
        buffer.assert_guards_intact()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("eps", [1e-30, 1e-200, 0.5])
@pytest.mark.parametrize("eps_mode", ["clamp", "both", "grad_squared"])
def test_convolutions(eps_mode, eps, layout):
    """Many small matrices, their number no multiple of any vector's, some without a gradient.

    1e-200 has no square.
    """
    shapes = {"1x1": (7, 5, 1, 1), "3x3": (5, 4, 3, 3), "1x3": (9, 3, 1, 3), "two": (2, 9, 1, 1)}
    params = {name: Buffer(normal(shape), layout) for name, shape in shapes.items()}
    steps = [
        {
            name: Buffer(spread(shape, seed=t, smallest=1e-3, largest=10), layout).array
            for name, shape in shapes.items()
        }
        for t in range(3)
    ]
    for grad in steps[0].values():
        grad[0] = 0
    switches = {"factored_axes": "last_two", "eps_mode": eps_mode, "eps": eps, "beta1": 0.9}
    opt = an.Optimizer(
        {name: buffer.array for name, buffer in params.items()}, convention="numpy", **switches
    )
    assert_same_steps(opt, Run(opt.params, **switches), steps)
    for buffer in params.values():
        buffer.assert_guards_intact()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("beta2", [1e-100, 2e-155])
@pytest.mark.parametrize("eps_mode", ["clamp", "both", "grad_squared", "root"])
def test_second_moment_below_every_float64(eps_mode, beta2, dtype):
    """Row 0 and column 0 of every matrix fade together: V[0, 0] underflows, its root does not."""
    shapes = {"matrix": (2, 2), "3x3": (7, 5, 3, 3), "1x3": (9, 1, 3), "batch": (3, 12, 37)}
    steps = [
        {name: normal(shape, dtype, seed=t) for name, shape in shapes.items()} for t in range(3)
    ]
    for grads in steps[1:]:
        for grad in grads.values():
            grad[..., 0] = 0
            if grad.shape[-2] > 1:
                grad[..., 0, :] = 0
    switches = {"factored_axes": "last_two", "eps_mode": eps_mode, "eps": 0.0, "beta2": beta2}
    opt = an.Optimizer(
        {name: normal(shape, dtype) for name, shape in shapes.items()},
        convention="numpy",
        **switches,
    )
    tolerance = IN_FLOAT64 if dtype == np.float64 else IN_FLOAT32
    assert_same_steps(opt, Run(opt.params, **switches), steps, tolerance)


@pytest.mark.parametrize("eps_mode", ["clamp", "both", "grad_squared", "root"])
def test_small_gradients_beside_large_ones_in_small_matrices(eps_mode):
    """Their V is subnormal or 0 in float64, their u an ordinary number."""
    shapes = {"3x3": (7, 5, 3, 3), "2x2": (9, 2, 2)}
    steps = [{name: normal(shape, seed=t) for name, shape in shapes.items()} for t in range(3)]
    for grads, size in zip(steps, (1e-78, 1e-80, 1e-90)):
        for grad in grads.values():
            grad[..., 0, 0] *= size * size
            grad[..., 0, 1:] *= size
            grad[..., 1:, 0] *= size
    switches = {"factored_axes": "last_two", "eps_mode": eps_mode, "eps": 0.0, "beta2": 0.0}
    switches |= {"clip_threshold": None, "lr": 0.1}
    opt = an.Optimizer(
        {name: normal(shape) for name, shape in shapes.items()}, convention="numpy", **switches
    )
    assert_same_steps(opt, Run(opt.params, **switches), steps)


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)], ids=str)
def test_transposed_batches_of_mixed_dtypes(order, dtypes):
    """Views with axes in another order and steps between, of params and of gradients."""

    def view(values):
        return values.transpose(order)[::2, ::-1]

    rules = {"last": "last_two", "largest": "two_largest", "first": (0, 1), "apart": (2, 0)}
    bases = {rule: normal((8, 6, 5, 12), dtypes[0], seed=index) for index, rule in enumerate(rules)}
    groups = [
        {"params": {rule: view(bases[rule])}, "factored_axes": axes, "beta1": 0.9}
        for rule, axes in rules.items()
    ]
    steps = [
        {rule: view(normal((8, 6, 5, 12), dtypes[1], seed=9 * t)) for rule in rules}
        for t in range(1, 6)
    ]
    opt, run = (
        an.Optimizer(groups, convention="numpy", rms_scope="matrix"),
        Run(groups, rms_scope="matrix"),
    )
    assert_same_steps(opt, run, steps, IN_FLOAT32 if np.float32 in dtypes else IN_FLOAT64)


@pytest.mark.parametrize("rms_scope", ["tensor", "matrix"])
@pytest.mark.parametrize("axes", [*PAIRS, "none"], ids=str)
@pytest.mark.parametrize(
    "shape", [(3, 300, 170), (170, 3, 300), (1100, 17, 2), (1, 5, 4000)], ids=str
)
def test_batches_of_more_than_a_block(shape, axes, rms_scope):
    params = {"batched": normal(shape), "beside": normal(5)}
    switches = {"factored_axes": axes, "rms_scope": rms_scope, "beta1": 0.9, "weight_decay": 0.1}
    steps = [
        {name: spread(x.shape, seed=t, smallest=1e-3, largest=10) for name, x in params.items()}
        for t in range(3)
    ]
    opt = an.Optimizer(params, convention="numpy", **switches)
    assert_same_steps(opt, Run(params, **switches), steps)


def test_masks_of_every_kind():
    for mask in (MASK, MASK.get, [name for name, decays in MASK.items() if decays]):
        opt = an.Optimizer(
            tensors.params(), convention="numpy", weight_decay=0.5, weight_decay_mask=mask
        )
        run = Run(opt.params, weight_decay=0.5, weight_decay_mask=MASK)
        assert_same_steps(opt, run, tensors.gradients()[:2])


def test_switches_set_between_steps_and_groups_added():
    """The state, and t, go on; an added tensor begins with its own."""
    params = tensors.params()
    late = {name: params.pop(name) for name in ("tall", "kernel", "scalar")}
    early = {name: params.pop(name) for name in ("stack", "vector", "wide")}
    switches = {"decay_rate": -0.8, "beta1": 0.9, "lr": 0.1}
    groups = [{"params": early}, {"params": params, "factored_axes": "last_two"}]
    opt, run = an.Optimizer(groups, convention="numpy", **switches), Run(groups, **switches)
    steps = tensors.gradients()
    first = [{name: grads[name] for name in opt.names} for grads in steps[:4]]
    assert_same_steps(opt, run, first)

    opt.param_groups[0]["lr"] = 0.2
    run.set(early, lr=0.2)
    changes = {"relative_step": True, "warmup_init": True, "decay_rate": -0.5}
    opt.param_groups[1].update(changes)
    run.set(params, **changes)
    assert_same_steps(opt, run, first)

    group = {"params": late, "factored_axes": "last_two", "maximize": True}
    opt.add_param_group(group)
    run.add({**switches, **group})
    assert_same_steps(opt, run, steps[4:9])

"""What a callable gets: t under a switch's name, t - 1 under the argument of who counts from zero."""

import numpy as np
import pytest

from adafactor_native import Optimizer

# Every argument that takes a callable, and what its first call gets
ARGUMENTS = [
    ("paper", "lr", 1),
    ("paper", "schedule", 1),
    ("paper", "weight_decay", 1),
    ("numpy", "lr", 1),
    ("numpy", "schedule", 1),
    ("numpy", "weight_decay", 1),
    ("torch", "lr", 1),
    ("torch", "schedule", 1),
    ("torch", "weight_decay", 1),
    ("huggingface", "lr", 1),
    ("huggingface", "schedule", 1),
    ("optax", "learning_rate", 0),
    ("optax", "weight_decay_rate", 0),
    ("optax", "lr", 1),
    ("optax", "weight_decay", 1),
    ("optax", "schedule", 1),
    ("keras", "learning_rate", 0),
    ("keras", "weight_decay", 0),
    ("keras", "lr", 1),
    ("keras", "schedule", 1),
    ("t5x", "learning_rate", 0),
    ("t5x", "weight_decay_rate", 0),
    ("t5x", "lr", 1),
    ("t5x", "weight_decay", 1),
    ("t5x", "schedule", 1),
    ("big_vision", "wd", 0),
    ("big_vision", "schedule", 0),
    ("big_vision", "lr", 1),
    ("big_vision", "weight_decay", 1),
]
NEEDED = {
    "t5x": {"learning_rate": 0.1},
    "big_vision": {"lr": 0.1},
    "huggingface": {"relative_step": False, "lr": 0.1},
}


def given(convention, name):
    needed = dict(NEEDED.get(convention, {}))
    if name == "lr":
        needed.pop("learning_rate", None)
    return needed


@pytest.mark.parametrize("in_group", [False, True])
@pytest.mark.parametrize("convention, name, first", ARGUMENTS)
def test_what_the_first_calls_get(convention, name, first, in_group):
    seen = []

    def value(t):
        seen.append(t)
        return 0.5

    arguments = {**given(convention, name), name: value}
    params = {"w": np.ones((2, 3))}
    if in_group:
        opt = Optimizer([{"params": params, **arguments}], convention)
    else:
        opt = Optimizer(params, convention, **arguments)
    for _ in range(3):
        opt.step({"w": np.ones((2, 3))})
    assert sorted(set(seen)) == [first, first + 1, first + 2]


@pytest.mark.parametrize("name", ["lr", "schedule", "weight_decay"])
@pytest.mark.parametrize("convention", ["paper", "optax", "keras", "t5x", "big_vision", "torch"])
def test_a_callable_set_in_a_group_gets_t(convention, name):
    seen = []

    def value(t):
        seen.append(t)
        return 0.5

    opt = Optimizer([np.ones(3)], convention, **NEEDED.get(convention, {}))
    opt.step([np.ones(3)])
    opt.param_groups[0][name] = value
    opt.step([np.ones(3)])
    assert set(seen) == {2}


@pytest.mark.parametrize("beta2", [0.0, 0.5, 0.999, 1 - 1e-9])
@pytest.mark.parametrize("shape", [(3, 4), (5,)])
def test_the_debiased_beta2_makes_means_of_all_gradients_so_far(shape, beta2):
    """v is the mean that zeros began, divided by the weights that gradients have in it."""
    param = np.ones(shape)
    opt = Optimizer([param], "numpy", bias_correction="beta2", beta2=beta2)
    rng = np.random.default_rng(0)
    total, weight = np.zeros(shape), 0.0
    for _ in range(6):
        grad = rng.standard_normal(shape)
        total = beta2 * total + (1 - beta2) * grad**2
        weight = beta2 * weight + (1 - beta2)
        opt.step([grad])
        expected = total / weight
        state = opt.state["0"]
        rtol = 1e-6 if beta2 > 0.9999 else 1e-12  # 1 - beta2**t loses digits
        if len(shape) == 1:
            np.testing.assert_allclose(state["v"], expected, rtol=rtol)
        else:
            np.testing.assert_allclose(state["exp_row"], expected.mean(1), rtol=rtol)
            np.testing.assert_allclose(state["exp_col"], expected.mean(0), rtol=rtol)


def test_the_first_step_under_either_correction():
    """Without a clip the formula of the seed is 1000 times lr, the debiased beta2 is lr itself."""
    moved = {}
    for correction in (False, True, "beta2"):
        param = np.zeros(4)
        opt = Optimizer(
            [param],
            "numpy",
            lr=0.1,
            beta2=0.999,
            bias_correction=correction,
            clip_threshold=None,
            scale_parameter=False,
        )
        opt.step([np.full(4, 2.0)])
        moved[correction] = -param[0] / 0.1
    assert moved[False] == pytest.approx(1000**0.5)
    assert moved[True] == pytest.approx(1000)
    assert moved["beta2"] == pytest.approx(1)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"decay_rate": -0.8}, "bias_correction is 'beta2', must be False with a decay_rate"),
        ({"beta2": 1.0}, r"beta2 is 1.0, must be below 1 with bias_correction"),
        ({"bias_correction": "beta1"}, "bias_correction is 'beta1', must be a bool or 'beta2'"),
    ],
)
def test_the_debiased_beta2_is_of_a_constant(changes, text):
    with pytest.raises(ValueError, match=text):
        Optimizer([np.ones(3)], "numpy", **{"bias_correction": "beta2", **changes})


def test_it_is_part_of_a_state():
    opt = Optimizer([np.ones(3)], "numpy", bias_correction="beta2")
    opt.step([np.ones(3)])
    other = Optimizer([np.ones(3)], "numpy")
    other.load_state_dict(opt.state_dict())
    assert other.param_groups[0]["bias_correction"] == "beta2"

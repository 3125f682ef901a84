"""A name that does not exist is refused with the one that was meant, or with where to look."""

import pickle
import re

import numpy as np
import pytest

import adafactor_native as an

ARGUMENTS = [
    ("paper", "learning_rate", "where it is called 'lr'"),
    ("paper", "rl", "did you mean 'lr'?"),
    ("paper", "weight_decy", "did you mean 'weight_decay'?"),
    ("torch", "clip_treshold", "did you mean 'clip_threshold'?"),
    ("torch", "beta2_deacy", "did you mean 'beta2_decay'?"),
    ("torch", "momentum", "where it is called 'beta1'"),
    ("keras", "clipping_threshold", "where it is called 'clip_threshold'"),
    ("t5x", "wd", "where it is called 'weight_decay_rate'"),
    ("paper", "max_gradnorm", "did you mean 'max_grad_norm'?"),
    ("paper", "xyz", "must be a switch or an argument of that library; help(Optimizer) lists them"),
]


@pytest.mark.parametrize("convention, name, instead", ARGUMENTS)
def test_arguments(convention, name, instead):
    text = f"^{name} is unknown to convention '{convention}', {re.escape(instead)}$"
    with pytest.raises(TypeError, match=text):
        an.Optimizer([np.ones(3)], convention, **{name: 0.5})


def test_an_argument_of_the_whole_model_is_none_of_a_group():
    text = re.escape("params[0]['seed'] is unknown to convention 'paper', must be given to the Opt")
    with pytest.raises(TypeError, match=f"^{text}"):
        an.Optimizer([{"params": [np.ones(3)], "seed": 1}])


@pytest.mark.parametrize(
    "key, instead",
    [("learning_rate", "did you mean 'lr'?"), ("d", "did you mean 'clip_threshold'?")],
)
def test_keys_of_a_group(key, instead):
    group = an.Optimizer([np.ones(3)], "torch").param_groups[0]
    with pytest.raises(KeyError, match=re.escape(f"{key} is no switch, {instead}")):
        group[key] = 0.5


def test_conventions():
    with pytest.raises(ValueError, match="did you mean 'huggingface'"):
        an.Optimizer([np.ones(3)], "hugging_face")


@pytest.mark.parametrize(
    "name, text",
    [
        ("Adafactor", 'Optimizer(params, convention="torch")'),
        ("adafactor_", "module 'adafactor_native' has no attribute 'adafactor_'"),
        ("Optimiser", "did you mean 'Optimizer'?"),
        ("xyz", "module 'adafactor_native' has no attribute 'xyz'"),
    ],
)
def test_names_of_the_package(name, text):
    with pytest.raises(AttributeError, match=re.escape(text)):
        getattr(an, name)


@pytest.mark.parametrize(
    "make, name, text",
    [
        (lambda: an.AdaFactor((2, 3)), "learning_rat", "AdaFactor has no attribute 'learning_rat'"),
        (lambda: an.AdaFactor((2, 3)), "clip_treshold", "did you mean 'clip_threshold'?"),
        (lambda: an.Optimizer([np.ones(3)]), "lr", "opt.param_groups[0]['lr']"),
        (lambda: an.Optimizer([np.ones(3)]), "learning_rate", "opt.param_groups[0]['lr']"),
        (lambda: an.Optimizer([np.ones(3)]), "max_gradnorm", "did you mean 'max_grad_norm'?"),
        (lambda: an.Optimizer([np.ones(3)]), "xyz", "Optimizer has no attribute 'xyz'"),
    ],
)
def test_attributes_cannot_be_set(make, name, text):
    for opt in (make(), pickle.loads(pickle.dumps(make()))):
        with pytest.raises(AttributeError, match=re.escape(text)):
            setattr(opt, name, 0.5)
        with pytest.raises(AttributeError):
            getattr(opt, name)


@pytest.mark.parametrize("old, new", [(True, "'float32'"), (False, "None")])
def test_masters_of_older_versions(old, new):
    with pytest.raises(TypeError, match=f"^masters is {old}, must be {new}, as that is called sin"):
        an.Optimizer([np.ones(3)], masters=old)


def test_the_convention_and_the_eps_mode_that_were_called_seed():
    opt = an.Optimizer([np.ones(3)], "seed")
    assert opt.convention == "numpy"
    opt = an.Optimizer([np.ones(3)], "paper", eps_mode="seed")
    assert opt.param_groups[0]["eps_mode"] == "both"
    opt.param_groups[0]["eps_mode"] = "root"
    opt.param_groups[0]["eps_mode"] = "seed"
    assert opt.param_groups[0]["eps_mode"] == "both"


def test_repr_of_a_group_shows_what_is_not_the_conventions_default():
    group = an.Optimizer([np.ones((2, 3))], "torch", lr=0.5).param_groups[0]
    assert repr(group) == "<ParamGroup(convention='torch', lr=0.5), tensors=1, elements=6>"
    group["weight_decay"] = 0.25
    assert "lr=0.5, weight_decay=0.25)" in repr(group)

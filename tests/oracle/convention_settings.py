"""What each convention is, as switches of switches_reference, from that peer's own argument names.

Written from the peers' sources, apart from adafactor_native's table of the same, so that a mistake
in either is seen. Switches that an argument list does not have may be given besides, by their own
names.
"""

from __future__ import annotations


def numpy(**switches):
    return switches


def paper(
    *,
    lr=1e-2,
    relative_step=True,
    decay_rate=-0.8,
    beta2=1.0,
    eps=1e-30,
    eps_scale=1e-3,
    **switches,
):
    return {
        "lr": lr,
        "relative_step": relative_step,
        "decay_rate": decay_rate,
        "beta2": beta2,
        "eps": eps,
        "eps_mode": "grad_squared",
        "eps_scale": eps_scale,
        **switches,
    }


def huggingface(
    *,
    lr=None,
    eps=(1e-30, 1e-3),
    clip_threshold=1.0,
    decay_rate=-0.8,
    beta1=None,
    weight_decay=0.0,
    scale_parameter=True,
    relative_step=True,
    warmup_init=False,
    **switches,
):
    return {
        "lr": 1e-2 if relative_step else lr,
        "eps": eps[0],
        "eps_scale": eps[1],
        "eps_mode": "grad_squared",
        "factored_axes": "last_two",
        "clip_threshold": clip_threshold,
        "decay_rate": decay_rate,
        "beta2": 1.0,
        "beta1": beta1,
        "weight_decay": weight_decay,
        "weight_decay_mode": "step",
        "scale_parameter": scale_parameter,
        "relative_step": relative_step,
        "warmup_init": warmup_init,
        **switches,
    }


def torch(
    *,
    lr=1e-2,
    beta2_decay=-0.8,
    eps=(None, 1e-3),
    weight_decay=0.0,
    d=1.0,
    foreach=None,
    maximize=False,
    **switches,
):
    return {
        "lr": lr,
        "decay_rate": beta2_decay,
        "beta2": 1.0,
        "eps": eps[0],
        "eps_scale": eps[1],
        "eps_mode": "clamp",
        "factored_axes": "last_two",
        "weight_decay": weight_decay,
        "weight_decay_mode": "lr",
        "clip_threshold": d,
        "relative_step": True,
        "maximize": maximize,
        **switches,
    }


def optax(
    *,
    learning_rate=None,
    min_dim_size_to_factor=128,
    decay_rate=0.8,
    decay_offset=0,
    multiply_by_parameter_scale=True,
    clipping_threshold=1.0,
    momentum=None,
    dtype_momentum="float32",
    weight_decay_rate=None,
    eps=1e-30,
    factored=True,
    weight_decay_mask=None,
    **switches,
):
    return {
        "lr": 1.0 if learning_rate is None else counted_from_0(learning_rate),
        "factored_axes": "two_largest" if factored else "none",
        "min_dim_size_to_factor": min_dim_size_to_factor,
        "decay_rate": -decay_rate,
        "decay_offset": decay_offset,
        "beta2": 1.0,
        "t_scope": "model",
        "scale_parameter": multiply_by_parameter_scale,
        "eps_scale": 1e-3,
        "clip_threshold": clipping_threshold,
        "beta1": momentum,
        "weight_decay": weight_decay_rate or 0.0,
        "weight_decay_mode": "alone",
        "weight_decay_mask": weight_decay_mask,
        "eps": eps,
        "eps_mode": "grad_squared",
        **switches,
    }


def keras(
    *,
    learning_rate=1e-3,
    beta_2_decay=-0.8,
    epsilon_1=1e-30,
    epsilon_2=1e-3,
    clip_threshold=1.0,
    relative_step=True,
    weight_decay=None,
    **switches,
):
    return {
        "lr": counted_from_0(learning_rate),
        "decay_rate": beta_2_decay,
        "beta2": 1.0,
        "t_scope": "model",
        "eps": epsilon_1,
        "eps_mode": "grad_squared",
        "eps_scale": epsilon_2,
        "factored_axes": "last_two",
        "clip_threshold": clip_threshold,
        "relative_step": relative_step,
        "weight_decay": weight_decay or 0.0,
        "weight_decay_mode": "lr",
        "scale_after_decay": True,
        **switches,
    }


def t5x(
    *,
    learning_rate,
    factored=True,
    multiply_by_parameter_scale=True,
    beta1=None,
    decay_rate=0.8,
    step_offset=0,
    clipping_threshold=1.0,
    weight_decay_rate=None,
    min_dim_size_to_factor=128,
    epsilon1=1e-30,
    epsilon2=1e-3,
    dtype_momentum="float32",
    weight_decay_rate_lr_exponent=None,
    **switches,
):
    if weight_decay_rate_lr_exponent and not weight_decay_rate:
        weight_decay_rate = 1.0
    return {
        "lr": counted_from_0(learning_rate),
        "factored_axes": "two_largest" if factored else "none",
        "min_dim_size_to_factor": min_dim_size_to_factor,
        "rms_scope": "matrix",
        "decay_rate": -decay_rate,
        "decay_offset": step_offset,
        "beta2": 1.0,
        "t_scope": "model",
        "scale_parameter": multiply_by_parameter_scale,
        "eps_scale": epsilon2,
        "eps": epsilon1,
        "eps_mode": "grad_squared",
        "clip_threshold": clipping_threshold,
        "beta1": beta1,
        "weight_decay": weight_decay_rate or 0.0,
        "weight_decay_mode": "alone",
        "weight_decay_lr_exponent": weight_decay_rate_lr_exponent,
        **switches,
    }


def big_vision(
    *,
    lr,
    wd=0.0,
    schedule=None,
    min_dim_size_to_factor=32,
    decay_rate=0.8,
    decay_offset=0,
    beta2_cap=0.999,
    clipping_threshold=None,
    momentum=0.9,
    dtype_momentum=None,
    eps=1e-30,
    **switches,
):
    return {
        "lr": lr,
        "schedule": 1.0 if schedule is None else counted_from_0(schedule),
        "weight_decay": wd,
        "weight_decay_mode": "schedule",
        "factored_axes": "two_largest",
        "min_dim_size_to_factor": min_dim_size_to_factor,
        "decay_rate": -decay_rate,
        "decay_offset": decay_offset,
        "beta2": beta2_cap,
        "t_scope": "model",
        "scale_parameter": False,
        "clip_threshold": clipping_threshold,
        "beta1": momentum,
        "momentum_of": "u",
        "eps": eps,
        "eps_mode": "grad_squared",
        **switches,
    }


def counted_from_0(schedule):
    """Return the function of t = 1, 2, ... for one of a count of steps taken: 0, 1, ..."""
    return (lambda t: schedule(t - 1)) if callable(schedule) else schedule


SETTINGS = {
    convention.__name__: convention
    for convention in (numpy, paper, huggingface, torch, optax, keras, t5x, big_vision)
}

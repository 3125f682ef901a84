"""optax's Adafactor, and what big_vision and t5x make of its parts.

`run(groups, steps, **options)` as in torch_optimizers, with one group only.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax as ox

# Nearly all of the time is XLA's, compiling: a fifth of it so.
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def optax(groups, steps, **options):
    return run(ox.adafactor(**options), groups, steps, options.get("decay_offset", 0))


def big_vision(
    groups,
    steps,
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
    eps=1e-30,
):
    """The parts that big_vision's optax.py chains; momentum in param's dtype, as here."""

    def beta2_at(count, exponent):
        return jnp.minimum(beta2_cap, 1 - jnp.float32(count + 1) ** -exponent)

    parts = [
        ox.scale_by_factored_rms(
            decay_rate=decay_rate,
            step_offset=decay_offset,
            min_dim_size_to_factor=min_dim_size_to_factor,
            epsilon=eps,
            decay_rate_fn=beta2_at,
        ),
        None if clipping_threshold is None else ox.clip_by_block_rms(clipping_threshold),
        None if momentum is None else ox.ema(momentum, debias=False),
        ox.scale(lr),
        ox.add_decayed_weights(wd),
        None if schedule is None else ox.scale_by_schedule(schedule),
        ox.scale(-1),
    ]
    return run(chain(parts), groups, steps, decay_offset)


def t5x(
    groups,
    steps,
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
    weight_decay_rate_lr_exponent=None,
):
    """t5x's step as parts of optax; its BATCH axes are all but the two largest.

    It treats each matrix along them as a tensor of its own, and so they are handed to optax.
    """
    decay = weight_decay_rate
    if weight_decay_rate_lr_exponent is not None:

        def decay(count):
            lr = learning_rate(count) if callable(learning_rate) else learning_rate
            return (weight_decay_rate or 1.0) * lr**weight_decay_rate_lr_exponent

    parts = [
        ox.scale_by_factored_rms(
            factored, decay_rate, step_offset, min_dim_size_to_factor, epsilon1
        ),
        None if clipping_threshold is None else ox.clip_by_block_rms(clipping_threshold),
        ox.scale_by_learning_rate(learning_rate, flip_sign=False),
        ox.scale_by_param_block_rms(epsilon2) if multiply_by_parameter_scale else None,
        None if beta1 is None else ox.ema(beta1, debias=False),
        None if decay is None else ox.add_decayed_weights(decay),
        ox.scale(-1),
    ]
    least = min_dim_size_to_factor if factored else np.inf
    [group] = groups
    after = run(
        chain(parts),
        [{"params": cut(group["params"], least)}],
        [cut(grads, least) for grads in steps],
        step_offset,
    )
    return [joined(pieces, group["params"], least) for pieces in after]


def chain(parts):
    return ox.chain(*(part for part in parts if part is not None))


def run(chained, groups, steps, offset):
    """Take the steps of a chain that begins with scale_by_factored_rms.

    Before its count reaches the offset, that part takes a power of a negative number. What is meant,
    statistics that begin at the offset, is had by having the count there until then.
    """
    [group] = groups
    arrays = group["params"]
    with jax.enable_x64(jax.tree.leaves(arrays)[0].dtype == np.float64):
        params = jax.tree.map(jnp.asarray, arrays)
        state = chained.init(params)
        after = []
        for count, grads in enumerate(steps):
            params, state = advance(chained, params, state, grads, max(count, offset))
            after.append(jax.tree.map(np.asarray, params))
    return after


@functools.partial(jax.jit, static_argnums=0, compiler_options=COMPILER_OPTIONS)
def advance(chained, params, state, grads, count):
    statistics, *others = state
    statistics = statistics._replace(count=jnp.int32(count))
    updates, state = chained.update(grads, (statistics, *others), params)
    return ox.apply_updates(params, updates), state


def cut(arrays, least):
    """Return name -> list of the matrices of an array that is factored, else of itself."""
    return {name: list(matrices(array, least)) for name, array in arrays.items()}


def joined(pieces, arrays, least):
    """Return name -> array, put together again."""
    whole = {name: np.empty_like(array) for name, array in arrays.items()}
    for name, array in whole.items():
        for view, piece in zip(matrices(array, least), pieces[name]):
            view[...] = piece
    return whole


def matrices(array, least):
    """Yield a view for each index of the batch axes: all but the two largest, if factored."""
    by_size = [int(axis) for axis in np.argsort(array.shape, kind="stable")]
    factored = array.ndim >= 2 and array.shape[by_size[-2]] >= least
    batch = sorted(by_size[:-2]) if factored else []
    front = np.moveaxis(array, batch, range(len(batch)))
    for index in np.ndindex(front.shape[: len(batch)]):
        yield front[(*index, ...)]

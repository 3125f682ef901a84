"""A small language model in plain NumPy: a decoder-only transformer, forward and backward by hand.

A layer is a function of its parameters and its input. It returns its output and a function `back`,
which takes the gradient of the loss in that output, files the gradients of the layer's parameters
under their names, and returns the gradient in the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = dict[str, Array]  # parameters, or their gradients, by name
Back = Callable[[Array, Arrays], Array]
Layer = tuple[Array, Back]

VARIANCE_FLOOR = 1e-5
GELU_SLOPE = 1.702  # x * logistic(1.702 x), from Hendrycks & Gimpel 2016, arXiv:1606.08415


@dataclass(frozen=True)
class Size:
    characters: int  # in the alphabet
    context: int  # characters that a prediction sees at the most
    width: int = 128
    heads: int = 4
    blocks: int = 2

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        return 4 * self.width


def initial_params(size: Size, rng: np.random.Generator, dtype: Any = np.float32) -> Arrays:
    """Weights that keep the size of what they are given, sums of squares equal; biases of zero."""

    def normal(*shape: int, deviation: float) -> Array:
        return (rng.standard_normal(shape) * deviation).astype(dtype)

    def ones_and_zeros(name: str) -> Arrays:
        return {f"{name}.gain": np.ones(width, dtype), f"{name}.bias": np.zeros(width, dtype)}

    width, hidden = size.width, size.hidden
    heads_in, heads_out = (size.heads, width, size.head_width), (size.heads, size.head_width, width)
    quiet = width**-0.5 / math.sqrt(2 * size.blocks)  # of what is added to the stream

    params = {
        "characters": normal(size.characters, width, deviation=0.1),
        "positions": normal(size.context, width, deviation=0.1),
    }
    for k in range(size.blocks):
        block = f"block{k}"
        params |= ones_and_zeros(f"{block}.attention.norm")
        for role in ("query", "key", "value"):
            params[f"{block}.attention.{role}"] = normal(*heads_in, deviation=width**-0.5)
        params[f"{block}.attention.out"] = normal(*heads_out, deviation=quiet)
        params[f"{block}.attention.out.bias"] = np.zeros(width, dtype)
        params |= ones_and_zeros(f"{block}.mlp.norm")
        params[f"{block}.mlp.up"] = normal(width, hidden, deviation=width**-0.5)
        params[f"{block}.mlp.up.bias"] = np.zeros(hidden, dtype)
        params[f"{block}.mlp.down"] = normal(hidden, width, deviation=quiet / 2)
        params[f"{block}.mlp.down.bias"] = np.zeros(width, dtype)
    params |= ones_and_zeros("norm")
    params["output"] = normal(width, size.characters, deviation=width**-0.5)
    params["output.bias"] = np.zeros(size.characters, dtype)
    return params


class Arriving(dict[str, Array]):
    """Gradients that tell of each one as soon as it is there, complete."""

    def __init__(self, arrived: Callable[[str, Array], object]) -> None:
        super().__init__()
        self.arrived = arrived

    def __setitem__(self, name: str, grad: Array) -> None:
        super().__setitem__(name, grad)
        self.arrived(name, grad)


def loss_and_grads(
    params: Arrays,
    text: Array,
    following: Array,
    arrived: Callable[[str, Array], object] | None = None,
) -> tuple[float, Arrays]:
    """Mean cross-entropy in nats per character, and its gradient in every parameter.

    Parameters
    ----------
    params : dict of ndarray
        From `initial_params`.
    text, following : ndarrays of int, shape (batch, length)
        Indices into the alphabet: what is read, and the character that follows each; length is at
        most the context.
    arrived : callable or None
        Called with a parameter's name and gradient in the line of the backward pass that makes it.
    """
    scores, back = model(params, text)
    log_likelihoods = log_softmax(scores)
    grad_scores = np.exp(log_likelihoods)
    grad_scores -= one_hot(following, scores.shape[-1], scores.dtype)
    grad_scores /= following.size
    grads: Arrays = {} if arrived is None else Arriving(arrived)
    back(grad_scores, grads)
    return mean_loss(log_likelihoods, following), {name: grads[name] for name in params}


def loss(params: Arrays, text: Array, following: Array) -> float:
    return mean_loss(log_softmax(model(params, text)[0]), following)


def model(params: Arrays, text: Array) -> Layer:
    """Scores of each character to come next, shape (batch, length, characters)."""
    stream, back_embedding = embedding(params, text)
    backs = []
    blocks = sum(name.endswith("attention.query") for name in params)
    for k in range(blocks):
        for branch in (attention, mlp):
            added, back = branch(params, f"block{k}.{branch.__name__}", stream)
            stream = stream + added
            backs.append(back)
    normal, back_norm = norm(params, "norm", stream)
    scores, back_output = affine(params, "output", normal)

    def back_model(grad_scores: Array, grads: Arrays) -> Array:
        grad = back_norm(back_output(grad_scores, grads), grads)
        for back in reversed(backs):
            grad = grad + back(grad, grads)
        return back_embedding(grad, grads)

    return scores, back_model


def embedding(params: Arrays, text: Array) -> Layer:
    characters, positions = params["characters"], params["positions"]
    length = text.shape[1]

    def back(grad: Array, grads: Arrays) -> Array:
        chosen = one_hot(text, len(characters), grad.dtype)
        grads["characters"] = np.tensordot(chosen, grad, axes=((0, 1), (0, 1)))
        of_positions = np.zeros_like(positions)
        of_positions[:length] = grad.sum(axis=0)
        grads["positions"] = of_positions
        return grad  # text itself has none

    return characters[text] + positions[:length], back


def attention(params: Arrays, name: str, stream: Array) -> Layer:
    """Every head looks back over the text: softmax(query key^T / sqrt(head_width)) value.

    With B texts of L characters and H heads of width K, query, key and value are (B, H, L, K), and
    the weights of what is looked at (B, H, L, L).
    """
    x, back_norm = norm(params, f"{name}.norm", stream)
    query, back_query = to_heads(params, f"{name}.query", x)
    key, back_key = to_heads(params, f"{name}.key", x)
    value, back_value = to_heads(params, f"{name}.value", x)

    scale = query.shape[-1] ** -0.5
    looks = query @ key.swapaxes(-1, -2)
    looks *= scale
    length = stream.shape[1]
    looks[..., np.triu(np.ones((length, length), bool), k=1)] = -np.inf  # not yet written
    looks -= looks.max(axis=-1, keepdims=True)
    np.exp(looks, out=looks)
    looks /= looks.sum(axis=-1, keepdims=True)
    seen, back_out = from_heads(params, f"{name}.out", looks @ value)

    def back(grad: Array, grads: Arrays) -> Array:
        grad_seen = back_out(grad, grads)
        grad_value = looks.swapaxes(-1, -2) @ grad_seen
        grad_looks = grad_seen @ value.swapaxes(-1, -2)
        grad_looks *= looks
        grad_looks -= looks * grad_looks.sum(axis=-1, keepdims=True)
        grad_looks *= scale
        grad_query = grad_looks @ key
        grad_key = grad_looks.swapaxes(-1, -2) @ query
        grad_x = back_query(grad_query, grads)
        grad_x += back_key(grad_key, grads)
        grad_x += back_value(grad_value, grads)
        return back_norm(grad_x, grads)

    return seen, back


def to_heads(params: Arrays, name: str, x: Array) -> Layer:
    """A projection per head, (H, width, K): from (B, L, width) to (B, H, L, K)."""
    weights = params[name]

    def back(grad: Array, grads: Arrays) -> Array:
        grads[name] = np.tensordot(x, grad, axes=((0, 1), (0, 2))).swapaxes(0, 1)
        return np.tensordot(grad, weights, axes=((1, 3), (0, 2)))

    return np.tensordot(x, weights, axes=(2, 1)).swapaxes(1, 2), back


def from_heads(params: Arrays, name: str, x: Array) -> Layer:
    """The sum of a projection per head, (H, K, width): from (B, H, L, K) to (B, L, width)."""
    weights, bias = params[name], params[f"{name}.bias"]

    def back(grad: Array, grads: Arrays) -> Array:
        grads[name] = np.tensordot(x, grad, axes=((0, 2), (0, 1)))
        grads[f"{name}.bias"] = grad.sum(axis=(0, 1))
        return np.tensordot(grad, weights, axes=(2, 2)).transpose(0, 2, 1, 3)

    return np.tensordot(x, weights, axes=((1, 3), (0, 1))) + bias, back


def mlp(params: Arrays, name: str, stream: Array) -> Layer:
    x, back_norm = norm(params, f"{name}.norm", stream)
    hidden, back_up = affine(params, f"{name}.up", x)
    bent, back_gelu = gelu(hidden)
    added, back_down = affine(params, f"{name}.down", bent)

    def back(grad: Array, grads: Arrays) -> Array:
        for back_layer in (back_down, back_gelu, back_up, back_norm):
            grad = back_layer(grad, grads)
        return grad

    return added, back


def affine(params: Arrays, name: str, x: Array) -> Layer:
    weights, bias = params[name], params[f"{name}.bias"]

    def back(grad: Array, grads: Arrays) -> Array:
        grads[name] = np.tensordot(x, grad, axes=((0, 1), (0, 1)))
        grads[f"{name}.bias"] = grad.sum(axis=(0, 1))
        return np.tensordot(grad, weights, axes=(2, 1))

    return np.tensordot(x, weights, axes=1) + bias, back


def norm(params: Arrays, name: str, x: Array) -> Layer:
    """Each character's numbers, less their mean, over their deviation; then a gain and a bias."""
    gain, bias = params[f"{name}.gain"], params[f"{name}.bias"]
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + VARIANCE_FLOOR)
    normal = centred / deviation

    def back(grad: Array, grads: Arrays) -> Array:
        grads[f"{name}.gain"] = (grad * normal).sum(axis=(0, 1))
        grads[f"{name}.bias"] = grad.sum(axis=(0, 1))
        grad = grad * gain
        along = (grad * normal).mean(axis=-1, keepdims=True)
        grad -= grad.mean(axis=-1, keepdims=True)
        grad -= normal * along
        grad /= deviation
        return grad

    return normal * gain + bias, back


def gelu(x: Array) -> Layer:
    logistic = np.tanh(x * (GELU_SLOPE / 2))  # of GELU_SLOPE * x: never overflows
    logistic += 1
    logistic *= 0.5
    y = x * logistic

    def back(grad: Array, grads: Arrays) -> Array:
        slope = 1 - logistic
        slope *= y
        slope *= GELU_SLOPE
        slope += logistic
        slope *= grad
        return slope

    return y, back


def log_softmax(scores: Array) -> Array:
    scores = scores - scores.max(axis=-1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    return scores


def mean_loss(log_likelihoods: Array, following: Array) -> float:
    right = np.take_along_axis(log_likelihoods, following[..., None], axis=-1)
    return -float(right.mean(dtype=np.float64))


def one_hot(indices: Array, characters: int, dtype: Any) -> Array:
    ones: Array = np.eye(characters, dtype=dtype)[indices]
    return ones

"""One array, stepped by an AdaFactor or by an Optimizer, behind one interface.

What both classes have to do alike is tested once, of each: such a test takes the fixture `kind`.
"""

import copy
import hashlib

import numpy as np

import adafactor_native as an
from arrays import normal

_STATE = ("exp_row", "exp_col", "v")


class _OneArray:
    """What the two have in common.

    Attributes
    ----------
    opt : AdaFactor or Optimizer
    param : ndarray
    state : dict of str to ndarray
        The arrays that there are.
    """

    def __init__(self, opt):
        self.opt = opt

    t = property(lambda self: self.opt.t)
    skipped = property(lambda self: self.opt.skipped)

    def digest(self):
        """SHA-256 of param, state and t; the same of both classes."""
        sha = hashlib.sha256(self.param.tobytes())
        for kind in _STATE:
            sha.update(self.state[kind].tobytes() if kind in self.state else b"-")
        sha.update(np.int64(self.t).tobytes())
        return sha.hexdigest()


class ByAdaFactor(_OneArray):
    param_shown, grad_shown = "param", "grad"

    def __init__(self, param, **hyper):
        super().__init__(an.AdaFactor(param.shape, **hyper))
        self.param = param

    @classmethod
    def of(cls, opt, param):
        """Return a run of an AdaFactor that there is."""
        run = object.__new__(cls)
        run.opt, run.param = opt, param
        return run

    @property
    def state(self):
        arrays = ((kind, getattr(self.opt, kind)) for kind in _STATE)
        return {kind: array for kind, array in arrays if array is not None}

    def step(self, grad):
        assert self.opt.update(self.param, grad) is self.param

    def step_another(self, param, grad):
        """Take a step, as the next one, of another array in the place of param."""
        self.opt.update(param, grad)

    def param_changed(self):
        self.opt.param_changed()

    def get(self, name):
        return getattr(self.opt, name)

    def set(self, **values):
        for name, value in values.items():
            setattr(self.opt, name, value)

    def __copy__(self):
        return self.of(copy.copy(self.opt), self.param.copy())


class ByOptimizer(_OneArray):
    param_shown, grad_shown = "params['0']", "grads['0']"
    # The name that AdaFactor's array has where random bits depend on it is "0".
    # Of the optimizer; all others are the group's.
    OPTIONS = ("nonfinite", "num_threads", "seed", "carry_param_rms")

    def __init__(self, param, **hyper):
        super().__init__(an.Optimizer({"0": param}, convention="numpy", **hyper))

    @property
    def param(self):
        return self.opt.params["0"]

    @property
    def state(self):
        return self.opt.state["0"]

    def step(self, grad):
        self.opt.step({"0": grad})

    def step_another(self, param, grad):
        an.Optimizer({"0": param}, convention="numpy").step({"0": grad})

    def param_changed(self):
        self.opt.params_changed()

    def get(self, name):
        return getattr(self.opt, name) if name in self.OPTIONS else self.opt.param_groups[0][name]

    def set(self, **values):
        for name, value in values.items():
            if name in self.OPTIONS:
                setattr(self.opt, name, value)
            else:
                self.opt.param_groups[0][name] = value

    def __copy__(self):
        twin = object.__new__(ByOptimizer)
        twin.opt = copy.copy(self.opt)
        return twin


KINDS = {"AdaFactor": ByAdaFactor, "Optimizer": ByOptimizer}


def digest(opt, param):
    """SHA-256 of an array, in C order, and of all that its AdaFactor remembers."""
    sha = hashlib.sha256(param.tobytes())
    for part in (opt.exp_row, opt.exp_col, opt.v, np.int64(opt.t)):
        sha.update(b"-" if part is None else part.tobytes())
    return sha.hexdigest()


def digest_of_model(opt):
    """SHA-256 of all that steps of an Optimizer change: params, state and counts."""
    sha = hashlib.sha256(repr((opt.t, opt.skipped, opt.counts.tolist())).encode())
    for name, param in opt.params.items():
        for array in (param, *opt.state[name].values()):
            sha.update(array.tobytes())
    return sha.hexdigest()


def digest_of_run(threads=None, kind="AdaFactor", shape=(1031, 517), steps=2):
    """Take steps in float32, on as many threads, and return the digest at the end."""
    run = KINDS[kind](normal(shape, np.float32, seed=1), num_threads=threads)
    for t in range(steps):
        run.step(normal(shape, np.float32, seed=2 + t))
    return run.digest()

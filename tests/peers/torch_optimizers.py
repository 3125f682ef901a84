"""Optimizers of PyTorch's kind at work: `run(groups, steps, **options)` of each library.

groups are dicts of "params" (name -> array) and of options; steps are name -> gradient or None. An
lr may be a function of t. Returned are the parameters after each step.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

import torch


def torch_optim(groups, steps, **options):
    return run(torch.optim.Adafactor, groups, steps, **options)


def huggingface(groups, steps, **options):
    optimization = importlib.import_module("transformers.optimization")
    return run(optimization.Adafactor, groups, steps, **options)


def timm(groups, steps, **options):
    return run(timm_optimizer("adafactor").Adafactor, groups, steps, **options)


def timm_big_vision(groups, steps, **options):
    """Momentum in param's dtype, as here, rather than in bfloat16."""
    optimizer = timm_optimizer("adafactor_bv").AdafactorBigVision
    return run(optimizer, groups, steps, momentum_dtype=dtype_of(groups), **options)


def pytorch_optimizer(groups, steps, **options):
    """Momentum in param's dtype, as here, rather than in bfloat16."""
    module = importlib.import_module("pytorch_optimizer.optimizer.adafactor")
    return run(module.AdaFactor, groups, steps, momentum_dtype=dtype_of(groups), **options)


def run(optimizer_class, groups, steps, **options):
    tensors, torch_groups, schedules = {}, [], []
    for group in groups:
        mine = {name: torch.from_numpy(param.copy()) for name, param in group["params"].items()}
        tensors.update(mine)
        settings = {**options, **group}
        schedules.append(settings.get("lr"))
        torch_groups.append({**at_first_step(settings), "params": list(mine.values())})
    optimizer = optimizer_class(torch_groups, **at_first_step(options))

    after = []
    for t, grads in enumerate(steps, 1):
        for group, schedule in zip(optimizer.param_groups, schedules):
            if callable(schedule):
                group["lr"] = schedule(t)
        for name, grad in grads.items():
            tensors[name].grad = None if grad is None else torch.from_numpy(grad.copy())
        optimizer.step()
        after.append({name: tensor.numpy().copy() for name, tensor in tensors.items()})
    return after


def at_first_step(options):
    return {name: value(1) if callable(value) else value for name, value in options.items()}


def dtype_of(groups):
    return torch.from_numpy(next(iter(groups[0]["params"].values()))).dtype


def timm_optimizer(module):
    """Import one module of timm.optim, but nothing else that these packages import.

    All of timm needs torchvision's operators, which torchvision's wheels bring for the CUDA build
    of torch only; its optimizers need torch.
    """
    for package in ("timm", "timm.optim"):
        if package not in sys.modules:
            spec = importlib.util.find_spec(package)
            sys.modules[package] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"timm.optim.{module}")

"""What training in half precision keeps in memory: params, gradients, state, and what a step borrows.

`python bench/half_memory.py` writes JSON and a table to bench/output/. Every row is measured in a
process of its own, where nobody else's garbage can serve it as memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from adafactor_native import Optimizer
from contenders.half import in_type
from contenders.peers import absent_packages
from harness import TIMED_LR
from machine import describe_run
from memory import ALLOCATOR, forget_peak, process_bytes
from models import MODELS, Shape
from names import TORCH, TORCH_ADAMW, TORCH_FOREACH, TRANSFORMERS
from output import OUTPUT, write_json
from problems import Array, elements
from report import write_report
from training_memory import KEPT

UNMEASURED_STEPS = 2  # in which libraries make their state and all start their threads


@dataclass
class Training:
    """An optimizer at work, and what it was given."""

    step: Callable[[], Any]
    state_bytes: Callable[[], int]
    copies: Sequence[Array] = ()


Start = Callable[[list[Array], list[Array]], Training]  # on these parameters and gradients


@dataclass(frozen=True)
class Case:
    optimizer: str
    param: str
    grad: str
    start: Start


def native(**options: Any) -> Start:
    def start(params: list[Array], grads: list[Array]) -> Training:
        optimizer = Optimizer(params, "numpy", lr=TIMED_LR, **options)
        return Training(partial(optimizer.step, grads), lambda: optimizer.memory.total)

    return start


def native_with_copies(params: list[Array], grads: list[Array]) -> Training:
    copies = in_type(params, "bfloat16")
    return replace(native(copies=copies)(params, grads), copies=copies)


def torch_adafactor(foreach: bool) -> Any:
    return import_module("contenders.torch_optim").adafactor(foreach)


def torch_adamw() -> Any:
    return import_module("contenders.torch_optim").adamw


def transformers_adafactor() -> Any:
    return import_module("contenders.transformers_adafactor").adafactor


def of_torch(load: Callable[[], Any]) -> Start:
    """On the memory of NumPy's arrays, by what a contender makes its optimizer with."""

    def start(params: list[Array], grads: list[Array]) -> Training:
        tensors = [tensor_on(param) for param in params]
        for tensor, grad in zip(tensors, grads):
            tensor.grad_dtype = None
            tensor.grad = tensor_on(grad)
        optimizer = load()(tensors, TIMED_LR)
        return Training(optimizer.step, lambda: bytes_of_state(optimizer))

    return start


def tensor_on(array: Array) -> Any:
    torch: Any = import_module("torch")
    if array.dtype == np.float32:
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)


def bytes_of_state(optimizer: Any) -> int:
    kept = [value for state in optimizer.state.values() for value in state.values()]
    return sum(getattr(value, "nbytes", 0) for value in kept)


OURS = [
    Case("Optimizer", "float32", "float32", native()),
    Case("Optimizer", "float32", "bfloat16", native()),
    Case("Optimizer, copies", "float32", "bfloat16", native_with_copies),
    Case("Optimizer", "bfloat16", "bfloat16", native()),
    Case("Optimizer, stochastic", "bfloat16", "bfloat16", native(rounding="stochastic")),
    Case("Optimizer, masters", "bfloat16", "bfloat16", native(masters="float32")),
    Case("Optimizer, split", "bfloat16", "bfloat16", native(masters="split")),
]
OF_TORCH = [
    Case(optimizer, param, grad, of_torch(load))
    for optimizer, load in (
        (TORCH, partial(torch_adafactor, foreach=False)),
        (TORCH_FOREACH, partial(torch_adafactor, foreach=True)),
        (TRANSFORMERS, transformers_adafactor),
        (TORCH_ADAMW, torch_adamw),
    )
    for param, grad in (("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16"))
    if (optimizer, param, grad) != (TORCH_ADAMW, "float32", "bfloat16")
]
CASES = OURS + OF_TORCH


def measured(case: Case, shapes: list[Shape]) -> dict[str, int]:
    """Bytes of what is kept and of what a step borrows, in this process."""
    rng = np.random.default_rng(0)
    params, grads = (
        [rng.standard_normal(shape, np.float32).astype(dtype) for shape in shapes]
        for dtype in (case.param, case.grad)
    )
    training = case.start(params, grads)
    for _ in range(UNMEASURED_STEPS):
        training.step()
    forget_peak()
    before = process_bytes("VmRSS")
    training.step()
    borrowed = process_bytes("VmHWM") - before
    kept = (*map(bytes_of, (params, training.copies, grads)), training.state_bytes(), borrowed)
    return dict(zip(KEPT, kept))


def bytes_of(arrays: Sequence[Array]) -> int:
    return sum(array.nbytes for array in arrays)


def in_own_process(case: Case, model: str) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, __file__, "--model", model, "--case", str(CASES.index(case))],
        env={**os.environ, **ALLOCATOR},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    names = {"optimizer": case.optimizer, "param": case.param, "gradient": case.grad}
    return {**names, "bytes": json.loads(run.stdout)}


def measure(model: str) -> dict[str, Any]:
    absent = absent_packages()
    cases = OURS + [case for case in OF_TORCH if not is_missing(case, absent)]
    shapes = list(MODELS[model]().values())
    return {
        **describe_run(),
        "absent": absent,
        "model": {"name": model, "tensors": len(shapes), "size": sum(map(elements, shapes))},
        "memory": [in_own_process(case, model) for case in tqdm(cases, desc="memory")],
    }


def is_missing(case: Case, absent: list[str]) -> bool:
    return "torch" in absent or (case.optimizer == TRANSFORMERS and "transformers" in absent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="GPT-2 small")
    parser.add_argument("--output", type=Path, default=OUTPUT / "half-memory.json", metavar="JSON")
    parser.add_argument("--case", type=int, help="measure one row alone and print its bytes")
    arguments = parser.parse_args()
    if arguments.case is not None:
        print(json.dumps(measured(CASES[arguments.case], list(MODELS[arguments.model]().values()))))
        return
    write_json(arguments.output, measure(arguments.model))
    written = write_report(arguments.output)
    print(written.read_text(encoding="utf-8"))
    print(f"numbers: {arguments.output}, table: {written}")


if __name__ == "__main__":
    main()

"""The table of what training a model keeps in memory, from the JSON of half_memory.py."""

from __future__ import annotations

from typing import Any

from markdown import circumstances, mebibytes, table

KEPT = ("params", "copies", "gradients", "state", "borrowed")
NOTE = (
    "MiB, by the sizes of the arrays; borrowed is how far the process is in its third step, at the "
    "peak, above what it held before. torch refuses bfloat16 gradients beside float32 parameters "
    "unless `param.grad_dtype` is set, as it is here; its AdamW then raises an error, and is left out. "
    'Optimizer has `convention="numpy"`. AdamW alone has a first moment here.'
)


def report(run: dict[str, Any]) -> str:
    model = run["model"]
    return (
        f"# Memory of {model['name']}, {model['size'] / 1e6:.1f} M parameters in "
        f"{model['tensors']} tensors\n\n{in_short(run)}\n\n"
        f"{run['date']}. {circumstances(run)}\n"
    )


def in_short(run: dict[str, Any]) -> str:
    header = ["optimizer", "param", "gradient", *KEPT, "all", "state, bytes per parameter"]
    rows = [
        [
            row["optimizer"],
            row["param"],
            row["gradient"],
            *(mebibytes(row["bytes"][kept]) for kept in KEPT),
            mebibytes(sum(row["bytes"].values())),
            f"{row['bytes']['state'] / run['model']['size']:.3g}",
        ]
        for row in run["memory"]
    ]
    return f"{table(header, rows)}\n\n{NOTE}"

"""Steps on torch's tensors, ours beside torch's and transformers': the table, from the JSON of torch_steps.py."""

from __future__ import annotations

from markdown import count, duration, on_machine, table, times
from names import (
    IN_TORCH,
    IN_TORCH_HALF,
    IN_TORCH_STOCHASTIC,
    TORCH,
    TORCH_ADAMW,
    TORCH_ADAMW_HALF,
    TORCH_FOREACH,
    TORCH_FOREACH_HALF,
    TORCH_HALF,
    TRANSFORMERS,
    TRANSFORMERS_HALF,
)
from recorded import HOT, IN_TORCH_GROUP, Problem, Recorded

# In float32 and in bfloat16.
OTHERS = {
    TORCH: TORCH_HALF,
    TORCH_FOREACH: TORCH_FOREACH_HALF,
    TRANSFORMERS: TRANSFORMERS_HALF,
    TORCH_ADAMW: TORCH_ADAMW_HALF,
}


def problems(recorded: Recorded) -> list[Problem]:
    """Whole models first, each on all cores and then on one."""
    found = [problem for problem in recorded.problems if problem["group"] == IN_TORCH_GROUP]
    return sorted(
        found, key=lambda problem: (-problem["size"], is_half(problem), -problem["threads"])
    )


def is_half(problem: Problem) -> bool:
    name: str = problem["name"]
    return name.endswith(" half")


def ours(problem: Problem) -> str:
    return IN_TORCH_HALF if is_half(problem) else IN_TORCH


def named(problem: Problem) -> str:
    """With the type of parameters and gradients, and the number of threads."""
    dtype = "bfloat16" if is_half(problem) else "float32"
    name = problem["name"].removesuffix(" half")
    return f"{name}, {dtype}, {count(problem['threads'], 'thread')}"


def in_short(recorded: Recorded) -> str:
    """The time of our step, and how many of it fit into a step of the others."""
    rows = []
    for problem in problems(recorded):
        own = ours(problem)
        others = OTHERS.values() if is_half(problem) else OTHERS
        rows.append(
            [
                named(problem),
                duration(recorded.median_ns(problem, own)),
                duration(recorded.median_ns(problem, own, HOT)),
                times(recorded.ratio(problem, IN_TORCH_STOCHASTIC, to=own)),
                *(times(recorded.ratio(problem, other, to=own)) for other in others),
            ]
        )
    header = [f"a step of {IN_TORCH}", "cold", "hot", "rounded stochastically", *OTHERS]
    sizes = {p["name"]: p for p in problems(recorded) if not is_half(p)}
    told = "; ".join(
        f"{name}: {p['size'] / 1e6:.3g} M parameters in {p['tensors']} tensors"
        for name, p in sizes.items()
    )
    return (
        f"{table(header, rows)}\n\n"
        f"The time of our step, and how many of it fit into one step of the others, from cold caches. {told}. "
        "Every step is of torch's own tensors, by the optimizer's `step()`. In bfloat16 parameters and "
        "gradients are; torch's optimizers keep their state in it and transformers computes in float32, "
        "as ours does, whose running means are float64. AdamW is another algorithm, with twice the "
        f"parameters' memory as state. {on_machine(recorded.run)}"
    )


def section(recorded: Recorded) -> list[str]:
    return [f"## On torch's tensors\n\n{in_short(recorded)}"] if problems(recorded) else []

"""The sections of a run's full report."""

from __future__ import annotations

from company import QUANTILES
from markdown import count, duration, on_machine, table, three_digits, times
from names import (
    CARRIED,
    FLOAT32,
    FLOOR,
    HALF,
    IN_PLACE,
    NATIVE,
    NUMBA,
    PEERS,
    PLAIN,
    UNSCALED,
)
from recorded import Problem, Recorded


def arrays(recorded: Recorded) -> str:
    timed = [PLAIN, IN_PLACE, NUMBA, NATIVE, UNSCALED, CARRIED, FLOOR]
    slower = [PLAIN, IN_PLACE, NUMBA]
    rows = [
        [
            problem["name"],
            *(duration(recorded.median_ns(problem, contender)) for contender in timed),
            *(times(recorded.ratio(problem, contender, to=NATIVE)) for contender in slower),
            *(
                times(recorded.ratio(problem, ours, to=FLOOR))
                for ours in (NATIVE, UNSCALED, CARRIED)
            ),
        ]
        for problem in recorded.arrays()
    ]
    header = [
        "param",
        *timed,
        *(f"{contender} / {NATIVE}" for contender in slower),
        f"{NATIVE} / floor",
        "scale_parameter=False / floor",
        "carry_param_rms=True / floor",
    ]
    return (
        f"## Speed on {count(recorded.cores, 'thread')}\n\n{table(header, rows)}\n\n"
        "The floor is `param -= k*grad`, which moves every byte once. A slice is of a matrix twice "
        "as wide, and has no floor here."
    )


def against_peers(recorded: Recorded) -> list[str]:
    peers = recorded.among(PEERS)
    rows = [
        [
            problem["name"],
            duration(recorded.median_ns(problem, NATIVE)),
            *(with_ratio(recorded, problem, peer) for peer in peers),
        ]
        for problem in recorded.on_all_cores()
        if any(recorded.result(problem, peer) for peer in peers)
    ]
    if not rows:
        return []
    return [
        (
            f"## Against other libraries on {count(recorded.cores, 'thread')}\n\n"
            f"{table(['param', NATIVE, *peers], rows)}\n\n"
            "In brackets: how many of our steps fit in one of theirs. AdamW is another algorithm: it "
            "moves 28 bytes for each float32 parameter in one sweep, and keeps twice the parameters' "
            "memory as state. JAX (optax, keras) copies nothing here either: a step is given the "
            "buffers of the one before."
        )
    ]


def models(recorded: Recorded) -> list[str]:
    problems = recorded.on_all_cores("model")
    rows = [
        [
            contender,
            *(with_ratio(recorded, problem, contender) for problem in problems),
        ]
        for contender in recorded.contenders
        if any(recorded.result(problem, contender) for problem in problems)
    ]
    if not rows:
        return []
    header = [
        "contender",
        *(f"{p['name']}, {p['size'] / 1e6:.1f} M in {p['tensors']}" for p in problems),
    ]
    return [
        (
            f"## Models on {count(recorded.cores, 'thread')}\n\n{table(header, rows)}\n\n"
            "One step of all parameters (millions in so many tensors), in float32. Optimizers of single "
            "arrays run one after the other; Optimizer and the libraries are given all tensors at once. "
            f"In brackets: the ratio to {NATIVE}. Tensors of more than two dimensions are factored by the "
            "libraries and with convention='torch', but not in plain NumPy, nor by us otherwise."
        )
    ]


def halves(recorded: Recorded) -> list[str]:
    return [
        f"## Half precision on {count(recorded.cores, 'thread')}\n\n{in_halves(recorded, problem)}"
        for problem in recorded.on_all_cores("half")
    ]


def in_halves(recorded: Recorded, problem: Problem) -> str:
    shown = ["median", "p10", "p90"]
    header = ["contender", *shown, f"median / that of {FLOAT32}", f"... of {HALF}"]
    header += ["bytes per parameter", "GB/s", "error"]
    rows = [
        [
            contender,
            *(duration(result["ns"][quantile]) for quantile in shown),
            *(times(recorded.ratio(problem, contender, to=ours)) for ours in (FLOAT32, HALF)),
            f"{result['bytes per parameter']:g}",
            three_digits(recorded.gigabytes_per_s(problem, contender) or 0),
            f"{result['error']:.0e}",
        ]
        for contender in recorded.contenders
        if (result := recorded.result(problem, contender))
    ]
    return (
        f"{table(header, rows)}\n\n"
        f"A step of one {problem['name'].removesuffix(' half')} array. Where only the gradient is named, "
        "the parameter is float32; otherwise one type is that of both. Bytes are those that the "
        "algorithm has to move. The error is of what a forward pass would read, the half-precision "
        "copy or parameter, after three steps, relative to max|param|, beside float64; where the "
        "parameter is rounded to nearest after every step and nothing else is kept, beside float64 "
        "rounded likewise. Rounding to bfloat16 once is off by 0.004 at most, a step that rounds "
        "stochastically by 0.008. torch's Adafactor keeps its state and computes in the parameter's "
        "type, torch's AdamW keeps its state in it; transformers works in float32, as we do. Optimizer "
        'has `convention="numpy"`. '
        f"{on_machine(recorded.run)}"
    )


def with_ratio(recorded: Recorded, problem: Problem, contender: str) -> str:
    ratio = recorded.ratio(problem, contender, to=NATIVE)
    time = duration(recorded.median_ns(problem, contender))
    return time if ratio is None or contender == NATIVE else f"{time} ({times(ratio)})"


def threads(recorded: Recorded) -> str:
    scaled = [NUMBA, NATIVE, FLOOR]
    header = ["param", "threads"]
    for contender in scaled:
        header += [contender, "gain"]
    rows = []
    for runs in recorded.by_threads():
        for problem in runs:
            row = [problem["name"], str(problem["threads"])]
            for contender in scaled:
                one = recorded.median_ns(runs[0], contender)
                now = recorded.median_ns(problem, contender)
                row += [duration(now), times(one / now if one and now else None)]
            rows.append(row)
    return f"## Threads\n\n{table(header, rows)}"


def memory(recorded: Recorded) -> str:
    header = ["contender", "param", "peak of its first step above param and grad"]
    rows = [
        [r["contender"], r["problem"], f"{r['peak bytes'] / 2**20:.1f} MiB"]
        for r in recorded.run["memory"]
    ]
    return f"## Memory\n\n{table(header, rows)}"


def every_figure(recorded: Recorded) -> str:
    header = ["param", "threads", "contender", *QUANTILES]
    header += ["ns per parameter", "bytes per parameter", "GB/s", "error"]
    rows = []
    for result in recorded.run["results"]:
        problem, median_ns = result["problem"], result["ns"]["median"]
        rows.append(
            [
                problem["name"],
                str(problem["threads"]),
                result["contender"],
                *(duration(result["ns"][quantile]) for quantile in QUANTILES),
                three_digits(median_ns / problem["size"]),
                f"{result['bytes per parameter']:g}",
                three_digits(recorded.gigabytes_per_s(problem, result["contender"]) or 0),
                f"{result['error']:.0e}",
            ]
        )
    return (
        f"## Every figure\n\n{table(header, rows)}\n\n"
        "Bytes per parameter are those that the algorithm has to move, whatever a contender moves. "
        "The error is the largest after three steps, relative to max|param|."
    )

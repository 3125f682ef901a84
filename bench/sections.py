"""The sections of a run's full report."""

from __future__ import annotations

from company import QUANTILES
from markdown import count, duration, on_machine, table, three_digits, times
from names import (
    CARRIED,
    FLOAT32,
    FLOOR,
    FLOORS,
    HALF,
    IN_PLACE,
    NATIVE,
    NUMBA,
    PEERS,
    PLAIN,
    READS,
    UNSCALED,
)
from recorded import COLD, HOT, Problem, Recorded

CACHES = {COLD: "from cold caches", HOT: "step after step"}
LIMIT = (
    "The limit of a step is the sum of the machine's own sweeps, on the same threads in the same run: "
    "two reads and a floor, or one read and a floor without RMS(param) or carrying it; of cold arrays, "
    "what their first reads take longer, too."
)


def arrays(recorded: Recorded) -> str:
    return "\n\n".join(arrays_when(recorded, warmth) for warmth in recorded.warmths)


def arrays_when(recorded: Recorded, warmth: str) -> str:
    timed = [PLAIN, IN_PLACE, NUMBA, NATIVE, UNSCALED, CARRIED]
    slower = [PLAIN, IN_PLACE, NUMBA]
    limited = [NATIVE, UNSCALED, CARRIED, NUMBA]
    rows = [
        [
            problem["name"],
            *(duration(recorded.median_ns(problem, contender, warmth)) for contender in timed),
            *(duration(recorded.fastest_ns(problem, loops, warmth)) for loops in (FLOORS, READS)),
            *(times(recorded.ratio(problem, contender, NATIVE, warmth)) for contender in slower),
            *(times(recorded.over_limit(problem, contender, warmth)) for contender in limited),
        ]
        for problem in recorded.arrays()
    ]
    header = [
        "param",
        *timed,
        "floor",
        "read",
        *(f"{contender} / {NATIVE}" for contender in slower),
        f"{NATIVE} / limit",
        "scale_parameter=False / limit",
        "carry_param_rms=True / limit",
        f"{NUMBA} / limit",
    ]
    how = CACHES[warmth]
    return (
        f"## Speed on {count(recorded.cores, 'thread')}, {how}\n\n{table(header, rows)}\n\n"
        f"The floor is `{FLOOR}`, which moves every byte once; the read only reads grad: each the fastest "
        f"of three loops of this run. {LIMIT} A slice is of a matrix twice as wide, and has no floor here."
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
        if recorded.result(problem, NATIVE)
        and any(recorded.result(problem, peer) for peer in peers)
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
            *(duration(recorded.times(result)[quantile]) for quantile in shown),
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
    return "\n\n".join(
        f"## Threads, {CACHES[warmth]}\n\n{threads_when(recorded, warmth)}"
        for warmth in recorded.warmths
    )


def threads_when(recorded: Recorded, warmth: str) -> str:
    scaled = [NUMBA, NATIVE]
    header = ["param", "threads"]
    for contender in scaled:
        header += [contender, "gain", "/ limit"]
    header += ["floor", "gain"]
    rows = []
    for runs in recorded.by_threads():
        for problem in runs:
            row = [problem["name"], str(problem["threads"])]
            for contender in scaled:
                one = recorded.median_ns(runs[0], contender, warmth)
                now = recorded.median_ns(problem, contender, warmth)
                row += [duration(now), times(one / now if one and now else None)]
                row += [times(recorded.over_limit(problem, contender, warmth))]
            one, now = (recorded.fastest_ns(p, FLOORS, warmth) for p in (runs[0], problem))
            row += [duration(now), times(one / now if one and now else None)]
            rows.append(row)
    return table(header, rows)


def calls(recorded: Recorded) -> str:
    return f"## Calls\n\n{calls_table(recorded)}"


def calls_table(recorded: Recorded) -> str:
    calls = recorded.run.get("calls", [])
    if not calls:
        return "Calls were not measured in this run."
    empty = calls[0]["ns"]["median"]
    rows = [
        [call["call"], *(duration(call["ns"][q]) for q in ("median", "p10")), over]
        for call in calls
        for over in [duration(call["ns"]["median"] - empty) if call is not calls[0] else ""]
    ]
    return (
        f"{table(['call', 'median', 'p10', 'median above an empty call'], rows)}\n\n"
        "In a loop, Optimizer all or nothing. Tensors of next to no elements leave what Python and each "
        "tensor cost."
    )


def memory(recorded: Recorded) -> str:
    header = ["contender", "param", "peak of its first step above param and grad"]
    rows = [
        [r["contender"], r["problem"], f"{r['peak bytes'] / 2**20:.1f} MiB"]
        for r in recorded.run["memory"]
    ]
    return f"## Memory\n\n{table(header, rows)}"


def every_figure(recorded: Recorded) -> str:
    header = ["param", "threads", "contender"]
    for warmth in recorded.warmths:
        header += [f"{warmth}: {QUANTILES[0]}", *QUANTILES[1:]]
    header += ["ns per parameter", "bytes per parameter", "GB/s", "error"]
    rows = []
    for result in recorded.run["results"]:
        problem = result["problem"]
        row = [problem["name"], str(problem["threads"]), result["contender"]]
        for warmth in recorded.warmths:
            ns = recorded.times(result, warmth)
            row += [duration(ns[quantile]) for quantile in QUANTILES]
        row += [
            three_digits(recorded.times(result)["median"] / problem["size"]),
            f"{result['bytes per parameter']:g}",
            three_digits(recorded.gigabytes_per_s(problem, result["contender"]) or 0),
            f"{result['error']:.0e}",
        ]
        rows.append(row)
    return (
        f"## Every figure\n\n{table(header, rows)}\n\n"
        "Bytes per parameter are those that the algorithm has to move, whatever a contender moves. "
        "The error is the largest after three steps, relative to max|param|."
    )

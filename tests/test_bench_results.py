"""What bench/ makes of a run's JSON: limits, bounds, warnings, and tables of several machines."""

import json

import pytest

import bounds
import in_torch
import names
import problems
import readme_tables
from contenders import sweeps
from markdown import not_quiet
from recorded import COLD, HOT, IN_TORCH_GROUP, Recorded

# ns of one problem: hot, and cold
TIMES = {
    names.NATIVE: (100, 250),
    names.CARRIED: (90, 200),
    names.NUMBA: (150, 300),
    names.FLOORS[0]: (60, 160),
    names.FLOORS[1]: (50, 170),
    names.READS[0]: (20, 90),
    names.READS[2]: (25, 80),
}
SWEEPS = {names.NATIVE: sweeps.scaled, names.CARRIED: sweeps.unscaled, names.NUMBA: sweeps.scaled}
SHAPE = (1024, 1024)


def timed(ns):
    return {"samples": 9, "ns": dict.fromkeys(("median", "p10", "p90", "p99"), float(ns))}


def run_of(times, cores=2, load=0.1, **more):
    problem = {
        "name": "1024x1024",
        "group": "size",
        "tensors": 1,
        "size": SHAPE[0] * SHAPE[1],
        "dtype": "float32",
        "layout": "C",
        "threads": cores,
    }
    results = [
        {
            "problem": problem,
            "contender": contender,
            "error": 0.0,
            "bytes per parameter": 20.0,
            "sweeps": SWEEPS[contender](SHAPE, 4)._asdict() if contender in SWEEPS else None,
            **timed(hot),
            "cold": timed(cold),
        }
        for contender, (hot, cold) in times.items()
    ]
    native = {
        "version": "0",
        "compiler": {"name": "gcc", "version": "12"},
        "instruction sets": {"running": "v4"},
    }
    return {
        "date": "2026-11-26",
        "machine": {"cores": cores, "processor": "a processor", "load before the run": load},
        "software": {"adafactor_native": native},
        "results": results,
        **more,
    }


@pytest.fixture
def recorded(tmp_path):
    return Recorded(tmp_path / "results" / "some-machine" / "speed.json", run_of(TIMES))


def test_limit_is_the_sum_of_the_fastest_sweeps(recorded):
    problem = recorded.find("1024x1024")
    assert recorded.limit_ns(problem, names.NATIVE, HOT) == 2 * 20 + 50
    assert recorded.limit_ns(problem, names.CARRIED, HOT) == 20 + 50


def test_cold_arrays_come_from_memory_once(recorded):
    problem = recorded.find("1024x1024")
    assert recorded.limit_ns(problem, names.NATIVE, COLD) == 2 * 20 + 50 + 2 * (80 - 20)
    assert recorded.over_limit(problem, names.NATIVE, COLD) == 250 / 210


def test_tables_are_of_cold_steps_unless_a_run_has_none(recorded):
    problem = recorded.find("1024x1024")
    assert recorded.median_ns(problem, names.NATIVE) == 250
    former = json.loads(json.dumps(recorded.run))
    for result in former["results"]:
        del result["cold"], result["sweeps"]
    former = Recorded(recorded.path, former)
    assert former.median_ns(problem, names.NATIVE) == 100
    assert former.limit_ns(problem, names.NATIVE) == 2 * 20 + 50  # known of a matrix by its name


@pytest.mark.parametrize(
    ("sweeps_of", "shape", "expected"),
    [
        (sweeps.scaled, (8, 8), (2, 1, 2)),
        (sweeps.unscaled, (8, 8), (1, 1, 2)),
        # 16 bytes are read before 28 move; 24 and 12 beside them with a v of float32
        (sweeps.scaled, (8,), (16 / 4, 28 / 12, 16 / 4)),
        (sweeps.scaled_with_float32_state, (8,), (12 / 4, 20 / 12, 12 / 4)),
        (sweeps.scaled_axes_factored, (8, 8, 3, 3), (2, 1, 2)),
        (sweeps.of_apply, (8, 8), (0, 1, 2)),
    ],
)
def test_sweeps_count_the_bytes_beside_grad_and_param(sweeps_of, shape, expected):
    assert sweeps_of(shape, 4) == pytest.approx(expected)


def test_bounds_say_what_is_kept_missed_and_not_measured(recorded):
    rows = {
        row[0] + ": " + row[1]: row[2:]
        for row in (b.row(recorded) for b in bounds.bounds(recorded))
    }
    assert rows[f"every row with a limit: {LEAST_OF_NUMBA}"] == ["at least 1.1", "1.2", "kept"]
    assert rows["64x64: plain NumPy / step, hot"] == ["at least 30", "", "not measured"]


LEAST_OF_NUMBA = "least numba / step where the step is not within 1.05 of its limit"


def test_a_problem_without_a_limit_has_no_row_with_a_limit():
    """Its sweeps are not measured: who is faster there is another question."""
    run = run_of({names.NATIVE: (3, 3), names.NUMBA: (1, 1)})
    for result in run["results"]:
        result["sweeps"] = None
    assert bounds.least_of_numba(Recorded(None, run)) is None


def test_bound_is_compared_as_it_is_printed():
    bound = bounds.Bound("work", "ratio", 1.15, at_least=False, got=lambda recorded: 1.1532)
    assert bound.row(None) == ["work", "ratio", "at most 1.15", "1.15", "kept"]
    bound = bounds.Bound("work", "ratio", 1.15, at_least=True, got=lambda recorded: 1.1449)
    assert bound.row(None)[-2:] == ["1.14", "missed"]


def test_every_bound_finds_its_contenders_in_a_full_run():
    """By their names and problems: a bound that can never be measured would never be missed."""
    registry = pytest.importorskip("contenders.registry", reason='needs pip install ".[bench]"')

    measured = {
        (problem.name, problem.threads): {c.name for c in registry.CONTENDERS if c.takes(problem)}
        for problem in problems.all_problems()
    }
    times = dict.fromkeys(TIMES, (1, 1))
    run = run_of(times)
    (first, *_) = run["results"]
    run["results"] = [
        {
            **first,
            "problem": {**first["problem"], "name": name, "threads": threads},
            "contender": contender,
            "sweeps": {"reads": 1, "floors": 1, "fetches": 2},
            # above its limit, as one bound looks at no other problems
            **({"cold": timed(9)} if contender == names.NATIVE else {}),
        }
        for (name, threads), contenders in measured.items()
        for contender in contenders | {names.TORCH, names.TORCH_ADAMW, names.OPTAX}
    ]
    run["machine"]["cores"] = max(threads for _, threads in measured)
    run["calls"] = [{"call": "empty call", **timed(1)}, {"call": "update of 16x16", **timed(2)}]
    recorded = Recorded(None, run)
    absent = {b.quantity for b in bounds.bounds(recorded) if b.got(recorded) is None}
    assert absent == set()


@pytest.mark.parametrize(
    ("more", "warns"),
    [
        ({"load": 2.0}, True),
        ({"load": 2.0, "busy cores of others": 0.01}, False),
        ({"load": 0.0, "busy cores of others": 0.5}, True),
        ({"load": 0.0}, False),
    ],
)
def test_run_beside_others_is_not_called_quiet(more, warns):
    assert bool(not_quiet(run_of(TIMES, **more))) == warns


def test_machine_has_the_name_of_its_folder(recorded, tmp_path):
    assert recorded.machine_name == "Some Machine"
    assert Recorded(tmp_path / "speed.json", run_of(TIMES)).machine_name == "a processor"


def test_new_machine_leads_and_others_stay(monkeypatch):
    monkeypatch.setattr(readme_tables, "with_tables", lambda text: text)
    text = (
        "<!-- bench/results/a/speed.json: front -->\n<!-- end -->\n"
        "<!-- bench/results/a/half.json: halves -->\n<!-- end -->\n"
        "<!-- bench/results/a/half-memory.json: memory -->\n<!-- end -->\n"
        "![models](results/a/speed-models.png) [all](results/a/half.md)\n"
    )
    led = readme_tables.led_by("b", text)
    assert led == readme_tables.led_by("b", led)
    assert "<!-- bench/results/b/speed.json bench/results/a/speed.json: front -->" in led
    assert "<!-- bench/results/b/speed.json: halves -->" in led
    assert "<!-- bench/results/b/half-memory.json: memory -->" in led
    assert "(results/b/speed-models.png)" in led
    assert "(results/b/speed.md)" in led


@pytest.fixture
def in_torch_run(tmp_path):
    """A run of torch_steps.py: one model in float32 and in bfloat16, hot and cold."""
    float32 = run_of(
        {names.IN_TORCH: (90, 100), names.TORCH: (700, 750), names.TORCH_ADAMW: (1, 1)}
    )
    half = run_of({names.IN_TORCH_HALF: (40, 50), names.TORCH_HALF: (800, 900)})
    for run, name in ((float32, "GPT-2 small"), (half, "GPT-2 small half")):
        run["results"][0]["problem"].update(name=name, group=IN_TORCH_GROUP)
    float32["results"] += half["results"]
    return Recorded(tmp_path / "results" / "some-machine" / "torch.json", float32)


def test_bounds_in_torch_compare_like_with_like(in_torch_run):
    rows = {(b.work, b.quantity): b.row(in_torch_run) for b in bounds.bounds_in_torch(in_torch_run)}
    (of_float32,) = (
        r for (work, q), r in rows.items() if q.startswith(f"{names.TORCH} /") and r[3]
    )
    assert of_float32[2:] == ["at least 7", "7.5", "kept"]
    (of_half,) = (r for (work, q), r in rows.items() if "half" in work)
    assert of_half[2:] == ["at least 15", "18", "kept"]


def test_table_in_torch_has_multiples_of_our_cold_step_in_the_same_dtype(in_torch_run):
    lines = in_torch.in_short(in_torch_run).splitlines()
    float32, half = (line.split(" | ") for line in lines[2:4])
    assert float32[0] == "| GPT-2 small, float32, 2 threads"
    assert float32[1:5] == ["100 ns", "90 ns", "", "7.5x"]
    assert half[0] == "| GPT-2 small, bfloat16, 2 threads"
    assert half[1:5] == ["50 ns", "40 ns", "", "18x"]


def test_machine_without_steps_in_torch_leaves_their_table_to_another(monkeypatch, tmp_path):
    monkeypatch.setattr(readme_tables, "with_tables", lambda text: text)
    monkeypatch.setattr(readme_tables, "RESULTS", tmp_path)
    text = (
        "<!-- bench/results/a/torch.json: in_torch -->\n<!-- end -->\n"
        "![steps](../../bench/results/a/torch-steps.png)\n"
    )
    assert readme_tables.led_by("b", text) == text
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "torch.json").write_text("{}", encoding="utf-8")
    assert readme_tables.led_by("b", text) == text.replace("/a/", "/b/")

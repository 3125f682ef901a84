"""Ready schedules: warm-up, peak, end, and what they refuse."""

import math
import pickle

import numpy as np
import pytest

from adafactor_native import AdaFactor, Optimizer, schedules

ALL = [
    schedules.Constant(0.5),
    schedules.Constant(0.5, warmup=7),
    schedules.InverseRoot(0.5),
    schedules.InverseRoot(0.5, warmup=7),
    schedules.Linear(0.5, steps=20),
    schedules.Linear(0.5, warmup=7, steps=20, final=0.125),
    schedules.Cosine(0.5, steps=20),
    schedules.Cosine(0.5, warmup=7, steps=20, final=0.125),
    schedules.Cosine(0.5, warmup=7, steps=20, final=1.0),
]


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_the_peak_is_reached_by_a_line_and_kept_or_left(schedule):
    first = max(1, schedule.warmup)
    assert [schedule(t) for t in range(first + 1)] == pytest.approx(
        [0.5 * t / first for t in range(first + 1)]
        if schedule.warmup
        else [schedule(1), schedule(1)]
    )
    assert schedule(first) == 0.5
    later = [schedule(t) for t in range(first, 40)]
    down = np.diff(later) <= 0
    assert down.all() or (np.diff(later) >= 0).all()


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_the_formula(schedule):
    for t in range(max(1, schedule.warmup), 50):
        first = max(1, schedule.warmup)
        if isinstance(schedule, schedules.Constant):
            expected = 0.5
        elif isinstance(schedule, schedules.InverseRoot):
            expected = 0.5 * math.sqrt(first / t)
        else:
            x = min(1, (t - first) / (20 - first))
            left = (
                1 - x if isinstance(schedule, schedules.Linear) else math.cos(x * math.pi / 2) ** 2
            )
            expected = schedule.final + (0.5 - schedule.final) * left
        assert schedule(t) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_an_optimizer_steps_by_it_and_can_be_pickled(schedule):
    params = [np.ones(3)]
    opt = Optimizer(params, "numpy", lr=schedule)
    opt = pickle.loads(pickle.dumps(opt))
    for t in range(1, 25):
        report = opt.step([np.ones(3)])
        assert report.lr == (schedule(t),)
    assert opt.param_groups[0]["lr"] == schedule


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: schedules.Constant(-1.0), "peak is -1.0, must be a finite number >= 0"),
        (lambda: schedules.Constant("x"), "peak is a str, must be a finite number >= 0"),
        (lambda: schedules.Constant(1.0, warmup=-1), "warmup is -1, must be an int >= 0"),
        (lambda: schedules.Constant(1.0, warmup=1.5), "warmup is a float, must be an int >= 0"),
        (lambda: schedules.Linear(1.0), "steps is 0, must be more than 1"),
        (lambda: schedules.Cosine(1.0, warmup=9, steps=9), "steps is 9, must be more than 9"),
        (lambda: schedules.Cosine(1.0, steps=9, final=math.nan), "final is nan, must be a finite"),
    ],
)
def test_what_they_refuse(make, text):
    with pytest.raises((TypeError, ValueError), match="^" + text):
        make()


def test_the_optimizer_of_one_array_takes_their_values():
    opt, lr = AdaFactor((3,)), schedules.Linear(0.5, steps=10)
    opt.lr = lr(3)
    assert opt.lr == lr(3)
    with pytest.raises(TypeError, match="lr is a Linear, must be a finite number >= 0"):
        opt.lr = lr

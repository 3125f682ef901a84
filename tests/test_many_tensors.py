"""Models of many tensors: made and added to in time that does not grow with its square."""

import re
import time

import numpy as np
import pytest

from adafactor_native import Optimizer

N = 4000


def seconds(make):
    start = time.perf_counter()
    made = make()
    return time.perf_counter() - start, made


def test_making_thousands():
    params = [np.ones((8, 8), np.float32) for _ in range(N)]
    took, opt = min((seconds(lambda: Optimizer(params)) for _ in range(3)), key=lambda run: run[0])
    assert len(opt.names) == N
    assert took < 0.5  # 0.02 s on one core of 2020; in n * n comparisons 1.3 s


def test_adding_thousands_one_by_one():
    opt = Optimizer([np.ones((8, 8), np.float32)])
    took, _ = seconds(
        lambda: [opt.add_param_group({"params": np.ones(8, np.float32)}) for _ in range(N)]
    )
    assert len(opt.param_groups) == N + 1
    assert took < 5  # 0.4 s on one core of 2020; when all was made anew each time, minutes
    report = opt.step([np.ones((8, 8), np.float32)] + [np.ones(8, np.float32)] * N)
    assert report.stepped.all()
    assert opt.counts.tolist() == [1] * (N + 1)


def test_overlaps_are_found_wherever_they_are():
    memory = np.ones((N, 8), np.float32)
    params = {str(i): row for i, row in enumerate(memory)}
    opt = Optimizer(params)
    for shared in (memory[0, 3:5], memory[N // 2], memory[-1, ::7], memory[3:9, 2]):
        text = re.escape("params['x'] overlaps params[")
        with pytest.raises(ValueError, match=text):
            opt.add_param_group({"params": {"x": shared}})
    assert len(opt.param_groups) == 1
    grads = list(np.ones_like(memory))
    with pytest.raises(ValueError, match=re.escape("grads['7'] overlaps params['9'], must not")):
        opt.step([*grads[:7], memory[9], *grads[8:]])
    assert opt.step(grads).stepped.all()


def test_views_that_interleave_do_not_overlap():
    memory = np.ones((8, 6), np.float32)
    opt = Optimizer({"even": memory[:, ::2], "odd": memory[:, 1::4]})
    opt.add_param_group({"params": {"last": memory[:, 3::4]}})
    with pytest.raises(ValueError, match=re.escape("params['x'] overlaps params['odd'], must not")):
        opt.add_param_group({"params": {"x": memory[2:3, 5]}})
    grads = np.ones_like(memory)
    opt.step([grads[:, ::2], grads[:, 1::4], grads[:, 3::4]])
    with pytest.raises(ValueError, match=re.escape("grads['last'] overlaps params['even'], must")):
        opt.step([grads[:, ::2], grads[:, 1::4], memory[:, ::4][:, :1]])

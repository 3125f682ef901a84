"""In which order rows are walked: no bit depends on it, and it is found out, or forced."""

import json

import numpy as np
import pytest

import adafactor_native as an
import corpus
from arrays import DTYPE_PAIRS, normal, spread
from optimizers import KINDS

SWEEPS = ("measure", "sum_param", "apply")

SHOW_WALKS = """
    import json
    import adafactor_native as an
    print(json.dumps(an.show_config(mode="dicts")["walks"]))
"""


def walks_of_process(python, script=SHOW_WALKS, **environment):
    return json.loads(python(script, **environment))


@pytest.mark.parametrize("walk", ["auto", *corpus.WALKS])
def test_environment_forces_a_walk(python, walk):
    walks = walks_of_process(python, ADAFACTOR_WALK=walk)
    assert walks.pop("forced") == walk
    assert walks == {
        place: {sweep: {"walk": walks[place][sweep]["walk"], "measured": False} for sweep in SWEEPS}
        for place in ("cache", "memory")
    }
    known = {walks[place][sweep]["walk"] for place in walks for sweep in SWEEPS}
    assert known <= set(corpus.WALKS)


def test_no_walk_is_forced_unasked(python):
    assert walks_of_process(python)["forced"] == "auto"


@pytest.mark.parametrize("value", ["", "fast", "One_by_one"])
def test_walk_that_is_nonsense(python, value):
    script = """
        try:
            import adafactor_native
        except ValueError as error:
            print(error)
    """
    expected = f"ADAFACTOR_WALK is {value!r}, must be one of auto, side_by_side, one_by_one\n"
    assert python(script, ADAFACTOR_WALK=value) == expected


# Arrays that some cache holds, and such as none does.
@pytest.mark.parametrize(("shape", "place"), [((1024, 1024), "cache"), ((4096, 1024), "memory")])
def test_large_steps_find_the_walk(python, shape, place):
    """Which one is a matter of the machine; that one is found, for what was stepped, is not."""
    script = f"""
        import json
        import numpy as np
        import adafactor_native as an
        param, grad = (np.ones({shape}, np.float32) for _ in range(2))
        opt = an.AdaFactor(param.shape)
        for _ in range(16):
            opt.update(param, grad)
        print(json.dumps(an.show_config(mode="dicts")["walks"]))
    """
    found = walks_of_process(python, script)
    assert found.pop("forced") == "auto"
    for where, sweeps in found.items():
        assert [sweeps[sweep]["measured"] for sweep in SWEEPS] == [where == place] * 3, where
    forced = walks_of_process(python, script, ADAFACTOR_WALK="one_by_one")
    assert not any(forced[place][sweep]["measured"] for sweep in SWEEPS)


def test_the_search_changes_no_bit(python):
    """The first steps of a process walk both ways in turns."""
    script = """
        import optimizers
        for shape in ((1031, 1033), (4099, 1031)):
            print(optimizers.digest_of_run(shape=shape, steps=3))
    """
    searched, *forced = (python(script, ADAFACTOR_WALK=w) for w in ("auto", *corpus.WALKS))
    assert forced == [searched] * 2


def digests_by_tail(start, grads, **hyper):
    digests = []
    for rows, cols in np.ndindex(14, 150):
        run = KINDS["AdaFactor"](start[:rows, :cols].copy(), **hyper)
        run.step(grads[:rows, :cols])
        digests.append(run.digest())
    return digests


@pytest.mark.parametrize("eps", [1e-30, 1e-3])
@pytest.mark.parametrize("dtypes", DTYPE_PAIRS)
def test_every_tail_by_each_walk(dtypes, eps, isa):
    """Rows beyond four and eight, and columns beyond one vector and four."""
    start, grads = normal((14, 150), dtypes[0]), spread((14, 150), dtypes[1])
    digests = []
    for walk in corpus.WALKS:
        with corpus.walking(walk):
            digests.append(digests_by_tail(start, grads, eps=eps))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("cols", [1023, 1024, 1025, 4096, 5000, 9001])
def test_long_rows_by_each_walk(cols, isa):
    """Sums of lanes are folded by fours of chunks: any number of chunks may be left over."""
    start, grad = normal((133, cols), np.float32), normal((133, cols), np.float32, seed=1)
    digests = []
    for walk in corpus.WALKS:
        with corpus.walking(walk):
            run = KINDS["AdaFactor"](start.copy())
            run.step(grad)
            digests.append(run.digest())
    assert digests[0] == digests[1]


def test_a_walk_that_does_not_exist_is_not_forced():
    assert not an._core.force_walk("sideways")
    assert an._core.forced_walk() == "auto"

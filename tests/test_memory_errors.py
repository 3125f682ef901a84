"""Where memory runs out, an error comes before the first write: all is as it was.

A library that is loaded before all others lets the n-th allocation of the C library fail, for every
n in turn, until a call takes fewer. Python's own allocator is malloc here. A step, an update and a
state_dict raise a MemoryError. What is done more in Python raises whatever CPython and NumPy make of
it (a SystemError, an ImportError, "can't allocate read lock"); and where NumPy itself ends the process,
as `numpy.ones`, `numpy.zeros_like` and a deep copy of an array do, nothing can be tested: new tensors
with momentum, and copies of optimizers.
"""

import os
import platform
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="needs glibc's own allocator"
)

FAILING = """
#include <stddef.h>
#include <errno.h>
/* Allocations of this thread until one fails, the only one; negative: none does. */
static __thread long allocations_left = -1;
void arm(long n) { allocations_left = n; }
long disarm(void) { long left = allocations_left; allocations_left = -1; return left; }
static int fails(void) {
    if (allocations_left < 0) return 0;
    if (allocations_left-- > 0) return 0;
    errno = ENOMEM;
    return 1;
}
void* __libc_malloc(size_t); void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t); void* __libc_memalign(size_t, size_t);
void* malloc(size_t n) { return fails() ? 0 : __libc_malloc(n); }
void* calloc(size_t n, size_t m) { return fails() ? 0 : __libc_calloc(n, m); }
void* realloc(void* p, size_t n) { return fails() ? 0 : __libc_realloc(p, n); }
void* aligned_alloc(size_t a, size_t n) { return fails() ? 0 : __libc_memalign(a, n); }
"""

# Calls work(fresh()) with each allocation failing in turn, in a thread of its own each time: a
# thread keeps the memory of its steps. observed(subject) are counts and arrays.
FAIL_EACH = """
import ctypes, threading
library = ctypes.PyDLL(sys.argv[1])
arm, disarm = library.arm, library.disarm
arm.restype, disarm.restype = None, ctypes.c_long
from adafactor_native import AdaFactor

def bits(subject):
    counts, arrays = observed(subject)
    return counts, [array.tobytes() for array in arrays]

def attempt(n, outcome):
    AdaFactor((2,)).update(np.ones(2), np.ones(2))  # what a thread makes once
    subject = fresh()
    if hasattr(subject, "_followed"):
        for position in range(len(subject.names)):
            subject._followed(position)  # NumPy's own of a thread
    before = bits(subject)
    failed = False
    arm(n)
    try:
        work(subject)
    except MemoryError:
        failed = True
    was_reached = disarm() < 0
    outcome.append("failed" if failed else "unneeded" if was_reached else "done")
    if failed:
        assert bits(subject) == before, f"changed after allocation {n} failed"
        work(subject)  # and it goes on
        outcome.append("well")

def warm():
    work(fresh())  # what a process makes once

thread = threading.Thread(target=warm)
thread.start()
thread.join()
n_failed = 0
for n in range(100000):
    outcome = []
    thread = threading.Thread(target=attempt, args=(n, outcome))
    thread.start()
    thread.join()
    if outcome == ["done"]:
        break
    assert outcome in (["failed", "well"], ["unneeded"]), outcome
    n_failed += outcome[0] == "failed"
assert n_failed > 0, "no allocation failed"
print("well:", n_failed)
"""

ONE_ARRAY = """
import sys
import numpy as np
from adafactor_native import AdaFactor
shape = tuple(map(int, sys.argv[2].split("x")))
grad = np.full(shape, 0.5, np.float32)

def fresh():
    opt = AdaFactor(shape, carry_param_rms=True, num_threads=1)
    opt._new_plan()
    return opt, np.ones(shape, np.float32)

def observed(subject):
    opt, param = subject
    return (opt.t, opt.skipped), [param, *opt._arrays().values()]

def work(subject):
    opt, param = subject
    opt.update(param, grad)
"""

MODEL = """
import sys
import numpy as np
from adafactor_native import Optimizer
from oracle.halves_reference import bfloat16

SETTINGS = {
    "all": dict(atomic="all"),
    "tensor": dict(atomic="tensor"),
    "momentum": dict(atomic="tensor", beta1=0.9),
    "masters": dict(atomic="tensor", masters="float32", beta1=0.9),
    "split": dict(atomic="tensor", masters="split"),
    "max_grad_norm": dict(max_grad_norm=0.1),
    "carried": dict(atomic="tensor", carry_param_rms=True),
    "stochastic": dict(atomic="tensor", rounding="stochastic", momentum_dtype=bfloat16, beta1=0.9),
}
setting = SETTINGS[sys.argv[2]]
dtype = bfloat16 if sys.argv[2] in ("masters", "split", "stochastic") else np.float32
# More than a wave: with atomic="tensor" the first is applied before the last is measured.
SHAPES = [(30, 20), (50,), (700, 300), (5, 4, 3, 3), (64, 3, 3, 3), (600, 400), (300000,)]
grads = [np.full(shape, 0.5, dtype) for shape in SHAPES]

def fresh():
    opt = Optimizer([np.ones(s, dtype) for s in SHAPES], num_threads=1, **setting)
    opt._new_plan()
    return opt

def observed(opt):
    arrays = [x for name in opt.names for x in (opt.params[name], *opt.state[name].values())]
    switches = [repr(group.switches) for group in opt.param_groups]
    return (opt.t, opt.skipped, opt.counts.tolist(), opt.names, switches), arrays

def work(opt):
    opt.step(grads)
"""

SAVED = """
grads, SHAPES = grads[:2], SHAPES[:2]
def work(opt):
    opt.state_dict(params=True)
"""

MEASURED = """
def work(opt):
    opt.discard_measured()
    for name, grad in zip(opt.names, grads):
        opt.measure(name, grad)
    opt.step()
"""

ONE_STEPPED = """
def work(opt):
    opt.step_tensor("2", grads[2])
"""

ENDED = """
make = fresh
def fresh():
    opt = make()
    opt.step_tensor("2", grads[2])
    return opt

def work(opt):
    opt.step(dict(zip(opt.names, grads)) | {"2": None})
"""


@pytest.fixture(scope="module")
def failing(tmp_path_factory):
    """A library whose n-th allocation fails when it is loaded before all others."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang", "c++", "g++"))), None)
    if compiler is None:
        pytest.skip("needs a C compiler, and there is no cc, gcc, clang, c++ or g++")
    source = tmp_path_factory.mktemp("failing") / "failing.c"
    source.write_text(FAILING)
    library = source.with_suffix(".so")
    subprocess.run([compiler, "-x", "c", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def fail_each(failing, script, *arguments):
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-c", script, str(failing), *arguments],
        env={
            **os.environ,
            "LD_PRELOAD": str(failing),
            "PYTHONMALLOC": "malloc",
            "PYTHONPATH": path,
        },
        capture_output=True,
        check=False,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.startswith("well:")


@pytest.mark.parametrize("shape", ["16x16", "700x300", "300000"])
def test_update(shape, failing):
    fail_each(failing, ONE_ARRAY + FAIL_EACH, shape)


SETTINGS = (
    "all tensor momentum masters split max_grad_norm carried stochastic".split()  # noqa: SIM905
)


@pytest.mark.parametrize("setting", SETTINGS)
def test_step(setting, failing):
    fail_each(failing, MODEL + FAIL_EACH, setting)


@pytest.mark.parametrize("setting", ["all", "masters", "max_grad_norm", "carried"])
def test_step_of_what_was_measured(setting, failing):
    fail_each(failing, MODEL + MEASURED + FAIL_EACH, setting)


@pytest.mark.parametrize("part", [ONE_STEPPED, ENDED], ids=["step_tensor", "step"])
@pytest.mark.parametrize("setting", ["all", "momentum"])
def test_step_of_one_tensor_and_its_end(setting, part, failing):
    fail_each(failing, MODEL + part + FAIL_EACH, setting)


@pytest.mark.parametrize("setting", ["momentum", "masters"])
def test_state_dict(setting, failing):
    fail_each(failing, MODEL + SAVED + FAIL_EACH, setting)


STEPPED = "other = fresh(); other.step(grads); saved = other.state_dict(params=True)"

# What a call needs before memory runs out, and the call itself.
CALLS = {
    "a plan": ("", "opt._cell.plan = None; opt._new_plan()"),
    "tensors": ("from adafactor_native._runtime import _core", "_core.Tensors()"),
    "one array": ("", "AdaFactor((3, 4))"),
    "step by skip_above": ("", "opt.skip_above = 3.0; opt.step(grads)"),
    "accumulate": ("", "opt.accumulate(grads)"),
    "load_state_dict": (STEPPED, "opt.load_state_dict(saved)"),
    "load by choice": (
        STEPPED,
        "opt.load_state_dict(saved, strict=False, rename=str, keep=['lr'], convert=True)",
    ),
    "save": ("import tempfile; path = tempfile.mkdtemp() + '/x.npz'", "opt.save(path)"),
    "load": (
        f"{STEPPED}; import tempfile; path = tempfile.mkdtemp() + '/x.safetensors'; other.save(path, True)",
        "opt.load(path)",
    ),
    "replace": ("new = np.full(SHAPES[0], 2, dtype)", "opt.replace('0', new)"),
    "reset": ("", "opt.reset('0')"),
    "remove": ("", "opt.remove('0') if '0' in opt.names else None"),
    "set several": ("", "opt.param_groups[0].update(lr=0.5, clip_threshold=2.0)"),
    "params_changed": ("", "opt.params_changed()"),
    "pickle": ("import pickle", "pickle.dumps(opt)"),
}


LONG = [pytest.param(setting, marks=pytest.mark.soak) for setting in ("all", "momentum", "split")]


@pytest.mark.parametrize("setting", ["masters", *LONG])
@pytest.mark.parametrize("call", CALLS)
def test_everything_else_is_all_or_nothing_too(call, setting, failing):
    before, body = CALLS[call]
    script = (
        f"{MODEL}\ngrads, SHAPES = grads[:2], SHAPES[:2]\n{before}\ndef work(opt):\n    {body}\n"
    )
    fail_each(
        failing, script + FAIL_EACH.replace("except MemoryError:", "except Exception:"), setting
    )

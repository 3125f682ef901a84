"""After an optimizer's first steps, a step takes no memory from the system's allocator."""

import os
import platform
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="needs glibc's own allocator"
)

COUNTER = """
#include <stddef.h>
long n_allocations = 0;
void* __libc_malloc(size_t); void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t); void* __libc_memalign(size_t, size_t);
void* malloc(size_t n) { ++n_allocations; return __libc_malloc(n); }
void* calloc(size_t n, size_t m) { ++n_allocations; return __libc_calloc(n, m); }
void* realloc(void* p, size_t n) { ++n_allocations; return __libc_realloc(p, n); }
void* aligned_alloc(size_t a, size_t n) { ++n_allocations; return __libc_memalign(a, n); }
"""

# Prints the allocations of 100 calls of step() after 5.
COUNT = """
import ctypes, sys
count = ctypes.c_long.in_dll(ctypes.CDLL(sys.argv[1]), "n_allocations")
for _ in range(5):
    step()
before = count.value
assert before > 0, "nothing is counted"
for _ in range(100):
    step()
print(count.value - before)
"""

ONE_ARRAY = """
import sys
import numpy as np
from adafactor_native import AdaFactor
shape = tuple(map(int, sys.argv[2].split("x")))
dtype = np.float16 if sys.argv[3] == "half" else np.float32
param, grad = np.ones(shape, dtype), np.full(shape, 0.5, dtype)
opt = AdaFactor(shape, lr=1e-9, carry_param_rms=sys.argv[3] == "carried")
def step():
    opt.update(param, grad)
"""

MODEL = """
import sys
import numpy as np
from adafactor_native import Optimizer
params = [np.ones((30 + k % 7, 20), np.float32) for k in range(int(sys.argv[2]))]
copies = [np.ones(param.shape, np.float16) for param in params]
grads = [np.full(param.shape, 0.5, np.float16) for param in params]
opt = Optimizer(params, convention="numpy", copies=copies, lr=1e-9, beta1=0.9)
def step():
    opt.step(grads)
"""

# A step whose sums are more than the memory that is kept for the next, before those that are counted.
AFTER_A_LARGE_ONE = """
import sys
import numpy as np
from adafactor_native import AdaFactor
large = np.ones((2, 3 << 20), np.float32)
AdaFactor(large.shape, lr=1e-9).update(large, large.copy())
del large
param, grad = np.ones((16, 16), np.float32), np.full((16, 16), 0.5, np.float32)
opt = AdaFactor(param.shape, lr=1e-9)
def step():
    opt.update(param, grad)
"""


@pytest.fixture(scope="module")
def counter(tmp_path_factory):
    """A library that counts allocations when it is loaded before all others."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang", "c++", "g++"))), None)
    if compiler is None:
        pytest.skip("needs a C compiler, and there is no cc, gcc, clang, c++ or g++")
    source = tmp_path_factory.mktemp("counter") / "counter.c"
    source.write_text(COUNTER)
    library = source.with_suffix(".so")
    subprocess.run([compiler, "-x", "c", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def allocations(counter, script, *arguments):
    run = subprocess.run(
        [sys.executable, "-c", script + COUNT, str(counter), *arguments],
        env={**os.environ, "LD_PRELOAD": str(counter)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return int(run.stdout)


@pytest.mark.parametrize("way", ["read", "carried", "half"])
@pytest.mark.parametrize("shape", ["16x16", "100x37", "1024x512", "64x20000", "500", "8x3x31x67"])
def test_none_for_one_array(shape, way, counter):
    assert allocations(counter, ONE_ARRAY, shape, way) == 0


def test_none_after_a_step_that_needed_much_memory(counter):
    assert allocations(counter, AFTER_A_LARGE_ONE) == 0


def test_for_a_model_only_those_of_its_report(counter):
    """Whatever the number of tensors: a few a step, for NumPy's arrays."""
    few = allocations(counter, MODEL, "3")
    many = allocations(counter, MODEL, "300")
    assert few <= many <= 1200  # eleven a step

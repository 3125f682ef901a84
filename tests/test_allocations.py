"""After an optimizer's first steps, a step takes no memory from the system's allocator."""

import os
import shutil
import subprocess
import sys

import pytest

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

# Prints the allocations of 100 steps after 5.
STEPS = """
import ctypes, sys
import numpy as np
from adafactor_native import AdaFactor
count = ctypes.c_long.in_dll(ctypes.CDLL(sys.argv[1]), "n_allocations")
shape = tuple(map(int, sys.argv[2].split("x")))
param, grad = np.ones(shape, np.float32), np.full(shape, 0.5, np.float32)
opt = AdaFactor(shape, lr=1e-9, carry_param_rms=sys.argv[3] == "carried")
for _ in range(5):
    opt.update(param, grad)
before = count.value
assert before > 0, "nothing is counted"
for _ in range(100):
    opt.update(param, grad)
print(count.value - before)
"""


@pytest.fixture(scope="module")
def counter(tmp_path_factory):
    """A library that counts allocations when it is loaded before all others; glibc only."""
    compiler = shutil.which("cc")
    if compiler is None or "glibc" not in os.confstr("CS_GNU_LIBC_VERSION"):
        pytest.skip("needs a C compiler and glibc")
    source = tmp_path_factory.mktemp("counter") / "counter.c"
    source.write_text(COUNTER)
    library = source.with_suffix(".so")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return library


@pytest.mark.parametrize("way", ["read", "carried"])
@pytest.mark.parametrize("shape", ["16x16", "100x37", "1024x512", "64x20000", "500", "8x3x31x67"])
def test_none(shape, way, counter):
    run = subprocess.run(
        [sys.executable, "-c", STEPS, str(counter), shape, way],
        env={**os.environ, "LD_PRELOAD": str(counter)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert int(run.stdout) == 0

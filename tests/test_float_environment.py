"""A step computes as IEEE 754 has it by default, whatever the process has set for its threads."""

import platform
import textwrap

import pytest

# The control word of SSE, or that of AArch64, lies at this offset in glibc's fenv_t.
PLACES = {
    "x86_64": (28, {"flush": 0x8040, "up": 0x4000}),
    "aarch64": (0, {"flush": 1 << 24, "up": 1 << 22}),
}

SCRIPT = """
    import ctypes, hashlib
    import numpy as np
    from optimizers import KINDS

    libm = ctypes.CDLL("libm.so.6")
    environment = ctypes.create_string_buffer(64)

    def control():
        libm.fegetenv(environment)
        return ctypes.c_uint32.from_buffer(environment, {offset})

    def add(bits):
        control().value |= bits
        libm.fesetenv(environment)

    rng = np.random.default_rng(0)  # before the environment changes, which NumPy computes in
    drawn = rng.standard_normal((3, 1031, 517))
    param = (1e-39 * drawn[0]).astype(np.float32)
    grads = drawn[1:].astype(np.float32)

    def digest(threads):
        run = KINDS[{kind!r}](param.copy(), lr=1e-3, num_threads=threads)
        for grad in grads:
            run.step(grad)
        return run.digest()

    expected = digest(1)
    assert digest(2) == expected  # the workers have begun before the environment changes
    before = control().value
    add({bits})
    assert control().value & {bits} == {bits}
    print([digest(threads) == expected for threads in (1, 2, 3)])
    print(control().value & ~0x3f == (before | {bits}) & ~0x3f)
"""


@pytest.mark.skipif(
    platform.machine() not in PLACES, reason="knows no control word of this processor"
)
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="knows glibc's fenv_t only")
@pytest.mark.parametrize("what", ["flush", "up"])
def test_bits_do_not_depend_on_it(python, class_name, what):
    """Subnormal numbers are flushed, or all is rounded upwards, in the calling thread only."""
    offset, bits = PLACES[platform.machine()]
    script = textwrap.dedent(SCRIPT).format(offset=offset, bits=bits[what], kind=class_name)
    assert python(script) == "[True, True, True]\nTrue\n"

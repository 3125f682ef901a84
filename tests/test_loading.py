"""What loading the extension needs, what it says where that is missing, and where it refuses."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import adafactor_native as an
from adafactor_native.remedies import remedy

EXTENSION = Path(an._core.__file__)

INTERPRETERS = """
    import sys, threading
    if sys.version_info >= (3, 13):
        import _interpreters as interpreters
    else:
        import _xxsubinterpreters as interpreters

    TRIES = '''if True:
        try:
            import adafactor_native
        except ImportError as error:
            print(error, flush=True)
        else:
            print("loaded", flush=True)
    '''

    def try_it(how):
        if sys.version_info >= (3, 13):
            new = interpreters.create(how)
        elif sys.version_info >= (3, 10):
            new = interpreters.create(isolated=how == "isolated")
        else:
            new = interpreters.create()
        interpreters.run_string(new, TRIES)
        interpreters.destroy(new)

    {first}
    for how in ("isolated", "legacy"):
        try_it(how)
    from optimizers import digest_of_run
    print(digest_of_run(2) == digest_of_run(1))
"""


@pytest.mark.parametrize("first", ["", "import adafactor_native"], ids=["alone", "beside the main"])
def test_other_interpreters_of_a_process_are_told_so(python, first):
    """By a sentence, and the main one steps on; NumPy, which would warn or hang, is not loaded."""
    *told, steps = python(INTERPRETERS.format(first=first)).splitlines()
    assert steps == "True" and len(told) == 2
    for text in told:
        assert re.fullmatch(
            r"adafactor_native\._core cannot be loaded \(.*does not support loading in "
            r"subinterpreters\)\. It serves the main interpreter only, .* or in another process "
            r"\(multiprocessing\)\.",
            text,
        )


@pytest.mark.skipif(sys.platform != "linux", reason="reads the libraries that an ELF file names")
def test_a_missing_openmp_runtime_is_named_with_its_packages(python, tmp_path):
    """The package is copied, and its runtime's name in the copy is one that no system has."""
    code = EXTENSION.read_bytes()
    code, found = re.subn(rb"(?<=\0)(lib(?:gomp|omp)[^\0]*\.so[^\0]*)[^\0](?=\0)", rb"\1~", code)
    if not found:
        pytest.skip("this build has no OpenMP")
    copied = tmp_path / "adafactor_native"
    shutil.copytree(Path(an.__file__).parent, copied, ignore=shutil.ignore_patterns("__pycache__"))
    (copied / EXTENSION.name).write_bytes(code)
    script = f"""
        import sys
        # Without the finder of an editable installation, which comes before all paths.
        sys.meta_path[:] = [finder for finder in sys.meta_path if isinstance(finder, type)]
        sys.path.insert(0, {str(tmp_path)!r})
        try:
            import adafactor_native
        except ImportError as error:
            print(error)
    """
    text = python(script)
    assert re.search(r"lib\S+~: cannot open shared object file", text)
    assert "OpenMP runtime, which this system has not: install lib" in text
    assert "-C cmake.define.ADAFACTOR_OPENMP=OFF" in text and "checkout" not in text


@pytest.mark.parametrize(
    "error, cure",
    [
        ("libgomp.so.1: cannot open shared object file: No such file or directory", "libgomp1 "),
        ("libgomp-24e2ab19.so.1.0.0: cannot open shared object file: No such file", "libgomp1 "),
        ("Error loading shared library libgomp.so.1: No such file or directory", "libgomp1 "),
        ("libomp.so.5: cannot open shared object file: No such file or directory", "libomp5 "),
        ("libstdc++.so.6: cannot open shared object file: No such file", "libstdc++6 "),
        ("libfoo.so.2: cannot open shared object file: No such file", "the library libfoo,"),
        (
            "/lib/libstdc++.so.6: version `GLIBCXX_3.4.29' not found (required by _core.so)",
            "which lack GLIBCXX_3.4.29: update them",
        ),
        ("cannot import name '_core' from 'adafactor_native' (unknown location)", "bare folder"),
        ("_core.so: undefined symbol: PyFoo", "Build it anew"),
    ],
)
def test_each_fault_has_its_remedy(error, cure):
    text = remedy(ImportError(error))
    assert cure in text
    assert ("checkout" in text) == ("_core' from" in error)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the symbols of an ELF file")
def test_other_libraries_see_the_init_function_only():
    """So no other library's symbol takes the place of ours, nor ours that of another's."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("needs nm, of binutils")
    shown = subprocess.run(
        [nm, "-D", "--defined-only", EXTENSION], check=True, stdout=subprocess.PIPE, text=True
    )
    assert [line.split()[-1] for line in shown.stdout.splitlines()] == ["PyInit__core"]

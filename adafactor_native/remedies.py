"""Says what to do where the extension cannot be loaded."""

from __future__ import annotations

import re

# What starts the name of a shared library, what it is, and the packages of systems that have it.
_LIBRARIES = {
    "libgomp": ("GCC's OpenMP runtime", "libgomp1 (Debian, Ubuntu) or libgomp (Fedora, Alpine)"),
    "libomp": (
        "LLVM's OpenMP runtime",
        "libomp5 (Debian, Ubuntu), libomp (Fedora, Homebrew) or llvm-openmp (conda)",
    ),
    "libstdc++": (
        "GCC's C++ runtime",
        "libstdc++6 (Debian, Ubuntu) or libstdc++ (Fedora, Alpine)",
    ),
    "libgcc_s": (
        "GCC's runtime",
        "libgcc-s1 (Debian, Ubuntu) or libgcc (Fedora, Alpine)",
    ),
}
# As glibc says it, and as musl does.
_MISSING = re.compile(
    r"(lib[\w+-]+)\S*: cannot open shared object|Error loading shared library (lib[\w+-]+)"
)
_OLD = re.compile(r"version `(?P<version>\w+_[\d.]+)' not found")
_BUILD_HERE = (
    "pip install --force-reinstall --no-cache-dir --no-binary adafactor-native adafactor-native"
)


def remedy(error: ImportError) -> str:
    """Return the sentence that tells what cures `error`, raised when `_core` was imported."""
    text = str(error)
    if "subinterpreter" in text:
        return (
            "It serves the main interpreter only, for its threads and what they are set to are the "
            "process's: use it there, or in another process (multiprocessing)."
        )
    if old := _OLD.search(text):
        return (
            f"It was built with newer system libraries than this process has loaded, which lack "
            f"{old['version']}: update them (with conda: conda install libstdcxx-ng), or build it "
            f"with this system's compiler: {_BUILD_HERE}"
        )
    if missing := _MISSING.search(text):
        name = missing[1] or missing[2]
        for start, (what, packages) in _LIBRARIES.items():
            if re.match(re.escape(start) + r"(?![a-z])", name):
                without = (
                    "; or build it without OpenMP, for one thread: "
                    f"{_BUILD_HERE} -C cmake.define.ADAFACTOR_OPENMP=OFF"
                )
                return (
                    f"It needs {what}, which this system has not: install {packages}"
                    f"{without if 'OpenMP' in what else ''}."
                )
        return f"It needs the library {name}, which this system has not: install it."
    if "_core" in text and ("cannot import name" in text or "No module named" in text):
        return (
            "In a checkout of the sources, Python finds the bare folder before the installed "
            'package: start it elsewhere, or install in place with: pip install -e ".[test]". '
            "An installed package was built for another Python: install it anew with this one."
        )
    return f"Build it anew with this system's compiler: {_BUILD_HERE}"

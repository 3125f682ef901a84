"""How figures are written in Markdown: tables, durations, ratios, and what they hold for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])


def duration(ns: float | None) -> str:
    if ns is None:
        return ""
    for unit, factor in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= factor:
            return f"{three_digits(ns / factor)} {unit}"
    return f"{three_digits(ns)} ns"


def milliseconds(ns: float | None) -> str:
    return "" if ns is None else three_digits(ns / 1e6)


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{three_digits(ratio)}x"


def three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def mebibytes(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.2f}" if n_bytes < 2**24 else f"{n_bytes / 2**20:.0f}"


def count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def on_machine(run: dict[str, Any]) -> str:
    """One line: where and when the medians of a run were taken."""
    machine, native = run["machine"], run["software"]["adafactor_native"]
    return (
        f"Medians on {count(machine['cores'], 'thread')}: {machine['processor']}, "
        f"{native['compiler']['name']} {native['compiler']['version']}, instruction set "
        f"{native['instruction sets']['running']}, {run['date']}."
    )


def circumstances(run: dict[str, Any]) -> str:
    """All that is known of a run's machine and software."""
    machine, software = run["machine"], run["software"]
    native = software["adafactor_native"]
    caches = ", ".join(f"{level} {size}" for level, size in machine["caches"].items())
    compiler = f"{native['compiler']['name']} {native['compiler']['version']}"
    return (
        f"{machine['processor']}, {machine['cores']} cores; {caches}; "
        f"{machine['memory GiB']} GiB; {machine['system']}; "
        f"load average before the run {machine['load before the run']}.\n"
        f"adafactor_native {native['version']} at {software['commit']} ({compiler}, instruction "
        f"set {native['instruction sets']['running']}, {native['openmp']['runtime']}), "
        f"Python {software['python']}, NumPy {software['numpy']}, numba {software['numba']}.\n"
        f"{other_libraries(run)}"
    )


def other_libraries(run: dict[str, Any]) -> str:
    versions = run["software"].get("peers", {})
    taking_part = ", ".join(f"{name} {version}" for name, version in versions.items())
    absent = ", ".join(run.get("absent", []))
    return f"Other libraries: {taking_part or 'none'}; not installed: {absent or 'none'}."

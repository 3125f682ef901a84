"""How figures are written in Markdown: tables, durations, ratios, and what they hold for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

QUIET_SHARE = 0.05  # of all cores, that others may take during a run
QUIET_LOAD = 0.5  # of runs that do not say what others took


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


def not_quiet(run: dict[str, Any]) -> str:
    """A warning, or nothing where the machine had next to nothing else to do."""
    machine = run["machine"]
    others = run.get("busy cores of others", 0.0)
    if others > QUIET_SHARE * machine["cores"]:
        return f"NOT A QUIET MACHINE: others kept {others:.2g} of {machine['cores']} cores busy"
    load = machine["load before the run"]
    if "busy cores of others" not in run and load > QUIET_LOAD:
        return f"NOT A QUIET MACHINE: load average {load} before the run"
    return ""


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
    warning = f"{not_quiet(run)}.\n" if not_quiet(run) else ""
    others = run.get("busy cores of others")
    load = f"load average before the run {machine['load before the run']}"
    if others is not None:
        load += f", {others:.2g} cores busy with other things during it"
    return (
        f"{warning}{machine['processor']}, {machine['cores']} cores; {caches}; "
        f"{machine['memory GiB']} GiB; {machine['system']}; {load}.\n"
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

"""What the figures hold for: processor, compiler, versions. No names of hosts or folders."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

from threadpoolctl import threadpool_info

import adafactor_native
from problems import usable_cores


def describe_run() -> dict[str, Any]:
    """Return what every record of figures says first: when, and on what."""
    return {
        "date": date.today().isoformat(),
        "machine": describe_machine(),
        "software": describe_software(),
    }


def describe_machine() -> dict[str, Any]:
    fields = (line.partition(":") for line in output_of("lscpu").splitlines())
    lscpu = {name.strip(): value.strip() for name, _, value in fields}
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": lscpu.get("Model name", platform.machine()),
        "cores": usable_cores(),
        "caches": {level: lscpu.get(f"{level} cache", "unknown") for level in ("L1d", "L2", "L3")},
        "hypervisor": lscpu.get("Hypervisor vendor"),
        "load before the run": round(os.getloadavg()[0], 2),  # far above 0: not a quiet machine
        "memory GiB": round(memory_bytes / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


class Company:
    """What others took of the machine's cores since this was made, strangers on its host included."""

    def __init__(self) -> None:
        self._start = perf_counter()
        self._busy_s = busy_seconds()
        self._own_s = own_seconds()

    def busy_cores(self) -> float | None:
        """On average; None where the system does not say. A child counts when it has ended."""
        if self._busy_s is None:
            return None
        others_s = ((busy_seconds() or 0.0) - self._busy_s) - (own_seconds() - self._own_s)
        return round(max(0.0, others_s) / (perf_counter() - self._start), 3)


def busy_seconds() -> float | None:
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, irq, soft_irq, stolen = map(int, fields[:8])
    ticks = user + nice + system + irq + soft_irq + stolen
    return ticks / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def describe_software() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        **versions(["numpy", "numba"]),
        "peers": versions(["torch", "transformers", "jax", "jaxlib", "optax", "keras"]),
        "adafactor_native": adafactor_native.show_config(mode="dicts"),
        "commit": output_of("git", "describe", "--always", "--dirty") or None,
        "thread pools": sorted(
            {f"{pool['prefix']} {pool['version'] or ''}".strip() for pool in threadpool_info()}
        ),
    }


def versions(packages: list[str]) -> dict[str, str]:
    """Of those that are installed."""
    return {package: version(package) for package in packages if find_spec(package)}


def output_of(*command: str) -> str:
    """Empty where there is no such program, or no such answer: a part of the description is lost."""
    try:
        run = subprocess.run(
            command,
            cwd=Path(__file__).parent,
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return run.stdout.strip()

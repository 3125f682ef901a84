"""A finished run, read back from its JSON: all that the report and the plots know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import names

# What older runs, which stay readable, call contenders.
FORMER_NAMES = {"NumPy seed": names.PLAIN}

# They say nothing of sweeps: those of a matrix.
FACTORED = {"reads": 2, "floors": 1, "fetches": 2}
CARRYING = {**FACTORED, "reads": 1}
FORMER_SWEEPS = {
    names.NATIVE: FACTORED,
    names.NUMBA: FACTORED,
    names.UNSCALED: CARRYING,
    names.CARRIED: CARRYING,
}

IN_TORCH_GROUP = "in torch"  # of problems that torch's tensors hold

COLD, HOT = "cold", "hot"  # a step after the caches were emptied, and one of a loop of them

Problem = dict[str, Any]  # as harness.describe has written it
Result = dict[str, Any]


class Recorded:
    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        self.path = path
        self.run = run
        self.cores = int(self.run["machine"]["cores"])
        self.contenders = list(dict.fromkeys(r["contender"] for r in self.run["results"]))
        # Older runs have hot steps only, and these are what their tables show.
        self.has_cold = any(COLD in r for r in self.run["results"])
        self.warmths = [COLD, HOT] if self.has_cold else [HOT]
        self.peer_versions: dict[str, str] = self.run["software"].get("peers", {})
        self._problems: dict[tuple[str, int], Problem] = {}
        self._results: dict[tuple[str, int, str], Result] = {}
        for result in self.run["results"]:
            problem = result["problem"]
            key = problem["name"], problem["threads"]
            self._problems[key] = problem
            self._results[(*key, result["contender"])] = result

    @property
    def problems(self) -> list[Problem]:
        return list(self._problems.values())

    def on_all_cores(self, group: str | None = None) -> list[Problem]:
        return [
            problem
            for problem in self._problems.values()
            if problem["threads"] == self.cores and group in (None, problem["group"])
        ]

    def arrays(self) -> list[Problem]:
        return [
            p for p in self.on_all_cores() if p["group"] not in ("model", "half", IN_TORCH_GROUP)
        ]

    def among(self, contenders: list[str]) -> list[str]:
        return [contender for contender in contenders if contender in self.contenders]

    def by_threads(self) -> list[list[Problem]]:
        """The problems that were run on several numbers of threads, each from fewest to most."""
        names = [p["name"] for p in self._problems.values() if p["group"] == "threads"]
        return [
            [self._problems[key] for key in sorted(self._problems) if key[0] == name]
            for name in dict.fromkeys(names)
        ]

    def result(self, problem: Problem, contender: str) -> Result | None:
        return self._results.get((problem["name"], problem["threads"], contender))

    def times(self, result: Result, warmth: str = COLD) -> dict[str, float]:
        """Quantiles in ns: of cold steps, unless the run has none."""
        timed = result[COLD] if warmth == COLD and COLD in result else result
        ns: dict[str, float] = timed["ns"]
        return ns

    def median_ns(self, problem: Problem, contender: str, warmth: str = COLD) -> float | None:
        result = self.result(problem, contender)
        return None if result is None else float(self.times(result, warmth)["median"])

    def fastest_ns(self, problem: Problem, loops: list[str], warmth: str = COLD) -> float | None:
        """Of the machine's own loops that do the same work."""
        medians = (self.median_ns(problem, loop, warmth) for loop in loops)
        return min((ns for ns in medians if ns is not None), default=None)

    def limit_ns(self, problem: Problem, contender: str, warmth: str = COLD) -> float | None:
        """The sum of the machine's own sweeps that the contender's algorithm cannot do without.

        Cold arrays come from memory once. What that takes longer is seen in a read, cold and hot;
        after it they are in cache, where they fit.
        """
        result = self.result(problem, contender)
        sweeps = result.get("sweeps", former_sweeps(result)) if result else None
        read, floor = (
            self.fastest_ns(problem, loops, HOT) for loops in (names.READS, names.FLOORS)
        )
        if sweeps is None or read is None or floor is None:
            return None
        limit: float = sweeps["reads"] * read + sweeps["floors"] * floor
        if warmth == COLD and self.has_cold:
            cold_read = self.fastest_ns(problem, names.READS, COLD) or read
            limit += sweeps["fetches"] * max(0.0, cold_read - read)
        return limit

    def over_limit(self, problem: Problem, contender: str, warmth: str = COLD) -> float | None:
        """How many times the limit goes into the median."""
        time, limit = (ns(problem, contender, warmth) for ns in (self.median_ns, self.limit_ns))
        return None if time is None or limit is None else time / limit

    def neighbours_of(self, contender: str) -> list[Result]:
        """Times beside 0, 1, 2 busy processes."""
        return [r for r in self.run["neighbours"] if r["contender"] == contender]

    def ratio(self, problem: Problem, contender: str, to: str, warmth: str = COLD) -> float | None:
        """How many times the median of `to` goes into that of `contender`."""
        time, unit = (self.median_ns(problem, who, warmth) for who in (contender, to))
        return None if time is None or unit is None else time / unit

    def over_floor(self, problem: Problem, contender: str, warmth: str = COLD) -> float | None:
        time = self.median_ns(problem, contender, warmth)
        floor = self.fastest_ns(problem, names.FLOORS, warmth)
        return None if time is None or floor is None else time / floor

    def gigabytes_per_s(self, problem: Problem, contender: str) -> float | None:
        """Of the bytes that the algorithm has to move, whatever the contender moves."""
        result, time = self.result(problem, contender), self.median_ns(problem, contender)
        if result is None or time is None:
            return None
        return float(result["bytes per parameter"] * problem["size"] / time)

    def find(self, name: str, threads: int | None = None) -> Problem | None:
        """By name, on so many threads; on all cores unless said."""
        return self._problems.get((name, threads or self.cores))

    @property
    def machine_name(self) -> str:
        """What the folder of the run calls the machine; elsewhere, what its processor calls itself."""
        folder = self.path.parent
        if folder.parent.name == "results":
            return folder.name.replace("-", " ").title()
        processor: str = self.run["machine"]["processor"]
        return processor

    @property
    def machine_named(self) -> str:
        """The processor, and what the folder calls it."""
        processor: str = self.run["machine"]["processor"]
        named = self.machine_name
        return processor if named == processor else f"{processor} ({named})"


def former_sweeps(result: Result) -> dict[str, int] | None:
    problem = result["problem"]
    is_matrix = problem["tensors"] == 1 and "x" in problem["name"] and problem["group"] != "half"
    return FORMER_SWEEPS.get(result["contender"]) if is_matrix else None


def read_run(path: Path) -> dict[str, Any]:
    run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), object_hook=renamed)
    return run


def renamed(entry: dict[str, Any]) -> dict[str, Any]:
    """A JSON object as it is, but for a contender that now has another name."""
    if entry.get("contender") in FORMER_NAMES:
        entry["contender"] = FORMER_NAMES[entry["contender"]]
    return entry

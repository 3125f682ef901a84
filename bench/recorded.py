"""A finished run, read back from its JSON: all that the report and the plots know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import names

# What older runs, which stay readable, call contenders.
FORMER_NAMES = {"NumPy seed": names.PLAIN}

Problem = dict[str, Any]  # as harness.describe has written it
Result = dict[str, Any]


class Recorded:
    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        self.path = path
        self.run = run
        self.cores = int(self.run["machine"]["cores"])
        self.contenders = list(dict.fromkeys(r["contender"] for r in self.run["results"]))
        self.peer_versions: dict[str, str] = self.run["software"].get("peers", {})
        self._problems: dict[tuple[str, int], Problem] = {}
        self._results: dict[tuple[str, int, str], Result] = {}
        for result in self.run["results"]:
            problem = result["problem"]
            key = problem["name"], problem["threads"]
            self._problems[key] = problem
            self._results[(*key, result["contender"])] = result

    def on_all_cores(self, group: str | None = None) -> list[Problem]:
        return [
            problem
            for problem in self._problems.values()
            if problem["threads"] == self.cores and group in (None, problem["group"])
        ]

    def arrays(self) -> list[Problem]:
        return [p for p in self.on_all_cores() if p["group"] not in ("model", "half")]

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

    def median_ns(self, problem: Problem, contender: str) -> float | None:
        result = self.result(problem, contender)
        return None if result is None else float(result["ns"]["median"])

    def neighbours_of(self, contender: str) -> list[Result]:
        """Times beside 0, 1, 2 busy processes."""
        return [r for r in self.run["neighbours"] if r["contender"] == contender]

    def ratio(self, problem: Problem, contender: str, to: str) -> float | None:
        """How many times the median of `to` goes into that of `contender`."""
        time, unit = self.median_ns(problem, contender), self.median_ns(problem, to)
        return None if time is None or unit is None else time / unit

    def gigabytes_per_s(self, problem: Problem, contender: str) -> float | None:
        """Of the bytes that the algorithm has to move, whatever the contender moves."""
        result = self.result(problem, contender)
        if result is None:
            return None
        return float(result["bytes per parameter"] * problem["size"] / result["ns"]["median"])


def read_run(path: Path) -> dict[str, Any]:
    run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), object_hook=renamed)
    return run


def renamed(entry: dict[str, Any]) -> dict[str, Any]:
    """A JSON object as it is, but for a contender that now has another name."""
    if entry.get("contender") in FORMER_NAMES:
        entry["contender"] = FORMER_NAMES[entry["contender"]]
    return entry

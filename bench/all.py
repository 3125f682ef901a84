"""Measure everything anew on this machine, in one go: `python bench/all.py zen-5`, in half an hour.

Writes the numbers, tables and pictures of a run to bench/results/<machine>/, and puts this machine
first in README.md, bench/README.md and bench/notes.md; the results of other machines stay beside
it. The machine has to be quiet; the report and the pictures say so if it was not.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from output import OUTPUT
from readme_tables import README_FILES, led_by

BENCH = Path(__file__).parent
ARRIVALS = "arrivals.json"
BACKWARD = "torch-backward.json"
SHARDING = "sharding-model.json"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python bench/all.py", description=__doc__)
    parser.add_argument("machine", help="a folder's name for it, such as zen-5")
    parser.add_argument("--tables-only", action="store_true", help="measure nothing")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few problems for a short time into bench/output/, to try the command",
    )
    arguments = parser.parse_args()
    results = (OUTPUT if arguments.quick else BENCH / "results") / arguments.machine
    if not arguments.tables_only:
        mode = ["--quick"] if arguments.quick else []
        run_script(BENCH, "--require-peers", *mode, "--output", str(results / "speed.json"))
        run_script(BENCH / "half_memory.py", "--output", str(results / "half-memory.json"))
        run_script(BENCH / "torch_steps.py", *mode, "--output", str(results / "torch.json"))
        run_script(BENCH / "torch_backward.py", *mode, "--output", str(results / BACKWARD))
        run_script(BENCH / "arrivals.py", "--output", str(results / ARRIVALS))
        run_script(BENCH / "sharding_model.py", *mode, "--output", str(results / SHARDING))
    run_script(BENCH / "report.py", *map(str, runs_with_reports(results)))
    for readme in () if arguments.quick else README_FILES:
        text = readme.read_text(encoding="utf-8")
        readme.write_text(led_by(arguments.machine, text), encoding="utf-8")
        print(readme)
    run_script(BENCH / "bounds.py", str(results / "speed.json"))


def runs_with_reports(results: Path) -> list[Path]:
    """Return the JSON files of a folder that report.py reads; others print tables of their own."""
    without = (ARRIVALS, BACKWARD, SHARDING)
    return [run for run in sorted(results.glob("*.json")) if run.name not in without]


def run_script(script: Path, *arguments: str) -> None:
    print(f"== {script.name} {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, str(script), *arguments], check=True)


if __name__ == "__main__":
    main()

"""Tables and plots from the JSON of runs, and from nothing else.

`python bench/report.py JSON ...` writes Markdown and pictures beside each JSON; with --readme the
tables in README.md and those of bench/ are written anew, each from the run that its mark names.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import company
import in_torch
import plots
import sections
import training_memory
from markdown import circumstances
from readme_tables import README_FILES, write_into
from recorded import Recorded, read_run


def write_report(path: Path) -> Path:
    """Write the report beside the JSON of the run, and return its path."""
    run = read_run(path)
    text = report(Recorded(path, run)) if "results" in run else training_memory.report(run)
    written = path.with_suffix(".md")
    written.write_text(text, encoding="utf-8")
    return written


def report(recorded: Recorded) -> str:
    parts = [
        heading(recorded.run),
        *(f"![{picture.stem}]({picture.name})" for picture in plots.draw(recorded)),
        *([sections.arrays(recorded)] if recorded.arrays() else []),
        *sections.against_peers(recorded),
        *sections.models(recorded),
        *in_torch.section(recorded),
        *sections.halves(recorded),
        *([sections.threads(recorded)] if recorded.by_threads() else []),
        *([company.busy_processes(recorded)] if "neighbours" in recorded.run else []),
        *([company.torch(recorded)] if "pools" in recorded.run else []),
        *([sections.calls(recorded)] if "calls" in recorded.run else []),
        *([sections.memory(recorded)] if "memory" in recorded.run else []),
        sections.every_figure(recorded),
    ]
    return "\n\n".join(parts) + "\n"


def heading(run: dict[str, Any]) -> str:
    return (
        f"# One Adafactor step: {run['mode']} run of {run['date']}\n\n{circumstances(run)}\n\n"
        "All contenders take turns in one process, on the same numbers and the same number of "
        "threads. Each is first checked against what it is to compute, in float64. Times are medians "
        "of a step."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path, nargs="*", help="runs, as `python bench` writes them")
    parser.add_argument("--readme", action="store_true", help="write the READMEs' tables anew")
    arguments = parser.parse_args()
    if not arguments.json and not arguments.readme:
        parser.error("neither a run nor --readme is given")
    for path in arguments.json:
        print(write_report(path))
    if arguments.readme:
        for path in README_FILES:
            write_into(path)
            print(path)


if __name__ == "__main__":
    main()

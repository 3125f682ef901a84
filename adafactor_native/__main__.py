"""``python -m adafactor_native`` prints the configuration."""

from __future__ import annotations

import argparse

from adafactor_native import __version__
from adafactor_native.config import show_config


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m adafactor_native",
        description="Print as JSON how adafactor_native was built and what it runs on: version, "
        "compiler, OpenMP runtime, instruction sets (built in, available on this machine, running), "
        "in which order rows are walked and how many threads a step may use. A report of a problem "
        "should have it.",
        epilog="The environment chooses: ADAFACTOR_ISA a narrower instruction set, such as baseline; "
        "ADAFACTOR_WALK the order, side_by_side or one_by_one, instead of auto; "
        "ADAFACTOR_NUM_THREADS, or else OMP_NUM_THREADS, the number of threads.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.parse_args()
    show_config()


if __name__ == "__main__":
    main()

"""Train a network with `adafactor_native`: `python bench/train.py EXAMPLE`, with --help for its options."""

from __future__ import annotations

import argparse

try:
    from examples import characters, digits, finetuning, half_training
except ImportError as error:
    raise SystemExit(f'{error}\nThe examples need: pip install ".[bench]"') from error

EXAMPLES = {
    "digits": digits,
    "characters": characters,
    "half": half_training,
    "finetune": finetuning,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python bench/train.py", description=__doc__)
    examples = parser.add_subparsers(metavar="EXAMPLE", required=True)
    for name, example in EXAMPLES.items():
        summary = (example.__doc__ or "").partition("\n")[0]
        chosen = examples.add_parser(name, help=summary, description=example.__doc__)
        example.add_arguments(chosen)
        chosen.set_defaults(run=example.run)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()

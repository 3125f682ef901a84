"""Train a network on handwritten digits, with plain NumPy and with AdaFactor: `python bench/digits.py`."""

from __future__ import annotations

import argparse

try:
    from examples import digits
except ImportError as error:
    raise SystemExit(f'{error}\nThis example needs: pip install ".[bench]"') from error


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=digits.__doc__)
    digits.add_arguments(parser)
    digits.run(parser.parse_args())

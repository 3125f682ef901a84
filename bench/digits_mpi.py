"""Train the digits network on several processes: `mpiexec -n 4 python bench/digits_mpi.py`."""

from __future__ import annotations

import argparse

try:
    from examples import digits_mpi
except ImportError as error:
    raise SystemExit(f'{error}\nThis example needs: pip install ".[bench,mpi]" mpich') from error


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=digits_mpi.__doc__)
    digits_mpi.add_arguments(parser)
    digits_mpi.run(parser.parse_args())

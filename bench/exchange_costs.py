"""What an exchange between ranks costs: two parameters, an algorithm, and how they are fitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, log2

import numpy as np


@dataclass(frozen=True)
class Network:
    """alpha and beta of Hockney's model: a message of n bytes takes alpha + n * beta.

    Attributes
    ----------
    name : str
    latency_s : float
        alpha.
    s_per_byte : float
        beta, of one rank while all others send as well.
    is_measured : bool
        Whether they were fitted to runs, or are assumed.
    """

    name: str
    latency_s: float
    s_per_byte: float
    is_measured: bool = False


def ring(n_bytes: float, ranks: int, network: Network) -> float:
    """Seconds of an all-reduce that sends around a ring twice, as gloo's does."""
    rounds = 2 * (ranks - 1)
    return rounds * network.latency_s + rounds / ranks * n_bytes * network.s_per_byte


def halving_doubling(n_bytes: float, ranks: int, network: Network) -> float:
    """Seconds of Rabenseifner's all-reduce, which MPI takes for long messages: fewer, longer rounds."""
    rounds = 2 * ceil(log2(ranks)) if ranks > 1 else 0
    share = 2 * (ranks - 1) / ranks
    return rounds * network.latency_s + share * n_bytes * network.s_per_byte


AllReduce = Callable[[float, int, Network], float]
ALGORITHMS: dict[str, AllReduce] = {"ring": ring, "halving and doubling": halving_doubling}


@dataclass(frozen=True)
class Timing:
    """How long an all-reduce took: the median over repetitions of the slowest rank."""

    ranks: int
    n_bytes: int
    seconds: float


def fitted(timings: Sequence[Timing], name: str) -> Network:
    """Return the network of a ring whose relative errors have the least sum of squares.

    Relative, because times differ by four orders: an absolute fit would see the longest only.
    """
    times = np.array([timing.seconds for timing in timings])
    rounds = np.array([2.0 * (timing.ranks - 1) for timing in timings])
    sent = np.array([timing.n_bytes / timing.ranks for timing in timings])
    columns = np.stack([rounds, rounds * sent], axis=1) / times[:, None]
    (latency, per_byte), *_ = np.linalg.lstsq(columns, np.ones(len(times)), rcond=None)
    return Network(name, max(float(latency), 0.0), max(float(per_byte), 0.0), True)


def relative_errors(timings: Sequence[Timing], network: Network) -> list[float]:
    """Return by how much the fitted ring is off, of each timing."""
    return [ring(t.n_bytes, t.ranks, network) / t.seconds - 1 for t in timings]

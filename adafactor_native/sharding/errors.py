"""What a rank is told when it could not speak with the others."""

from __future__ import annotations


class CommunicationError(RuntimeError):
    """Ranks could not exchange numbers: one is gone, hangs, or the network failed.

    Nothing was written on this rank. A rank that failed during the last exchange of a step may have
    left others a step ahead, so an optimizer refuses to step after this error until a state is loaded.
    """

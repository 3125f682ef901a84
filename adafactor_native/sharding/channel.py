"""An engine that is watched: what fails in it is told in one way, and remembered."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from adafactor_native.sharding.engine import Engine
from adafactor_native.sharding.errors import CommunicationError


class Channel:
    """The engine of one optimizer, which is lost once an exchange has failed.

    Attributes
    ----------
    rank, size : int
    is_lost : bool
        Whether an exchange has failed since a state was loaded.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.rank = engine.rank
        self.size = engine.size
        self.is_lost = False

    def all_reduce(self, array: npt.NDArray[Any], op: str) -> None:
        """Reduce by the engine; any error is a `CommunicationError`, after which the channel is lost."""
        try:
            self._engine.all_reduce(array, op)
        except BaseException as error:
            self.is_lost = True
            if isinstance(error, CommunicationError) or not isinstance(error, Exception):
                raise
            raise CommunicationError(
                f"rank {self.rank} of {self.size} could not reduce an array: {error}"
            ) from error

    def require_not_lost(self) -> None:
        """Raise a CommunicationError after an exchange that failed."""
        if self.is_lost:
            raise CommunicationError(
                "an exchange between ranks has failed, and some may be a step ahead: load a state on all "
                "ranks, by opt.load_state_dict, before the next step"
            )

    def renew(self) -> None:
        """Begin anew, with nothing left of exchanges that have failed; all ranks must call it."""
        renew: Any = getattr(self._engine, "renew", None)
        if renew is not None:
            renew()

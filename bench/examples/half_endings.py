"""Where the trainings of each storage end, beside those of float32."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from examples.half_runs import FLOAT32, STORAGES, Run
from examples.half_training_plot import Panel

DEVIATIONS = 1  # of single float32 runs, from their mean: farther off is out of their spread


@dataclass(frozen=True)
class Spread:
    """Of a loss, over the orders of the data."""

    mean: float
    lowest: float
    highest: float
    deviation: float  # of a single run
    distance: float  # of the mean from float32's, in deviations of that

    @classmethod
    def of(cls, values: list[float], reference: list[float]) -> Spread:
        mean = float(np.mean(values))
        distance = (mean - float(np.mean(reference))) / float(np.std(reference, ddof=1))
        deviation = float(np.std(values, ddof=1))
        return cls(mean, min(values), max(values), deviation, distance)

    def __str__(self) -> str:
        return f"{self.mean:.4f} ({self.lowest:.4f} to {self.highest:.4f}){self.distance:+8.2f}"


@dataclass(frozen=True)
class Ending:
    """Where the runs of a storage end."""

    task: str
    storage: str
    training_loss: Spread
    held_out_loss: Spread
    accuracy: float | None
    bytes_per_parameter: float

    @classmethod
    def of(cls, runs: list[Run], reference: list[Run]) -> Ending:
        job = runs[0].job
        accuracies = [run.accuracy for run in runs if run.accuracy is not None]
        return cls(
            job.task,
            job.storage,
            Spread.of([r.training_loss for r in runs], [r.training_loss for r in reference]),
            Spread.of([r.held_out_loss for r in runs], [r.held_out_loss for r in reference]),
            float(np.mean(accuracies)) if accuracies else None,
            runs[0].bytes_per_parameter,
        )

    def is_off(self) -> bool:
        spreads = (self.training_loss, self.held_out_loss)
        return not all(abs(spread.distance) <= DEVIATIONS for spread in spreads)

    def __str__(self) -> str:
        accuracy = "" if self.accuracy is None else f"{self.accuracy:.2%}"
        return (
            f"  {self.storage:26}{self.training_loss!s:>35}{self.held_out_loss!s:>35}{accuracy:>10}"
            f"{self.bytes_per_parameter:13.2f}"
        )


@dataclass(frozen=True)
class Trainings:
    """All runs of a network."""

    task: str
    runs: list[Run]

    def by_storage(self, storage: str) -> list[Run]:
        return [run for run in self.runs if run.job.storage == storage]

    @cached_property
    def endings(self) -> list[Ending]:
        reference = self.by_storage(FLOAT32)
        return [Ending.of(self.by_storage(storage), reference) for storage in STORAGES]

    def table(self) -> str:
        heading = f"{self.task}, {self.runs[0].job.steps} steps"
        columns = f"{'training loss':>35}{'held-out loss':>35}{'accuracy':>10}{'bytes/param':>13}"
        return "\n".join([f"{heading:28}{columns}", *map(str, self.endings)])

    def panel(self) -> Panel:
        losses = {s: np.array([run.losses for run in self.by_storage(s)]) for s in STORAGES}
        reference = losses.pop(FLOAT32)
        return Panel(self.task.capitalize(), reference, losses)


def recorded(trainings: list[Trainings]) -> dict[str, Any]:
    return {
        "deviations allowed": DEVIATIONS,
        "endings": [asdict(ending) for training in trainings for ending in training.endings],
        "runs": [
            {
                **asdict(run.job),
                "training_loss": run.training_loss,
                "held_out_loss": run.held_out_loss,
                "accuracy": run.accuracy,
                "seconds": round(run.seconds, 2),
            }
            for training in trainings
            for run in training.runs
        ],
    }

"""A model and its optimizer in one .npz file, which is always whole: the old one or the new one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from transformer import Arrays

PARAM, STATE = "param/", "state/"


def save_checkpoint(path: Path, params: Arrays, state: Arrays) -> None:
    """A process that dies in here leaves a .part beside the last good checkpoint."""
    part = path.with_name(f"{path.name}.part")
    arrays: dict[str, Any] = {PARAM + name: param for name, param in params.items()}
    arrays |= {STATE + name: array for name, array in state.items()}
    with part.open("wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())  # the disk has it before the name points to it
    os.replace(part, path)


def load_checkpoint(path: Path) -> tuple[Arrays, Arrays]:
    """The parameters and the state."""
    with np.load(path, allow_pickle=False) as file:
        params, state = (
            {name[len(kind) :]: file[name] for name in file if name.startswith(kind)}
            for kind in (PARAM, STATE)
        )
    return params, state

"""Python source code that every Python brings along: the modules of its standard library."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from examples.prose import Array, encode


def standard_library(alphabet: str) -> Array:
    """The top-level modules one after the other, as indices into the alphabet; what is not in it is left out.

    Another version's differ a little.
    """
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    code = "\n".join(module.read_text(encoding="utf-8") for module in modules)
    return encode("".join(filter(set(alphabet).__contains__, code)), alphabet)

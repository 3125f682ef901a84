"""English prose that every Python brings along: the paragraphs of the manual behind `help()`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

HELD_OUT = 10  # of so many paragraphs one is for validation
PLAINER = str.maketrans(
    {
        "\N{LEFT DOUBLE QUOTATION MARK}": '"',
        "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{EM DASH}": "-",
        "*": "",  # of emphasis and lists
    }
)


@dataclass(frozen=True)
class Prose:
    alphabet: str
    training: Array  # indices into the alphabet
    validation: Array


def manual() -> Prose:
    """What this Python's version says; another one's differs a little."""
    found = paragraphs()
    alphabet = "".join(sorted(set("\n".join(found))))
    training = "\n".join(text for k, text in enumerate(found) if k % HELD_OUT)
    validation = "\n".join(found[::HELD_OUT])
    return Prose(alphabet, encode(training, alphabet), encode(validation, alphabet))


def encode(text: str, alphabet: str) -> Array:
    index = {character: i for i, character in enumerate(alphabet)}
    return np.array([index[character] for character in text])


def decode(indices: Array, alphabet: str) -> str:
    return "".join(alphabet[i] for i in indices)


def paragraphs() -> list[str]:
    """Each once: topics quote each other, and what is trained on must not be validated on."""
    blocks = (block for name in sorted(topics) for block in re.split(r"\n\s*\n", topics[name]))
    return [text for text in dict.fromkeys(map(one_line, blocks)) if is_prose(text)]


def one_line(block: str) -> str:
    text = " ".join(block.translate(PLAINER).split())
    return re.sub(r"^\[?\d+[].] ", "", text)  # numbers of footnotes and lists


def is_prose(text: str) -> bool:
    """Rather than a heading, a table, a grammar or code."""
    plain = sum(character.isalpha() or character in ' ".,' for character in text)
    return (
        len(text) >= 60
        and text.isascii()
        and text[0].isupper()
        and text[-1] in ".:"
        and plain >= 0.92 * len(text)
        and "::=" not in text
    )

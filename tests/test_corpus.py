"""The hashes of the corpus, on every instruction set, by both walks, with several threads.

Other tests compare threads and instruction sets with each other on one machine. These hashes were
made on one with AVX-512; SSE2, AVX2, NEON, GCC and Clang have to give them too.
"""

import pytest

import corpus
from corpus_problems import GROUPS

NAMES = [group.__name__ for group in GROUPS]


def test_every_problem_has_its_hash_kept():
    assert list(corpus.kept()) == list(corpus.problems())


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("group", NAMES)
def test_same_bits_as_ever(group):
    assert corpus.differing(group=f"{group}: ") == []


@pytest.mark.soak
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("group", NAMES)
def test_same_bits_as_ever_by_any_walk_with_any_number_of_threads(group):
    assert corpus.differing(every_way=True, group=f"{group}: ") == []

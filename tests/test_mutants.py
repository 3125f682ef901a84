"""What data/mutants.jsonl keeps: faults that the rules make, each with its killer or a reason."""

import json
from pathlib import Path

import pytest

import mutants

TESTS = Path(__file__).parent
KEPT = [json.loads(line) for line in mutants.RECORD.read_text().splitlines()]


def test_there_are_enough_of_every_kind():
    assert len({mutants.key_of(entry) for entry in KEPT}) == len(KEPT) >= 40
    for area in mutants.AREAS:
        assert sum(entry["path"].startswith(f"csrc/{area}/") for entry in KEPT) >= 10


@pytest.mark.parametrize(
    "entry", KEPT, ids=lambda entry: f"{Path(entry['path']).name}:{entry['line']}"
)
def test_each_is_made_by_rule_and_is_killed_or_explained(entry):
    assert entry["after"] in mutants.mutants_of(entry["before"])
    assert ("by" in entry) != ("why" in entry)
    if entry.get("by", "the corpus") != "the corpus":
        name, *tests = entry["by"].split("::")
        text = (TESTS.parent / name).read_text()
        assert all(f"{test}(" in text for test in tests)

"""What the READMEs show is there, runs, and is what was measured."""

import re
import runpy
from pathlib import Path

import pytest

import readme_tables

ROOT = Path(__file__).parent.parent
FOLDERS = (
    ".",
    "adafactor_native",
    "adafactor_native/torch",
    "bench",
    "bench/results/*",
    "csrc",
    "tests",
)
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for folder in FOLDERS
    for path in sorted(ROOT.glob(f"{folder}/*.md"))
}
COMMANDS = (
    'pip install ".[bench]" && python bench/digits.py',
    'pip install -e ".[test]" && pytest',
)


def each(pattern):
    """Every match of a pattern in every README, as parameters."""
    return [
        pytest.param(name, found, id=f"{name}-{i}")
        for name, text in TEXTS.items()
        for i, found in enumerate(re.findall(pattern, text, re.MULTILINE | re.DOTALL))
    ]


def anchors(text):
    """Return the names that the headings of a README can be linked by."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize(("readme", "example"), each(r"^```python\n(.*?)^```$"))
def test_example_runs(readme, example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "example.py"
    script.write_text(example, encoding="utf-8")
    runpy.run_path(str(script))
    assert capsys.readouterr().out


@pytest.mark.parametrize(("readme", "link"), each(r"\]\((?!https?:)([^)\s]+)\)"))
def test_link_leads_somewhere(readme, link):
    path, _, anchor = link.partition("#")
    target = (ROOT / readme).parent / path if path else ROOT / readme
    assert target.exists()
    if anchor:
        assert anchor in anchors(target.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("readme", "path"),
    each(
        r"\b((?:tests|bench|csrc|adafactor_native)/[\w-]+(?:/[\w-]+)*\.(?:py|cpp|hpp|json|png))\b"
    ),
)
def test_path_exists(readme, path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize(
    ("readme", "test"), each(r"`((?:[\w/]+/)?test_\w+\.py(?:::test_\w+)?|\.ci/\w+)`")
)
def test_test_exists(readme, test):
    """A file in a folder of tests, or a test in it, or a script of the gate."""
    file, _, name = test.partition("::")
    places = [ROOT / file, *(ROOT / "tests").rglob(file.rpartition("tests/")[2])]
    assert any(
        place.exists() and (not name or f"def {name}(" in place.read_text(encoding="utf-8"))
        for place in places
    )


def test_every_file_of_tests_is_in_their_table():
    named = re.findall(r"`((?:\w+/)?test_\w+\.py)`", TEXTS["tests/README.md"])
    files = (ROOT / "tests").glob("test_*.py")
    assert {file.name for file in files} <= set(named)


@pytest.mark.parametrize("command", COMMANDS)
def test_gate_runs_what_the_front_page_says(command):
    assert f"\n    {command}\n" in TEXTS["README.md"]
    gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert command in gate


@pytest.mark.parametrize(
    "readme", sorted(path.relative_to(ROOT).as_posix() for path in readme_tables.README_FILES)
)
def test_tables_are_those_of_the_runs(readme):
    assert readme_tables.with_tables(TEXTS[readme]) == TEXTS[readme]


def test_front_page_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 130

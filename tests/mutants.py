"""Mutants: small faults put into the C++ sources, to see whether the tests notice.

    python tests/mutants.py --seed 1 --count 45 --work DIR [--seconds 200] [--quick] [--again]

draws `count` mutants by rule from all lines of csrc: in turns from kernel, engine and bindings, a
line that a rule fits, then one of the rules' places in it. Each is built in a copy of the checkout
in DIR, with one instruction set, without unity builds and at -O1, so that it takes seconds; then
the tests that step are run until one fails. A mutant whose machine code is that of the original
is no fault: it is counted apart and another is drawn. What was found stands in DIR/results.jsonl,
and the next call goes on from there: `--seconds` says after how many a call begins no other.

It needs cmake, ninja, pybind11 and a C++ compiler; with torch installed, mutants of the bindings
to torch are drawn too. Where the last line says "survived", either a test is missing, or the
mutant changes nothing that can be seen, and README.md says why.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
AREAS = ("kernel", "engine", "bindings")

# Patterns that stand between or before expressions as the code is formatted, and what becomes of them.
REPLACED = {
    " < ": " <= ",
    " <= ": " < ",
    " > ": " >= ",
    " >= ": " > ",
    " == ": " != ",
    " != ": " == ",
    " + ": " - ",
    " - ": " + ",
    " * ": " / ",
    " / ": " * ",
    " % ": " * ",
    " += ": " -= ",
    " -= ": " += ",
    " *= ": " /= ",
    " && ": " || ",
    " || ": " && ",
    " & ": " | ",
    " | ": " & ",
    " << ": " >> ",
    " >> ": " << ",
    "if (!": "if (",
    "true": "false",
    "false": "true",
    "std::min(": "std::max(",
    "std::max(": "std::min(",
    "++": "--",
}
CONSTANT = re.compile(r"(?<![\w.])\d+(?![\w.])")
# A call or an assignment that is a line of its own.
STATEMENT = re.compile(
    r"\s+(?!return|break|continue|using|throw|case|else|const|auto|static)[\w:.\[\]>*-]+(\(| [-+*/|&]?= ).*;\s*$"
)

# What tests no line of C++, or needs more than this build.
NOT_OF_CORE = {
    "test_bench_models.py",
    "test_bench_results.py",
    "test_bench_threads.py",
    "test_bench_transformer.py",
    "test_docstrings.py",
    "test_readme.py",
    "test_signatures.py",
    "test_config.py",
    "test_exit.py",
    "test_memory.py",
}
# Run first, after the corpus: few mutants get further.
QUICK = (
    "test_errors.py",
    "test_nonfinite.py",
    "test_carry.py",
    "test_layouts.py",
)
NO_FAULT = ("does not compile", "same machine code")
LONGEST = 600  # seconds of a run of tests: a mutant that takes longer is killed by that


@dataclass(frozen=True)
class Mutant:
    path: str
    line: int  # from 1
    before: str
    after: str


def code_of(line: str) -> str:
    """Return a line with comments and strings blanked out, so that no rule fits them."""
    line = re.sub(r'"(\\.|[^"\\])*"', lambda m: "_" * len(m.group()), line)
    return line.split("//")[0]


def mutants_of(line: str) -> Iterator[str]:
    """Every line that the rules make of one."""
    code = code_of(line)
    if re.match(r"\s*(#|template|using|namespace|static_assert|ADAFACTOR_\w+\()", code):
        return
    for pattern, replacement in REPLACED.items():
        start = code.find(pattern)
        while start >= 0:
            yield line[:start] + replacement + line[start + len(pattern) :]
            start = code.find(pattern, start + 1)
    for match in CONSTANT.finditer(code):
        yield line[: match.start()] + str(int(match.group()) + 1) + line[match.end() :]
    if STATEMENT.match(code):
        yield re.match(r"\s*", line).group() + ";"


def drawn(seed: int, has_torch: bool) -> Iterator[Mutant]:
    """Mutants without an end, in an order that the seed chooses."""
    rng = random.Random(seed)
    lines: dict[str, list[tuple[str, int, list[str]]]] = {area: [] for area in AREAS}
    for area in AREAS:
        for path in sorted((ROOT / "csrc" / area).glob("*.?pp")):
            if path.name.startswith("torch_") and not has_torch:
                continue
            for number, text in enumerate(path.read_text().splitlines(), start=1):
                if found := list(mutants_of(text)):
                    lines[area].append((str(path.relative_to(ROOT)), number, found))
        rng.shuffle(lines[area])
    while all(lines.values()):
        for area in AREAS:
            name, number, found = lines[area].pop()
            before = (ROOT / name).read_text().splitlines()[number - 1]
            yield Mutant(name, number, before, rng.choice(found))


class Copy:
    """The checkout in a folder of its own, built with one instruction set."""

    def __init__(self, work: Path) -> None:
        self.tree = work / "tree"
        self.build = work / "build"
        shutil.rmtree(self.tree, ignore_errors=True)
        ours = shutil.ignore_patterns("*.so", "__pycache__", ".git")
        # Newer than any object of a mutant that was built before.
        shutil.copytree(ROOT, self.tree, ignore=ours, copy_function=shutil.copy)
        cmake = self.tree / "CMakeLists.txt"
        text = cmake.read_text()
        for before, after in {
            "-O3": "-O1",
            "UNITY_BUILD ON": "UNITY_BUILD OFF",
            'if(machine MATCHES "x86_64|AMD64")': "if(FALSE)",
        }.items():
            assert before in text, before
            text = text.replace(before, after)
        cmake.write_text(text)
        pybind11 = subprocess.check_output(
            [sys.executable, "-m", "pybind11", "--cmakedir"], text=True
        )
        options = {
            "SKBUILD_PROJECT_VERSION": "0",
            "CMAKE_BUILD_TYPE": "None",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.strip(),
        }
        if shutil.which("ccache"):
            options["CMAKE_CXX_COMPILER_LAUNCHER"] = "ccache"
        defined = [f"-D{name}={value}" for name, value in options.items()]
        cmake_command = ["cmake", "-S", self.tree, "-B", self.build, "-G", "Ninja", *defined]
        subprocess.run(cmake_command, check=True, stdout=subprocess.DEVNULL)
        if not self.builds():
            raise SystemExit(f"{self.tree} does not build: run ninja -C {self.build}")
        self.code = self.code_built()
        if self.corpus():
            raise SystemExit("without a mutant the corpus differs")
        self.require_sound([f"tests/{name}" for name in QUICK], work / "quick_tests_pass_without")

    def require_sound(self, tests: list[str], stamp: Path) -> None:
        """End where tests fail without a mutant: they would kill every one."""
        if stamp.exists() and stamp.read_text() == self.code:
            return
        if by := self.killer(*tests):
            raise SystemExit(f"without a mutant {by} fails")
        stamp.write_text(self.code)

    def builds(self) -> bool:
        """Whether what the tree holds compiles; it is then what its package imports."""
        ninja = subprocess.run(["ninja", "-C", self.build], check=False, capture_output=True)
        if ninja.returncode == 0:
            (built,) = self.build.glob("_core*.so")
            shutil.copy(built, self.tree / "adafactor_native")
        return ninja.returncode == 0

    def code_built(self) -> str:
        """A hash of the machine code of all objects."""
        sha = hashlib.sha256()
        for built in sorted(self.build.rglob("*.o")):
            sha.update(built.read_bytes())
        return sha.hexdigest()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(filter(None, [str(self.tree), os.environ.get("PYTHONPATH")]))
        return subprocess.run(
            [sys.executable, *arguments],
            check=False,
            cwd=self.tree,
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=LONGEST,
        )

    def corpus(self) -> str | None:
        """Whether the hashes of the corpus differ, in a few seconds, as `killer` has it."""
        try:
            return "the corpus" if self.run("tests/corpus.py").returncode else None
        except subprocess.TimeoutExpired:
            return "the corpus did not end"

    def killer(self, *tests: str) -> str | None:
        """The first test that fails, or how the run ended; None if all pass."""
        options = ["-m", "pytest", "-p", "no:cacheprovider", "-qx", "--no-header"]
        try:
            run = self.run(*options, *tests)
        except subprocess.TimeoutExpired:
            return "it did not end"
        if run.returncode == 0:
            return None
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.MULTILINE)
        return failed.group(1) if failed else f"return code {run.returncode}"

    def tried(self, mutant: Mutant, quick: bool) -> dict[str, str | None]:
        """Build a mutant, run the tests, and put the source back."""
        source = self.tree / mutant.path
        text = source.read_text()
        lines = text.split("\n")
        assert lines[mutant.line - 1] == mutant.before
        lines[mutant.line - 1] = mutant.after
        source.write_text("\n".join(lines))
        try:
            if not self.builds():
                return {"outcome": "does not compile"}
            if self.code_built() == self.code:
                return {"outcome": "same machine code"}
            by = self.corpus() or self.killer(*(f"tests/{name}" for name in QUICK))
            if by is None and quick:
                return {"outcome": "survived the quick tests"}
            by = by or self.killer(*self.tests(mutant))
            return {"outcome": "survived" if by is None else "killed", "by": by}
        finally:
            source.write_text(text)

    def tests(self, mutant: Mutant) -> list[str]:
        """What is run where the quick tests find nothing."""
        tests = [
            f"tests/{path.name}"
            for path in sorted((self.tree / "tests").glob("test_*.py"))
            if path.name not in (*NOT_OF_CORE, *QUICK, "test_corpus.py")
        ]
        name = Path(mutant.path).name
        if name.startswith(("torch_", "dlpack", "held_tensor", "measured")):
            tests.insert(0, "tests/torch_adapter")
        if name.startswith("sharded"):
            tests.insert(0, "tests/sharded")
        return tests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--count", type=int, default=45, help="mutants that are faults")
    parser.add_argument("--work", type=Path, required=True, help="folder of the copy, the results")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--quick", action="store_true", help="leave the longer tests for later")
    parser.add_argument("--again", action="store_true", help="try those that survived again")
    arguments = parser.parse_args()
    begin = time.monotonic()
    print("seed", arguments.seed)
    arguments.work.mkdir(parents=True, exist_ok=True)
    results = arguments.work / "results.jsonl"
    known = (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )
    if arguments.again:
        known = [entry for entry in known if "survived" not in entry["outcome"]]
    done = {(entry["path"], entry["line"], entry["after"]): entry for entry in known}
    copy = None
    counts: dict[str, int] = {}
    for mutant in drawn(arguments.seed, importlib.util.find_spec("torch") is not None):
        if sum(counts.values()) - sum(counts.get(none, 0) for none in NO_FAULT) >= arguments.count:
            break
        entry = done.get((mutant.path, mutant.line, mutant.after))
        if entry is None:
            if time.monotonic() - begin > arguments.seconds:
                break
            if copy is None:
                copy = Copy(arguments.work)
                if not arguments.quick:
                    tests = copy.tests(Mutant("torch_", 0, "", ""))
                    copy.require_sound(tests, arguments.work / "tests_pass_without")
            entry = {**asdict(mutant), **copy.tried(mutant, arguments.quick)}
            with results.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        outcome = entry["outcome"]
        counts[outcome] = counts.get(outcome, 0) + 1
        print(
            f"{outcome}: {mutant.path}:{mutant.line}: {mutant.after.strip()}   by {entry.get('by')}"
        )
    print(counts)


if __name__ == "__main__":
    main()

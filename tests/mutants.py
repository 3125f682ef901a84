"""Mutants: small faults put into the C++ sources, to see whether the tests notice.

    python tests/mutants.py --seed 1 --count 45 --work DIR [--seconds 200] [--quick]
    python tests/mutants.py --again --work DIR [--seconds 200]

The first draws `count` mutants by rule from all lines of csrc: in turns from kernel, engine and
bindings, a line that a rule fits, then one of the rules' places in it. Each is built in a copy of
the checkout in DIR, with one instruction set, without unity builds and at -O1, so that it takes
seconds; then tests are run until one fails: the corpus and QUICK, those that LIKELY names for the
file, and without `--quick` all others that step. A mutant whose machine code is that of the
original is no fault: it is counted apart and another is drawn. What was found stands in
DIR/results.jsonl (of `--again` in DIR/again.jsonl), and the next call goes on from there:
`--seconds` says after how many a call begins no other.

The second tries what data/mutants.jsonl keeps of earlier draws: that a test kills each, the one
that did so before being the first, or that a mutant with a reason survives still. It finds a line
by its text, wherever it stands by now, and fails unless all is as it was kept.

It needs cmake, ninja, pybind11 and a C++ compiler; with torch installed, mutants of the bindings
to torch are drawn too. Where a line says "survived", either a test is missing, or the mutant
changes nothing that a test may ask for, and data/mutants.jsonl gets the reason.
"""

from __future__ import annotations

import argparse
import filecmp
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
RECORD = ROOT / "tests" / "data" / "mutants.jsonl"

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
# Run next, by how the name of the mutant's file begins.
LIKELY = {
    "accumul": ("test_accumulation.py",),
    "apply": ("test_half_rounding.py", "test_nan_bits.py", "test_properties.py"),
    "arrays": ("test_lines_apart.py", "test_foreign_gradients.py"),
    "buffers": ("test_following.py", "test_foreign_gradients.py", "test_state_arrays.py"),
    "carried": ("test_measure_on_arrival.py", "test_half_steps.py", "test_following.py"),
    "dlpack": ("test_foreign_gradients.py",),
    "exchanged": ("test_sharded_seam.py", "sharded/test_exact_sums.py", "sharded/test_layouts.py"),
    "factored": ("test_finite_results.py", "test_stuck.py", "test_walks.py", "test_properties.py"),
    "finite_result": ("test_finite_results.py", "test_half_steps.py"),
    "halves": ("test_half_rounding.py", "test_half_sums.py", "test_nan_bits.py"),
    "held_tensor": ("test_state_arrays.py", "test_hostile_states.py", "test_half_steps.py"),
    "kernels": ("test_determinism.py", "test_walks.py", "test_half_steps.py"),
    "measure": ("test_lines_apart.py", "test_measure_on_arrival.py", "test_conventions.py"),
    "norm_window": ("test_spikes.py",),
    "param_squares": ("test_half_steps.py", "test_following.py", "test_properties.py"),
    "part": ("test_sharded_seam.py", "sharded/test_layouts.py"),
    "resolve": (
        "test_finite_results.py",
        "test_hostile_states.py",
        "test_state_arrays.py",
        "test_properties.py",
    ),
    "rounded": ("test_following.py", "test_half_rounding.py", "test_half_steps.py"),
    "scratch": ("test_allocations.py", "test_many_tensors.py", "test_memory_errors.py"),
    "sharded": ("test_sharded_seam.py", "sharded"),
    "tensors": (
        "test_guards.py",
        "test_step_tensor.py",
        "test_accumulation.py",
        "test_report.py",
        "test_measure_on_arrival.py",
        "test_sharded_seam.py",
        "sharded",
    ),
    "torch_": ("torch_adapter/test_options.py", "torch_adapter/test_traps.py", "torch_adapter"),
}
NO_FAULT = ("gone", "needs torch", "does not compile", "same machine code")
# Seconds of a run of tests, and of one recorded: a mutant that takes longer is killed by that.
LONGEST, LONGEST_OF_ONE = 600, 120


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


def found_again(entry: dict) -> Mutant | None:
    """A recorded mutant where its line stands now, the nearest if there are several."""
    lines = (ROOT / entry["path"]).read_text().splitlines()
    places = [n for n, line in enumerate(lines, start=1) if line == entry["before"]]
    if not places:
        return None
    line = min(places, key=lambda n: abs(n - entry["line"]))
    return Mutant(entry["path"], line, entry["before"], entry["after"])


def mirror(tree: Path) -> None:
    """Make a copy of the checkout; a file that differs is newer than the objects of mutants."""

    def copied(source: str, to: str) -> str:
        if not (os.path.exists(to) and filecmp.cmp(source, to, shallow=False)):
            shutil.copy(source, to)
        return to

    if tree.exists():
        for path in list(tree.rglob("*")):
            if path.is_file() and not (ROOT / path.relative_to(tree)).exists():
                path.unlink()
    ours = shutil.ignore_patterns("*.so", "__pycache__", ".git")
    shutil.copytree(ROOT, tree, ignore=ours, copy_function=copied, dirs_exist_ok=True)


class Copy:
    """The checkout in a folder of its own, built with one instruction set."""

    def __init__(self, work: Path) -> None:
        self.tree = work / "tree"
        self.build = work / "build"
        mirror(self.tree)
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

    def run(self, *arguments: str, longest: int = LONGEST) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(filter(None, [str(self.tree), os.environ.get("PYTHONPATH")]))
        return subprocess.run(
            [sys.executable, *arguments],
            check=False,
            cwd=self.tree,
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=longest,
        )

    def corpus(self) -> str | None:
        """Whether the hashes of the corpus differ, in a few seconds, as `killer` has it."""
        try:
            return "the corpus" if self.run("tests/corpus.py").returncode else None
        except subprocess.TimeoutExpired:
            return "the corpus did not end"

    def killer(self, *tests: str, longest: int = LONGEST) -> str | None:
        """The first test that fails, or how the run ended; None if all pass."""
        options = ["-m", "pytest", "-p", "no:cacheprovider", "-qx", "--no-header"]
        try:
            run = self.run(*options, *tests, longest=longest)
        except subprocess.TimeoutExpired:
            return "it did not end"
        if run.returncode == 0:
            return None
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.MULTILINE)
        return failed.group(1) if failed else f"return code {run.returncode}"

    def kills(self, name: str) -> bool:
        """Whether a recorded killer still fails; not if it is not found."""
        if name == "the corpus":
            return self.corpus() is not None
        if not name.startswith("tests/"):
            return False
        by = self.killer(name, longest=LONGEST_OF_ONE)
        return by is not None and by not in ("return code 4", "return code 5")

    def tried(self, mutant: Mutant, quick: bool, by: str | None = None) -> dict[str, str | None]:
        """Build a mutant, run the tests, what killed it `by` now first, and put the source back."""
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
            if by is None or not self.kills(by):
                by = self.corpus() or self.killer(*self.quick_tests(mutant))
            if by is None and quick:
                return {"outcome": "survived the quick tests"}
            by = by or self.killer(*self.tests(mutant))
            if by is None:
                return {"outcome": "survived"}
            return {"outcome": "killed", "by": by.split("[")[0]}
        finally:
            source.write_text(text)

    def quick_tests(self, mutant: Mutant) -> list[str]:
        name = Path(mutant.path).name
        likely = [
            test for start, tests in LIKELY.items() if name.startswith(start) for test in tests
        ]
        return [f"tests/{test}" for test in (*QUICK, *likely)]

    def tests(self, mutant: Mutant) -> list[str]:
        """What is run where the quick tests find nothing."""
        tests = [
            f"tests/{path.name}"
            for path in sorted((self.tree / "tests").glob("test_*.py"))
            if path.name not in (*NOT_OF_CORE, "test_corpus.py")
        ]
        name = Path(mutant.path).name
        if name.startswith(("torch_", "dlpack", "held_tensor", "measured")):
            tests.insert(0, "tests/torch_adapter")
        if name.startswith(("sharded", "part", "exchanged")):
            tests.insert(0, "tests/sharded")
        return [test for test in tests if test not in self.quick_tests(mutant)]


def key_of(entry: dict) -> tuple[str, int, str]:
    return entry["path"], entry["line"], entry["after"]


def sound_copy(work: Path, quick: bool) -> Copy:
    copy = Copy(work)
    if not quick:
        tests = copy.tests(Mutant("torch_", 0, "", ""))
        copy.require_sound(tests, work / "tests_pass_without")
    return copy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--count", type=int, default=45, help="mutants that are faults")
    parser.add_argument("--work", type=Path, required=True, help="folder of the copy, the results")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--quick", action="store_true", help="leave the longer tests for later")
    parser.add_argument("--again", action="store_true", help="try what data/mutants.jsonl keeps")
    arguments = parser.parse_args()
    begin = time.monotonic()
    arguments.work.mkdir(parents=True, exist_ok=True)
    results = arguments.work / ("again.jsonl" if arguments.again else "results.jsonl")
    entries = (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )
    done = {key_of(entry): entry for entry in entries}
    has_torch = importlib.util.find_spec("torch") is not None
    recorded = [(entry, found_again(entry)) for entry in map(json.loads, RECORD.open())]
    kept = {key_of(asdict(mutant)): entry for entry, mutant in recorded if mutant}
    to_try: Iterator[tuple[dict, Mutant | None]]
    if arguments.again:
        to_try = ((asdict(mutant) if mutant else entry, mutant) for entry, mutant in recorded)
    else:
        print("seed", arguments.seed)
        to_try = ((asdict(mutant), mutant) for mutant in drawn(arguments.seed, has_torch))
    copy = None
    counts: dict[str, int] = {}
    differ = 0
    for wanted, mutant in to_try:
        n_faults = sum(counts.values()) - sum(counts.get(none, 0) for none in NO_FAULT)
        if not arguments.again and n_faults >= arguments.count:
            break
        entry = done.get(key_of(wanted))
        if entry is None or (
            entry["outcome"] == "survived the quick tests" and not arguments.quick
        ):
            if time.monotonic() - begin > arguments.seconds:
                print("cut off: the next call goes on from here")
                differ += arguments.again
                break
            if mutant is None:
                entry = {**wanted, "outcome": "gone"}
            elif Path(mutant.path).name.startswith("torch_") and not has_torch:
                entry = {**wanted, "outcome": "needs torch"}
            else:
                copy = copy or sound_copy(arguments.work, arguments.quick)
                by = kept.get(key_of(wanted), {}).get("by")
                entry = {**asdict(mutant), **copy.tried(mutant, arguments.quick, by)}
            with results.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        outcome = entry["outcome"]
        counts[outcome] = counts.get(outcome, 0) + 1
        why = kept.get(key_of(entry), {}).get("why")
        differ += arguments.again and outcome not in NO_FAULT and (outcome != "killed") != bool(why)
        said = f"by {entry['by']}" if entry.get("by") else why or ""
        print(f"{outcome}: {entry['path']}:{entry['line']}: {entry['after'].strip()}   {said}")
    print(counts)
    if differ:
        raise SystemExit("not all mutants end as data/mutants.jsonl says")


if __name__ == "__main__":
    main()

"""Breaks one line after another, each in a copy of the tree, and runs the tests until one fails.

A mutant meets the tests in the order in which they are likely to see it: first the files that speak most of what the
broken code defines, then the others that ``make test`` runs, first those of its package, then the rest. It ends with
the first test that fails. So "caught" means that some test of that selection fails, and the test that is named is the
first one that was met.

    python -m tests.mutants                 # all, one after another: an hour or more of one core
    python -m tests.mutants 3 17 --jobs 2   # some of them, two at a time; writes nothing
"""

import argparse
import ast
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.mutants.table import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "mutants.md"
LIKELY = 5  # test files that are run first
LIMIT = 3600  # seconds for one run of tests: a mutant may loop for ever


class Verdict(NamedTuple):
    """Which tests saw the mutant."""

    mutant: Mutant
    by_representatives: str  # the first that failed; empty: none
    by_all: str
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Do the tests see faults?")
    parser.add_argument("numbers", nargs="*", type=int, help=f"which, from 1 to {len(MUTANTS)}; without any: all")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time (default: 1)")
    arguments = parser.parse_args()
    chosen = [MUTANTS[number - 1] for number in arguments.numbers] or list(MUTANTS)
    verdicts = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for verdict in pool.map(judge, chosen):
            verdicts.append(verdict)
            print(_line(verdict), flush=True)
    print(_counts(verdicts))
    if not arguments.numbers:
        PAGE.write_text(page(verdicts), encoding="utf-8")


def judge(mutant: Mutant) -> Verdict:
    """Runs the tests on the mutant, in the order of their likelihood."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant") as name:
        folder = Path(name)
        copy_tree(folder)
        ordered = by_likelihood(mutant, folder)
        apply(mutant, folder)
        likely, others = ordered[:LIKELY], sorted(ordered[LIKELY:], key=partial(_is_apart, mutant))
        others += ["torchreg", "experiments"]
        few = first_failure(folder, "--representatives", *likely) or first_failure(folder, "--representatives", *others)
        every = few or first_failure(folder, "--rest", *likely, *others)
    return Verdict(mutant, few, every, time.monotonic() - started)


def copy_tree(folder: Path) -> None:
    """The files of the working tree that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def apply(mutant: Mutant, folder: Path) -> None:
    path = folder / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.text) != 1:
        raise ValueError(
            f"{mutant.file} must hold this text once, it does {text.count(mutant.text)} times: {mutant.text}"
        )
    path.write_text(text.replace(mutant.text, mutant.replacement), encoding="utf-8")


def by_likelihood(mutant: Mutant, folder: Path) -> list[str]:
    """The test files, first those that speak most of what the mutated file defines.

    What encloses the mutated line counts ten times. The rarer a name is in the tests, the more it tells: a file gets
    its share of all places where the name stands.
    """
    source = (folder / mutant.file).read_text(encoding="utf-8")
    line = source[: source.index(mutant.text)].count("\n") + 1
    weights = dict.fromkeys((Path(mutant.file).stem, Path(mutant.file).parent.name), 3.0)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            encloses = node.lineno <= line <= (node.end_lineno or node.lineno)
            weights[node.name] = max(weights.get(node.name, 0.0), 10.0 if encloses else 1.0)
    words = {
        str(path): Counter(re.findall(r"\w+", (folder / path).read_text(encoding="utf-8"))) for path in _tests(folder)
    }
    scores: Counter[str] = Counter()
    for name, weight in weights.items():
        total = sum(counts[name] for counts in words.values())
        for path, counts in words.items():
            scores[path] += weight * counts[name] / max(total, 1)
    return sorted(words, key=lambda path: (-scores[path], path))


def _is_apart(mutant: Mutant, path: str) -> bool:
    """Whether a test file is not of the kind that tests the package."""
    kinds = {"torchreg": ("tests/unit/", "tests/property/", "tests/oracle/"), "experiments": ("tests/integration/",)}
    return not path.startswith(kinds[Path(mutant.file).parts[0]])


def first_failure(folder: Path, *arguments: str) -> str:
    """The first test that fails; empty if none does."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return f"no end within {LIMIT} seconds"
    found = re.search(r"^(?:FAILED|ERROR) (\S+?)(?:\[.*?\])?(?: - .*)?$", done.stdout, re.MULTILINE)
    if found:
        return found[1]
    if done.returncode not in (0, 5):  # 5: nothing was selected
        raise RuntimeError(f"pytest {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return ""


def page(verdicts: list[Verdict]) -> str:
    """The table, as Markdown."""
    lines = [
        "# Which faults the tests see",
        "",
        "Each row is one line of the source that was broken on purpose, with the first test that failed.",
        "`make test` runs representatives of all tests (tests/representatives.py), and `make test-all` runs",
        "all tests. What `make test` catches, `make test-all` catches with the same test.",
        "",
        _counts(verdicts),
        "",
        "`python -m tests.mutants` makes this page from the table in tests/mutants/table.py.",
        "",
        "| file | what is broken | caught by `make test` | caught by `make test-all` |",
        "|---|---|---|---|",
    ]
    for verdict in verdicts:
        every = "the same" if verdict.by_representatives else _cell(verdict.by_all)
        lines.append(
            f"| {verdict.mutant.file} | {verdict.mutant.breaks} | {_cell(verdict.by_representatives)} | {every} |"
        )
    return "\n".join(lines) + "\n"


def _tests(folder: Path) -> Iterator[Path]:
    """All but the tests of the mutants themselves, to which every broken file is one that does not fit the table."""
    found = (path.relative_to(folder) for path in sorted((folder / "tests").rglob("test_*.py")))
    return (path for path in found if path.stem != "test_mutants")


def _cell(test: str) -> str:
    return f"`{test.removeprefix('tests/')}`" if test else "**no**"


def _counts(verdicts: list[Verdict]) -> str:
    few, every = (sum(bool(caught) for caught in column) for column in zip(*(v[1:3] for v in verdicts), strict=True))
    return f"Of {len(verdicts)} faults `make test` catches {few}, `make test-all` {every}."


def _line(verdict: Verdict) -> str:
    caught = verdict.by_representatives or (f"only by all: {verdict.by_all}" if verdict.by_all else "BY NO TEST")
    number = MUTANTS.index(verdict.mutant) + 1
    return f"{number:3} {verdict.mutant.file:<45} {verdict.seconds:6.0f} s  {caught}"


if __name__ == "__main__":
    main()

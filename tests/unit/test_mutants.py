"""The table of mutants fits the source: every fault can be made, and every part of the source has one."""

from pathlib import Path

import pytest

from tests.mutants.__main__ import LIKELY, ROOT, Verdict, apply, by_likelihood, page
from tests.mutants.table import MUTANTS


@pytest.mark.parametrize("mutant", MUTANTS, ids=[f"{n} {mutant.file}" for n, mutant in enumerate(MUTANTS, start=1)])
def test_each_fault_can_be_made_in_one_place_and_is_still_a_program(mutant, tmp_path):
    before = (ROOT / mutant.file).read_text(encoding="utf-8")
    copy = tmp_path / mutant.file
    copy.parent.mkdir(parents=True)
    copy.write_text(before, encoding="utf-8")
    apply(mutant, tmp_path)
    after = copy.read_text(encoding="utf-8")
    assert after != before
    compile(after, mutant.file, "exec")


def test_the_tests_of_what_is_broken_are_run_first():
    hooks = next(mutant for mutant in MUTANTS if mutant.file == "torchreg/hooks/step.py")
    ordered = by_likelihood(hooks, ROOT)
    assert "tests/unit/test_hooks.py" in ordered[:LIKELY]
    every = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")}
    assert sorted(ordered) == sorted(every - {"tests/unit/test_mutants.py"})


def test_there_are_forty_one_and_each_part_of_the_source_has_some():
    assert len(set(MUTANTS)) == 41
    broken = {Path(mutant.file).parts[:2] for mutant in MUTANTS}
    parts = {
        path.relative_to(ROOT).parts for package in ("torchreg", "experiments") for path in (ROOT / package).iterdir()
    }
    folders = {part for part in parts if (ROOT.joinpath(*part) / "__init__.py").exists()}
    assert folders - broken == set()


def test_the_page_tells_what_is_caught_by_which_tests():
    verdicts = [
        Verdict(MUTANTS[0], "tests/unit/test_a.py::test_b", "tests/unit/test_a.py::test_b", 1.0),
        Verdict(MUTANTS[1], "", "tests/unit/test_a.py::test_c", 1.0),
        Verdict(MUTANTS[2], "", "", 1.0),
    ]
    told = page(verdicts)
    assert "Of 3 faults `make test` catches 1, `make test-all` 2." in told
    rows = [line.split(" | ")[2:] for line in told.splitlines() if line.startswith(("| torchreg", "| experiments"))]
    assert rows == [
        ["`unit/test_a.py::test_b`", "the same |"],
        ["**no**", "`unit/test_a.py::test_c` |"],
        ["**no**", "**no** |"],
    ]

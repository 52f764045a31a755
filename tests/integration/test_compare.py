"""Several studies side by side: their differences against NumPy and SciPy, their page by itself, wrong folders."""

import re
import shutil

import numpy as np
import pytest
from scipy import stats

from experiments.errors import UserError
from experiments.report import compare, summarize, text_of
from experiments.report.cells import difference
from experiments.report.vega import bundle
from experiments.running.study import run_study
from tests.integration.studies import CPU, TREE, small

L2 = {"name": "L2", "regularizers": [{"penalty": "L2", "strength": 0.1}]}
NONE = {"name": "none"}


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Studies with the same arms, with other seeds, on fewer images and with another arm, and with that arm only."""
    folder = tmp_path_factory.mktemp("studies")
    data = {**TREE["data"], "train_size": 60}
    made = {
        "first": small(seeds=[0, 1, 2], arms=[NONE, L2]),
        "other seeds": small(seeds=[1, 2, 3], arms=[L2, NONE]),
        "alone": small(arms=[{"name": "alone"}]),
        "fewer": small(seeds=[0, 1, 2], data=data, arms=[NONE, {"name": "dropout", "model": {"dropout": None}}]),
    }
    for name, study in made.items():
        run_study(study, folder / name, CPU)
    return folder


def lines_of(found, head):
    table = next(table for table in found.tables if table.heads[0] == head)
    return {tuple(row[:2]): row[2:] for row in table.rows}


def test_the_arms_of_the_first_that_any_other_has_are_shown(studies):
    found = compare([studies / "first", studies / "other seeds", studies / "fewer"])
    assert found.arms == ["none", "L2"]
    errors, effects, between = found.tables
    assert errors.heads == ["arm", "first", "other seeds", "fewer"]
    assert errors.rows[1][3] == ""  # "fewer" has no L2
    assert [row[0] for row in effects.rows] == ["L2"]
    assert [row[:2] for row in between.rows] == [["none", "other seeds"], ["none", "fewer"], ["L2", "other seeds"]]


def test_the_same_runs_do_not_differ(studies, tmp_path):
    shutil.copytree(studies / "first", tmp_path / "again")
    rows = lines_of(compare([studies / "first", tmp_path / "again"]), "less first")
    assert set(map(tuple, rows.values())) == {("+0.0", "+0.0 to +0.0", "0.0", "0.0", "3", "no")}


def test_differences_are_paired_over_the_seeds_that_both_have(studies):
    rows = lines_of(compare([studies / "first", studies / "fewer"]), "less first")
    ours, theirs = (summarize(studies / name).plain for name in ("fewer", "first"))
    each = np.array([ours.by_seed("test_error")[seed] - theirs.by_seed("test_error")[seed] for seed in (0, 1, 2)])
    by_seed = stats.t.ppf(0.975, 2) * stats.sem(each)
    wrong = [np.mean([one.wrong("test")[seed] for seed in (0, 1, 2)], axis=0) for one in (ours, theirs)]
    by_image = stats.norm.ppf(0.975) * stats.sem(wrong[0] - wrong[1])  # fewer to train on, the same to test on
    ends = [f"{100 * (each.mean() + sign * np.hypot(by_seed, by_image)):+.1f}" for sign in (-1, 1)]
    row = rows["none", "fewer"]
    assert row[:2] == [f"{100 * each.mean():+.1f}", " to ".join(ends)]
    assert row[4] == "3"
    assert lines_of(compare([studies / "first", studies / "other seeds"]), "less first")["L2", "other seeds"][4] == "2"


def test_each_study_shows_what_regularization_changes_in_it(studies):
    found = compare([studies / "first", studies / "other seeds"])
    for label in found.studies:
        summary = summarize(studies / label)
        (cell,) = (cell for cell in summary.cells if cell.arm == "L2")
        expected = difference(cell, summary.plain, "test_error")
        assert found.effect(label, "L2") == expected
        assert f"{100 * expected.mean:+.1f} (" in text_of(found)
        assert found.effect(label, "none") is None


def test_a_single_seed_in_common_has_no_interval(studies, tmp_path):
    run_study(small(seeds=[2, 9], arms=[NONE]), tmp_path / "one", CPU)
    row = lines_of(compare([studies / "first", tmp_path / "one"]), "less first")["none", "one"]
    assert row[1:3] == ["unknown", "unknown"]
    assert row[-2:] == ["1", "no"]
    run_study(small(seeds=[9], arms=[NONE]), tmp_path / "none", CPU)
    assert [table.heads[0] for table in compare([studies / "first", tmp_path / "none"]).tables] == ["arm"]


def test_folders_of_one_name_are_told_apart(studies, tmp_path):
    shutil.copytree(studies / "fewer", tmp_path / "first")
    found = compare([studies / "first", tmp_path / "first"])
    assert list(found.studies) == [str(studies / "first"), str(tmp_path / "first")]


def test_the_command_prints_tables_and_writes_a_page_that_needs_nothing_else(studies, experiments, tmp_path):
    folders = [str(studies / name) for name in ("first", "other seeds", "fewer")]
    code, out, err = experiments("compare", *folders, "--html", "page.html")
    assert (code, err) == (0, "")
    assert f"Page: {tmp_path / 'page.html'}" in out
    assert len(re.findall("^-+$", out, re.MULTILINE)) == 3
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = page.replace(bundle(), "")
    assert page.count("<svg") == 2  # for wide and for narrow pages
    assert page.count("<table") == 3
    assert not re.search(r"<(link|img|iframe)\b|\bsrc=", page)
    addresses = set(re.findall(r"https?://[^\"'<> ]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    identities = re.findall(r'\bid="([^"]+)"', page)
    assert len(identities) == len(set(identities))


def test_regressions_are_compared_in_units_of_the_target(studies, tmp_path):
    data = {"name": "diabetes"}
    for name, seeds in (("one", [0, 1, 2]), ("two", [1, 2, 3])):
        run_study(small(data=data, seeds=seeds, arms=[NONE, L2]), tmp_path / name, CPU)
    found = compare([tmp_path / "one", tmp_path / "two"])
    assert found.tables[0].title == "Test RMSEs"
    text = text_of(found)
    assert "less that of its unregularized arm, in units of the target" in text
    assert "percent" not in text
    assert "points" not in text
    plain = summarize(tmp_path / "one").plain
    (error,) = [row[1] for row in found.tables[0].rows if row[0] == "none"]
    assert error == "{:.2f} ± {:.2f}".format(*plain.mean("test_error"))
    rows = lines_of(found, "less one")
    assert {row[0] for row in rows.values()} <= {"+0.00", "-0.00"}
    with pytest.raises(UserError, match="the same task, first is of classes, one is a regression: leave out"):
        compare([studies / "first", tmp_path / "one"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["first"], "compare: needs the folders of two studies or more, got 1"),
        (["first", "first"], "compare: needs different folders, got .*first twice"),
        (["first", "."], "holds no study"),
        (["missing", "first"], "holds no study"),
        (["first", "alone"], "compare: the studies need a finished arm in common: first has none, L2; .* have alone"),
    ],
)
def test_folders_that_cannot_be_compared_are_one_line_and_exit_code_2(names, message, studies, experiments):
    folders = [studies / name for name in names]
    with pytest.raises(UserError, match=message):
        compare(folders)
    code, out, err = experiments("compare", *map(str, folders))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")


@pytest.mark.parametrize("file", [".", "..", "/", "runs"])
def test_a_page_that_is_a_folder_is_one_line(file, experiments, tmp_path):
    (tmp_path / "runs").mkdir()
    code, out, err = experiments("compare", "one", "two", "--html", file)
    assert (code, out) == (2, "")
    assert err == f"error: compare: --html must name a file to write, got the folder {file}\n"

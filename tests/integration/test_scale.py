"""Studies of many recorded runs: their commands read them, and make none."""

import csv
from collections import Counter
from html import unescape

import pytest

from experiments.benches import scale
from experiments.errors import UserError
from experiments.report import datasets, page
from experiments.report.cells import Cell
from experiments.report.summary import summarize
from experiments.running import tasks


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return scale.make(tmp_path_factory.mktemp("scale"), runs=60, penalties=1, strengths=1)


def test_a_made_study_is_read_by_every_command_and_no_run_is_made(made, monkeypatch, experiments):
    monkeypatch.setattr(tasks, "train", lambda *_: pytest.fail("makes a run"))
    assert len(made.study.runs) == 60
    before = {path: path.read_bytes() for path in made.folders[0].glob("runs/**/*.*")}
    assert Counter(path.name for path in before) == dict.fromkeys(
        ("config.json", "environment.json", "history.jsonl", "checkpoint.pt", "result.json"), 60
    )
    for name, (_, _, *arguments) in made.commands.items():
        code, out, err = experiments(*arguments)
        assert (code, "note:" in err) == (0, False), (name, err)
        assert "L1, loss" in out
        assert "Not finished" not in out
    assert {path: path.read_bytes() for path in made.folders[0].glob("runs/**/*.*")} == before


def test_runs_of_a_study_that_differ_in_seeds_share_their_settings_in_memory(made):
    runs = [run for cell in summarize(made.folders[0]).cells for run in cell.runs]
    assert runs == list(made.study.runs)
    assert len({id(run.model) for run in runs}) == 5


def test_very_many_seeds_are_told_together_and_add_up(made, monkeypatch):
    cells = {cell.label: cell for cell in summarize(made.folders[0]).cells}
    each = {kind: getattr(datasets, kind)(cells) for kind in ("reliability", "weights")}
    each["confusion"] = datasets.confusion(cells, list("0123456789"))
    monkeypatch.setattr(datasets, "MOST_SEEDS", 11)  # each arm has 12
    together = {kind: getattr(datasets, kind)(cells) for kind in ("reliability", "weights")}
    together["confusion"] = datasets.confusion(cells, list("0123456789"))
    for kind, keys, figures in (
        ("reliability", ("label", "low"), ("count", "correct", "confidence")),
        ("confusion", ("label", "true", "predicted"), ("times",)),
    ):
        for figure in figures:
            sums = Counter()
            for row in each[kind]:
                sums[tuple(row[key] for key in keys)] += row[figure]
            assert {tuple(row[key] for key in keys): row[figure] for row in together[kind]} == pytest.approx(sums)
    assert {row["seed"] for rows in together.values() for row in rows} == {""}
    assert sum(row["share"] for row in together["weights"]) == pytest.approx(
        sum(row["share"] for row in each["weights"]) / 12, rel=1e-4
    )
    assert sum(row["ece"] for row in together["reliability"]) == pytest.approx(
        sum(row["ece"] for row in each["reliability"]) / 12, rel=1e-4
    )


def test_a_page_of_very_many_arms_shows_the_first_and_says_so(made, tmp_path, monkeypatch):
    summary = summarize(made.folders[0])
    monkeypatch.setattr(datasets, "MOST_ARMS", 1)
    monkeypatch.setattr(datasets, "MOST_PICTURED", 2)
    monkeypatch.setattr(datasets, "MOST_SEEDS", 11)
    text = page.write_page(summary, tmp_path).read_text()
    assert "images are shown of the first 1 of 5 arms, other pictures of the first 2." in text
    assert "of all seeds where an arm has more than 11" in text
    history = unescape(text.partition('id="data-history"')[2].partition("</pre>")[0])
    shown = {row["label"] for row in csv.DictReader(history.partition("\n")[2].splitlines())}
    assert shown == {"none", "L1, loss (0)"}


def test_long_histories_of_many_runs_are_thinned_more(made, monkeypatch):
    cells = {cell.label: cell for cell in summarize(made.folders[0]).cells}
    epochs = range(1, 101)
    monkeypatch.setattr(
        Cell, "histories", [[dict.fromkeys(datasets._FIGURES, 0.0) | {"epoch": e} for e in epochs]] * 12
    )
    for most, kept in ((60 * 100, 100), (60 * 20, 20), (60, 10)):
        monkeypatch.setattr(datasets, "MOST_ROWS", most)
        assert Counter((row["label"], row["seed"]) for row in datasets.history(cells)) == dict.fromkeys(
            ((label, seed) for label in cells for seed in range(12)), kept
        )


def test_a_failing_command_ends_the_bench_with_what_it_said(tmp_path):
    with pytest.raises(UserError, match="holds no study"):
        scale.measured("report", ["-m", "experiments", "report", str(tmp_path)])

"""Searches: their points, their pruning, being killed, several processes, and what the report makes of them."""

import sys
import time
import tomllib
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import DEFAULT, Mock

import numpy as np
import optuna
import pytest
from torch import nn

from experiments.config import Study, resolve
from experiments.config.sweep import Sweep
from experiments.errors import RecordError, UserError
from experiments.report import page as report
from experiments.report.summary import Cell, best_of, one_standard_error, summarize
from experiments.running.engines import Local, Processes
from experiments.running.search import Search, _seed, _suggest, opened
from experiments.running.study import run_study
from experiments.running.sweep import run_sweep
from experiments.training.record import Log, Record, read_runs
from tests.helpers import assert_close
from tests.integration.studies import CPU, TREE, Fragile, kill, small

QUICK = {"epochs": 1, "batch_size": 50}
L1 = {"name": "L1", "regularizers": [{"penalty": "L1", "mode": "prox"}]}
STRENGTH = "regularizers.0.strength"


def swept(
    space: dict[str, Any],
    arms: Any = None,
    seeds: Any = (0,),
    train: Any = None,
    arms_searched: Any = None,
    **table: Any,
) -> Study:
    """The small study with a search over ``space``."""
    sweep = {"space": space, "arms": arms_searched, **table}
    return small(arms=arms or [{"name": "arm"}], seeds=list(seeds), train=train or QUICK, sweep=sweep)


def asked(folder: Path) -> list[dict[str, Any]]:
    """The points that were tried, in their order."""
    return [event["values"] for event in Log(folder / "trials.jsonl").events if event["event"] == "ask"]


def results(folder: Path) -> dict[str, Any]:
    """Every result below a folder, without how long it took."""
    paths = sorted(folder.glob("runs/**/result.json"))
    found = {str(path.relative_to(folder)): Record(path.parent).result for path in paths}
    return {path: {**result, "seconds": 0} for path, result in found.items()}


def test_a_grid_is_the_product_of_its_values_each_tried_once_over_all_seeds(tmp_path):
    study = swept({"optimizer.lr": [0.01, 0.1], "model.hidden": [[8], [8, 8], [4]]}, seeds=[3, 4])
    assert run_sweep(study, tmp_path, CPU) == []
    points = {(values["optimizer.lr"], tuple(values["model.hidden"])) for values in asked(tmp_path)}
    assert points == {(lr, hidden) for lr in (0.01, 0.1) for hidden in ((8,), (8, 8), (4,))}
    assert len(asked(tmp_path)) == 6
    assert len(results(tmp_path)) == 12


def test_a_point_is_the_run_that_its_values_make(tmp_path):
    run_sweep(swept({STRENGTH: [0.3]}, [L1]), tmp_path / "sweep", CPU)
    alone = {"name": "L1", "regularizers": [{"penalty": "L1", "mode": "prox", "strength": 0.3}]}
    run_study(small(arms=[alone], train=QUICK), tmp_path / "run", CPU)
    (point,), (run,) = results(tmp_path / "sweep").values(), results(tmp_path / "run").values()
    assert point == run


@pytest.mark.parametrize(
    ("dimension", "values"),
    [
        ({"low": 1e-6, "high": 1e-1, "log": True, "count": 9}, np.geomspace(1e-6, 1e-1, 9)),
        ({"low": 0.0, "high": 0.5, "count": 4}, np.linspace(0, 0.5, 4)),
        ({"low": 1, "high": 64, "log": True, "count": 7}, 2 ** np.arange(7)),
    ],
    ids=["geometric", "even", "whole"],
)
def test_a_range_with_a_count_is_the_grid_of_numpy(dimension, values):
    study = swept({"optimizer.weight_decay": dimension})
    finite = study.sweep.space["optimizer.weight_decay"].finite
    assert_close(np.array(finite, dtype=float), np.asarray(values, dtype=float), tolerance=1e-5)
    assert study.sweep.points == len(values)
    assert isinstance(finite[1], type(dimension["low"]))


def test_ranges_are_sampled_between_their_ends(tmp_path):
    space = {
        "optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True},
        "train.batch_size": {"low": 25, "high": 50},
        "optimizer.name": ["SGD", "AdamW"],
    }
    study = swept(space, trials=12, sampler={"name": "RandomSampler"}, seed=7)
    assert run_sweep(study, tmp_path / "a", CPU) == run_sweep(study, tmp_path / "b", CPU) == []
    points = asked(tmp_path / "a")
    assert len({point["optimizer.lr"] for point in points}) == 12
    assert all(1e-4 <= point["optimizer.lr"] <= 1e-1 for point in points)
    assert sum(point["optimizer.lr"] < 1e-2 for point in points) > 3  # on a logarithmic scale two thirds are
    assert {type(point["train.batch_size"]) for point in points} == {int}
    assert {point["optimizer.name"] for point in points} == {"SGD", "AdamW"}
    assert results(tmp_path / "a") == results(tmp_path / "b")
    run_sweep(swept(space, trials=12, sampler={"name": "RandomSampler"}, seed=8), tmp_path / "c", CPU)
    assert asked(tmp_path / "c") != points


PRUNED = swept(
    {"optimizer.lr": {"low": 1e-6, "high": 1e-1, "log": True}},
    trials=7,
    train={"epochs": 4, "batch_size": 50},
    seeds=[0, 1],
    pruner={"name": "MedianPruner", "n_startup_trials": 2},
)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned")
    assert run_sweep(PRUNED, folder, CPU) == []
    return folder


def test_a_sampler_that_learns_and_a_pruner_are_optunas_own(pruned):
    def value(trial: optuna.Trial, runs: dict[float, list[list[dict[str, Any]]]]) -> float:
        lr = trial.suggest_float("optimizer.lr", 1e-6, 1e-1, log=True)
        for i, rows in enumerate(runs[lr]):
            for row in rows[:3]:
                trial.report(row["valid_error"], 4 * i + row["epoch"])
                if trial.should_prune():
                    raise optuna.TrialPruned
        return sum(rows[-1]["valid_error"] for rows in runs[lr]) / 2

    histories: dict[float, list[list[dict[str, Any]]]] = {}
    for run in read_runs(PRUNED, pruned):
        record = Record(pruned / "runs" / run.folder)
        histories.setdefault(run.optimizer.lr, []).append(record.history if record.folder.exists() else [])
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2)
    study = optuna.create_study(pruner=pruner)
    for count in range(7):
        study.sampler = optuna.samplers.TPESampler(seed=_seed(0, count))
        study.optimize(lambda trial: value(trial, histories), n_trials=1)
    ours = optuna.load_study(study_name="small: arm", storage=opened(str(pruned / "optuna.log")))
    assert [trial.params for trial in study.trials] == [trial.params for trial in ours.trials]
    assert [trial.intermediate_values for trial in study.trials] == [trial.intermediate_values for trial in ours.trials]
    states = [trial.state.name for trial in ours.trials]
    assert [trial.state.name for trial in study.trials] == states
    assert set(states) == {"COMPLETE", "PRUNED"}


def test_a_pruned_point_is_shown_and_never_chosen(pruned):
    summary = summarize(pruned)
    given_up = [cell for cell in summary.cells if cell.status == "pruned"]
    assert given_up
    assert all(len(cell.histories[-1]) < 4 for cell in given_up)
    assert summary.chosen[0].is_done
    assert not any(cell.status == "pruned" for path in summary.paths for cell in path)
    assert best_of(given_up) is None
    assert f"Of 7 points, {len(given_up)} pruned, the one with the lowest validation error." in report.table(summary)
    assert "Not finished" not in report.table(summary)
    assert sum("pruned" in row for row in report.points(summary)) == len(given_up)


@pytest.fixture
def new_search(tmp_path):
    """Makes searches of one arm in a folder, each as in a process of its own."""

    def make(sweep: Sweep, name: str) -> Search:
        opened.cache_clear()
        (tmp_path / name).mkdir(exist_ok=True)
        return Search("arm", sweep, Log(tmp_path / name / "trials.jsonl"), str(tmp_path / name / "optuna.log"), "arm")

    return make


def made(search: Search, most: int = 1000) -> list[dict[str, Any]]:
    """The points of a search of which so many more are made; the metric follows from the point."""
    for trial in islice(search.trials(), most):
        lr, judge = trial.values["optimizer.lr"], search.judge(trial.number)
        verdicts = [judge is not None and judge(step, {"valid_error": abs(lr - 0.1) + 1 / step}) for step in (1, 2)]
        status = "pruned" if any(verdicts) else "diverged" if lr > 0.9 else "done"
        search.tell(trial.number, status, abs(lr - 0.1) if status == "done" else None)
    return [(trial.values, *rest) for trial, *rest in search.told]


SAMPLERS = ["TPESampler", "RandomSampler", "QMCSampler", "BruteForceSampler", "NSGAIISampler", "GridSampler"]
LARGE = {"optimizer.lr": {"low": 1e-3, "high": 1.0, "log": True, "count": 10}, "model.hidden": [[4], [8], [16]]}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_resumed_search_goes_on_with_the_points_it_would_have_had(name, new_search):
    trials = None if name == "GridSampler" else 30
    sweep = swept(LARGE, trials=trials, sampler={"name": name}, pruner={"name": "MedianPruner"}).sweep
    whole = made(new_search(sweep, "whole"))
    assert len(whole) == 30
    assert len({status for _, status, _ in whole}) > 1
    for count in (1, 15, 13, 1):
        assert made(new_search(sweep, "cut"), count) == whole[: len(made(new_search(sweep, "cut"), 0))]
    assert made(new_search(sweep, "cut")) == whole


@pytest.mark.parametrize("name", ["TPESampler", "GridSampler"])
def test_a_search_that_is_killed_within_a_question_to_optuna_asks_it_again(name, new_search, monkeypatch):
    sweep = swept(LARGE, trials=None if name == "GridSampler" else 8, sampler={"name": name}).sweep
    whole, cut = made(new_search(sweep, "whole"), 8), new_search(sweep, "cut")
    made(cut, 3)
    with monkeypatch.context() as patched:
        stop = Mock(wraps=_suggest, side_effect=[DEFAULT, KeyboardInterrupt])
        patched.setattr("experiments.running.search._suggest", stop)
        with pytest.raises(KeyboardInterrupt):
            cut.ask()  # a trial lacks one of its values
    again = new_search(sweep, "cut")
    with monkeypatch.context() as patched:
        patched.setattr(Log, "append", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            again.ask()  # another one is not in the log
    assert made(new_search(sweep, "cut"), 5) == whole


def test_a_storage_that_is_lost_or_another_one_is_filled_from_the_log(new_search, tmp_path):
    sweep = swept(LARGE, trials=12, sampler={"name": "RandomSampler"}).sweep
    whole = made(new_search(sweep, "whole"))
    made(new_search(sweep, "cut"), 5)
    (tmp_path / "cut" / "optuna.log").unlink()
    assert made(new_search(sweep, "cut")) == whole
    again = Search("arm", sweep, Log(tmp_path / "cut" / "trials.jsonl"), f"sqlite:///{tmp_path}/other.db", "arm")
    assert made(again) == whole
    made(new_search(swept(LARGE, trials=12, sampler={"name": "RandomSampler"}, seed=1).sweep, "other"), 2)
    with pytest.raises(RecordError, match="is damaged, or of another search than"):
        Search("arm", sweep, Log(tmp_path / "other" / "trials.jsonl"), f"sqlite:///{tmp_path}/other.db", "arm")


FILE = """
name = "killed"
seeds = [0, 1]
data = { train_size = 200, valid_size = 100 }
model = { name = "mlp", hidden = [64], dropout = { name = "Dropout", p = 0.5 } }
optimizer = { name = "AdamW", lr = 1e-3 }
train = { epochs = 8, batch_size = 10, checkpoint_seconds = 0.0 }
arms = [{ name = "none" }, { name = "L1", regularizers = [{ penalty = "L1", mode = "prox" }] }]
[sweep]
arms = ["L1"]
trials = 4
pruner = { name = "MedianPruner", n_startup_trials = 1 }
[sweep.space]
"regularizers.0.strength" = { low = 1e-3, high = 10.0, log = true }
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_search_that_was_killed_goes_on_to_the_same_end(jobs, tmp_path, capsys):
    text = FILE if jobs == 1 else FILE.replace("pruner = {", "sampler = { name = 'RandomSampler' } #")
    study = resolve(tomllib.loads(text))
    assert run_sweep(study, tmp_path / "whole", CPU) == []

    def in_the_third_run() -> bool:
        if len(results(tmp_path / "cut")) < 2:
            return False
        time.sleep(0.1)
        return True

    kill(run_sweep, study, tmp_path / "cut", in_the_third_run, engine=Local() if jobs == 1 else Processes(jobs))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("runs/**/result.json")}
    assert 2 <= len(before) < len(results(tmp_path / "whole"))
    assert run_sweep(study, tmp_path / "cut", CPU, resume=True) == []
    assert capsys.readouterr().err == ""  # no note that anything was damaged, or is another environment
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in before} == before  # what was finished is not made again
    assert len(asked(tmp_path / "cut")) == 4


FRAGILE = {
    "model": {"class": "tests.integration.studies:Fragile", "args": {"fate": "lives"}},
    "train": {"epochs": 1, "batch_size": 20},
}


def test_two_jobs_make_what_one_makes_and_processes_that_die_are_told_and_replaced(tmp_path):
    arms = [{"name": "arm", **FRAGILE}, {"name": "L2", "strengths": [0.1, 1.0], "regularizers": [{"penalty": "L2"}]}]
    study = swept({"model.args.fate": ["lives", "dies", "dies2", "raises"]}, arms, arms_searched=["arm"])
    faults = run_sweep(study, tmp_path / "two", CPU, engine=Processes(2))
    assert sorted(line.split(" (")[0] for line in faults) == [
        "arm/model.args.fate=dies2: failed: its process died with exit code 3",
        "arm/model.args.fate=dies: failed: its process died with exit code 3",
        "arm/model.args.fate=raises: failed: no more",
    ]
    assert "Not finished: these are 4 of 6 runs." in summarize(tmp_path / "two").note
    assert len(run_sweep(study, tmp_path / "one", CPU)) == 1  # here nothing dies
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert {path.split("=")[1][:4] for path in one.keys() - two.keys()} == {"dies"}
    assert two == {path: one[path] for path in two}


def test_a_point_that_fails_is_told_and_tried_again_by_resuming(tmp_path, monkeypatch):
    study = swept({"model.args.fate": ["raises", "lives"]}, [{"name": "arm", **FRAGILE}])
    (line,) = run_sweep(study, tmp_path, CPU)
    assert line.startswith("arm/model.args.fate=raises: failed: no more")
    monkeypatch.setattr(Fragile, "forward", nn.Sequential.forward)
    assert run_sweep(study, tmp_path, CPU, resume=True) == []
    assert len(asked(tmp_path)) == len(results(tmp_path)) == 2


def test_a_search_may_go_further_with_more_trials(tmp_path):
    def study(trials: int) -> Study:
        return swept({"optimizer.lr": {"low": 0.01, "high": 0.1}}, trials=trials)

    run_sweep(study(2), tmp_path / "a", CPU)
    run_sweep(study(4), tmp_path / "a", CPU, resume=True)
    run_sweep(study(4), tmp_path / "b", CPU)
    assert results(tmp_path / "a") == results(tmp_path / "b")


def test_a_point_that_is_drawn_twice_is_made_once(tmp_path):
    study = swept({"model.hidden": [[4], [8]]}, trials=4, sampler={"name": "RandomSampler"})
    assert run_sweep(study, tmp_path, CPU) == []
    assert len(asked(tmp_path)) == 4
    assert len(results(tmp_path)) == 2
    assert "Not finished" not in summarize(tmp_path).note


def test_points_that_diverge_are_shown_and_never_chosen(tmp_path):
    sgd = [{"name": "arm", "optimizer": {"name": "SGD", "lr": 0.1}}]
    assert run_sweep(swept({"optimizer.lr": [0.1, 1e30]}, sgd, seeds=[0, 1]), tmp_path / "some", CPU) == []
    summary = summarize(tmp_path / "some")
    assert sorted(cell.status for cell in summary.cells) == ["diverged", "done"]
    assert [cell.point["optimizer.lr"] for cell in summary.chosen] == [0.1]
    assert "Of 2 points, 1 diverged, the one" in report.table(summary)
    assert "diverged" in report.points(summary)[1]
    all_of_them = run_sweep(swept({"optimizer.lr": [1e29, 1e30]}, sgd), tmp_path / "all", CPU)
    assert all_of_them == ["arm: no point came to its end: 2 diverged"]
    assert report.table(summarize(tmp_path / "all"))
    assert report.write_page(summarize(tmp_path / "all"), tmp_path / "all").exists()


def cells(errors: dict[float, list[float]], valid_size: int = 100) -> list[Cell]:
    """Made-up points: a strength and the validation errors of its seeds."""
    found = []
    for strength, values in errors.items():
        arm = {"name": "L2", "strengths": [strength], "regularizers": [{"penalty": "L2"}]}
        data = {**TREE["data"], "valid_size": valid_size}
        runs = small(arms=[arm], seeds=list(range(len(values))), data=data).runs
        found.append(Cell(runs, [{"status": "done", "valid_error": e, "valid_loss": e} for e in values]))
    return found


@pytest.mark.parametrize(
    ("errors", "metric", "expected"),
    [
        # Seeds .10 .12 .14, on the same 100 images: mean .12, SE sqrt(.12 * .88 / 100) = .0325; the limit is .1525.
        ({0.1: [0.2] * 3, 1.0: [0.10, 0.12, 0.14], 2.0: [0.152] * 3, 3.0: [0.153] * 3}, "valid_error", 2.0),
        ({0.1: [0.121] * 3, 1.0: [0.10, 0.12, 0.14], 2.0: [0.2] * 3}, "valid_error", 1.0),  # never the weaker side
        ({1.0: [0.10, 0.12, 0.14], 2.0: [0.2] * 3, 3.0: [0.13] * 3}, "valid_error", 3.0),  # nor the next one only
        # One seed: sqrt(.1 * .9 / 100) = .03; the limit is .13.
        ({1.0: [0.1], 2.0: [0.1299], 3.0: [0.1301]}, "valid_error", 2.0),
        ({1.0: [0.1], 2.0: [0.1001]}, "valid_loss", 1.0),  # a loss of one seed has no known error
        # Losses .10 .12 .14: SD .02, SE .02 / sqrt(3) = .0115; the limit is .1315.
        ({1.0: [0.10, 0.12, 0.14], 2.0: [0.131] * 3, 3.0: [0.132] * 3}, "valid_loss", 2.0),
    ],
    ids=["seeds", "stronger", "strongest", "binomial", "loss", "losses"],
)
def test_the_strongest_within_one_standard_error_is_that_by_hand(errors, metric, expected):
    tried = cells(errors)
    assert one_standard_error(tried, best_of(tried, metric), metric).strength == expected


STRENGTHS = swept(
    {STRENGTH: {"low": 1e-3, "high": 10.0, "log": True, "count": 5}},
    [{"name": "none"}, L1],
    [0, 1],
    arms_searched=["L1"],
)


@pytest.fixture(scope="module")
def strengths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strengths")
    run_sweep(STRENGTHS, folder, CPU)
    return folder


def test_a_search_over_a_strength_has_a_row_for_the_best_and_one_for_the_strongest_that_may_be_as_good(strengths):
    summary = summarize(strengths)
    path = summary.paths[0]
    errors = np.array([[result["valid_error"] for result in cell.results] for cell in path])
    best = max(i for i in range(5) if errors[i].mean() == errors.mean(axis=1).min())
    lowest = errors[best].mean()
    limit = lowest + np.sqrt(lowest * (1 - lowest) / STRENGTHS.runs[0].data.valid_size)
    strongest = max(i for i in range(5) if errors[i].mean() <= limit)
    expected = [path[best].strength] + ([path[strongest].strength] if strongest != best else [])
    assert [cell.strength for cell in summary.chosen] == [None, *expected]
    heads, _, *rows = report.table(summary).splitlines()
    assert heads.split()[:5] == ["arm", "strength", "valid", "error", "%"]
    assert rows[0].startswith("none")
    assert ("L1, one SE" in report.table(summary)) == (strongest != best)


def test_the_page_has_the_paths_of_a_single_number(strengths):
    page = report.write_page(summarize(strengths), strengths).read_text()
    assert "Along the strength" in page
    for text in ("validation error", "norm of the weights", "exact zeros", "best: ", "linear1.weight", "All 5 points"):
        assert f">{text}" in page


def test_the_page_has_a_picture_for_each_of_several_keys(tmp_path):
    space = {
        "optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True},
        "model.hidden": [[4], [8, 8]],
        STRENGTH: [0.0, 1],
    }
    run_sweep(swept(space, [L1], trials=6, metric="valid_loss"), tmp_path, CPU)
    summary = summarize(tmp_path)
    page = report.write_page(summary, tmp_path).read_text()
    assert "Every point that was tried" in page
    assert "Along the" not in page
    for text in ("lr", "hidden", "strength", "[8, 8]", "validation loss"):
        assert f">{text}<" in page
    lowest = min(summary.cells, key=lambda cell: cell.mean("valid_loss").mean)
    assert [cell.point for cell in summary.chosen] == [lowest.point]


FAULTS = {
    "no table": ({"sweep": None}, "sweep: is missing"),
    "no space": ({"sweep": {}}, "sweep.space: is missing"),
    "empty space": ({"space": {}}, "sweep.space: "),
    "unknown key": ({"trails": 3}, "sweep.trails: unknown key, did you mean 'trials'?"),
    "a number": ({"space": {"optimizer.lr": 0.1}}, "sweep.space.optimizer.lr: must be a list of values or a range"),
    "no high": ({"space": {"optimizer.lr": {"low": 0.1}}}, "sweep.space.optimizer.lr: low and high must be given"),
    "low above high": ({"space": {"optimizer.lr": {"low": 2, "high": 1}}}, "low be less than high"),
    "log from 0": ({"space": {"optimizer.lr": {"low": 0, "high": 1, "log": True}}}, "low must be greater than 0"),
    "misspelled": (
        {"space": {"optimizer.lr": {"low": 0.1, "hihg": 1.0}}},
        "sweep.space.optimizer.lr.hihg: unknown key",
    ),
    "twice": ({"space": {"optimizer.lr": [0.1, 0.1]}}, "must be distinct, 0.1 has the folder of another value"),
    "whole": ({"space": {"optimizer.lr": {"low": 0, "high": 1, "count": 3}}}, "must be distinct, 0 has"),
    "no values": ({"space": {"optimizer.lr": []}}, "sweep.space.optimizer.lr"),
    "not finite": ({"space": {"optimizer.lr": [float("nan")]}}, "must be a finite number"),
    "list and range": (
        {"space": {"optimizer.lr": {"values": [1.0], "low": 1.0}}},
        "a list of values or a range, not both",
    ),
    "no trials": ({"space": {"optimizer.lr": {"low": 0.1, "high": 1.0}}}, "trials must be the number of points"),
    "trials of a grid": ({"trials": 3}, "trials must be left out for a grid, whose 2 points are all tried"),
    "a grid of a range": (
        {"space": {"optimizer.lr": {"low": 0.1, "high": 1.0}}, "sampler": {"name": "GridSampler"}},
        "a grid needs a list of values, or a range with a count, for optimizer.lr",
    ),
    "metric": ({"metric": "test_error"}, "sweep.metric: must be 'valid_error' or 'valid_loss', got 'test_error'"),
    "sampler": (
        {"sampler": {"name": "TPESmpler"}, "trials": 1},
        "sweep.sampler.name: unknown name 'TPESmpler', did you mean",
    ),
    "option": ({"sampler": {"name": "TPESampler", "n_start": 1}, "trials": 1}, "sweep.sampler.n_start: unknown key"),
    "pruner": ({"pruner": {"name": "MedianPrunner"}}, "sweep.pruner.name: unknown name"),
    "pruner's option": (
        {"pruner": {"name": "PercentilePruner", "percentile": 200.0}},
        "sweep.pruner: PercentilePruner(percentile=200.0) cannot be made",
    ),
    "no such arm": ({"arms": ["L2"]}, "sweep.arms: unknown name 'L2', valid: L1, none"),
    "no such place": (
        {"space": {STRENGTH: [0.1]}, "arms": ["L1", "none"]},
        "sweep.space: regularizers.0.strength does not fit arms[none]: it has no regularizers; add it",
    ),
    "no such table": ({"space": {"model.dropout.p": [0.1]}}, "does not fit arms[L1]: it has no model.dropout;"),
    "no such index": ({"space": {"regularizers.3.strength": [0.1]}}, "it has no regularizers.3;"),
    "no index": ({"space": {"regularizers.first.strength": [0.1]}}, "it has no regularizers.first;"),
    "no such key": ({"space": {"optimizer.rl": [0.1]}}, "arms[L1].optimizer.rl: unknown key"),
    "a wrong value": ({"space": {"optimizer.lr": [0.1, -1.0]}}, "arms[L1].optimizer.lr: must be greater than or equal"),
    "a wrong end": (
        {"space": {"optimizer.lr": {"low": -1.0, "high": 1.0}}, "trials": 2},
        "arms[L1].optimizer.lr: must be greater than or equal to 0, got -1.0",
    ),
    "a wrong other end": (
        {"space": {"data.label_noise": {"low": 0.0, "high": 2.0}}, "trials": 2},
        "arms[L1].data.label_noise: must be less than or equal to 1, got 2.0",
    ),
    "a value that cannot be built": (
        {"space": {"optimizer.eps": [1e-8, -1.0]}},
        "arms[L1].optimizer: AdamW(eps=-1.0) cannot be made",
    ),
    "the study's own keys": ({"space": {"seeds": [[1], [2]]}}, "arms[L1].seeds: unknown key"),
}


@pytest.mark.parametrize(("table", "line"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_one_line_before_anything_is_trained(table, line, tmp_path):
    given = {"space": {"optimizer.lr": [0.1, 0.2]}, "arms": ["L1"], **table}
    arms = [{"name": "none"}, {"name": "L1", "regularizers": [{"penalty": "L1", "strength": 0.1}]}]
    with pytest.raises(UserError) as error:
        run_sweep(small(arms=arms, sweep=table.get("sweep", given)), tmp_path / "out", CPU)
    assert line in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_arm_with_strengths_is_not_searched_but_run():
    arms = [{"name": "L2", "strengths": [0.1, 1.0], "regularizers": [{"penalty": "L2"}]}, {"name": "none"}]
    with pytest.raises(UserError, match=r"arms\[L2\].strengths: must be left out of an arm that is searched"):
        swept({"optimizer.lr": [0.1]}, arms)
    runs = swept({"optimizer.lr": [0.1]}, arms, arms_searched=["none"]).runs
    assert [(run.strength, run.values) for run in runs] == [(0.1, {}), (1.0, {}), (None, {"optimizer.lr": 0.1})]


class Broken(optuna.samplers.RandomSampler):
    """A user's own sampler."""

    def sample_independent(self, *_: Any) -> Any:
        raise ModuleNotFoundError("No module named 'cmaes'")


def test_a_sampler_that_cannot_sample_shows_before_anything_is_trained(tmp_path):
    study = swept({"optimizer.lr": [0.1, 0.2]}, trials=1, sampler={"class": "tests.integration.test_sweep:Broken"})
    with pytest.raises(UserError, match="cannot sample this space: ModuleNotFoundError: No module named 'cmaes'"):
        run_sweep(study, tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()


def test_without_optuna_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="sweep: needs optuna, which is not installed: pip install optuna"):
        run_sweep(STRENGTHS, tmp_path / "out", CPU)


@pytest.fixture
def command(experiments, tmp_path):
    (tmp_path / "sweep.toml").write_text(FILE)
    return experiments


FAST = ["--set", "train.epochs=1", "--set", "seeds=[0]"]


def test_the_command_writes_a_report_and_refuses_what_is_not_its_own(command, tmp_path):
    code, out, _ = command("sweep", "sweep.toml", *FAST)
    assert code == 0
    assert "valid error %" in out
    assert (tmp_path / "runs" / "killed" / "report.html").exists()
    assert command("report", "runs/killed")[1] == out[out.index("arm ") :]
    refused = "error: --out: runs/killed already holds this study: --resume continues it; or choose another folder\n"
    assert command("sweep", "sweep.toml", *FAST)[::2] == (2, refused)
    hint = "error: sweep.toml: holds a search, in its table sweep: python -m experiments sweep sweep.toml\n"
    assert command("run", "sweep.toml") == (2, "", hint)
    (tmp_path / "study.toml").write_text(FILE[: FILE.index("[sweep]")].replace('mode = "prox"', "strength = 0.1"))
    code, _, err = command("sweep", "study.toml")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: sweep: is missing")
    assert command("sweep", "sweep.toml", "--jobs", "0")[0] == 2


def test_points_that_all_diverge_end_the_command_with_1(command):
    options = ["--set", "sweep.arms=['L1']", "--set", "arms.L1.optimizer={name='SGD', lr=1e30}", "--out", "all"]
    code, out, err = command("sweep", "sweep.toml", *FAST, *options)
    assert (code, err) == (1, "L1: no point came to its end: 4 diverged\n")
    assert "diverged" in out


def test_ctrl_c_says_how_to_go_on(command, monkeypatch):
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.running.tasks.train", stop)
    code, _, err = command("sweep", "sweep.toml")
    assert code == 130
    assert "stopped; run it again with --resume --out runs/killed to go on" in err

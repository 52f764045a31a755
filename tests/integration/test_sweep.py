"""Searches: their points, their pruning, being killed, several processes, and what they refuse."""

import shutil
import sys
import time
import tomllib
from typing import Any

import numpy as np
import optuna
import pytest
from torch import nn

from experiments.config import Study, resolve
from experiments.errors import UserError
from experiments.report import page as report
from experiments.report.cells import best_of
from experiments.report.summary import summarize
from experiments.running.engines import Local, Processes
from experiments.running.search import _seed, opened
from experiments.running.study import run_study
from experiments.running.sweep import run_sweep
from experiments.training.record import Record, read_runs
from tests.helpers import assert_close
from tests.integration.studies import CPU, L1, QUICK, STRENGTH, Fragile, asked, kill, results, small, swept


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


def trials_in(folder):
    """What Optuna holds of the searches in a folder."""
    opened.cache_clear()
    return optuna.load_study(study_name="small: arm", storage=opened(str(folder / "optuna.log"))).trials


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


@pytest.mark.parametrize("pattern", ["*", "*/seed0", "*/seed1"])
def test_points_whose_folders_were_removed_are_made_again(pruned, tmp_path, capsys, pattern):
    """Of a sampler that learns: some of its points are done, the others were pruned in one of their seeds."""
    shutil.copytree(pruned, tmp_path / "cut")
    trials = [(trial.state, trial.values, trial.intermediate_values) for trial in trials_in(tmp_path / "cut")]
    removed = {path for path in (tmp_path / "cut/runs/arm").glob(pattern) if list(path.glob("**/result.json"))}
    for path in removed:
        shutil.rmtree(path)
    assert run_sweep(PRUNED, tmp_path / "cut", CPU, resume=True) == []
    assert results(tmp_path / "cut") == results(pruned)
    assert asked(tmp_path / "cut") == asked(pruned)
    assert [(trial.state, trial.values, trial.intermediate_values) for trial in trials_in(tmp_path / "cut")] == trials
    said = f"note: arm: {len(removed)} points are made again, whose records are missing\n"
    assert capsys.readouterr().err == said
    assert "Not finished" not in summarize(tmp_path / "cut").note


@pytest.mark.parametrize("jobs", [1, 2])
def test_points_of_a_grid_are_made_again_and_the_others_are_not(jobs, tmp_path, capsys):
    sgd = [{"name": "arm", "optimizer": {"name": "SGD", "lr": 0.1}}]
    study = swept({"optimizer.lr": [0.01, 0.1, 1e30]}, sgd, seeds=[0, 1])
    storage = f"sqlite:///{tmp_path}/search.db"
    run_sweep(study, tmp_path / "a", CPU, storage=storage)
    before = results(tmp_path / "a")
    for path in (tmp_path / "a/runs/arm").glob("*=[01]*"):
        if not path.name.endswith("=0.01"):
            shutil.rmtree(path)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("runs/**/result.json")}
    assert len(times) == 2
    engine = Local() if jobs == 1 else Processes(jobs)
    assert run_sweep(study, tmp_path / "a", CPU, resume=True, engine=engine, storage=storage) == []
    assert results(tmp_path / "a") == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert "2 points are made again" in capsys.readouterr().err
    (tmp_path / "a/runs/arm/optimizer.lr=0.1/seed1/result.json").unlink()
    assert run_sweep(study, tmp_path / "a", CPU, resume=True, storage=storage) == []
    assert results(tmp_path / "a") == before
    assert "1 point is made again" in capsys.readouterr().err


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
    "the study's own keys": (
        {"space": {"seeds": [[1], [2]]}},
        "sweep.space: seeds is no key of a run, it is of the whole study",
    ),
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
        run_sweep(swept({"optimizer.lr": [0.1]}), tmp_path / "out", CPU)


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

"""The points of a search in Optuna's storage: each is asked once, whatever is killed, lost or begun anew."""

from itertools import islice
from typing import Any
from unittest.mock import DEFAULT, Mock

import pytest

from experiments.config.sweep import Sweep
from experiments.errors import RecordError
from experiments.running.search import Search, _suggest, opened
from experiments.training.record import Log
from tests.integration.studies import swept


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


def test_a_step_that_is_made_again_is_not_judged_by_a_later_one(new_search):
    pruner = {"name": "ThresholdPruner", "upper": 0.5}
    search = new_search(swept(LARGE, trials=1, sampler={"name": "RandomSampler"}, pruner=pruner).sweep, "cut")
    judge = search.judge(next(search.trials()).number)
    errors = {1: 0.1, 2: 0.2, 3: 0.9}
    assert [judge(step, {"valid_error": error}) for step, error in errors.items()] == [False, False, True]
    # Killed before the trial was told to be pruned, and resumed from a checkpoint of the first step:
    assert [judge(step, {"valid_error": errors[step]}) for step in (2, 3)] == [False, True]


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

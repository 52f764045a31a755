"""Regressions and tasks of two classes, through the whole of a study."""

import numpy as np
import pytest
import torch
from torch import nn

from experiments import config, report
from experiments.errors import UserError
from experiments.report import summarize
from experiments.report.cells import difference
from experiments.running import rehearsal
from experiments.running.study import run_study
from experiments.training import build, data
from experiments.training.loop import train_epoch
from experiments.training.measure import evaluate
from experiments.training.record import Record
from tests.integration.own import loaded
from tests.integration.studies import CPU, TREE, history, outcome, small

HERE = "tests.integration.test_regression"


def test_the_figures_of_a_regression_are_those_of_numpy():
    found = loaded(name="diabetes")
    torch.manual_seed(0)
    model = nn.Linear(10, 1)
    (row,) = evaluate(model, found)
    for name, part in (("train", found.train), ("valid", found.valid), ("test", found.test)):
        residuals = (model(part.x) - part.y).detach().double().numpy()
        assert row[f"{name}_loss"] == pytest.approx(np.mean(residuals**2), rel=1e-5)
        assert row[f"{name}_error"] == pytest.approx(np.sqrt(np.mean(residuals**2)) * found.task.scale.item(), rel=1e-5)


def test_a_regression_learns_what_least_squares_finds():
    """Diabetes: the linear model of a study ends at scikit-learn's test error, in the target's own units."""
    from sklearn.linear_model import LinearRegression

    tree = {
        **TREE,
        "data": {"name": "diabetes", "valid_size": 1},
        "model": {"name": "mlp", "hidden": []},
        "optimizer": {"name": "SGD", "lr": 0.02},
        "train": {"epochs": 300, "batch_size": 400},
    }
    (run,) = config.resolve(tree).runs
    found = data.load(run.data, CPU)
    torch.manual_seed(0)
    model = nn.Linear(10, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(600):
        train_epoch(model, optimizer, found.train, [torch.arange(len(found.train))], task=found.task)
    best = LinearRegression().fit(found.train.x.numpy(), found.train.y.numpy())
    residuals = best.predict(found.test.x.numpy()) - found.test.y.numpy()
    wanted = np.sqrt(np.mean(residuals**2)) * found.task.scale.item()
    (row,) = evaluate(model, found)
    assert row["test_error"] == pytest.approx(wanted, rel=0.01)
    assert 40 < wanted < 65  # of disease progression, whose standard deviation is 77


def test_a_regression_is_recorded_and_reported_without_percents(tmp_path):
    arms = [{"name": "none"}, {"name": "decay", "strengths": [0.1, 1.0]}]
    run_study(small(data={"name": "diabetes"}, arms=arms, seeds=[0, 1]), tmp_path, CPU)
    record = Record(tmp_path / "runs" / "none" / "seed0")
    assert record.history[0]["task"] == "regression"
    assert record.result["examples"] == {"train": 283, "valid": 71, "test": 88}
    assert 40 < record.result["test_error"] < 100
    summary = summarize(tmp_path)
    text = report.table(summary)
    assert "train RMSE" in text
    assert "error %" not in text
    assert "RMSE: the root mean squared error, in units of the target." in text
    assert summary.subtitle.startswith("diabetes: 283 training examples; 4 epochs")
    page = report.write_page(summary, tmp_path).read_text()
    assert "test RMSE" in page
    assert "test error" not in page
    assert "lowest validation RMSE" in page


def test_a_regression_resumes_bit_for_bit(tmp_path):
    study_ = small(data={"name": "diabetes"}, train={"epochs": 4, "batch_size": 30, "checkpoint_seconds": 0.0})
    whole = outcome(study_, tmp_path / "whole")
    run_study(study_, tmp_path / "again", CPU)
    folder = tmp_path / "again" / "runs" / study_.runs[0].folder
    (folder / "result.json").unlink()
    again = outcome(study_, tmp_path / "again", resume=True)
    assert {**again, "files": None} == {**whole, "files": None}


@pytest.mark.parametrize(("name", "outputs"), [("breast_cancer", 2), ("wine", 3)])
def test_small_sets_of_scikit_learn_are_learnt(tmp_path, name, outputs):
    last = history(small(data={"name": name}, train={"epochs": 10, "batch_size": 30}), tmp_path)[-1]
    assert last["test_error"] < 0.15
    assert loaded(name=name).task.outputs == outputs


def test_strengths_of_a_regression_are_tuned(tmp_path):
    arms = [
        {"name": "tuned", "auto_strength": {}, "regularizers": [{"penalty": "L2", "strength": 0.01, "mode": "prox"}]}
    ]
    result = outcome(small(data={"name": "diabetes"}, arms=arms), tmp_path)
    assert result["status"] == "done"
    assert result["strengths"]


def test_amp_serves_a_regression(tmp_path):
    study_ = small(data={"name": "diabetes"}, train={"epochs": 2, "batch_size": 30, "amp": True})
    assert outcome(study_, tmp_path)["status"] == "done"


def test_arms_of_two_tasks_are_refused():
    arms = [{"name": "a"}, {"name": "b", "data": {"name": "diabetes"}}]
    tree = {**TREE, "data": {"name": "wine"}, "arms": arms}
    with pytest.raises(UserError, match=r"same task in all arms.*arms\[a\] classes, arms\[b\] regression"):
        rehearsal.check(config.resolve(tree))


def test_vectors_are_no_images_for_a_cnn():
    with pytest.raises(UserError, match=r"model: cnn\(\) cannot be made: it needs images.*\(13,\): use mlp"):
        rehearsal.check(small(data={"name": "wine"}, model={"name": "cnn"}))


class Told(nn.Linear):
    """A model that asks for the shape and the number of outputs."""

    def __init__(self, shape: tuple[int, ...], *, outputs: int, bias: bool = True) -> None:
        super().__init__(shape[0], outputs, bias)


@pytest.mark.parametrize(("name", "sizes"), [("wine", (13, 3)), ("diabetes", (10, 1))])
def test_a_model_class_is_told_the_shape_and_the_outputs(name, sizes):
    (run,) = small(data={"name": name}, model={"class": f"{HERE}:Told", "args": {"bias": False}}).runs
    made = build.model(run.model, data.load(run.data, CPU))
    assert (made.in_features, made.out_features, made.bias) == (*sizes, None)


def test_arms_of_a_regression_are_compared_example_by_example(tmp_path):
    arms = [{"name": "none"}, {"name": "L2", "regularizers": [{"penalty": "L2", "strength": 0.3}]}]
    tree = {**TREE, "seeds": [0, 1], "data": {"name": "diabetes"}, "arms": arms}
    run_study(config.resolve(tree), tmp_path, CPU)
    plain, other = summarize(tmp_path).cells
    assert set(other.residuals) == {0, 1}
    for cell in (plain, other):
        for seed, away in cell.residuals.items():
            assert np.sqrt(np.mean(away**2)) == pytest.approx(cell.by_seed("test_error")[seed], rel=1e-4)
    found, count = difference(other, plain, "test_error"), other.examples("test")
    squares = [[away.astype(float) ** 2 for away in cell.residuals.values()] for cell in (other, plain)]
    moved = [np.mean([one / (2 * np.sqrt(one.mean())) for one in each], axis=0) for each in squares]
    assert found.of_images == pytest.approx(np.std(moved[0] - moved[1], ddof=1) / np.sqrt(count), rel=1e-9)
    assert found.of_images < 0.5 * np.hypot(
        *(cell.mean("test_error").mean / np.sqrt(2 * count) for cell in (plain, other))
    )

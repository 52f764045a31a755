"""Metrics of torchmetrics in a study: their values by scikit-learn and by hand, and what does not fit."""

import sys

import numpy as np
import pytest
import torch
from sklearn import metrics as oracle
from torch import nn

from experiments.report.page import table
from experiments.report.summary import summarize
from experiments.running.study import run_study
from experiments.training.record import Record
from tests.integration.plain import finished, only, parts, sgd
from tests.integration.studies import CPU, TREE, history

pytest.importorskip("torchmetrics")
NAMES = ["Accuracy", {"name": "F1Score", "average": "macro"}, {"name": "AUROC"}]


def predicted(study, weights, part):
    """The model's outputs, and the targets."""
    examples, net, _ = parts(study.runs[0])
    net.load_state_dict(weights)
    split = getattr(examples, part)
    with torch.no_grad():
        return net.eval()(split.x), split.y, examples.task


@pytest.mark.parametrize("loss", ["CrossEntropyLoss", "MSELoss"])
def test_metrics_of_classes_are_those_of_scikit_learn(loss, tmp_path):
    study = sgd(train={"metrics": NAMES, "loss": {"name": loss}})
    rows, result, weights = only(study, tmp_path)
    assert result["metrics"] == rows[-1]["metrics"] != rows[0]["metrics"]
    for part in ("valid", "test"):
        outputs, y, _ = predicted(study, weights, part)
        found = result["metrics"][part]
        assert list(found) == ["Accuracy", "F1Score", "AUROC"]
        assert found["Accuracy"] == pytest.approx(1 - result[f"{part}_error"], abs=1e-6)
        assert found["F1Score"] == pytest.approx(oracle.f1_score(y, outputs.argmax(1), average="macro"), abs=1e-5)
        shares = outputs.double().softmax(1).numpy()
        assert found["AUROC"] == pytest.approx(oracle.roc_auc_score(y, shares, multi_class="ovr"), abs=1e-4)


@pytest.mark.parametrize("loss", ["CrossEntropyLoss", "BCEWithLogitsLoss"])
def test_metrics_of_two_classes_are_about_the_second_one(loss, tmp_path):
    names = ["AUROC", {"name": "F1Score"}, {"name": "F1Score", "average": "macro"}]
    study = sgd(train={"metrics": names, "loss": {"name": loss}}, data={"name": "breast_cancer"})
    _, result, weights = only(study, tmp_path)
    outputs, y, task = predicted(study, weights, "test")
    scores = task.scores(outputs).double().softmax(1)[:, 1].numpy()
    found = result["metrics"]["test"]
    assert found["AUROC"] == pytest.approx(oracle.roc_auc_score(y, scores), abs=1e-4)
    assert found["F1Score"] == pytest.approx(oracle.f1_score(y, scores > 0.5), abs=1e-5)
    assert found["F1Score, average macro"] == pytest.approx(oracle.f1_score(y, scores > 0.5, average="macro"), abs=1e-5)


def test_metrics_of_a_regression_are_in_units_of_the_target(tmp_path):
    names = ["MeanAbsoluteError", "R2Score", "MeanAbsolutePercentageError", "PearsonCorrCoef"]
    study = sgd(train={"metrics": names}, data={"name": "diabetes"})
    _, result, weights = only(study, tmp_path)
    outputs, y, task = predicted(study, weights, "test")
    ours, true = ((values[:, 0] * task.scale + task.middle).numpy() for values in (outputs, y))
    assert 25 <= true.min() < true.max() <= 346  # what the data set says
    found = result["metrics"]["test"]
    assert found["MeanAbsoluteError"] == pytest.approx(oracle.mean_absolute_error(true, ours), rel=1e-4)
    assert found["R2Score"] == pytest.approx(oracle.r2_score(true, ours), rel=1e-4)
    assert found["MeanAbsolutePercentageError"] == pytest.approx(np.mean(abs(ours / true - 1)), rel=1e-4)
    assert found["PearsonCorrCoef"] == pytest.approx(np.corrcoef(ours, true)[0, 1], rel=1e-3)


@pytest.mark.parametrize("data", ["digits", "breast_cancer", "diabetes"])
def test_the_members_of_a_stack_have_their_own(data, tmp_path):
    names = ["MeanAbsoluteError", "R2Score"] if data == "diabetes" else ["Accuracy", "CalibrationError"]
    settings = TREE["data"] if data == "digits" else {"name": data}
    found = []
    for stack in (True, False):
        study = sgd(train={"metrics": names, "stack": stack}, data=settings, seeds=[0, 1, 2])
        each = finished(study, tmp_path / str(stack)).values()
        found.append([[row["metrics"] for row in rows] for rows, _, _ in each])
        assert all(("stack" in result) == stack for _, result, _ in each)
    together, alone = found
    assert together[0] != together[1] != together[2]
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=5e-3)  # a single image may be decided by rounding


def test_metrics_change_nothing_else(tmp_path):
    with_metrics = history(sgd(train={"metrics": NAMES}), tmp_path / "with")
    assert [{k: v for k, v in row.items() if k != "metrics"} for row in with_metrics] == history(sgd(), tmp_path / "no")


def test_a_run_that_diverges_has_no_metrics_and_no_error_by_them(tmp_path):
    study = sgd(
        arms=[{"name": "arm", "optimizer": {"lr": 1e30}}, {"name": "sound"}],
        train={"metrics": ["Accuracy"], "stack": False},
    )
    (fault,) = run_study(study, tmp_path, CPU)
    assert fault.startswith("diverged: arm/seed0")
    assert Record(tmp_path / "runs" / "sound" / "seed0").result["metrics"]["test"]["Accuracy"] > 0


def test_what_is_not_defined_is_none_and_told_as_such(tmp_path):
    study = sgd(train={"metrics": ["PearsonCorrCoef"]}, data={"name": "diabetes"}, model={"class": f"{HERE}:Constant"})
    _, result, _ = only(study, tmp_path)
    assert result["metrics"]["test"] == {"PearsonCorrCoef": None}


HERE = "tests.integration.test_metrics"


class Constant(nn.Module):
    def __init__(self, shape, outputs):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return self.bias.expand(len(x), -1)


def test_the_table_has_their_means_over_seeds(tmp_path):
    study = sgd(arms=[{"name": "a"}, {"name": "b", "train": {"metrics": []}}], train={"metrics": NAMES}, seeds=[0, 1])
    run_study(study, tmp_path, CPU)
    heads, _, first, second, *_ = table(summarize(tmp_path)).splitlines()
    assert heads.split("norm")[1].split() == ["test", "Accuracy", "test", "F1Score", "test", "AUROC"]
    values = [Record(tmp_path / "runs" / "a" / f"seed{i}").result["metrics"]["test"]["Accuracy"] for i in (0, 1)]
    assert f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / 2**0.5:.3f}" in first
    assert second.split()[-3:] == ["-", "-", "-"]


BAD = {
    "an unknown name": ('["Acuracy"]', "train.metrics.0.name: unknown name 'Acuracy', did you mean 'Accuracy'?"),
    "an unknown key": (
        '["AUROC", { name = "Accuracy", averag = "macro" }]',
        "train.metrics.1: Accuracy(averag='macro')",
    ),
    "of a regression": ('["R2Score"]', "train.metrics.0: R2Score does not fit the outputs: "),
    "a matrix": ('["ConfusionMatrix"]', "train.metrics.0: ConfusionMatrix must give one number, got (10, 10)"),
    "one for each class": (
        '[{ name = "Accuracy", average = "none" }]',
        "train.metrics.0: Accuracy must give one number, got (10,): choose an average",
    ),
    "twice": ('["Accuracy", "Accuracy"]', "train.metrics.1: must be another metric, got Accuracy twice"),
    "no list": ('"Accuracy"', "train.metrics: must be a valid list, got 'Accuracy'"),
    "no name": ("[3]", "train.metrics.0: must be a valid table, got 3"),
    "another class": ('[{ class = "torch.nn:Linear" }]', "train.metrics.0.class: must name a class of Metric"),
    "a class for a regression": (
        '["Accuracy"]\ndata = { name = "diabetes" }',
        "train.metrics.0: is for classes, the data",
    ),
}


def write(folder, metrics):
    metrics, _, data = metrics.partition("\n")
    (folder / "study.toml").write_text(
        f'name = "small"\n{data or "data = { train_size = 50, valid_size = 50 }"}\n'
        'model = { name = "mlp", hidden = [8] }\noptimizer = { name = "SGD", lr = 0.1 }\narms = [{ name = "plain" }]\n'
        f"train = {{ epochs = 1, batch_size = 25, metrics = {metrics} }}\n"
    )


@pytest.mark.parametrize(("metrics", "line"), BAD.values(), ids=BAD)
def test_a_metric_that_does_not_fit_is_one_line(metrics, line, experiments, tmp_path):
    write(tmp_path, metrics)
    code, out, err = experiments("run", "study.toml", "--device", "cpu")
    assert (code, out, err.count("\n"), err[:7]) == (2, "", 1, "error: ")
    assert line in err
    assert not (tmp_path / "runs").exists()


def test_torchmetrics_is_asked_for_if_it_is_missing(experiments, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    write(tmp_path, '["Accuracy"]')
    code, _, err = experiments("run", "study.toml", "--device", "cpu")
    assert (code, err.count("\n")) == (2, 1)
    assert "train.metrics: needs the package torchmetrics, which is not installed: pip install torchmetrics" in err

"""The loss that a study names: what it is trained and judged by, alone and in a stack, and what does not fit."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import one_hot

from experiments.config import resolve
from experiments.running.study import run_study
from experiments.training import build
from tests.integration.plain import only, sgd, trained
from tests.integration.studies import CPU, TREE, history
from tests.integration.test_stacks import compare, study_of

HERE = "tests.integration.test_losses"
WEIGHTS = [1.0, 2.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 3.0, 1.0]


def hot(y):
    return one_hot(y, 10).float()


class Focal(nn.Module):
    """A loss of a user's own, which gets the numbers of the classes."""

    def __init__(self, gamma=2.0):
        super().__init__()
        self.gamma = gamma

    def forward(self, outputs, y):
        logs = outputs.log_softmax(1).gather(1, y[:, None])
        return -((1 - logs.exp()) ** self.gamma * logs).mean()


class Halved(nn.MSELoss):
    """One that derives from torch's, and gets the same targets."""

    def forward(self, outputs, y):
        return super().forward(outputs, y) / 2


CLASSES = {
    "label smoothing": (
        {"name": "CrossEntropyLoss", "label_smoothing": 0.1},
        lambda outputs, y: F.cross_entropy(outputs, y, label_smoothing=0.1),
    ),
    "weights of classes": (
        {"name": "CrossEntropyLoss", "weight": WEIGHTS},
        lambda outputs, y: F.cross_entropy(outputs, y, torch.tensor(WEIGHTS)),
    ),
    "MSE": ({"name": "MSELoss"}, lambda outputs, y: ((outputs - hot(y)) ** 2).mean()),
    "L1": ({"name": "L1Loss"}, lambda outputs, y: (outputs - hot(y)).abs().mean()),
    "smooth L1": ({"name": "SmoothL1Loss", "beta": 0.3}, lambda o, y: F.smooth_l1_loss(o, hot(y), beta=0.3)),
    "Huber": ({"name": "HuberLoss", "delta": 0.2}, lambda o, y: F.huber_loss(o, hot(y), delta=0.2)),
    "BCE, one for each class": (
        {"name": "BCEWithLogitsLoss"},
        lambda outputs, y: F.binary_cross_entropy_with_logits(outputs, hot(y)),
    ),
    "multi-margin": ({"name": "MultiMarginLoss", "margin": 0.5}, lambda o, y: F.multi_margin_loss(o, y, margin=0.5)),
    "soft margin": ({"name": "SoftMarginLoss"}, lambda o, y: F.soft_margin_loss(o, 2 * hot(y) - 1)),
    "a class of one's own": ({"class": f"{HERE}:Focal", "gamma": 1.0}, Focal(1.0)),
    "a class derived from torch's": ({"class": f"{HERE}:Halved"}, lambda o, y: ((o - hot(y)) ** 2).mean() / 2),
}


@pytest.mark.parametrize(("loss", "criterion"), CLASSES.values(), ids=CLASSES)
def test_a_run_is_trained_and_judged_by_its_loss(loss, criterion, tmp_path):
    study = sgd(train={"loss": loss})
    rows, result, weights = only(study, tmp_path)
    net = trained(study.runs[0], criterion)
    torch.testing.assert_close(weights, net.state_dict(), rtol=1e-4, atol=1e-6)
    examples = build.examples(study.runs[0], CPU)
    for name in ("train", "valid", "test"):
        split = getattr(examples, name)
        with torch.no_grad():
            outputs = net(split.x)
        assert rows[-1][f"{name}_loss"] == pytest.approx(criterion(outputs, split.y).item(), rel=1e-4)
        assert result[f"{name}_error"] == pytest.approx((outputs.argmax(1) != split.y).float().mean().item(), abs=2e-3)


@pytest.mark.parametrize("loss", [loss for loss, _ in CLASSES.values()], ids=CLASSES)
def test_a_stack_is_trained_and_judged_as_each_run_alone(loss, tmp_path, capsys):
    optimizer = {"name": "SGD", "lr": 0.05}
    compare(tmp_path, capsys, train={"loss": loss}, optimizer=optimizer, regularizers=[{"penalty": "L1"}])


BINARY = {"data": {"name": "breast_cancer"}}
BITS = {"loss": {"name": "BCEWithLogitsLoss", "pos_weight": [2.0]}}


def test_two_classes_take_one_output_under_binary_cross_entropy(tmp_path):
    study = sgd(train=BITS, **BINARY)

    def criterion(outputs, y):
        return F.binary_cross_entropy_with_logits(outputs[:, 0], y.float(), pos_weight=torch.tensor([2.0]))

    net = trained(study.runs[0], criterion)
    rows, result, weights = only(study, tmp_path)
    assert weights[list(weights)[-1]].shape == (1,)
    torch.testing.assert_close(weights, net.state_dict(), rtol=1e-4, atol=1e-6)
    test = build.examples(study.runs[0], CPU).test
    with torch.no_grad():
        outputs = net(test.x)
    assert rows[-1]["test_loss"] == pytest.approx(criterion(outputs, test.y).item(), rel=1e-4)
    assert result["test_error"] == ((outputs[:, 0] > 0) != test.y.bool()).double().mean().item()


def test_two_classes_in_a_stack(tmp_path, capsys):
    results = []
    for stack in (True, False):
        study = sgd(train={**BITS, "stack": stack}, seeds=[0, 1], **BINARY)
        run_study(study, tmp_path / str(stack), CPU)
        results.append([history_of(study, tmp_path / str(stack), run) for run in study.runs])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def history_of(study, folder, run):
    lines = (folder / "runs" / run.folder / "history.jsonl").read_text().splitlines()
    return [
        [row[f"{part}_{kind}"] for part in ("train", "test") for kind in ("loss", "error")]
        for row in map(json.loads, lines)
    ]


@pytest.mark.parametrize(
    ("loss", "criterion"),
    [
        ({"name": "HuberLoss", "delta": 0.5}, nn.HuberLoss(delta=0.5)),
        ({"name": "L1Loss"}, nn.L1Loss()),
        ({"class": f"{HERE}:Halved"}, Halved()),
    ],
    ids=["Huber", "L1", "own"],
)
def test_a_regression_by_another_loss_is_still_judged_by_its_rmse(loss, criterion, tmp_path):
    study = sgd(train={"loss": loss}, data={"name": "diabetes"})
    rows, result, weights = only(study, tmp_path)
    net = trained(study.runs[0], criterion)
    torch.testing.assert_close(weights, net.state_dict(), rtol=1e-4, atol=1e-6)
    examples = build.examples(study.runs[0], CPU)
    with torch.no_grad():
        outputs = net(examples.test.x)
    assert rows[-1]["test_loss"] == pytest.approx(criterion(outputs, examples.test.y).item(), rel=1e-4)
    rmse = (examples.task.scale * (outputs - examples.test.y)).square().mean().sqrt().item()
    assert result["test_error"] == pytest.approx(rmse, rel=1e-4)


def test_the_named_loss_of_a_task_is_the_loss_that_it_has_anyway(tmp_path):
    plain = history(sgd(), tmp_path / "plain")
    named = history(sgd(train={"loss": {"name": "CrossEntropyLoss"}}), tmp_path / "named")
    for ours, theirs in zip(named, plain, strict=True):
        assert ours["test_error"] == theirs["test_error"]
        assert ours["test_loss"] == pytest.approx(theirs["test_loss"], rel=1e-6)


@pytest.mark.torchvision
@pytest.mark.parametrize("name", ["MSELoss", "BCEWithLogitsLoss", "CrossEntropyLoss"])
def test_mixed_images_have_the_shares_of_their_classes_as_targets(name, tmp_path):
    data = {**TREE["data"], "mix": {"name": "MixUp", "alpha": 0.4}}
    rows = history(sgd(train={"loss": {"name": name}}, data=data), tmp_path)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_a_strength_is_tuned_by_the_loss(tmp_path):
    regularizers = [{"penalty": "L2", "strength": 0.1, "mode": "grad"}]
    for name in ("MSELoss", "BCEWithLogitsLoss"):
        study = sgd(train={"loss": {"name": name}}, regularizers=regularizers, auto_strength={"batch_size": 30})
        assert history(study, tmp_path / name)[-1]["strengths"]


# -- what does not fit --------------------------------------------------------------------------------------------


class Summed(nn.Module):
    def forward(self, outputs, y):
        return F.cross_entropy(outputs, y, reduction="sum")


class Each(nn.Module):
    def forward(self, outputs, y):
        return F.cross_entropy(outputs, y, reduction="none")


class Cut(nn.Module):
    def forward(self, outputs, y):
        return (outputs.argmax(1) != y).float().mean()


class Number(nn.Module):
    def forward(self, outputs, y):
        return 3


BAD = {
    "an unknown name": (
        '{ name = "CrossEntropy" }',
        "train.loss.name: unknown name 'CrossEntropy', did you mean 'CrossEntropyLoss'?",
    ),
    "an unknown key": ('{ name = "MSELoss", label_smoothing = 0.1 }', "train.loss.label_smoothing: unknown key"),
    "a sum": ('{ name = "MSELoss", reduction = "sum" }', "train.loss.reduction: must be 'mean', over the examples"),
    "no reduction": ('{ name = "MSELoss", reduction = "none" }', "train.loss.reduction: must be 'mean'"),
    "a sum of one's own": (f'{{ class = "{HERE}:Summed" }}', "Summed must be a mean over the examples, got "),
    "a loss for each example": (
        f'{{ class = "{HERE}:Each" }}',
        "Each must give one number that has a gradient, got (25",
    ),
    "no gradient": (
        f'{{ class = "{HERE}:Cut" }}',
        "Cut must give one number that has a gradient, got () of torch.float32",
    ),
    "no tensor": (f'{{ class = "{HERE}:Number" }}', "Number must give one number that has a gradient, got 3 for"),
    "three inputs": ('{ name = "TripletMarginLoss" }', "TripletMarginLoss does not fit outputs (25"),
    "other targets": ('{ name = "MultiLabelMarginLoss" }', "MultiLabelMarginLoss does not fit outputs (25"),
    "probabilities": ('{ name = "BCELoss" }', "BCELoss does not fit outputs (25"),
    "logarithms": ('{ name = "NLLLoss" }', "NLLLoss must get logarithms of probabilities, got other outputs"),
    "too few weights": ('{ name = "CrossEntropyLoss", weight = [1.0, 2.0] }', "CrossEntropyLoss does not fit outputs"),
    "weights of text": ('{ name = "CrossEntropyLoss", weight = ["a"] }', "train.loss: CrossEntropyLoss(weight=['a'])"),
    "another class": ('{ class = "torch.optim:SGD" }', "train.loss.class: must name a class of Module"),
    "no table": ('"MSELoss"', "train.loss: must be a valid table, got 'MSELoss'"),
}


@pytest.mark.parametrize(("loss", "line"), BAD.values(), ids=BAD)
def test_a_loss_that_does_not_fit_is_one_line(loss, line, experiments, tmp_path):
    (tmp_path / "study.toml").write_text(
        'name = "small"\ndata = { train_size = 50, valid_size = 50 }\nmodel = { name = "mlp", hidden = [8] }\n'
        'optimizer = { name = "SGD", lr = 0.1 }\narms = [{ name = "plain" }]\n'
        f"train = {{ epochs = 1, batch_size = 25, loss = {loss} }}\n"
    )
    code, out, err = experiments("run", "study.toml", "--device", "cpu")
    assert (code, out, err.count("\n"), err[:7]) == (2, "", 1, "error: ")
    assert line in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "NLLLoss", "BCEWithLogitsLoss", "SoftMarginLoss"])
def test_losses_of_classes_are_refused_for_a_regression(name, experiments, tmp_path):
    tree = {**TREE, "data": {"name": "diabetes"}, "train": {**TREE["train"], "loss": {"name": name}}}
    with pytest.raises(Exception, match=f"train.loss: {name} is not for a regression: take MSELoss, L1Loss, "):
        run_study(resolve(tree), tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()


def test_a_loss_that_vmap_cannot_compute_is_made_alone(tmp_path, capsys):
    study = study_of(True, train={"loss": {"class": f"{HERE}:Looking"}})
    assert not run_study(study, tmp_path, CPU)
    assert "2 runs one after another: " in capsys.readouterr().err


class Looking(nn.Module):
    def forward(self, outputs, y):
        loss = F.cross_entropy(outputs, y)
        return loss if loss > 0 else loss * 1.0

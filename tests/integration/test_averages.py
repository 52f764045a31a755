"""Averaged weights as an arm of their own: by torch.optim.swa_utils in a loop by hand, alone and in a stack."""

import warnings
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

import torchreg
from experiments.config import resolve
from experiments.report.page import table
from experiments.report.summary import summarize
from experiments.running.study import run_study
from experiments.running.sweep import run_sweep
from experiments.training.record import Record
from tests.integration.plain import finished, nothing, parts, sgd, trained
from tests.integration.studies import CPU, TREE

HERE = "tests.integration.test_averages"
EMA = {"average": {"name": "ema", "decay": 0.8}}
SWA = {"average": {"name": "swa", "start": 2}}


class Normalized(nn.Sequential):
    """With batch normalization after a dropout layer, whose masks a pass over the training examples draws."""

    def __init__(self, rate=0.0, outputs=10):
        layers = [nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU()]
        super().__init__(
            *layers, torchreg.nn.Dropout(rate), nn.Linear(12, 12), nn.BatchNorm1d(12), nn.Linear(12, outputs)
        )


def losses_of(net, run):
    examples, _, _ = parts(run)
    with torch.no_grad():
        return [F.cross_entropy(net.eval()(split.x), split.y).item() for split in (examples.train, examples.test)]


def arm_of(found):
    """The run and its average."""
    (raw, average) = found.values()
    return raw, average


class ByHand:
    """The average of a loop by hand, and the losses at its end of each epoch."""

    def __init__(self, run, scheduler=lambda optimizer: None, is_each_step=False):
        self.run, settings = run, run.train.average
        self.start, self.lr, self.settings = settings.first(run.train.epochs), settings.lr, settings
        self.is_ema, self.scheduler, self.is_each_step = settings.name == "ema", scheduler, is_each_step
        self.net = parts(run)[1]
        multi = get_ema_multi_avg_fn(settings.decay) if self.is_ema else None
        self.average = AveragedModel(self.net, multi_avg_fn=multi)
        self.epoch, self.usual, self.swa, self.losses = 1, None, None, []

    def begin(self, optimizer):
        self.usual = self.scheduler(optimizer)

    def after_step(self, net, optimizer):
        if self.is_ema:
            self.average.update_parameters(net)
        if self.usual is not None and self.is_each_step and (self.lr is None or self.epoch <= self.start):
            self.usual.step()

    def after_epoch(self, net, optimizer, epoch):
        if not self.is_ema and epoch > self.start:
            self.average.update_parameters(net)
        if self.lr is not None and epoch > self.start:
            keys = self.settings.anneal_epochs, self.settings.anneal_strategy
            with warnings.catch_warnings(action="ignore"):  # it is made as late as can be
                self.swa = self.swa or SWALR(optimizer, self.lr, *keys)
                self.swa.step()
        elif self.usual is not None and not self.is_each_step:
            self.usual.step()
        if self.average.n_averaged:
            self.losses.append(losses_of(normalized(self.average.module, self.run), self.run))
        self.epoch = epoch + 1

    def trained(self):
        run = self.run
        return trained(run, F.cross_entropy, nothing, self.begin, self.after_step, self.after_epoch, self.net)

    def weights(self):
        state = normalized(self.average.module, self.run).state_dict()
        return {name: value for name, value in state.items() if not name.endswith("generator")}


def values(net):
    return [value for name, value in net.state_dict().items() if not name.endswith("generator")]


def normalized(net, run):
    net, x = deepcopy(net), parts(run)[0].train.x
    update_bn(x.split(run.train.batch_size), net)
    return net


AVERAGES = {
    "EMA": {"train": EMA},
    "SWA from an epoch": {"train": {**SWA, "epochs": 4}},
    "SWA from a share": {"train": {"average": {"name": "swa", "start": 0.5}, "epochs": 5}},
    "SWA at a rate": {"train": {"average": {"name": "swa", "start": 1, "lr": 0.2, "anneal_epochs": 2}, "epochs": 5}},
    "SWA at a rate at once": {
        "train": {"average": {"name": "swa", "start": 1, "lr": 0.2, "anneal_epochs": 0}, "epochs": 4}
    },
    "EMA, batch normalization": {"train": EMA, "model": {"class": f"{HERE}:Normalized"}},
    "SWA, batch normalization": {"train": {**SWA, "epochs": 4}, "model": {"class": f"{HERE}:Normalized"}},
}
SCHEDULED = {
    "epochs": (
        {"name": "CosineAnnealingLR", "T_max": 5},
        lambda optimizer: CosineAnnealingLR(optimizer, 5),
    ),
    "steps": (
        {"name": "OneCycleLR", "max_lr": 0.2, "total_steps": 20, "interval": "step"},
        lambda optimizer: OneCycleLR(optimizer, 0.2, total_steps=20),
    ),
}


@pytest.mark.parametrize("changes", AVERAGES.values(), ids=AVERAGES)
def test_an_average_is_that_of_torch(changes, tmp_path):
    study = sgd(**dict(changes))
    raw, (rows, result, weights) = arm_of(finished(study, tmp_path))
    by_hand = ByHand(study.runs[0])
    net = by_hand.trained()
    torch.testing.assert_close(list(raw[2].values()), values(net), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights, by_hand.weights(), rtol=1e-5, atol=1e-6)
    assert [row["epoch"] for row in rows] == list(range(by_hand.start + 1, study.runs[0].train.epochs + 1))
    found = [[row["train_loss"], row["test_loss"]] for row in rows]
    torch.testing.assert_close(found, by_hand.losses, rtol=1e-4, atol=1e-5)
    assert result["test_loss"] == rows[-1]["test_loss"] != raw[1]["test_loss"]
    assert result["sha256"] != raw[1]["sha256"]


@pytest.mark.parametrize("lr", [None, 0.1], ids=["the schedule's rate", "a rate of its own"])
@pytest.mark.parametrize(("scheduler", "by_hand"), SCHEDULED.values(), ids=SCHEDULED)
def test_a_rate_of_its_own_takes_the_place_of_the_schedule(scheduler, by_hand, lr, tmp_path):
    average = {"name": "swa", "start": 2, **({} if lr is None else {"lr": lr, "anneal_strategy": "linear"})}
    study = sgd(train={"average": average, "epochs": 5}, scheduler=scheduler)
    loop = ByHand(study.runs[0], by_hand, is_each_step="interval" in scheduler)
    net = loop.trained()
    raw, (_, _, weights) = arm_of(finished(study, tmp_path))
    torch.testing.assert_close(list(raw[2].values()), values(net), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights, loop.weights(), rtol=1e-5, atol=1e-6)


UNCHANGED = {
    "mlp": {"model": {"name": "mlp", "hidden": [16], "dropout": {"name": "Dropout", "p": 0.5}}},
    "batch normalization and dropout": {"model": {"class": f"{HERE}:Normalized", "rate": 0.5}},
    "early stopping": {"train": {"epochs": 8, "early_stopping": {"patience": 1}}},
}


@pytest.mark.parametrize("stack", [False, True])
@pytest.mark.parametrize("changes", UNCHANGED.values(), ids=UNCHANGED)
def test_the_run_itself_has_the_same_bits_without_an_average(changes, stack, tmp_path):
    changes = dict(changes)
    train = {"stack": stack, **changes.pop("train", {})}
    averaged = finished(sgd(train={**train, **EMA}, seeds=[0, 1], **changes), tmp_path / "with")
    for name, expected in finished(sgd(train=train, seeds=[0, 1], **changes), tmp_path / "without").items():
        assert averaged[name][:2] == expected[:2]


@pytest.mark.parametrize("changes", {**AVERAGES, **UNCHANGED}.values(), ids={**AVERAGES, **UNCHANGED})
def test_the_averages_of_a_stack_are_those_of_its_runs_alone(changes, tmp_path):
    changes = dict(changes)
    train = {"dtype": "float64", **EMA, **changes.pop("train", {})}
    arm = {"name": "arm", "strengths": [0.0, 0.3], "regularizers": [{"penalty": "L1", "mode": "prox"}]}
    made = [
        finished(sgd([arm], {**train, "stack": stack}, seeds=[0, 1], **changes), tmp_path / str(stack))
        for stack in (True, False)
    ]
    assert len(made[0]) == 8
    assert {result.get("stack") for _, result, _ in made[0].values()} == {4}
    for name, (rows, result, weights) in made[1].items():
        ours = made[0][name]
        torch.testing.assert_close(ours[2], weights, rtol=1e-8, atol=1e-10)
        assert (ours[1]["status"], ours[1]["epochs"]) == (result["status"], result["epochs"])
        for row, other in zip(ours[0], rows, strict=True):
            for key in ("epoch", "train_loss", "test_loss", "penalty"):
                torch.testing.assert_close(row[key], other[key], rtol=1e-6, atol=1e-8)


def test_the_penalty_of_an_average_is_that_of_its_weights(tmp_path):
    study = sgd(train=EMA, regularizers=[{"penalty": "L1", "strength": 0.1, "mode": "grad"}])
    for rows, _, weights in finished(study, tmp_path).values():
        sizes = sum(value.abs().sum() for name, value in weights.items() if name.endswith("weight"))
        assert rows[-1]["penalty"]["L1"] == pytest.approx(0.1 * sizes.item(), rel=1e-5)


@pytest.mark.parametrize("stack", [False, True])
def test_early_stopping_takes_the_best_epoch_of_the_average(stack, tmp_path):
    train = {"average": {"name": "ema", "decay": 0.97}, "epochs": 40, "early_stopping": {"patience": 2}, "stack": stack}
    found = finished(sgd(train=train, seeds=[0, 1, 2], data={**TREE["data"], "label_noise": 0.9}), tmp_path)
    raws, averages = list(found.values())[:3], list(found.values())[3:]
    assert any(raw[1]["epoch"] != average[1]["epoch"] for raw, average in zip(raws, averages, strict=True))
    for raw, average in zip(raws, averages, strict=True):
        assert len(average[0]) == len(raw[0]) == average[1]["epochs"] < 40
        for rows, result, _ in (raw, average):
            assert result["valid_loss"] == min(row["valid_loss"] for row in rows)


# -- in the report ------------------------------------------------------------------------------------------------


def test_an_average_is_an_arm_of_the_report(tmp_path):
    arms = [{"name": "none"}, {"name": "L1", "strengths": [0.0, 0.1], "regularizers": [{"penalty": "L1"}]}]
    run_study(sgd(arms, {**SWA, "stack": True}, seeds=[0, 1]), tmp_path, CPU)
    summary = summarize(tmp_path)
    names = ["none", "none (SWA)", "L1", "L1", "L1 (SWA)", "L1 (SWA)"]
    assert [cell.arm for cell in summary.cells] == names
    assert [cell.is_plain() for cell in summary.cells] == [True, False, False, False, False, False]
    assert summary.plain.arm == "none"
    assert all(cell.differs_only_by_regularization(summary.plain) for cell in summary.cells)
    text = table(summary)
    assert "Not finished" not in text
    assert "none (SWA)  " in text
    assert "L1 (SWA)  " in text


def test_an_arm_may_be_averaged_alone(tmp_path):
    run_study(sgd([{"name": "none"}, {"name": "averaged", "train": EMA}]), tmp_path, CPU)
    summary = summarize(tmp_path)
    assert [cell.arm for cell in summary.cells] == ["none", "averaged", "averaged (EMA)"]
    assert all(cell.differs_only_by_regularization(summary.plain) for cell in summary.cells)


def test_a_search_has_the_average_at_each_point(tmp_path):
    tree = {**TREE, "train": {**TREE["train"], **EMA, "epochs": 2}, "optimizer": {"name": "SGD", "lr": 0.1}}
    sweep = {"space": {"optimizer.lr": [0.01, 0.1]}, "pruner": {"name": "ThresholdPruner", "upper": 0.0}}
    for name, pruned in {"whole": {"space": sweep["space"]}, "pruned": sweep}.items():
        study = resolve({**tree, "sweep": pruned})
        run_sweep(study, tmp_path / name, CPU)
        cells = summarize(tmp_path / name).cells
        assert [cell.arm for cell in cells] == ["none", "none", "none (EMA)", "none (EMA)"]
        assert [cell.point["optimizer.lr"] for cell in cells[:2]] == [cell.point["optimizer.lr"] for cell in cells[2:]]
        assert {cell.status for cell in cells} == {"done" if name == "whole" else "pruned"}
        assert "Not finished" not in table(summarize(tmp_path / name))


@pytest.mark.parametrize("stack", [False, True])
def test_a_run_that_diverges_has_no_average_either(stack, tmp_path):
    arm = {"name": "arm", "strengths": [0.0, 1e30], "regularizers": [{"penalty": "L2", "mode": "loss"}]}
    (fault,) = run_study(sgd([arm], {**EMA, "stack": stack}), tmp_path, CPU)
    assert fault.startswith("diverged: arm@1e+30/seed0")
    statuses = {folder: Record(tmp_path / "runs" / folder / "seed0").result["status"] for folder in FOLDERS}
    assert statuses == {name: "diverged" if "1e+30" in name else "done" for name in FOLDERS}


FOLDERS = ["arm@0", "arm@1e+30", "arm_EMA_@0", "arm_EMA_@1e+30"]


def test_a_run_that_fails_has_no_average_and_is_made_again(tmp_path, monkeypatch):
    study = sgd(train=EMA)
    kept = Record.append
    monkeypatch.setattr(Record, "append", lambda *_: 1 / 0)
    (fault,) = run_study(study, tmp_path, CPU)
    assert fault.startswith("failed: arm/seed0: ")
    assert {cell.status for cell in summarize(tmp_path).cells} == {"failed"}
    monkeypatch.setattr(Record, "append", kept)
    assert run_study(study, tmp_path, CPU, resume=True) == []
    assert {cell.status for cell in summarize(tmp_path).cells} == {"done"}

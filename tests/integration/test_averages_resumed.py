"""Averages, accumulated batches and the like, stopped or killed at any moment: they go on with the same bits."""

import random

import pytest
import torch

from experiments.errors import UserError
from experiments.running.study import run_study
from experiments.training.progress import Progress
from experiments.training.record import Record, read_runs
from tests.integration.plain import finished, sgd
from tests.integration.studies import CPU, TREE, kill

HERE = "tests.integration.test_averages"
RESUMED = {
    "EMA": {"train": {"average": {"name": "ema", "decay": 0.8}, "epochs": 5}},
    "SWA at a rate": {
        "train": {"average": {"name": "swa", "start": 2, "lr": 0.2, "anneal_epochs": 2}, "epochs": 6},
        "scheduler": {"name": "CosineAnnealingLR", "T_max": 6},
    },
    "SWA, batch normalization and dropout": {
        "train": {"average": {"name": "swa", "start": 0.4}, "epochs": 5},
        "model": {"class": f"{HERE}:Normalized", "rate": 0.5},
    },
    "EMA, early stopping": {
        "train": {"average": {"name": "ema", "decay": 0.9}, "early_stopping": {"patience": 2}, "epochs": 6},
        "optimizer": {"name": "SGD", "lr": 0.7, "momentum": 0.9},
    },
    "accumulated and clipped, in double precision": {
        "train": {"accumulate": 3, "batch_size": 10, "clip_norm": 0.2, "dtype": "float64", "epochs": 5},
        "optimizer": {"name": "AdamW", "lr": 0.01, "weight_decay": 0.1},
        "model": {"name": "mlp", "hidden": [16], "dropout": {"name": "Dropout", "p": 0.5}},
    },
    "a loss": {
        "train": {"loss": {"name": "MSELoss"}, "epochs": 4, "evaluate_every": 2},
        "scheduler": {"name": "OneCycleLR", "max_lr": 0.2, "total_steps": 20, "interval": "step"},
    },
}


class KilledError(BaseException):
    pass


def study_of(stack, train, **changes):
    return sgd([{"name": "arm", **changes}], {**train, "stack": stack}, seeds=[0, 1] if stack else [0])


def same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, (rows, result, weights) in theirs.items():
        assert (ours[name][0], ours[name][1]) == (rows, result)
        torch.testing.assert_close(ours[name][2], weights, rtol=0, atol=0)


@pytest.mark.parametrize("stack", [False, True])
@pytest.mark.parametrize("after", ["append", "finish", "save"])
@pytest.mark.parametrize("changes", RESUMED.values(), ids=RESUMED)
def test_what_is_stopped_anywhere_goes_on_with_the_same_bits(changes, after, stack, tmp_path, monkeypatch):
    study = study_of(stack, **changes)
    whole = finished(study, tmp_path / "whole")
    assert len(whole) == (1 + stack) * (1 + ("average" in changes["train"]))
    owner = Progress if after == "save" else Record
    kept = getattr(owner, after)
    for call in (1, 3, 6):
        calls = []

        def die(self, *args, calls=calls, call=call):
            kept(self, *args)
            calls.append(1)
            if len(calls) == call:
                raise KilledError

        monkeypatch.setattr(owner, after, die)
        folder = tmp_path / f"cut{call}"
        try:
            run_study(study, folder, CPU)
        except KilledError:
            torch.manual_seed(12345)
        monkeypatch.setattr(owner, after, kept)
        same_bits(finished(study, folder, resume=True), whole)
        if len(calls) < call:
            break


@pytest.mark.parametrize("stack", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_study_killed_at_four_random_moments_ends_with_the_same_bits(stack, tmp_path):
    train = {
        "average": {"name": "ema", "decay": 0.9},
        "accumulate": 2,
        "batch_size": 10,
        "clip_norm": 0.5,
        "epochs": 30,
    }
    study = study_of(stack, train, model={"class": f"{HERE}:Normalized", "rate": 0.5})
    whole = finished(study, tmp_path / "whole")
    folder, draw = tmp_path / "cut", random.Random(0)
    history = folder / "runs" / study.runs[0].folder / "history.jsonl"

    def lines():
        return len(history.read_bytes().splitlines()) if history.exists() else 0

    for _ in range(4):
        at = lines() + draw.randint(1, 4)
        kill(run_study, study, folder, lambda at=at: lines() >= at)
    same_bits(finished(study, folder, resume=True), whole)


def test_another_average_is_another_study(tmp_path):
    train = RESUMED["EMA"]["train"]
    run_study(study_of(False, train), tmp_path, CPU)
    other = study_of(False, {**train, "average": {"name": "ema", "decay": 0.7}})
    with pytest.raises(UserError, match="it holds another"):
        run_study(other, tmp_path, CPU, resume=True)


@pytest.mark.parametrize("file", ["history.jsonl", "result.json", "config.json"])
def test_a_damaged_record_of_an_average_is_told(file, tmp_path):
    study = study_of(False, RESUMED["EMA"]["train"])
    run_study(study, tmp_path, CPU)
    average = next(run for run in read_runs(study, tmp_path) if run.is_average)
    path = tmp_path / "runs" / average.folder / file
    path.write_text(path.read_text()[:20])
    with pytest.raises(UserError, match=f"{path.name}: is damaged"):
        assert Record(path.parent, average).result


BAD = {
    "an unknown name": ({"name": "ewa"}, "train.average.name: must be 'ema' or 'swa', got 'ewa'"),
    "a decay of 1": ({"name": "ema", "decay": 1.0}, "train.average.decay: must be less than 1, got 1.0"),
    "a key of the other": ({"name": "ema", "start": 3}, "train.average: start is for swa, not for ema"),
    "a decay of SWA": ({"name": "swa", "decay": 0.9}, "train.average: decay is for ema, not for swa"),
    "annealing to no rate": ({"name": "swa", "anneal_epochs": 3}, "need the learning rate lr"),
    "a start too late": ({"name": "swa", "start": 3}, "average.start must be less than the 3 epochs, got 3"),
    "an unknown key": ({"name": "ema", "beta": 0.9}, "train.average.beta: unknown key"),
}


@pytest.mark.parametrize(("average", "line"), BAD.values(), ids=BAD)
def test_an_average_that_cannot_be_is_one_line(average, line):
    with pytest.raises(UserError) as error:
        sgd(train={"average": average})
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_swa_and_early_stopping_are_refused_together():
    with pytest.raises(UserError, match="average 'swa' needs all epochs: remove early_stopping, or take 'ema'"):
        sgd(train={"average": {"name": "swa"}, "early_stopping": {"patience": 3}})


def test_an_arm_may_not_have_the_name_of_an_average():
    with pytest.raises(UserError, match="arms: must be distinct, got 'none_ema_' twice"):
        sgd([{"name": "none"}, {"name": "none (EMA)"}], {"average": {"name": "ema"}})


class Uncopied(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, 10))

    def __deepcopy__(self, memo):
        raise TypeError("no copies")


def test_a_model_that_cannot_be_copied_is_told(tmp_path):
    model = {"class": "tests.integration.test_averages_resumed:Uncopied"}
    with pytest.raises(UserError, match=r"^arms\[arm\].train.average: the model cannot be copied: no copies"):
        run_study(sgd(train={"average": {"name": "ema"}}, model=model, data=TREE["data"]), tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()

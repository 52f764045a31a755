"""The loop: what a run does and what it leaves."""

import json

import pytest
import torch
from torch import nn

from experiments.running.study import run_study
from experiments.training.record import Record
from tests.integration.studies import CPU, arm, history, outcome, small


class Flat(nn.Linear):
    """A user's own model."""

    def __init__(self, features: int) -> None:
        super().__init__(features, 10)

    def forward(self, x):
        return super().forward(x.flatten(1))


def test_a_run_leaves_its_whole_record(tmp_path):
    study = small()
    rows = history(study, tmp_path)
    folder = tmp_path / "runs" / "none" / "seed0"
    files = {"config.json", "environment.json", "history.jsonl", "checkpoint.pt", "result.json"}
    assert {file.name for file in folder.iterdir()} == files
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    (environment,) = json.loads((folder / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["threads"] == torch.get_num_threads()
    assert json.loads((folder / "result.json").read_text())["test_error"] == rows[-1]["test_error"]


@pytest.mark.parametrize("stopping", [{}, {"early_stopping": {"patience": 2}}], ids=["whole", "stopped"])
def test_the_checkpoint_holds_the_weights_that_are_reported(stopping, tmp_path):
    study = small(train={"epochs": 40, "batch_size": 30, **stopping})
    result = outcome(study, tmp_path)
    assert (result["epoch"] < result["epochs"]) is bool(stopping)
    state = torch.load(tmp_path / "runs" / "none" / "seed0" / "checkpoint.pt", weights_only=True)
    weights = (state["best"] or state)["model"]
    assert {name: weights[name].norm().item() for name in result["norms"]} == pytest.approx(result["norms"], rel=1e-6)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path):
    first, again = outcome(small(), tmp_path / "a"), outcome(small(), tmp_path / "b")
    assert first == again
    assert first["sha256"] != outcome(small(seeds=[1]), tmp_path / "c")["sha256"]


@pytest.mark.parametrize("mode", ["loss", "grad", "decoupled", "prox"])
def test_strength_0_is_the_unregularized_run_bit_for_bit(mode, tmp_path):
    off = arm(regularizers=[{"penalty": penalty, "strength": 0.0, "mode": mode} for penalty in ("L1", "L2")])
    assert outcome(off, tmp_path / "off")["sha256"] == outcome(small(), tmp_path / "none")["sha256"]


def test_the_penalty_is_logged_apart_and_is_in_no_reported_loss(tmp_path):
    # With lr 0 the weights stay, so the losses must be those of the unregularized run, however strong the penalty.
    still = {"name": "SGD", "lr": 0.0}
    plain = history(arm(optimizer=still), tmp_path / "plain")
    penalized = history(arm(optimizer=still, regularizers=[{"penalty": "L2", "strength": 100.0}]), tmp_path / "L2")
    for before, after in zip(plain, penalized, strict=True):
        assert after.pop("penalty")["L2"] > 100
        assert before.pop("penalty") == {}
        assert after == before


def test_weight_decay_leaves_biases_alone(tmp_path):
    # One step of size lr * weight_decay = 1 sets what is decayed to the bare gradient step.
    decay = arm(optimizer={"name": "SGDW", "lr": 0.5, "weight_decay": 2.0}, train={"epochs": 1, "batch_size": 100})
    bare = arm(optimizer={"name": "SGD", "lr": 0.5}, train={"epochs": 1, "batch_size": 100})
    states = []
    for study, name in ((decay, "decay"), (bare, "bare")):
        run_study(study, tmp_path / name, CPU)
        states.append(torch.load(tmp_path / name / "runs" / "arm" / "seed0" / "checkpoint.pt")["model"])
    for name, decayed in states[0].items():
        assert torch.equal(decayed, states[1][name]) == name.endswith("bias")


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path):
    broken = arm(optimizer={"name": "SGD", "lr": 1e30})
    (line,) = run_study(broken, tmp_path, CPU)
    # The weights are fine until the first step has been made, so the second of the epoch's four sees the damage.
    assert line in [f"diverged: arm/seed0: the loss is {value} at step 2 (epoch 1)" for value in ("nan", "inf")]


def test_weights_that_the_last_step_breaks_stop_the_run_too(tmp_path):
    broken = arm(optimizer={"name": "SGD", "lr": 1e30}, train={"epochs": 1, "batch_size": 1000})
    line = "diverged: arm/seed0: the weights are not finite after step 1 (epoch 1)"
    assert run_study(broken, tmp_path, CPU) == [line]
    assert Record(tmp_path / "runs" / "arm" / "seed0").history == []


STEEP = {"regularizers": [{"penalty": "L2", "strength": 1e3}], "optimizer": {"name": "SGD", "lr": 0.1}}
STILL = {"optimizer": {"name": "SGD", "lr": 0.0}}
HUGE = {
    "a penalty": (STEEP, "the weights or their penalty are not finite after step 9 (epoch 3)"),
    "a penalty in the step": (
        {"regularizers": [{"penalty": "L2", "strength": 1e38, "mode": "prox"}], "model": {"scale": 50.0}, **STILL},
        "the weights or their penalty are not finite after step 3 (epoch 1)",
    ),
    "norms": ({"model": {"hidden": [], "scale": 1e25}, **STILL}, "the norms of the weights are not finite after"),
}


@pytest.mark.parametrize("average", [None, {"name": "ema", "decay": 0.5}], ids=["no average", "average"])
@pytest.mark.parametrize(("changes", "reason"), HUGE.values(), ids=HUGE)
def test_figures_that_a_record_cannot_hold_are_a_divergence(changes, reason, average, tmp_path):
    train = {"epochs": 6, "batch_size": 40} | ({} if average is None else {"average": average})
    broken = run_study(arm(train=train, **changes), tmp_path, CPU)
    assert [line.startswith(f"diverged: arm/seed0: {reason}") for line in broken] == [True]


@pytest.mark.parametrize("changes", [{"hidden": [], "scale": 1e25}], ids=["norms"])
def test_such_figures_of_one_arm_leave_a_stack_whole(changes, tmp_path, capsys):
    study = small(seeds=[0, 1], train={"epochs": 2, "batch_size": 30, "stack": True}, model={"name": "mlp", **changes})
    assert len(run_study(study, tmp_path, CPU)) == 2
    assert "note" not in capsys.readouterr().err
    assert all(Record(tmp_path / "runs" / run.folder).result["stack"] == 2 for run in study.runs)


def test_a_diverged_run_does_not_stop_the_others(tmp_path):
    arms = [{"name": "broken", "optimizer": {"name": "SGD", "lr": 1e30}}, {"name": "none"}]
    assert len(run_study(small(arms=arms), tmp_path, CPU)) == 1
    assert Record(tmp_path / "runs" / "none" / "seed0").result["status"] == "done"


def test_early_stopping_ends_after_patience_and_keeps_the_best_weights(tmp_path):
    stopping = {"epochs": 200, "batch_size": 30, "early_stopping": {"patience": 3}}
    result, rows = outcome(arm(train=stopping), tmp_path), Record(tmp_path / "runs" / "arm" / "seed0").history
    best = min(rows, key=lambda row: row["valid_loss"])
    assert len(rows) == result["epochs"] == best["epoch"] + 3 < 200
    assert result["valid_loss"] == best["valid_loss"]
    shorter = arm(train={"epochs": best["epoch"], "batch_size": 30})
    assert outcome(shorter, tmp_path / "shorter")["sha256"] == result["sha256"]


@pytest.mark.parametrize(
    "changes",
    [
        {"scheduler": {"name": "CosineAnnealingLR", "T_max": 4}},
        {"scheduler": {"name": "OneCycleLR", "interval": "step", "max_lr": 0.1, "total_steps": 16}},
        {"regularizers": [{"penalty": "L2", "strength": 1.0, "schedule": {"name": "linear", "steps": 8}}]},
        {"train": {"epochs": 4, "batch_size": 30, "amp": True}},
        {"model": {"class": "tests.integration.test_study:Flat", "args": {"features": 64}}},
        {"model": {"name": "cnn", "channels": [4], "hidden": 8, "dropout": {"name": "Dropout", "p": 0.2}}},
        {"model": {"dropout": {"name": "Dropout", "p": 0.5}, "input_dropout": {"name": "Dropout", "p": 0.2}}},
    ],
    ids=["scheduler", "scheduler-per-step", "schedule", "amp", "own-class", "cnn", "dropout"],
)
def test_an_option_changes_the_run(changes, tmp_path):
    assert outcome(arm(**changes), tmp_path / "a")["sha256"] != outcome(small(), tmp_path / "b")["sha256"]


@pytest.mark.mnist
def test_mnist_is_learned(tmp_path):
    mnist = {"name": "mnist", "train_size": 1000, "valid_size": 1000}
    result = outcome(arm(data=mnist, model={"hidden": [64]}, train={"epochs": 10, "batch_size": 50}), tmp_path)
    # chance is 0.9
    assert result["test_error"] < 0.14


@pytest.mark.cuda
def test_cuda_learns_what_the_cpu_learns(tmp_path):
    study = arm(train={"epochs": 40, "batch_size": 30})
    run_study(study, tmp_path / "cuda", torch.device("cuda"))
    on_cuda = Record(tmp_path / "cuda" / "runs" / "arm" / "seed0").result
    assert abs(on_cuda["test_loss"] - outcome(study, tmp_path / "cpu")["test_loss"]) < 0.05

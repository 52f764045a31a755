"""The loop and its records: what a run leaves, and that being killed makes no difference to it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.errors import UserError
from experiments.record import Record, open_study
from experiments.study import run_study
from experiments.summary import summarize
from tests.integration.studies import arm, small

CPU = torch.device("cpu")


def outcome(study, folder) -> dict:
    """The result of a study's only run, without how long it took."""
    run_study(study, folder, CPU)
    result = Record(folder / "runs" / study.runs[0].folder).result
    return {key: value for key, value in result.items() if key != "seconds"}


def history(study, folder) -> list[dict]:
    run_study(study, folder, CPU)
    return Record(folder / "runs" / study.runs[0].folder).history


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


def test_weight_decay_leaves_intercepts_alone(tmp_path):
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
    assert line in ("arm/seed0: the loss is nan at step 2 (epoch 1)", "arm/seed0: the loss is inf at step 2 (epoch 1)")


def test_weights_that_the_last_step_breaks_stop_the_run_too(tmp_path):
    broken = arm(optimizer={"name": "SGD", "lr": 1e30}, train={"epochs": 1, "batch_size": 1000})
    assert run_study(broken, tmp_path, CPU) == ["arm/seed0: the weights are not finite after step 1 (epoch 1)"]
    assert Record(tmp_path / "runs" / "arm" / "seed0").history == []


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


class KilledError(Exception):
    pass


RESUMED = {
    "dropout": {"model": {"dropout": {"name": "Dropout", "p": 0.5}}},
    "momentum and cosine": {
        "optimizer": {"name": "SGDW", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
        "scheduler": {"name": "CosineAnnealingLR", "T_max": 4},
    },
    "schedule in every mode": {
        "regularizers": [
            {"penalty": "L1", "strength": 1e-3, "mode": mode, "schedule": {"name": "cosine", "steps": 16}}
            for mode in ("loss", "grad", "decoupled", "prox")
        ]
    },
    "early stopping": {"train": {"early_stopping": {"patience": 2}}},
}


@pytest.mark.parametrize("changes", RESUMED.values(), ids=RESUMED)
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_resumed_run_is_the_uninterrupted_one(changes, epoch, tmp_path, monkeypatch):
    changes = {
        **changes,
        "train": {"epochs": 4, "batch_size": 30, "checkpoint_seconds": 0.0, **changes.get("train", {})},
    }
    study = arm(**changes)
    whole = outcome(study, tmp_path / "whole")
    folder = tmp_path / "cut"
    record, append = Record(folder / "runs" / study.runs[0].folder), Record.append

    def die(self, row):
        append(self, row)
        if row["epoch"] == epoch:
            raise KilledError

    monkeypatch.setattr(Record, "append", die)
    with pytest.raises(KilledError):
        run_study(study, folder, CPU)
    monkeypatch.setattr(Record, "append", append)
    torch.manual_seed(12345)
    run_study(study, folder, CPU, resume=True)
    assert {key: value for key, value in record.result.items() if key != "seconds"} == whole
    assert record.history == Record(tmp_path / "whole" / "runs" / "arm" / "seed0").history


@pytest.mark.slow
def test_a_run_killed_at_three_random_moments_ends_with_the_same_bits(tmp_path):
    file = tmp_path / "study.toml"
    file.write_text("""
        name = "killed"
        data = { train_size = 200, valid_size = 100 }
        model = { name = "mlp", hidden = [64], dropout = { name = "Dropout", p = 0.5 } }
        optimizer = { name = "AdamW", lr = 1e-3 }
        train = { epochs = 150, batch_size = 10, checkpoint_seconds = 0.0 }
        arms = [{ name = "L1", regularizers = [{ penalty = "L1", strength = 0.1, mode = "prox" }] }]
    """)

    def start(out: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "experiments", "run", str(file), "--out", str(tmp_path / out), "--resume"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL)

    def lines(out: str) -> list[str]:
        path = tmp_path / out / "runs" / "L1" / "seed0" / "history.jsonl"
        return path.read_text().splitlines() if path.exists() else []

    whole = start("whole")
    draw, killed = random.Random(0), 0
    for moment in sorted(draw.sample(range(1, 140), 3)):
        process = start("cut")
        while process.poll() is None and len(lines("cut")) < moment:
            time.sleep(0.002)
        time.sleep(draw.random() * 0.02)  # anywhere in an epoch, also while a file is being written
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert killed == 3
    assert start("cut").wait() == whole.wait() == 0
    assert lines("cut") == lines("whole")
    assert len(lines("whole")) == 150
    results = [Record(tmp_path / out / "runs" / "L1" / "seed0").result for out in ("cut", "whole")]
    assert results[0]["sha256"] == results[1]["sha256"]


def test_a_folder_takes_one_study(tmp_path):
    run_study(small(), tmp_path / "a", CPU)
    with pytest.raises(UserError, match="already holds this study: --resume continues it"):
        run_study(small(), tmp_path / "a", CPU)
    with pytest.raises(UserError, match="it holds another"):
        run_study(small(seeds=[1]), tmp_path / "a", CPU, resume=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").touch()
    with pytest.raises(UserError, match="it holds other files"):
        run_study(small(), tmp_path / "b", CPU)


def test_a_folder_is_one_process_s_at_a_time(tmp_path):
    with open_study(small(), tmp_path, resume=False), pytest.raises(UserError, match="in use by another process"):
        run_study(small(), tmp_path, CPU, resume=True)


def test_what_a_kill_leaves_before_the_study_has_begun_is_no_obstacle(tmp_path):
    (tmp_path / "study.json.part").write_text('{"na')
    assert run_study(small(), tmp_path, CPU) == []


def test_data_may_move_between_a_kill_and_its_resumption(tmp_path):
    run_study(small(), tmp_path, CPU)
    moved = small(data={"train_size": 100, "valid_size": 100, "label_noise": 0.2, "root": "elsewhere"})
    assert run_study(moved, tmp_path, CPU, resume=True) == []


@pytest.mark.parametrize("file", ["checkpoint.pt", "history.jsonl"])
def test_a_damaged_checkpoint_is_told_and_the_run_starts_afresh(file, tmp_path, capsys):
    whole = outcome(small(), tmp_path)
    folder = tmp_path / "runs" / "none" / "seed0"
    (folder / "result.json").unlink()
    (folder / file).write_bytes((folder / file).read_bytes()[:100])
    run_study(small(), tmp_path, CPU, resume=True)
    assert "checkpoint.pt is damaged: the run starts afresh" in capsys.readouterr().err
    result = Record(folder).result
    assert {key: value for key, value in result.items() if key != "seconds"} == whole


@pytest.mark.parametrize("file", ["result.json", "environment.json", "history.jsonl", "../../../study.json"])
def test_a_damaged_record_is_named(file, tmp_path):
    run_study(small(), tmp_path, CPU)
    path = tmp_path / "runs" / "none" / "seed0" / file
    path.write_text(path.read_text()[:20])
    with pytest.raises(UserError, match=f"{path.resolve().name}: is damaged"):
        summarize(tmp_path)


def test_resuming_in_another_environment_is_noted(tmp_path, capsys, monkeypatch):
    run_study(small(), tmp_path, CPU)
    record = Record(tmp_path / "runs" / "none" / "seed0")
    (record.folder / "result.json").unlink()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    run_study(small(), tmp_path, CPU, resume=True)
    assert "goes on in another environment: threads 1 -> 77" in capsys.readouterr().err
    assert [environment["threads"] for environment in record.environments] == [1, 77]


def test_a_study_that_cannot_be_built_writes_nothing(tmp_path):
    with pytest.raises(UserError):
        run_study(arm(optimizer={"name": "Adamant", "lr": 1.0}), tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()


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

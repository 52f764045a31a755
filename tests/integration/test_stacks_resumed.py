"""Stacks that are stopped anywhere, killed or damaged go on with the same bits."""

import random
import shutil

import pytest
import torch

from experiments.running.study import run_study
from experiments.training.progress import Progress
from experiments.training.record import Record
from tests.integration.studies import CPU, kill
from tests.integration.test_stacks import STRENGTHS, made, study_of

KILLED = {
    "train": {"epochs": 30, "batch_size": 10},
    "model": {"name": "mlp", "hidden": [32], "dropout": {"name": "Dropout", "p": 0.5}},
    "regularizers": [{"penalty": "L1", "mode": "prox", "schedule": {"name": "linear", "steps": 200}}],
    "scheduler": {"name": "CosineAnnealingLR", "T_max": 30},
}


class KilledError(BaseException):
    pass


@pytest.mark.parametrize("after", ["append", "finish", "save"])
@pytest.mark.parametrize("call", [1, 2, 5, 9])
@pytest.mark.parametrize("also", [[], [{"penalty": "MaxNorm", "max_norm": 0.5}]], ids=["penalty", "and constraint"])
def test_a_stack_stopped_anywhere_goes_on_with_the_same_bits(after, call, also, tmp_path, monkeypatch):
    changes = {**KILLED, "regularizers": [*KILLED["regularizers"], *also], "strengths": STRENGTHS}
    study = study_of(True, **dict(changes, train={"epochs": 5, "evaluate_every": 2, "early_stopping": {"patience": 2}}))
    whole = made(study, tmp_path / "whole")
    owner = Progress if after == "save" else Record
    kept, calls = getattr(owner, after), []

    def die(self, *args):
        kept(self, *args)
        calls.append(1)
        if len(calls) == call:
            raise KilledError

    monkeypatch.setattr(owner, after, die)
    try:
        run_study(study, tmp_path / "cut", CPU)
    except KilledError:
        monkeypatch.setattr(owner, after, kept)
        torch.manual_seed(12345)
    else:
        pytest.skip("it ended before")
    assert same_bits(made(study, tmp_path / "cut", resume=True), whole)
    assert not (tmp_path / "cut" / "stacks").exists()


def same_bits(ours, theirs):
    torch.testing.assert_close(
        {name: run["weights"] for name, run in ours.items()},
        {name: run["weights"] for name, run in theirs.items()},
        rtol=0,
        atol=0,
    )
    return [(run["history"], run["result"]) for run in ours.values()] == [
        (run["history"], run["result"]) for run in theirs.values()
    ]


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_a_stack_killed_at_random_moments_ends_with_the_same_bits(kills, tmp_path):
    study = study_of(True, **{**KILLED, "train": {"epochs": 3 * kills, "batch_size": 10}})
    whole = made(study, tmp_path / "whole")
    folder, draw = tmp_path / "cut", random.Random(kills)
    history = folder / "runs" / study.runs[0].folder / "history.jsonl"

    def lines():
        return len(history.read_bytes().splitlines()) if history.exists() else 0

    for number in range(kills):
        at = lines() + draw.randint(1, 2) if number else 1
        kill(run_study, study, folder, lambda at=at: lines() >= at)
    assert same_bits(made(study, folder, resume=True), whole)


@pytest.mark.parametrize("damage", ["a bit", "no checksum"])
def test_a_damaged_checkpoint_of_a_stack_starts_it_afresh(damage, tmp_path, monkeypatch, capsys):
    study = study_of(True)
    whole = made(study, tmp_path / "whole")
    kept = Record.append

    def die(self, row):
        kept(self, row)
        if row["epoch"] == 3:
            raise KilledError

    monkeypatch.setattr(Record, "append", die)
    with pytest.raises(KilledError):
        run_study(study, tmp_path / "cut", CPU)
    monkeypatch.setattr(Record, "append", kept)
    (file,) = (tmp_path / "cut" / "stacks").iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= damage == "a bit"
    file.write_bytes(content)
    if damage == "no checksum":
        state = torch.load(file, weights_only=True)
        state["optimizer"]["state"][0]["exp_avg"] = -torch.inf
        torch.save(state, file)
    assert same_bits(made(study, tmp_path / "cut", resume=True), whole)
    assert "is damaged: its runs start afresh" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "cut")

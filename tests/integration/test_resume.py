"""Being stopped, killed, moved or damaged: a study goes on with the same bits, or says what is wrong."""

import random
import time
from functools import partial

import pytest
import torch

from experiments.errors import UserError
from experiments.report import summarize
from experiments.running.study import run_study
from experiments.training.record import Record, open_study, read_study
from tests.integration.studies import CPU, L1, arm, kill, outcome, small


class KilledError(BaseException):
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
    "a share of zeros": {
        "optimizer": {"name": "ProxAdam", "lr": 0.01, "penalty": {"name": "L1", "strength": 1e-3}},
        "sparsity": {"target": 0.8, "fix_at": 0.6},
    },
    "a tuned strength": {
        "regularizers": [{"penalty": "L2", "strength": 1e-2, "mode": "decoupled"}],
        "auto_strength": {"lr": 0.2, "per": "parameter", "batch_size": 30},
    },
    "early stopping": {"train": {"early_stopping": {"patience": 2}}},
    "learned rates": {
        "model": {"wrap": {"name": "VariationalDropout"}},
        "regularizers": [{"penalty": "Complexity", "strength": 1e-2, "mode": "grad"}],
    },
    "scheduled rates": {
        "model": {"dropout": {"name": "Dropout", "p": 0.5}},
        "dropout_schedule": {"name": "curriculum", "steps": 10},
        "scheduler": {"name": "StepLR", "step_size": 1, "after": 1},
    },
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


def test_a_run_killed_at_three_random_moments_ends_with_the_same_bits(tmp_path):
    study = arm(
        data={"train_size": 200, "valid_size": 100},
        model={"name": "mlp", "hidden": [64], "dropout": {"name": "Dropout", "p": 0.5}},
        train={"epochs": 60, "batch_size": 10, "checkpoint_seconds": 0.0},
        regularizers=[{"penalty": "L1", "strength": 0.1, "mode": "prox"}],
    )
    record = Record(tmp_path / "cut" / "runs" / study.runs[0].folder)
    history, draw = record.folder / "history.jsonl", random.Random(0)

    def reached(epoch: int, later: float) -> bool:
        if not history.exists() or history.read_text().count("\n") < epoch:
            return False
        time.sleep(later)  # anywhere in an epoch, also while a file is being written
        return True

    for epoch in sorted(draw.sample(range(1, 50), 3)):
        kill(run_study, study, tmp_path / "cut", partial(reached, epoch, draw.random() * 0.02))
    assert outcome(study, tmp_path / "cut", resume=True) == outcome(study, tmp_path / "whole")
    assert history.read_text() == (tmp_path / "whole" / history.relative_to(tmp_path / "cut")).read_text()
    assert len(record.history) == 60


@pytest.mark.parametrize("stack", [False, True])
def test_a_study_that_gets_further_runs_makes_these_alone(tmp_path, stack):
    settings = {"train": {"epochs": 2, "batch_size": 30, "stack": stack}}
    run_study(small(seeds=[0, 2], **settings), tmp_path / "a", CPU)
    first = {path: path.read_bytes() for path in sorted((tmp_path / "a" / "runs").rglob("*")) if path.is_file()}
    more = small(seeds=[0, 1, 2], arms=[L1 | {"strengths": [0.1]}, {"name": "none"}], **settings)
    run_study(more, tmp_path / "a", CPU, resume=True)
    assert {path: path.read_bytes() for path in first} == first
    run_study(more, tmp_path / "b", CPU)
    results = [
        {run.folder: Record(tmp_path / name / "runs" / run.folder).result["test_error"] for run in more.runs}
        for name in "ab"
    ]
    assert results[0] == pytest.approx(results[1], abs=0.01)
    assert read_study(tmp_path / "a") == more


def test_a_stack_is_finished_before_other_runs_are_added(tmp_path):
    run_study(small(), tmp_path, CPU)
    (tmp_path / "stacks").mkdir()
    with pytest.raises(UserError, match="holds runs that are not finished: --resume them before others are added"):
        run_study(small(seeds=[0, 1]), tmp_path, CPU, resume=True)


def test_a_folder_takes_one_study(tmp_path):
    run_study(small(), tmp_path / "a", CPU)
    with pytest.raises(UserError, match="already holds this study: --resume continues it"):
        run_study(small(), tmp_path / "a", CPU)
    for other, said in (
        ({"seeds": [1]}, "with a run none/seed0 that this one does not have"),
        (
            {"optimizer": {"name": "AdamW", "lr": 0.25}},
            "with other .* none/seed0: optimizer.lr is 0.01 there and 0.25 here",
        ),
        ({"name": "b"}, "of the name '.*'"),
    ):
        with pytest.raises(UserError, match=f"it holds another, {said}.*: choose another"):
            run_study(small(**other), tmp_path / "a", CPU, resume=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").touch()
    with pytest.raises(UserError, match="it holds other files"):
        run_study(small(), tmp_path / "b", CPU)
    with pytest.raises(UserError, match=r"^--out: .*thesis\.tex must be a folder, it is a file: choose another$"):
        run_study(small(), tmp_path / "b" / "thesis.tex", CPU)


def test_a_study_and_a_search_of_it_take_a_folder_each(tmp_path):
    study, search = small(), small(sweep={"space": {"optimizer.lr": [0.1, 0.2]}})
    for place, there, here, said in (("a", study, search, "without a search"), ("b", search, study, "with a search")):
        with open_study(there, tmp_path / place, resume=False):
            pass
        with (
            pytest.raises(UserError, match=rf"it holds another, {said}: choose another\Z"),
            open_study(here, tmp_path / place, resume=True),
        ):
            pass


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

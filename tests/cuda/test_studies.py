"""Studies on the device: a stack ends as its runs do alone, and goes on from its checkpoint with the same bits."""

import pytest
import torch

pytest.importorskip("pydantic")

from experiments.running import stacks
from experiments.running.study import run_study
from experiments.training.record import Record
from tests.helpers import assert_bit_equal
from tests.integration.studies import small, stopped_after

pytestmark = pytest.mark.cuda
DEVICE = torch.device("cuda")
DROPOUT = {"name": "mlp", "hidden": [32], "dropout": {"name": "Dropout", "p": 0.3}}
STUDIES = {
    "mlp, L1 in the gradients": {"regularizers": [{"penalty": "L1", "mode": "grad"}]},
    "mlp, L2 in the loss": {"regularizers": [{"penalty": "L2", "mode": "loss"}]},
    "mlp, elastic net by its prox": {"regularizers": [{"penalty": "ElasticNet", "l1_ratio": 0.3, "mode": "prox"}]},
    "dropout": {"model": DROPOUT, "regularizers": [{"penalty": "L1", "mode": "decoupled"}]},
    "cnn": {"model": {"name": "cnn", "channels": [4, 8], "hidden": 16}, "regularizers": [{"penalty": "L1"}]},
}


def made(stack, folder, changes, resume=False):
    """Every run's history and weights, by its folder."""
    train = {"epochs": 4, "batch_size": 30, "checkpoint_seconds": 0.0, "stack": stack}
    arm = {"name": "arm", "strengths": [0.0, 0.03, 0.3], **changes}
    study = small(seeds=[0, 1], train=train, arms=[arm])
    run_study(study, folder, DEVICE, resume=resume)
    found = {}
    for run in study.runs:
        record = Record(folder / "runs" / run.folder, run)
        state = torch.load(record.folder / "checkpoint.pt", weights_only=True)["model"]
        weights = {name: value for name, value in state.items() if not name.endswith("generator")}
        found[run.folder] = {"history": record.history, "weights": weights, "stack": record.result.get("stack")}
    return found


@pytest.mark.parametrize("name", STUDIES)
def test_a_stack_ends_as_its_runs_do_alone(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # of 10 bits, as torch's convolutions have them
    together = made(True, tmp_path / "together", STUDIES[name])
    assert "note" not in capsys.readouterr().err
    alone = made(False, tmp_path / "alone", STUDIES[name])
    assert together.keys() == alone.keys()
    for run, expected in alone.items():
        assert together[run]["stack"] == 6
        torch.testing.assert_close(
            together[run]["weights"], expected["weights"], rtol=1e-3, atol=1e-3
        )  # Adam enlarges rounding where gradients vanish
        for row, other in zip(together[run]["history"], expected["history"], strict=True):
            assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("stack", [True, False])
def test_a_study_that_was_stopped_goes_on_with_the_same_bits(stack, tmp_path):
    changes = {"model": DROPOUT, "regularizers": [{"penalty": "L1"}]}
    whole = made(stack, tmp_path / "whole", changes)
    with stopped_after(2):
        made(stack, tmp_path / "resumed", changes)
    resumed = made(stack, tmp_path / "resumed", changes, resume=True)
    for run, expected in whole.items():
        assert_bit_equal(resumed[run]["weights"], expected["weights"])


def test_a_stack_has_64_members_where_nothing_else_is_said(tmp_path):
    study = small(seeds=list(range(65)), train={"epochs": 1, "batch_size": 30, "stack": "auto"}, arms=[{"name": "arm"}])
    assert [len(group) for group in stacks.groups(study.runs)] == [64, 1]
    run_study(study, tmp_path, DEVICE)
    sizes = [Record(tmp_path / "runs" / run.folder, run).result.get("stack") for run in study.runs]
    assert sizes == [64] * 64 + [None]

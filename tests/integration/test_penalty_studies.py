"""Constraints and penalties on activities as regularizers of a study."""

import pytest
import torch
from torch import nn

from experiments import config
from experiments.config import Regularizer
from experiments.errors import UserError
from experiments.report import summarize
from experiments.running.study import run_study
from experiments.training import build, data
from experiments.training.progress import Progress
from experiments.training.record import Record
from experiments.training.setup import set_up
from tests.integration.studies import CPU, TREE, arm, history, outcome, small
from torchreg import L1, ActivityRegularizer, Confidence, KLSparsity, ZLoss


def penalized(study, folder):
    """The penalties in the history of a study's only run."""
    return [row["penalty"] for row in history(study, folder)]


# -- constraints ----------------------------------------------------------------------------------------------------


def test_a_constraint_acts_in_mode_prox_and_has_no_strength_to_record(tmp_path):
    study = arm(regularizers=[{"penalty": "MaxNorm", "max_norm": 0.2}, {"penalty": "L2", "strength": 0.1}])
    assert [one.mode for one in study.runs[0].regularizers] == ["prox", "loss"]
    assert all(row.keys() == {"L2"} for row in penalized(study, tmp_path))
    weights = torch.load(tmp_path / "runs/arm/seed0/checkpoint.pt", weights_only=True)["model"]
    assert weights["linear1.weight"].norm(dim=1).max() <= 0.2 + 1e-6
    assert weights["linear1.weight"].norm(dim=1).max() > 0.19
    (cell,) = summarize(tmp_path).cells
    assert cell.strength == 0.1


def test_a_bound_may_be_searched(tmp_path):
    tree = {**TREE, "arms": [{"name": "bounded", "regularizers": [{"penalty": "LinfBall", "radius": 1.0}]}]}
    study = config.resolve({**tree, "sweep": {"space": {"regularizers.0.radius": [0.1, 0.2]}}})
    assert [run.regularizers[0].options for run in study.probes] == [{"radius": 0.1}, {"radius": 0.2}]


CONSTRAINT_FAULTS = {
    "strength": ({"penalty": "MaxNorm", "max_norm": 1.0, "strength": 0.1}, "the constraint MaxNorm takes no strength"),
    "mode": ({"penalty": "UnitNorm", "mode": "grad"}, "the constraint UnitNorm takes no mode"),
    "schedule": (
        {"penalty": "UnitNorm", "schedule": {"name": "early", "steps": 3}},
        "the constraint UnitNorm takes no schedule",
    ),
    "both": ({"penalty": "L1", "activity": "L1", "strength": 1.0}, "exactly one of the keys penalty and activity"),
    "neither": ({"strength": 1.0}, "exactly one of the keys penalty and activity"),
    "mode of activity": (
        {"activity": "L1", "strength": 1.0, "modules": "*", "mode": "prox"},
        "an activity penalty takes no mode",
    ),
    "select of activity": (
        {"activity": "L1", "strength": 1.0, "modules": "*", "select": "everything"},
        "an activity penalty takes no select",
    ),
    "no modules": ({"activity": "L1", "strength": 1.0}, "modules must name"),
    "modules": ({"penalty": "L1", "strength": 1.0, "modules": "*"}, "modules is for an activity penalty"),
    "no strength": ({"activity": "L1", "modules": "*"}, "regularizers.0.strength: is missing"),
}


@pytest.mark.parametrize(("table", "line"), CONSTRAINT_FAULTS.values(), ids=CONSTRAINT_FAULTS)
def test_a_table_that_says_too_much_or_too_little_is_one_line(table, line):
    with pytest.raises(UserError, match=rf"^[^\n]*{line}[^\n]*$"):
        small(regularizers=[table])


BUILD_FAULTS = {
    "missing bound": ({"penalty": "MaxNorm"}, r"regularizers.0: MaxNorm\(\) cannot be made"),
    "wrong bound": ({"penalty": "MaxNorm", "max_norm": -1.0}, "regularizers.0: MaxNorm.* must be positive and finite"),
    "another key": ({"penalty": "MaxNorm", "bound": 1.0}, "regularizers.0.bound: unknown key"),
    "unknown": ({"penalty": "MaxNrom", "strength": 1.0}, "regularizers.0.penalty: unknown name .* 'MaxNorm'"),
    "unknown activity": ({"activity": "L3", "strength": 1.0, "modules": "*"}, "regularizers.0.activity: unknown name"),
    "no module": ({"activity": "L1", "strength": 1.0, "modules": "elu*"}, "regularizers.0.modules: .*'elu"),
    "constraint of activity": ({"activity": "MaxNorm", "modules": "*", "strength": 1.0}, "regularizers.0.activity"),
    "inputs that do not fit": (
        {"activity": "KLSparsity", "strength": 1.0, "modules": "linear1"},
        "model: cannot be trained on .* KLSparsity: activations must be in",
    ),
}


@pytest.mark.parametrize(("table", "line"), BUILD_FAULTS.values(), ids=BUILD_FAULTS)
def test_what_cannot_be_built_is_one_line_and_nothing_is_written(table, line, tmp_path):
    with pytest.raises(UserError, match=rf"^arms\[none\]\.{line}[^\n]*$"):
        run_study(small(regularizers=[table]), tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()


def test_auto_strength_tunes_the_penalty_beside_a_constraint(tmp_path):
    penalties = [{"penalty": "L2", "strength": 0.1, "mode": "grad"}, {"penalty": "MaxNorm", "max_norm": 1.0}]
    study = arm(regularizers=penalties, auto_strength={"batch_size": 30})
    assert all(row["strengths"].keys() == {"L2"} for row in history(study, tmp_path))
    only = arm(regularizers=penalties[1:], auto_strength={"batch_size": 30})
    with pytest.raises(UserError, match="auto_strength: needs a regularizer to tune"):
        run_study(only, tmp_path / "out", CPU)


# -- activities -----------------------------------------------------------------------------------------------------

ACTIVITIES = {
    "L1 of two layers": ({"activity": "L1", "strength": 0.01, "modules": ["relu1", "output"]}, L1(0.01)),
    "KL of a layer": (
        {"activity": "KLSparsity", "strength": 0.1, "squash": "sigmoid", "modules": "linear1"},
        KLSparsity(0.1, squash="sigmoid"),
    ),
    "logits of a layer": ({"activity": "ZLoss", "strength": 0.1, "modules": "output"}, ZLoss(0.1)),
    "logits of the model": ({"activity": "Confidence", "strength": 0.1, "modules": ""}, Confidence(0.1)),
}


@pytest.mark.parametrize(("table", "penalty"), ACTIVITIES.values(), ids=ACTIVITIES)
def test_a_penalty_on_activities_is_that_of_a_plain_loop(table, penalty, tmp_path):
    """One step an epoch: the penalty that is recorded is that of the step."""
    study = arm(regularizers=[table], train={"epochs": 3, "batch_size": 100})
    recorded = penalized(study, tmp_path)
    run = study.runs[0]
    examples = data.load(run.data, CPU)
    torch.manual_seed(run.seed)
    net = build.model(run.model, examples)
    regularizer = ActivityRegularizer(net, penalty, table["modules"])
    optimizer = torch.optim.AdamW(net.parameters(), lr=run.optimizer.lr, weight_decay=0.0, fused=True)
    shuffle = torch.Generator().manual_seed(run.seed)
    for row in recorded:
        order = torch.randperm(100, generator=shuffle)
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(net(examples.train.x[order]), examples.train.y[order])
        (value + regularizer.value()).backward()
        assert row == {f"{type(penalty).__name__} of activities": pytest.approx(regularizer.value().item(), rel=1e-5)}
        optimizer.step()
    weights = torch.load(tmp_path / "runs/arm/seed0/checkpoint.pt", weights_only=True)["model"]
    torch.testing.assert_close(weights, net.state_dict())


def test_the_mean_over_the_steps_is_recorded_and_strength_0_is_the_plain_loss(tmp_path):
    arms = [
        {"name": "L1", "strengths": [0.0, 0.1], "regularizers": [{"activity": "L1", "modules": "relu1"}]},
        {"name": "none"},
    ]
    study = small(arms=arms)
    assert not run_study(study, tmp_path, CPU)
    records = {run.folder: Record(tmp_path / "runs" / run.folder, run) for run in study.runs}
    assert [row["penalty"] for row in records["L1@0/seed0"].history] == [{"L1 of activities": 0.0}] * 4
    assert all(row["penalty"]["L1 of activities"] > 0 for row in records["L1@0.1/seed0"].history)
    assert records["L1@0/seed0"].result["sha256"] == records["none/seed0"].result["sha256"]
    assert records["L1@0.1/seed0"].result["sha256"] != records["none/seed0"].result["sha256"]


def test_batches_that_make_up_a_step_count_by_their_shares(tmp_path):
    """The step of two halves is that of the whole, for a penalty that is a mean over the examples."""
    found = []
    for name, train in {"whole": {"batch_size": 100}, "halves": {"batch_size": 50, "accumulate": 2}}.items():
        penalty = [{"activity": "L2", "strength": 1.0, "modules": "relu1"}]
        run_study(arm(regularizers=penalty, train={"epochs": 2, **train}), tmp_path / name, CPU)
        found.append(torch.load(tmp_path / name / "runs/arm/seed0/checkpoint.pt", weights_only=True)["model"])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


class KilledError(BaseException):
    pass


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_run_with_both_goes_on_with_the_same_bits(call, tmp_path, monkeypatch):
    penalties = [
        {"activity": "L1", "strength": 0.1, "modules": "relu1"},
        {"penalty": "MaxNorm", "max_norm": 0.5},
    ]
    study = arm(regularizers=penalties, train={"epochs": 5, "batch_size": 30, "checkpoint_seconds": 0.0})
    whole = history(study, tmp_path / "whole")
    kept, calls = Progress.save, []

    def die(self):
        kept(self)
        calls.append(1)
        if len(calls) == call:
            raise KilledError

    monkeypatch.setattr(Progress, "save", die)
    with pytest.raises(KilledError):
        run_study(study, tmp_path / "cut", CPU)
    monkeypatch.setattr(Progress, "save", kept)
    run_study(study, tmp_path / "cut", CPU, resume=True)
    assert Record(tmp_path / "cut/runs/arm/seed0").history == whole
    ours, theirs = (Record(tmp_path / name / "runs/arm/seed0").result for name in ("cut", "whole"))
    assert ours["sha256"] == theirs["sha256"]


def test_a_regularizer_of_an_earlier_record_is_read_as_it_was():
    before = {"penalty": "L1", "strength": 0.1, "mode": "prox", "select": "weights", "schedule": None}
    assert Regularizer.model_validate(before) == Regularizer(penalty="L1", strength=0.1, mode="prox")


# -- a share of zeros -----------------------------------------------------------------------------------------------


GROUPS = [{"penalty": "GroupLasso", "strength": 1e-4, "mode": "prox", "select": "linear1.weight", "groups": "input"}]
L2 = {"penalty": "L2", "strength": 1e-4}


@pytest.mark.parametrize(
    ("regularizers", "sparsity"),
    [(GROUPS, {}), ([L2, *GROUPS], {"regularizer": 1}), ([L2, *GROUPS], {"schedule": "linear", "span": [0.1, 0.9]})],
)
def test_the_share_of_a_regularizer_may_be_that_of_its_groups(regularizers, sparsity, tmp_path):
    shares = {"target": 0.5, "groups": "input", "fix_at": 0.5, **sparsity}
    study = arm(regularizers=regularizers, sparsity=shares, train={"epochs": 20, "batch_size": 30})
    outcome(study, tmp_path)
    saved = torch.load(tmp_path / "runs/arm/seed0/checkpoint.pt", weights_only=True)["model"]
    assert (~saved["linear1.weight"].any(0)).sum() == 32  # of 64 pixels


@pytest.mark.parametrize("place", [None, 0])
def test_a_proximal_optimizer_is_steered_unless_a_regularizer_is_named(place, tmp_path):
    run = arm(
        optimizer={"name": "ProxAdam", "lr": 1e-2, "penalty": {"name": "L1", "strength": 1e-4}},
        regularizers=GROUPS,
        sparsity={"target": 0.5, "schedule": "constant", **({} if place is None else {"regularizer": place})},
    ).runs[0]
    setup = set_up([run], CPU)
    controller = setup.others["controller"]
    assert controller.optimizer is (setup.optimizer if place is None else setup.regularizers[0])
    assert controller.goal() == 0.5


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"span": [0.5, 0.2]}, r"sparsity: span must be two increasing shares in \[0, 1\], got \[0.5, 0.2\]"),
        ({"schedule": "square"}, "sparsity.schedule: must be 'cubic', 'linear' or 'constant'"),
    ],
)
def test_a_wrong_schedule_of_zeros_names_its_key(changes, line):
    with pytest.raises(UserError, match=line):
        arm(sparsity={"target": 0.5, **changes})

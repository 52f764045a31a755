"""Runs that are trained as one stack end as they do alone."""

import pytest
import torch
from torch import nn

from experiments.config import resolve
from experiments.errors import RecordError
from experiments.running import plans, stacks
from experiments.running.study import run_study
from experiments.training import build
from experiments.training.record import Record
from tests.helpers import assert_bit_equal
from tests.integration.studies import CPU, TREE, small

STRENGTHS = [0.0, 0.03, 0.3]
TRAIN = {"epochs": 4, "batch_size": 30, "checkpoint_seconds": 0.0}


def study_of(stack, seeds=(0, 1), **changes):
    """One arm of several seeds, and of several strengths if it has a penalty without one."""
    train = {**TRAIN, "stack": stack, **changes.pop("train", {})}
    penalties = changes.get("regularizers", [])
    if any("strength" not in penalty for penalty in penalties):
        changes["strengths"] = STRENGTHS
    return small(seeds=list(seeds), train=train, arms=[{"name": "arm", **changes}])


def made(study, folder, **options):
    """Every run's history, result and weights, by its folder."""
    run_study(study, folder, CPU, **options)
    found = {}
    for run in study.runs:
        record = Record(folder / "runs" / run.folder, run)
        state = torch.load(record.folder / "checkpoint.pt", weights_only=True)
        result = {key: value for key, value in record.result.items() if key not in ("seconds", "sha256", "outcomes")}
        weights = {name: value for name, value in state["model"].items() if not name.endswith("generator")}
        found[run.folder] = {"history": record.history, "result": result, "weights": weights}
    return found


def assert_alike(together, alone):
    """Up to the rounding of single precision, which decides single images too."""
    assert together.keys() == alone.keys()
    for name, expected in alone.items():
        ours = together[name]
        torch.testing.assert_close(ours["weights"], expected["weights"], rtol=1e-5, atol=1e-5)
        assert [row["epoch"] for row in ours["history"]] == [row["epoch"] for row in expected["history"]]
        for row, other in zip(ours["history"], expected["history"], strict=True):
            for key in ("train_loss", "valid_loss", "test_loss", "penalty"):
                torch.testing.assert_close(row[key], other[key], rtol=1e-4, atol=1e-6)
        assert ours["result"]["status"] == expected["result"]["status"]
        assert ours["result"]["epochs"] == expected["result"]["epochs"]


def compare(tmp_path, capsys, seeds=(0, 1), **changes):
    together = made(study_of(True, seeds, **dict(changes)), tmp_path / "together")
    assert "note" not in capsys.readouterr().err
    assert all("stack" in run["result"] for run in together.values())
    alone = made(study_of(False, seeds, **dict(changes)), tmp_path / "alone")
    assert_alike(together, alone)
    return together


PENALTIES = {
    "L1": {},
    "L2": {},
    "ElasticNet": {"l1_ratio": 0.3},
    "Huber": {"delta": 0.1},
    "LogSum": {"epsilon": 0.1},
    "HoyerSquare": {},
    "L2SP": {},
    "GroupLasso": {"groups": "output"},
    "Nuclear": {},
    "SoftOrthogonality": {},
}
PROXIMAL = {"L1", "L2", "ElasticNet", "Huber", "LogSum", "L2SP", "GroupLasso", "Nuclear"}


@pytest.mark.parametrize("mode", ["loss", "grad", "decoupled", "prox"])
@pytest.mark.parametrize("name", PENALTIES)
def test_each_penalty_and_mode(name, mode, tmp_path, capsys):
    if mode == "prox" and name not in PROXIMAL:
        pytest.skip("has no proximal operator")
    penalty = {"penalty": name, "mode": mode, **PENALTIES[name]}
    compare(tmp_path, capsys, optimizer={"name": "SGD", "lr": 0.01, "momentum": 0.9}, regularizers=[penalty])


@pytest.mark.parametrize("mode", ["loss", "grad", "decoupled", "prox"])
@pytest.mark.parametrize("penalty", ["L1", "L2", "LogSum"])
def test_runs_without_a_penalty_are_in_the_stack_with_those_of_strength_0_and_equal_them_to_the_bit(
    penalty, mode, tmp_path
):
    arms = [
        {"name": "none"},
        {"name": "wide", "model": {"hidden": [24]}},
        {"name": "arm", "strengths": [0.0, 0.3], "regularizers": [{"penalty": penalty, "mode": mode}]},
        {"name": "other", "strengths": [0.0], "regularizers": [{"penalty": "Nuclear"}]},
    ]
    study = small(seeds=[0, 1], train={**TRAIN, "stack": True}, arms=arms)
    assert [len(group) for group in stacks.groups(study.runs)] == [6, 2, 2]
    ended = made(study, tmp_path)
    for seed in (0, 1):
        plain, zero, some = (ended[f"{name}/seed{seed}"] for name in ("none", "arm@0", "arm@0.3"))
        assert plain["result"]["stack"] == zero["result"]["stack"] == 6
        assert_bit_equal(plain["weights"], zero["weights"])
        assert plain["history"][-1]["penalty"] == {}
        assert zero["history"][-1]["penalty"] == {penalty: 0.0}
        assert some["history"][-1]["penalty"][penalty] > 0


def test_runs_without_a_penalty_join_no_penalty_that_costs_much(tmp_path):
    nuclear = {"name": "arm", "strengths": [0.0, 0.3], "regularizers": [{"penalty": "Nuclear"}]}
    study = small(seeds=[0, 1], train={**TRAIN, "stack": True}, arms=[{"name": "none"}, nuclear])
    assert [len(group) for group in stacks.groups(study.runs)] == [2, 4]


@pytest.mark.parametrize("penalty", ["MCP", "SCAD"])
def test_penalties_that_are_no_multiples_stack_by_strength(penalty, tmp_path, capsys):
    study = study_of(True, regularizers=[{"penalty": penalty, "mode": "prox"}])
    assert [len(group) for group in stacks.groups(study.runs)] == [2, 2, 2]
    compare(tmp_path, capsys, regularizers=[{"penalty": penalty, "mode": "prox"}])


BOUNDS = {
    "MaxNorm": {"max_norm": 0.3},
    "NonNegative": {},
    "UnitNorm": {},
    "L1Ball": {"radius": 0.5, "groups": "output"},
    "L2Ball": {"radius": 2.0},
    "LinfBall": {"radius": 0.05},
    "Simplex": {},
    "Box": {"low": -0.05, "high": 0.1},
    "Sparsest": {"share": 0.25, "groups": "input"},
    "NofM": {"n": 1, "m": 1},
    "Rank": {"rank": 2},
}


def test_the_table_of_constraints_has_all():
    assert BOUNDS.keys() == set(build.CONSTRAINTS)


@pytest.mark.parametrize("name", BOUNDS)
def test_each_constraint_beside_a_penalty_of_several_strengths(name, tmp_path, capsys):
    penalties = [{"penalty": "L2", "mode": "grad"}, {"penalty": name, **BOUNDS[name]}]
    found = []
    for stack in (True, False):
        train = {**TRAIN, "stack": stack}
        arms = [{"name": "arm", "strengths": STRENGTHS, "regularizers": penalties}]
        found.append(made(small(seeds=[0, 1], train=train, arms=arms), tmp_path / str(stack)))
    assert "note" not in capsys.readouterr().err
    assert_alike(*found)
    bound = build.CONSTRAINTS[name](**BOUNDS[name])
    for run in found[0].values():
        assert run["result"]["stack"] == 6
        assert bound.value(run["weights"]["linear1.weight"]) == 0
        assert run["history"][-1]["penalty"].keys() == {"L2"}


@pytest.mark.parametrize("name", sorted(plans._ELEMENTWISE))
def test_each_optimizer(name, tmp_path, capsys):
    decay = {} if name in ("Rprop",) else {"weight_decay": 0.01}
    compare(tmp_path, capsys, optimizer={"name": name, "lr": 1e-3, **decay}, regularizers=[{"penalty": "L1"}])


@pytest.mark.parametrize(
    "dropout",
    [{"name": name, "p": 0.5} for name in ("Dropout", "AlphaDropout", "GaussianDropout", "FeatureAlphaDropout")],
    ids=lambda table: table["name"],
)
def test_each_dropout_drops_what_it_drops_alone(dropout, tmp_path, capsys):
    compare(tmp_path, capsys, model={"name": "mlp", "hidden": [64, 32], "dropout": dropout, "input_dropout": dropout})


def test_convolutions_with_dropout_of_channels(tmp_path, capsys):
    model = {"name": "cnn", "channels": [4, 8], "hidden": 16, "dropout": {"name": "Dropout", "p": 0.3}}
    compare(tmp_path, capsys, model=model)


@pytest.mark.parametrize("name", ["DropConnect", "ConcreteDropout", "VariationalDropout", "HardConcrete"])
def test_each_wrapped_layer(name, tmp_path, capsys):
    regularizers = [] if name == "DropConnect" else [{"penalty": "Complexity", "mode": "grad"}]
    study = study_of(True, model={"wrap": {"name": name}}, regularizers=regularizers)
    together = made(study, tmp_path / "together")
    assert ("note: arm" in capsys.readouterr().err) != all("stack" in run["result"] for run in together.values())
    alone = study_of(False, model={"wrap": {"name": name}}, regularizers=regularizers)
    assert_alike(together, made(alone, tmp_path / "alone"))


SCHEDULED = {
    "a penalty's": {
        "regularizers": [{"penalty": "L2", "mode": "loss", "schedule": {"name": "cosine", "steps": 10}}],
    },
    "of two penalties": {
        "regularizers": [
            {"penalty": "L1", "mode": "prox", "strength": 0.3, "schedule": {"name": "early", "steps": 8}},
            {"penalty": "L2", "mode": "decoupled", "strength": 0.1},
        ]
    },
    "the learning rate's": {"scheduler": {"name": "CosineAnnealingLR", "T_max": 4}},
    "the learning rate's, by steps": {
        "scheduler": {"name": "OneCycleLR", "max_lr": 0.01, "total_steps": 16, "interval": "step"}
    },
    "of dropout": {
        "model": {"dropout": {"name": "Dropout", "p": 0.5}},
        "dropout_schedule": {"name": "curriculum", "steps": 10},
    },
}


@pytest.mark.parametrize("changes", SCHEDULED.values(), ids=SCHEDULED)
def test_each_schedule(changes, tmp_path, capsys):
    compare(tmp_path, capsys, **changes)


def test_early_stopping_of_each_member(tmp_path, capsys):
    train = {"epochs": 12, "early_stopping": {"patience": 2}}
    optimizer = {"name": "SGD", "lr": 0.7}
    together = compare(tmp_path, capsys, seeds=(0, 1, 2, 3), train=train, optimizer=optimizer)
    assert len({run["result"]["epochs"] for run in together.values()}) > 1


class TwoNumbers(nn.Sequential):
    def __init__(self, shape, outputs):
        super().__init__(nn.Linear(shape[0], 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, outputs))


def two_targets():
    x = torch.randn(120, 3, generator=torch.Generator().manual_seed(0))
    return x, torch.stack([x.sum(1), 100 * x[:, 0] * x[:, 1]], 1)


REGRESSIONS = {
    "one target": {"data": {"name": "diabetes"}},
    "two targets, by vmap": {
        "data": {"class": "tests.integration.test_stacks:two_targets", "valid_size": 20},
        "model": {"class": "tests.integration.test_stacks:TwoNumbers"},
    },
}


@pytest.mark.parametrize("changes", REGRESSIONS.values(), ids=REGRESSIONS)
def test_each_regression(changes, tmp_path):
    made_of = []
    for stack in (True, False):
        tree = {**TREE, "model": {"name": "mlp", "hidden": [16]}, "train": {**TRAIN, "stack": stack}, "seeds": [0, 1]}
        penalty = [{"penalty": "L1", "mode": "prox"}]
        arms = [{"name": "arm", "strengths": STRENGTHS, "regularizers": penalty}]
        study = resolve({**tree, **changes, "arms": arms})
        made_of.append(made(study, tmp_path / str(stack)))
    together, alone = made_of
    assert_alike(together, alone)
    for name, run in alone.items():
        assert run["result"]["task"] == together[name]["result"]["task"] == "regression"
        assert together[name]["result"]["stack"] == 6
        errors = [[row[f"{part}_error"] for part in ("train", "valid", "test")] for row in run["history"]]
        ours = [[row[f"{part}_error"] for part in ("train", "valid", "test")] for row in together[name]["history"]]
        torch.testing.assert_close(ours, errors, rtol=1e-4, atol=1e-6)
    assert len({run["result"]["test_error"] for run in together.values()}) == len(together)


@pytest.mark.parametrize("stack", [True, False])
@pytest.mark.parametrize("every", [2, 3, 9])
def test_a_study_is_evaluated_now_and_then_and_trained_alike(stack, every, tmp_path):
    train = {"epochs": 7, "early_stopping": {"patience": 7}}
    often = made(study_of(stack, train=train), tmp_path / "often")
    rarely = made(study_of(stack, train={**train, "evaluate_every": every}), tmp_path / "rarely")
    for name, run in rarely.items():
        evaluated = [*range(every, 7, every), 7]
        assert run["history"] == [row for row in often[name]["history"] if row["epoch"] in evaluated]
        assert_bit_equal(run["weights"], often[name]["weights"])


def test_a_member_that_diverges_leaves_the_others_alone(tmp_path, capsys):
    changes = {"optimizer": {"name": "SGD", "lr": 0.1}, "regularizers": [{"penalty": "L2", "mode": "loss"}]}
    arms = [{"name": "arm", "strengths": [0.0, 0.1, 1e9], **changes}]
    found = []
    for stack in (True, False):
        study = small(seeds=[0, 1], train={**TRAIN, "stack": stack}, arms=arms)
        broken = run_study(study, tmp_path / str(stack), CPU)
        assert len(broken) == 2
        assert all("arm@1e+09" in line for line in broken)
        found.append([Record(tmp_path / str(stack) / "runs" / run.folder, run).result for run in study.runs])
    for ours, expected in zip(*found, strict=True):
        assert ours["status"] == expected["status"]
        if ours["status"] == "done":
            torch.testing.assert_close(ours["test_loss"], expected["test_loss"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", ["loss", "grad", "decoupled", "prox"])
def test_strength_0_is_the_plain_loss_bit_for_bit(mode, tmp_path):
    """In stacks of one size, whose products of matrices add up in one order."""
    arm = {"name": "L1", "strengths": [0.0, 0.1], "regularizers": [{"penalty": "L1", "mode": mode}]}
    train = {**TRAIN, "stack": True}
    run_study(small(seeds=[0, 1], train=train, arms=[arm]), tmp_path / "L1", CPU)
    run_study(small(seeds=[0, 1, 2, 3], train=train), tmp_path / "none", CPU)
    for seed in (0, 1):
        zero = Record(tmp_path / "L1" / "runs" / "L1@0" / f"seed{seed}").result
        none = Record(tmp_path / "none" / "runs" / "none" / f"seed{seed}").result
        assert zero["sha256"] == none["sha256"]


# -- what is not stacked ------------------------------------------------------------------------------------------


class WithTorchsDropout(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 10))


class Branching(nn.Sequential):
    """Looks at a number, which vmap cannot."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        y = super().forward(x)
        return y if y.sum() > 0 else y * 1.0


HERE = "tests.integration.test_stacks"
ALONE = {
    "amp": ({"train": {**TRAIN, "amp": True}}, "amp"),
    "auto_strength": (
        {"regularizers": [{"penalty": "L2", "strength": 0.1, "mode": "grad"}], "auto_strength": {"batch_size": 30}},
        "auto_strength",
    ),
    "activities": (
        {"regularizers": [{"activity": "L1", "strength": 0.1, "modules": "relu*"}]},
        "regularizers: the activities within a stack",
    ),
    "augment": pytest.param(
        {"data": {**TREE["data"], "augment": [{"name": "RandomHorizontalFlip"}]}},
        "data.augment: draws from torch's generator",
        marks=pytest.mark.torchvision,
    ),
    "mix": pytest.param(
        {"data": {**TREE["data"], "mix": {"name": "MixUp"}}},
        "data.mix: draws from torch's generator",
        marks=pytest.mark.torchvision,
    ),
    "ProxAdam": (
        {"optimizer": {"name": "ProxAdam", "lr": 0.01, "penalty": {"name": "L1", "strength": 1e-3}}},
        "ProxAdam may mix",
    ),
    "a model with torch's dropout": ({"model": {"class": f"{HERE}:WithTorchsDropout"}}, "draws from torch's generator"),
    "a model that vmap cannot compute": ({"model": {"class": f"{HERE}:Branching"}}, "vmap cannot compute"),
}


@pytest.mark.parametrize(("changes", "reason"), ALONE.values(), ids=ALONE)
def test_what_cannot_be_stacked_is_made_alone_and_why_is_told(changes, reason, tmp_path, capsys):
    study = study_of(True, **dict(changes))
    if "class" in changes.get("model", {}):
        tree = {key: value for key, value in TREE.items() if key != "model"}
        study = resolve(
            {**tree, **changes, "seeds": [0, 1], "train": {**TRAIN, "stack": True}, "arms": [{"name": "arm"}]}
        )
    assert not run_study(study, tmp_path, CPU)
    assert "2 runs one after another: " in (err := capsys.readouterr().err)
    assert reason in err
    assert all(Record(tmp_path / "runs" / run.folder, run).result["status"] == "done" for run in study.runs)


def test_large_networks_are_made_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plans, "_MOST", 2000)
    assert not run_study(study_of(True), tmp_path, CPU)
    assert "together they have more than 2,000 values" in capsys.readouterr().err


def test_a_link_in_the_place_of_the_stacks_is_refused(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "study").mkdir()
    study = study_of(True)
    run_study(study, tmp_path / "study", CPU)
    (tmp_path / "study" / "stacks").symlink_to(elsewhere)
    with pytest.raises(RecordError, match="must be a folder, is a symbolic link"):
        run_study(study, tmp_path / "study", CPU, resume=True)


def test_a_stack_that_raises_is_made_one_after_another(tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no memory")

    monkeypatch.setattr(stacks, "train_together", fail)
    assert not run_study(study_of(True), tmp_path, CPU)
    assert "2 runs are made one after another: no memory" in capsys.readouterr().err
    assert not (tmp_path / "stacks").exists()


def test_what_the_first_steps_say_decides(tmp_path, capsys, monkeypatch):
    for times, word in (((3.0, 5.0), "as one stack"), ((3.0, 5.5), "one after another")):
        told = iter(times)
        monkeypatch.setattr(plans, "seconds_of_epoch", lambda *_, told=told: next(told))
        study = study_of("auto")
        assert not run_study(study, tmp_path / word, CPU)
        assert f"arm: 2 runs {word}: an epoch takes {times[1]:g} s stacked, 2 x 3 s alone" in capsys.readouterr().err
        results = [Record(tmp_path / word / "runs" / run.folder, run).result for run in study.runs]
        assert [result.get("stack") for result in results] == ([2, 2] if word == "as one stack" else [None, None])


def test_runs_are_grouped_by_what_they_have_in_common():
    study = small(
        seeds=[0, 1],
        arms=[
            {"name": "L1", "strengths": [0.1, 1.0], "regularizers": [{"penalty": "L1"}]},
            {"name": "none"},
            {"name": "strong", "regularizers": [{"penalty": "L1", "strength": 10.0}]},
            {"name": "wide", "model": {"hidden": [32]}},
        ],
    )
    assert [[run.folder for run in group] for group in stacks.groups(study.runs)] == [
        [f"{arm}/seed{seed}" for arm in ("L1@0.1", "L1@1", "none", "strong") for seed in (0, 1)],
        ["wide/seed0", "wide/seed1"],
    ]

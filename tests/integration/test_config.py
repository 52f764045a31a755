"""A study's file: what it comes to, and what each fault in it is told as."""

from pathlib import Path

import pytest
import torch
from torch import nn

from experiments import config
from experiments.errors import UserError
from experiments.running import rehearsal
from experiments.training import build
from experiments.training.together import side_by_side
from tests.integration.studies import TREE, arm, small
from torchreg import ElasticNet, LogSum


class Narrow(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 3))


class Normalized(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))


class Frozen(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        self.requires_grad_(False)


class Wrong(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear({}["width"], 10)


ROOT = Path(__file__).parents[2]
CONFIGS = sorted(ROOT.glob("configs/**/*.toml"))


def needs(path: Path) -> list[pytest.MarkDecorator]:
    is_of_mnist = path.parent.name != "mnist" and '"mnist"' in path.read_text()
    return [pytest.mark.mnist] * is_of_mnist + [pytest.mark.torchvision] * (path.stem == "images")


@pytest.mark.parametrize("path", [pytest.param(path, marks=needs(path), id=path.stem) for path in CONFIGS])
def test_every_shipped_study_builds(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    digits = ["data.name=digits", "data.train_size=100", "data.valid_size=100"]  # so that no files are needed
    rehearsal.check(config.load(path, digits if path.parent.name == "mnist" else []))


def test_an_arm_overrides_key_by_key():
    (run,) = arm(optimizer={"lr": 0.5}, train={"epochs": 9}).runs
    assert (run.optimizer.name, run.optimizer.lr) == ("AdamW", 0.5)
    assert (run.train.epochs, run.train.batch_size) == (9, 30)


def test_a_table_that_changes_its_name_starts_afresh():
    study = small(
        optimizer={"name": "AdamW", "lr": 1e-2, "betas": [0.9, 0.99]},
        arms=[{"name": "sgd", "optimizer": {"name": "SGD", "lr": 0.1}}],
    )
    assert study.runs[0].optimizer.options == {}


def test_runs_are_arms_by_strengths_by_seeds():
    penalty = {"penalty": "L2"}
    arms = [{"name": "none"}, {"name": "L2", "strengths": [0.1, 0.2], "regularizers": [penalty]}]
    runs = small(arms=arms, seeds=[3, 4]).runs
    assert [(run.arm, run.strength, run.seed) for run in runs] == [
        ("none", None, 3),
        ("none", None, 4),
        ("L2", 0.1, 3),
        ("L2", 0.1, 4),
        ("L2", 0.2, 3),
        ("L2", 0.2, 4),
    ]
    assert [run.regularizers[0].strength for run in runs[2:]] == [0.1, 0.1, 0.2, 0.2]


def test_strengths_of_an_arm_without_regularizers_are_its_weight_decay():
    assert [run.optimizer.weight_decay for run in arm(strengths=[0.1, 0.2]).runs] == [0.1, 0.2]


def test_the_other_keys_of_a_regularizer_are_its_penaltys_own():
    (run,) = arm(regularizers=[{"penalty": "ElasticNet", "strength": 0.1, "l1_ratio": 0.3, "mode": "prox"}]).runs
    net = nn.Linear(3, 2)
    (regularizer,) = build.regularizers(side_by_side([run]), net, torch.optim.SGD(net.parameters(), lr=0.1))
    assert regularizer.entries[0].penalty == ElasticNet(0.1, l1_ratio=0.3)


def test_strengths_of_an_arm_with_a_proximal_optimizer_are_its_penaltys():
    optimizer = {"name": "ProxAdam", "lr": 0.01, "penalty": {"name": "LogSum", "epsilon": 0.1}}
    study = arm(optimizer=optimizer, strengths=[0.1, 0.2])
    built = [build.optimizer(run.optimizer, nn.Linear(3, 2)) for run in study.runs]
    assert [optimizer.penalty for optimizer in built] == [LogSum(0.1, epsilon=0.1), LogSum(0.2, epsilon=0.1)]
    assert config.Study.model_validate_json(study.model_dump_json(by_alias=True)) == study
    with pytest.raises(UserError, match=r"arms\[arm\].optimizer.penalty.strength: is missing"):
        arm(optimizer=optimizer)


def test_a_configuration_survives_its_own_file():
    study = arm(regularizers=[{"penalty": "L1", "strength": 1e-3}], model={"dropout": {"name": "Dropout", "p": 0.5}})
    assert config.Study.model_validate_json(study.model_dump_json(by_alias=True)) == study


def test_overrides_are_toml_values_or_bare_words(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(
        'name = "s"\n[data]\n[model]\nname = "mlp"\n[optimizer]\nname = "SGD"\nlr = 1\n[train]\nepochs = 1\n'
    )
    overrides = ["train.batch_size=7", "data.root=../some/where", "seeds=[1, 2]", 'arms=[{name = "none"}]']
    runs = config.load(path, overrides).runs
    assert (runs[1].train.batch_size, runs[1].data.root, runs[1].seed) == (7, "../some/where", 2)


FAULTS = {
    "unknown key": ({"train": {"epoch": 3}}, "train.epoch: unknown key, did you mean 'epochs'?"),
    "unknown table": ({"trian": {}}, "trian: unknown key, did you mean 'train'?"),
    "a run's own key": ({"seed": 3}, "seed: unknown key"),
    "wrong type": ({"train": {"epochs": "3", "batch_size": 1}}, "train.epochs: must be a valid integer, got '3'"),
    "a bool is no number": ({"train": {"epochs": True, "batch_size": 1}}, "train.epochs: must be a valid integer"),
    "missing": ({"train": {"epochs": 3}}, "train.batch_size: is missing"),
    "zero epochs": (
        {"train": {"epochs": 0, "batch_size": 1}},
        "train.epochs: must be greater than or equal to 1, got 0",
    ),
    "noise above 1": ({"data": {"label_noise": 1.5}}, "data.label_noise: must be less than or equal to 1, got 1.5"),
    "no arms": ({"arms": []}, "arms: must have at least 1 item"),
    "name and class": (
        {"model": {"name": "mlp", "class": "a:B"}},
        "exactly one of the keys name, class, torch and timm",
    ),
    "negative strength": (
        {"regularizers": [{"penalty": "L1", "strength": -1.0}]},
        "regularizers.0.strength: must be greater than or equal to 0, got -1.0",
    ),
    "NaN strength": (
        {"regularizers": [{"penalty": "L1", "strength": float("nan")}]},
        "regularizers.0.strength: must be a finite number, got nan",
    ),
    "strengths beside a strength": (
        {"arms": [{"name": "a", "strengths": [1.0], "regularizers": [{"penalty": "L1", "strength": 2.0}]}]},
        "arms[a].strengths: must be the only strengths",
    ),
    "strengths beside a decay": (
        {"arms": [{"name": "a", "strengths": [1.0], "optimizer": {"weight_decay": 0.5}}]},
        "arms[a].strengths: must be the only strengths",
    ),
    "unknown mode": (
        {"regularizers": [{"penalty": "L1", "strength": 1.0, "mode": "proximal"}]},
        "regularizers.0.mode: must be 'loss', 'grad', 'decoupled' or 'prox', got 'proximal'",
    ),
    "two arms in one folder": (
        {"arms": [{"name": "a b"}, {"name": "A_b"}]},
        "arms: must be distinct, got 'a_b'",
    ),
    "one seed twice": ({"seeds": [1, 1]}, "seeds: must be distinct, got '1' twice"),
    "a seed too large": ({"seeds": [2**63]}, "seeds.0: must be less than"),
    "one strength twice": (
        {"arms": [{"name": "a", "strengths": [0.0, -0.0]}]},
        "arms[a].strengths: must be distinct",
    ),
    "no strengths": ({"arms": [{"name": "a", "strengths": []}]}, "arms[a].strengths: must have at least 1 item"),
    "a key of the arm misspelled": ({"arms": [{"name": "a", "strenghts": [1.0]}]}, "did you mean 'strengths'?"),
    "a strength missing": ({"regularizers": [{"penalty": "L1"}]}, "arms[none].regularizers.0.strength: is missing"),
    "an option twice": (
        {"optimizer": {"name": "SGD", "lr": 1.0, "momentum": 0.9, "args": {"momentum": 0.8}}},
        "optimizer: must not be given both in args and beside it: momentum",
    ),
    "a class that is a path": (
        {"model": {"class": "nets.py"}},
        "model.class: must be of the form package.module",
    ),
    "a seed": ({"seeds": 3}, "seeds: must be a valid list, got 3: put it in brackets, as in [1, 2]"),
    "one arm": (
        {"arms": {"name": "a"}},
        "got {'name': 'a'}: put it in brackets, as in arms = [{ ... }], or begin its tables with [[arms]]",
    ),
    "no patterns": (
        {"regularizers": [{"penalty": "L1", "strength": 1.0, "select": []}]},
        "regularizers.0.select: must be a pattern of names, or a list of them, got []",
    ),
    "a name of two lines": ({"arms": [{"name": "a\nb"}]}, "arms.0.name: must be a name on one line"),
    "strengths of what": (
        {"arms": [{"name": "a", "strengths": [1.0], "regularizers": [{"penalty": "L1"}, {"penalty": "L2"}]}]},
        "arms[a].strengths: must be the only strengths",
    ),
}


@pytest.mark.parametrize(("changes", "line"), FAULTS.values(), ids=FAULTS)
def test_a_fault_names_the_key_and_what_was_expected(changes, line):
    with pytest.raises(UserError) as error:
        config.resolve({**TREE, **changes})
    assert line in str(error.value)


BUILD_FAULTS = {
    "unknown penalty": (
        {"regularizers": [{"penalty": "Lasso", "strength": 1.0}]},
        "regularizers.0.penalty: unknown name 'Lasso', did you mean 'LassoNet'?",
    ),
    "unknown optimizer": (
        {"optimizer": {"name": "AdamV", "lr": 1.0}},
        "optimizer.name: unknown name 'AdamV', did you mean",
    ),
    "unknown option": ({"optimizer": {"beta": 1}}, "optimizer.beta: unknown key, did you mean 'betas'?"),
    "option of another type": ({"model": {"hidden": "16"}}, "model.hidden: must be a valid list, got '16'"),
    "p above 1": (
        {"model": {"dropout": {"name": "Dropout", "p": 2.0}}},
        "model.dropout: Dropout(p=2.0) cannot be made",
    ),
    "nothing selected": (
        {"regularizers": [{"penalty": "L1", "strength": 1.0, "select": "conv*"}]},
        "regularizers.0: Regularizer: select must choose at least one parameter",
    ),
    "decay set twice": (
        {"optimizer": {"weight_decay": 0.1}, "regularizers": [{"penalty": "L2", "strength": 1.0}]},
        "regularizers.0: Regularizer: linear1.weight would decay twice, by L2(1.0) and by weight_decay=0.1 of AdamW",
    ),
    "a schedule with its own rates after others": (
        {"scheduler": {"name": "OneCycleLR", "max_lr": 0.1, "total_steps": 99, "after": 2}},
        "scheduler.after: must be 0 for OneCycleLR, which has its own rates, got 2",
    ),
    "no such class": ({"model": {"class": "torch.nn:Lineal"}}, "model.class: 'torch.nn:Lineal' cannot be imported"),
    "not a class": ({"model": {"class": "math:pi"}}, "model.class: must name a class of Module"),
    "option of a wrong type": ({"optimizer": {"eps": "x"}}, "optimizer: AdamW(eps='x') cannot be made"),
    "p that is no number": (
        {"model": {"dropout": {"name": "Dropout", "p": "x"}}},
        "model.dropout: Dropout(p='x')",
    ),
    "an option that the penalty does not have": (
        {"regularizers": [{"penalty": "ElasticNet", "strength": 1.0, "l1_ration": 0.5}]},
        "regularizers.0.l1_ration: unknown key, did you mean 'l1_ratio'?",
    ),
    "an option out of range": (
        {"regularizers": [{"penalty": "ElasticNet", "strength": 1.0, "l1_ratio": 1.5}]},
        "regularizers.0: ElasticNet(l1_ratio=1.5) cannot be made: ElasticNet: l1_ratio must be in [0, 1], got 1.5",
    ),
    "the same penalty twice": (
        {"regularizers": [{"penalty": "L2", "strength": 1.0}, {"penalty": "L2", "strength": 1.0, "mode": "prox"}]},
        "regularizers.1: must not decay twice, got two L2 on 'weights': drop one",
    ),
    "no place for all images": ({"data": {"valid_size": 1000}}, "data.valid_size: must be less than 1,000"),
    "a schedule too short": (
        {"scheduler": {"name": "OneCycleLR", "interval": "step", "max_lr": 0.1, "total_steps": 3}},
        "scheduler: cannot make the 16 steps of the run: Tried to step",
    ),
    "a schedule no file can describe": ({"scheduler": {"name": "LambdaLR"}}, "scheduler.name: unknown name 'LambdaLR'"),
    "a model of another input": (
        {"model": {"class": "torch.nn:Linear", "args": {"in_features": 9, "out_features": 10}}},
        "model: cannot be trained on (10, 1, 8, 8) images: ",
    ),
    "a model of another output": (
        {"model": {"class": "tests.integration.test_config:Narrow"}},
        "model: cannot be trained on (10, 1, 8, 8) images: its output must have the shape (10, 10), got (10, 3)",
    ),
    "a last batch of one for batch normalization": (
        {"model": {"class": "tests.integration.test_config:Normalized"}, "train": {"batch_size": 33}},
        "model: cannot be trained on (1, 1, 8, 8) images: Expected more than 1 value per channel",
    ),
    "a model that is frozen": (
        {"model": {"class": "tests.integration.test_config:Frozen"}},
        "model: cannot be trained on (10, 1, 8, 8) images: element 0 of tensors does not require grad",
    ),
    "a model whose own code is wrong": (
        {"model": {"class": "tests.integration.test_config:Wrong"}},
        "model: tests.integration.test_config:Wrong() cannot be made: KeyError: 'width'",
    ),
    "not a module": ({"model": {"class": "fractions:Fraction"}}, "model.class: must name a class of Module"),
    "more images than there are": ({"data": {"train_size": 901}}, "data.train_size: must be at most 900"),
    "no weight decay to set": (
        {"optimizer": {"name": "Rprop", "lr": 1.0, "weight_decay": 0.1}},
        "optimizer.weight_decay: Rprop has none",
    ),
    "a penalty for an optimizer that takes none": (
        {"optimizer": {"name": "SGD", "lr": 1.0, "penalty": {"name": "L1", "strength": 0.1}}},
        "optimizer.penalty: SGD takes none: use ProxSGD or ProxAdam",
    ),
    "a proximal optimizer without a penalty": (
        {"optimizer": {"name": "ProxSGD", "lr": 1.0}},
        "optimizer.penalty: ProxSGD needs one",
    ),
    "a penalty without a proximal operator": (
        {"optimizer": {"name": "ProxSGD", "lr": 1.0, "penalty": {"name": "SRIP", "strength": 0.1}}},
        "optimizer.penalty.name: must be one with a proximal operator, got 'SRIP'",
    ),
    "a share of zeros under another optimizer": (
        {"sparsity": {"target": 0.5}},
        "sparsity: needs the optimizer ProxSGD or ProxAdam, or one regularizer in mode 'prox', got AdamW and 0 of them",
    ),
    "a share of zeros of one of two regularizers": (
        {
            "sparsity": {"target": 0.5},
            "regularizers": [
                {"penalty": "L1", "strength": 0.1, "mode": "prox", "select": select} for select in ("li*", "ou*")
            ],
        },
        "sparsity: needs the optimizer ProxSGD or ProxAdam, or one regularizer in mode 'prox', got AdamW and 2 of them",
    ),
    "a share of zeros of no regularizer": (
        {"sparsity": {"target": 0.5, "regularizer": 1}},
        "sparsity.regularizer: must be the place of a penalty on parameters, got 1",
    ),
    "a share of zeros by a penalty that makes none": (
        {"sparsity": {"target": 0.5, "regularizer": 0}, "regularizers": [{"penalty": "L1", "strength": 0.1}]},
        "sparsity: TargetSparsity: ",
    ),
    "a share of zeros of unknown groups": (
        {
            "sparsity": {"target": 0.5, "groups": "rows"},
            "optimizer": {"name": "ProxSGD", "lr": 0.1, "penalty": {"name": "L1", "strength": 0.1}},
        },
        "sparsity: TargetSparsity: groups must be ",
    ),
}


@pytest.mark.parametrize(("changes", "line"), BUILD_FAULTS.values(), ids=BUILD_FAULTS)
def test_a_fault_of_an_arm_shows_before_any_run(changes, line):
    with pytest.raises(UserError) as error:
        rehearsal.check(arm("bad", **changes))
    assert f"arms[bad].{line}" in str(error.value)

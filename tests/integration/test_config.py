"""A study's file: what it comes to, and what each fault in it is told as."""

from pathlib import Path

import pytest

from experiments import config, study
from experiments.errors import UserError
from tests.integration.studies import TREE, arm, small

CONFIGS = sorted(Path(__file__).parents[2].glob("configs/**/*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_study_builds(path):
    digits = ["data.name=digits", "data.train_size=100", "data.valid_size=100"]  # so that no files are needed
    study.check(config.load(path, digits))


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
    penalty = {"penalty": "L2", "strength": 0.0}
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
    "name and class": ({"model": {"name": "mlp", "class": "a:B"}}, "exactly one of the keys name and class"),
    "negative strength": (
        {"regularizers": [{"penalty": "L1", "strength": -1.0}]},
        "regularizers.0.strength: must be greater than or equal to 0, got -1.0",
    ),
    "NaN strength": (
        {"regularizers": [{"penalty": "L1", "strength": float("nan")}]},
        "regularizers.0.strength: must be a finite number, got nan",
    ),
    "unknown mode": (
        {"regularizers": [{"penalty": "L1", "strength": 1.0, "mode": "proximal"}]},
        "regularizers.0.mode: must be 'loss', 'grad', 'decoupled' or 'prox', got 'proximal'",
    ),
    "two runs in one folder": ({"arms": [{"name": "a b"}, {"name": "a_b"}]}, "two would lie in 'a_b/seed0'"),
    "strengths of what": (
        {"arms": [{"name": "a", "strengths": [1.0], "regularizers": [{}, {}]}]},
        "arms[a].strengths: needs an arm with one regularizer or none, got 2",
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
        "regularizers.0.penalty: unknown name 'Lasso', valid: L1, L2",
    ),
    "unknown optimizer": (
        {"optimizer": {"name": "AdamV", "lr": 1.0}},
        "optimizer.name: unknown name 'AdamV', did you mean",
    ),
    "unknown option": ({"optimizer": {"beta": 1}}, "optimizer.beta: unknown key, did you mean 'betas'?"),
    "option of another type": ({"model": {"hidden": "16"}}, "model.hidden: must be a valid list, got '16'"),
    "p above 1": ({"model": {"dropout": {"name": "Dropout", "p": 2.0}}}, "model.dropout: Dropout: p, the probability"),
    "nothing selected": (
        {"regularizers": [{"penalty": "L1", "strength": 1.0, "select": "conv*"}]},
        "regularizers.0: Regularizer: select must choose at least one parameter",
    ),
    "decay set twice": (
        {"optimizer": {"weight_decay": 0.1}, "regularizers": [{"penalty": "L2", "strength": 1.0}]},
        "regularizers.0, optimizer.weight_decay: must not both be set",
    ),
    "no such class": ({"model": {"class": "torch.nn:Lineal"}}, "model.class: 'torch.nn:Lineal' cannot be imported"),
    "not a module": ({"model": {"class": "fractions:Fraction"}}, "model.class: must be"),
    "more images than there are": ({"data": {"train_size": 901}}, "data.train_size: must be at most 900"),
    "no weight decay to set": (
        {"optimizer": {"name": "Rprop", "lr": 1.0, "weight_decay": 0.1}},
        "optimizer.weight_decay: Rprop has none",
    ),
}


@pytest.mark.parametrize(("changes", "line"), BUILD_FAULTS.values(), ids=BUILD_FAULTS)
def test_a_fault_of_an_arm_shows_before_any_run(changes, line):
    with pytest.raises(UserError) as error:
        study.check(arm("bad", **changes))
    assert f"arms[bad].{line}" in str(error.value)

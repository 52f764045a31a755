"""Studies that extend others: what is laid on what, and what is refused."""

import json
from pathlib import Path

import pytest

from experiments import config
from experiments.training.record import Record

BASE = """
name = "base"
seeds = [0, 1]
data = { name = "digits", train_size = 50, valid_size = 50 }
model = { name = "mlp", hidden = [8] }
optimizer = { name = "AdamW", lr = 0.1, betas = [0.8, 0.9] }
train = { epochs = 1, batch_size = 25 }
arms = [{ name = "none" }, { name = "L2", optimizer.weight_decay = 0.1 }]
"""


@pytest.fixture
def save(tmp_path):
    """Saves files by name, in a folder of studies below the current one."""

    def saved(**texts: str) -> None:
        for name, text in texts.items():
            path = tmp_path / "studies" / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".toml").write_text(text, encoding="utf-8")

    return saved


def loaded(name: str, *overrides: str) -> config.Study:
    return config.load(Path("studies") / f"{name}.toml", overrides)


def test_tables_are_merged_and_lists_and_arms_replaced(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(
        base=BASE,
        mine='extends = "base.toml"\nname = "mine"\nseeds = [7]\ntrain.epochs = 3\noptimizer.betas = [0.5]\n'
        '[[arms]]\nname = "dropout"\nmodel.dropout = { name = "Dropout", p = 0.5 }\n',
    )
    study = loaded("mine")
    assert study.name == "mine"
    (run,) = study.runs
    assert (run.arm, run.seed, run.train.epochs, run.train.batch_size) == ("dropout", 7, 3, 25)
    assert run.optimizer.options == {"betas": [0.5]}
    assert (run.optimizer.lr, run.model.options) == (0.1, {"hidden": [8]})


def test_a_table_of_another_name_replaces_the_one_below(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(base=BASE, mine='extends = "base.toml"\noptimizer = { name = "SGD", lr = 0.2 }\ndata.train_size = 60')
    run = loaded("mine").runs[0]
    assert (run.optimizer.options, run.data.train_size, run.data.valid_size) == ({}, 60, 50)


def test_paths_are_relative_to_the_file_that_names_them(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(
        base=BASE,
        a__middle='extends = "../base.toml"\ntrain.epochs = 2\ntrain.batch_size = 10',
        a__b__top='extends = "../middle.toml"\ntrain.batch_size = 5',
        absolute=f"extends = {json.dumps(str(tmp_path / 'studies' / 'base.toml'))}",
    )
    train = loaded("a/b/top").runs[0].train
    assert (train.epochs, train.batch_size) == (2, 5)
    assert loaded("absolute") == loaded("base")


def test_overrides_act_after_the_files_are_merged(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(base=BASE, mine='extends = "base.toml"\ntrain.epochs = 3')
    study = loaded("mine", "train.epochs=9", "arms.L2.optimizer.weight_decay=0.5")
    assert [run.train.epochs for run in study.runs] == [9] * 4
    assert [run.optimizer.weight_decay for run in study.runs] == [0.0, 0.0, 0.5, 0.5]


def test_a_record_is_that_of_the_resolved_study(save, experiments, tmp_path):
    save(base=BASE, mine='extends = "base.toml"\ntrain.epochs = 2', whole=BASE.replace("epochs = 1", "epochs = 2"))
    assert experiments("run", "studies/mine.toml", "--out", "a", "--device", "cpu")[0] == 0
    code, _, err = experiments("run", "studies/whole.toml", "--out", "a", "--device", "cpu", "--resume")
    assert (code, err) == (0, "")  # it is the same study, and finished
    assert all(
        Record(tmp_path / "a" / "runs" / run.folder, run).result for run in config.load(Path("studies/whole.toml")).runs
    )
    assert "extends" not in (tmp_path / "a" / "study.json").read_text(encoding="utf-8")


DEEP = "x = " + "[" * 100 + "]" * 100
FAULTS = {
    "itself": ({"a": 'extends = "a.toml"'}, "a.toml -> studies/a.toml: extends: must not run in a circle"),
    "by another way": ({"a": 'extends = "../studies/./a.toml"'}, "extends: must not run in a circle"),
    "a circle of three": (
        {"a": 'extends = "b.toml"', "b": 'extends = "c.toml"', "c": 'extends = "b.toml"'},
        "studies/a.toml -> studies/b.toml -> studies/c.toml -> studies/b.toml: extends: must not run in a circle",
    ),
    "a missing file": (
        {"a": 'extends = "b.toml"', "b": 'extends = "none.toml"'},
        "studies/a.toml -> studies/b.toml -> studies/none.toml: cannot be read: No such file or directory",
    ),
    "a folder": ({"a": 'extends = "."'}, "studies/a.toml -> studies: cannot be read: Is a directory"),
    "a long name": ({"a": f'extends = "{"x" * 5000}"'}, "cannot be read: File name too long"),
    "no TOML": ({"a": 'extends = "b.toml"', "b": "x: 1"}, "studies/a.toml -> studies/b.toml: not a TOML file: "),
    "a number": ({"a": "extends = 3"}, "studies/a.toml: extends: must be the path of a TOML file, got 3"),
    "a list": ({"a": 'extends = ["b.toml"]'}, "extends: must be the path of a TOML file, got ['b.toml']"),
    "nothing": ({"a": 'extends = ""'}, "extends: must be the path of a TOML file, got ''"),
    "NUL": ({"a": r'extends = "b\u0000"'}, r"extends: must be the path of a TOML file, got 'b\x00'"),
    "a deep list below": (
        {"a": 'extends = "b.toml"', "b": DEEP},
        "a.toml -> studies/b.toml: x.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0: must not be more than 20",
    ),
    "a deep list above": ({"a": f'extends = "b.toml"\n{DEEP}', "b": BASE}, "error: studies/a.toml: x.0.0"),
    "an unknown key below": ({"a": 'extends = "b.toml"', "b": BASE + "trian = 1"}, "trian: unknown key"),
}


@pytest.mark.parametrize(("texts", "line"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_one_line_that_names_the_chain(texts, line, save, experiments, tmp_path):
    save(**texts)
    code, out, err = experiments("run", "studies/a.toml", "--device", "cpu")
    assert (code, out, err.count("\n"), err[:7]) == (2, "", 1, "error: ")
    assert line in err
    assert not (tmp_path / "runs").exists()


def test_extends_belongs_in_the_file(save, experiments):
    save(base=BASE)
    code, _, err = experiments("run", "studies/base.toml", "--set", "extends=base.toml")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: --set extends: belongs in the file")

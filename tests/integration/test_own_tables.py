"""The user's tables and arrays, and what each fault in them is told as."""

import json

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from experiments.config import Data
from experiments.training import data
from tests.integration.own import loaded, refused, rows, table


@pytest.mark.parametrize(
    ("target", "task", "labels"),
    [
        (lambda i: ["yes", "no"][i % 2], "classes", ("no", "yes")),
        (lambda i: [10, 2, 3][i % 3], "classes", ("2", "3", "10")),
        (lambda i: i + 0.5, "regression", ()),
    ],
    ids=["text", "whole numbers", "floats"],
)
def test_a_target_tells_the_task(tmp_path, target, task, labels):
    found = loaded(name="csv", path=table(tmp_path, rows(50, target)), target="y")
    assert (found.task.name, found.labels) == (task, labels)
    assert found.sizes == {"train": 32, "valid": 8, "test": 10}  # a fifth each, the test first
    assert found.shape == (2,)
    assert "regression" in found.text if task == "regression" else ", ".join(labels) in found.text


def test_a_table_is_what_it_says(tmp_path):
    path = table(tmp_path, rows(50, lambda i: i + 0.5))
    found = loaded(name="csv", path=path, target="y", standardize=False)
    x = torch.cat([part.x for part in (found.train, found.valid, found.test)])
    y = torch.cat([part.y for part in (found.train, found.valid, found.test)])
    order = x[:, 0].argsort()
    assert_close(x[order, 0], torch.arange(50.0))
    assert_close(x[order, 1], torch.arange(50.0) ** 2 % 7)
    assert_close(y[order], torch.arange(50.0).unsqueeze(1) + 0.5)


def test_inputs_and_targets_are_standardized_by_the_training_rows(tmp_path):
    path = table(tmp_path, rows(60, lambda i: 1e6 + 3.5 * i))
    plain, found = (loaded(name="csv", path=path, target="y", standardize=on) for on in (False, True))
    x, y = plain.train.x, plain.train.y
    assert_close(found.train.x, (x - x.mean(0)) / x.std(0))
    assert_close(found.test.x, (plain.test.x - x.mean(0)) / x.std(0))
    assert_close(found.train.y, (y - y.mean(0)) / y.std(0), rtol=1e-3, atol=1e-3)
    assert found.train.y.mean().abs() < 1e-6
    assert isinstance(found.task, data.Regression)
    assert_close(found.task.scale, y.std(0), rtol=1e-3, atol=0)


def test_a_constant_column_stays_finite(tmp_path):
    path = table(tmp_path, "a,b,y\n" + "".join(f"{i},5,{i + 0.5}\n" for i in range(20)))
    assert loaded(name="csv", path=path, target="y").train.x[:, 1].eq(0).all()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_quotes_and_the_choice_of_columns(tmp_path, delimiter):
    lines = [["id", "x 1", "kind"], *([f"n{i}", f'"{i}.5"', f'"a{delimiter}{i % 2}"'] for i in range(20))]
    path = table(tmp_path, "\ufeff" + "\r\n".join(delimiter.join(line) for line in lines) + "\r\n\r\n")
    found = loaded(name="csv", path=path, target="kind", inputs="x 1")
    assert found.labels == (f"a{delimiter}0", f"a{delimiter}1")
    assert found.shape == (1,)


def test_a_test_of_its_own(tmp_path):
    path = table(tmp_path, rows(20, lambda i: ["u", "v"][i % 2]))
    test = table(tmp_path, "y,b,a\nv,1,100\nu,2,200\n", "test.csv")  # in another order of columns
    found = loaded(name="csv", path=path, test_path=test, target="y", standardize=False)
    assert found.test.x.tolist() == [[100.0, 1.0], [200.0, 2.0]]
    assert found.test.y.tolist() == [1, 0]
    assert found.sizes == {"train": 16, "valid": 4, "test": 2}


BAD_TABLES = {
    "a missing cell": ("a,y\n1,2.5\n,3.5\n4,5.5\n", {}, "t.csv, line 3, column 'a': is missing"),
    "a word": ("a,y\n1,2.5\nx y,3.5\n", {}, "t.csv, line 3, column 'a': must be a number, got 'x y'"),
    "an underscore": ("a,y\n1,2.5\n1_0,3.5\n", {}, "line 3, column 'a': must be a number, got '1_0'"),
    "NaN": ("a,y\nnan,2.5\n1,3.5\n", {}, "t.csv, line 2, column 'a': must be a number, got 'nan'"),
    "infinity": ("a,y\n1,2.5\n1,3.5\n1e999,3.5\n", {}, "line 4, column 'a': must be a number, got '1e999'"),
    "several": (
        "a,b,y\n1,,2.5\n,2,3.5\n3,,1\n4,x,2\n",
        {},
        "line 2, column 'b': is missing (2 such cells in the column)",
    ),
    "no target": ("a,y\n1,2.5\n1,\n", {}, "line 3, column 'y': is missing"),
    "a target that is a word": ("a,y\n1,2.5\n1,3.5\n2,?\n", {}, "line 4, column 'y': must be a number, got '?'"),
    "a word in a regression": (
        "a,y\n1,u\n1,v\n2,u\n",
        {"task": "regression"},
        "line 2, column 'y': must be a number, got 'u'",
    ),
    "floats for classes": (
        "a,y\n1,1\n1,2\n2,0.5\n3,1\n",
        {"task": "classes"},
        "data.target: must be whole numbers or text for task = 'classes', got 0.5 in",
    ),
    "another target": ("a,yy\n1,2\n1,3\n", {}, "data.target: "),
    "another input": ("a,y\n1,2\n1,3\n", {"inputs": ["b"]}, "data.inputs: "),
    "the target as an input": ("a,y\n1,2\n1,3\n", {"inputs": ["y"]}, "data.inputs: must be columns other than the"),
    "the target alone": ("y\n1\n2\n", {}, "data.inputs: must be columns other than the target"),
    "a short line": ("a,b,y\n1,2,3\n1,2\n", {}, "t.csv, line 3: must have 3 cells, as the first line, got 2"),
    "no names": ("1,2\n3,4\n5,6\n", {}, "must begin with a line of column names, got 1, 2"),
    "a name twice": ("a,a,y\n1,2,3\n1,2,3\n", {}, "must have a name of its own for each column, got 'a' twice"),
    "one row": ("a,y\n1,2\n", {}, "must hold a line of column names and two rows or more"),
    "nothing": ("", {}, "must hold a line of column names"),
    "one class": ("a,y\n1,u\n2,u\n3,u\n", {}, "data.target: must have two classes or more, got u everywhere"),
    "noise in a regression": ("a,y\n1,.5\n2,.6\n3,.7\n", {"label_noise": 0.1}, "data.label_noise: is for classes"),
    "strata in a regression": ("a,y\n1,.5\n2,.6\n3,.7\n", {"stratified": True}, "data.stratified: is for classes"),
    "all for the test": ("a,y\n1,.5\n2,.6\n3,.7\n", {"test_size": 3}, "data.test_size: must be less than 3"),
    "all for validation": ("a,y\n1,.5\n2,.6\n3,.7\n", {"valid_size": 2}, "data.valid_size: must be less than 2"),
}


@pytest.mark.parametrize(("text", "more", "line"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_a_fault_in_a_table_is_named(tmp_path, text, more, line):
    assert line in refused(name="csv", path=table(tmp_path, text), target="y", **more)


@pytest.mark.parametrize(
    ("target", "line"),
    [
        (lambda i: i, "data.task: must be given, the target has 30 different whole numbers"),
        (lambda i: f"{i % 3}.0", "data.task: must be given, the target has 3 different floats without fractions"),
    ],
)
def test_a_target_that_could_be_both_is_asked_for(tmp_path, target, line):
    path = table(tmp_path, rows(30, target))
    assert line in refused(name="csv", path=path, target="y")
    for task in ("classes", "regression"):
        assert loaded(name="csv", path=path, target="y", task=task).task.name == task


def test_bytes_and_paths_that_are_no_table(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,y\n\xff\xfe,1\n")
    assert "cannot be read as CSV" in refused(name="csv", path=str(path), target="y")
    assert "is not a file" in refused(name="csv", path=str(tmp_path), target="y")
    assert "does not exist" in refused(name="csv", path=str(tmp_path / "no.csv"), target="y")


# Keys


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"name": "csv", "path": "x"}, "data: target must be given for csv"),
        ({"name": "npz"}, "data: path must be given for npz"),
        ({"name": "images"}, "data: path must be given for images"),
        ({"path": "x"}, "data: path is for csv and npz and images, not for digits"),
        ({"name": "mnist", "size": [8, 8]}, "data: size is for images, not for mnist"),
        ({"name": "kmnist", "split": "letters"}, "data: split is for emnist, not for kmnist"),
        ({"name": "wine", "args": {"a": 1}}, "data: args is for class, not for wine"),
        ({"name": "digits", "class": "a:b"}, "data: exactly one of the keys name and class must be given"),
        ({"name": "digits", "test_size": 0.1}, "data: test_size is for data without a test of its own"),
        ({"name": "cvs", "path": "x"}, "data.name: must be 'digits', 'mnist'"),
        ({"class": "nets.py"}, "data.class: must be of the form package.module"),
        ({"valid_size": -1}, "data.valid_size: must be a whole number of at least 1, or a share"),
        ({"valid_size": 1.5}, "data.valid_size: must be a whole number of at least 1, or a share between 0 and 1"),
        ({"name": "wine", "test_size": True}, "data.test_size: must be a whole number of at least 1, or a share"),
        ({"name": "images", "path": "x", "size": [8]}, "data.size"),
    ],
)
def test_a_key_that_does_not_fit_the_source_is_refused(settings, line):
    assert line in refused(**settings)


def test_what_earlier_versions_wrote_of_data_is_unchanged():
    written = Data(name="digits", train_size=300, label_noise=0.2)
    assert json.loads(written.model_dump_json(exclude_defaults=True)) == {"train_size": 300, "label_noise": 0.2}
    assert written.valid_size == 400


# Arrays


def test_arrays_by_their_names(tmp_path):
    x, y = np.arange(40.0).reshape(20, 2), np.arange(20) % 2
    np.savez(tmp_path / "a.npz", x=x, y=y)
    np.savez(tmp_path / "b.npz", left=x, right=np.array(["u", "v"])[y])
    first = loaded(name="npz", path=str(tmp_path / "a.npz"))
    second = loaded(name="npz", path=str(tmp_path / "b.npz"), inputs="left", target="right")
    assert (first.labels, second.labels) == (("0", "1"), ("u", "v"))
    assert_close(first.train.x, second.train.x, rtol=0, atol=0)
    assert torch.equal(first.test.y, second.test.y)


def test_several_targets_and_images_in_arrays(tmp_path):
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", x=draw.integers(0, 256, (30, 3, 5, 6), dtype=np.uint8), y=draw.normal(size=(30, 2)))
    found = loaded(name="npz", path=str(tmp_path / "a.npz"))
    assert (found.shape, found.task.outputs, found.noun) == ((3, 5, 6), 2, "images")
    assert_close(found.train.x.mean(), torch.tensor(0.0), rtol=0, atol=1e-6)
    assert found.train.y.shape[1:] == (2,)


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"x": np.ones((4, 2))}, "data.target: "),
        ({"y": np.ones(4)}, "data.inputs: "),
        ({"x": np.ones((4, 2)), "y": np.arange(3)}, "must hold a target for each of two inputs or more"),
        ({"x": np.array([[1.0], [np.nan], [2.0]]), "y": np.arange(3)}, "must be finite numbers, got nan at [1, 0]"),
        ({"x": np.array([["a"], ["b"]]), "y": np.arange(2)}, "inputs of"),
        ({"x": np.array([[None], [1]]), "y": np.arange(2)}, "cannot be read as npz: Object arrays"),
        ({"x": np.ones((4, 2)), "y": np.ones((4, 2, 2)) / 3}, "must be a number or a row of numbers an example"),
        ({"x": np.ones((4, 2)), "y": np.eye(4, dtype=int)}, "must be one class an example, got (4,)"),
    ],
)
def test_a_fault_in_arrays_is_named(tmp_path, arrays, line):
    np.savez(tmp_path / "a.npz", **arrays)
    assert line in refused(name="npz", path=str(tmp_path / "a.npz"))


@pytest.mark.parametrize("content", [b"", b"PK\3\4 no zip", b"\x93NUMPY", b"\x80\4."])
def test_a_damaged_npz_is_named(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    assert "a.npz" in refused(name="npz", path=str(tmp_path / "a.npz"))

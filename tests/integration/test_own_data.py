"""The user's own data: tables, arrays, folders of images, functions; and what each fault in them is told as."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from experiments import config, report
from experiments.config import Data
from experiments.errors import UserError
from experiments.report import summarize
from experiments.running import study
from experiments.running.study import run_study
from experiments.training import data
from experiments.training.loop import train_epoch
from experiments.training.measure import evaluate
from experiments.training.record import Record
from tests.integration.studies import CPU, TREE, history, kill, outcome, small

ROOT = Path(__file__).parents[2]
HERE = "tests.integration.test_own_data"


def table(folder: Path, text: str, name: str = "t.csv") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def rows(count: int, target) -> str:
    """A table of two columns of numbers and a target."""
    return "a,b,y\n" + "".join(f"{i},{i * i % 7},{target(i)}\n" for i in range(count))


def loaded(**settings) -> data.Examples:
    return data.load(Data(**settings), CPU)


def refused(**settings) -> str:
    def read() -> None:
        config.resolve({**TREE, "data": settings})
        loaded(**settings)

    with pytest.raises(UserError) as error:
        read()
    assert "\n" not in str(error.value)
    return str(error.value)


# Tables


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
    "several": ("a,b,y\n1,,2.5\n,2,3.5\n", {}, "line 2, column 'b': is missing (2 such cells)"),
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
        ({"valid_size": 0}, "data.valid_size: must be a whole number of at least 1, or a share between 0 and 1, got 0"),
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


# Images


def picture(path: Path, size=(6, 4), mode="L", value=100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 255)).save(path)


@pytest.mark.torchvision
@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_a_folder_of_images(tmp_path, mode, channels):
    for i in range(10):
        picture(tmp_path / ["cat", "dog"][i % 2] / f"{i}.png", mode=mode, value=10 * i)
    found = loaded(name="images", path=str(tmp_path), stratified=True, standardize=False)
    assert (found.shape, found.labels) == ((channels, 4, 6), ("cat", "dog"))
    pixels = torch.cat([part.x for part in (found.train, found.valid, found.test)])[:, 0, 0, 0]
    assert_close(pixels.sort().values, torch.arange(10) * 10 / 255)
    assert found.test.y.tolist() in ([0, 1], [1, 0])
    resized = loaded(name="images", path=str(tmp_path), size=[8, 3])
    assert resized.shape == (channels, 8, 3)


@pytest.mark.torchvision
def test_images_of_different_sizes_are_named_unless_a_size_is_given(tmp_path):
    for i, size in enumerate([(6, 4), (6, 4), (5, 4), (6, 4)]):
        picture(tmp_path / "ab"[i % 2] / f"{i}.png", size=size)
    line = refused(name="images", path=str(tmp_path))
    assert "data.size: must be given" in line
    assert "0.png has 4 x 6 pixels" in line
    assert "2.png has 4 x 5 pixels" in line
    assert loaded(name="images", path=str(tmp_path), size=[4, 6]).shape == (1, 4, 6)


@pytest.mark.torchvision
def test_a_folder_that_holds_no_classes_or_a_damaged_image(tmp_path):
    assert "must hold a folder of images for each class" in refused(name="images", path=str(tmp_path / "none"))
    assert "must hold a folder of images for each class" in refused(name="images", path=str(tmp_path))
    picture(tmp_path / "a" / "1.png")
    assert "must hold two classes or more" in refused(name="images", path=str(tmp_path))
    (tmp_path / "b").mkdir()
    assert "must hold a folder of images for each class" in refused(name="images", path=str(tmp_path))
    picture(tmp_path / "b" / "1.png", size=(200, 200))
    whole = (tmp_path / "b" / "1.png").read_bytes()
    for content in (b"", b"no image", whole[: len(whole) // 2]):
        (tmp_path / "b" / "1.png").write_bytes(content)
        assert "1.png cannot be read as an image" in refused(name="images", path=str(tmp_path), size=[4, 4])


# Functions and classes


def ramp(count: int = 20, dtype: str = "float32") -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(2 * count).reshape(count, 2).to(getattr(torch, dtype)), torch.arange(count) % 2


def drawn():
    return torch.randn(20, 2), torch.arange(20) % 2


class Squares(Dataset):
    def __init__(self, count: int = 20) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int):
        return torch.full((1, 2, 2), float(i)), i % 2


class Rows:
    """What a split of Hugging Face's datasets looks like to its users."""

    def __init__(self, columns: dict[str, list]) -> None:
        self.columns, self.column_names = columns, list(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, i: int):
        return {name: values[i] for name, values in self.columns.items()}


class Endless(IterableDataset):
    def __iter__(self):
        yield 1


class Mixed(Squares):
    def __getitem__(self, i: int):
        return (torch.zeros(2 + i % 2), 0) if self.count == 20 else [1, 2, 3]


class Broken(Squares):
    def __getitem__(self, i: int):
        raise KeyError("lost")


def given(what: str):
    x, y = ramp()
    pixels = [Image.new("L", (3, 2), i) for i in range(20)]
    return {
        "arrays": (x.numpy(), y.numpy()),
        "a dataset": TensorDataset(x, y),
        "items": Squares(),
        "a pair": ((x, y), (x[:4] + 1, y[:4])),
        "a pair of datasets": [TensorDataset(x, y), TensorDataset(x[:4] + 1, y[:4])],
        "a dict": {"train": TensorDataset(x, y), "test": TensorDataset(x[:4] + 1, y[:4])},
        "a split": Rows({"image": pixels, "label": y.tolist()}),
        "columns": Rows({"a": x[:, 0].tolist(), "b": x[:, 1].tolist(), "label": ["u", "v"] * 10}),
        "nothing": None,
        "a number": 3,
        "one tensor": x,
        "three": (x, y, y),
        "a misfit": (x, y[:3]),
        "a pair with a test of another shape": ((x, y), (x[:, :1], y)),
        "an endless one": Endless(),
        "items of two shapes": Mixed(),
        "items that are no pairs": Mixed(10),
        "a broken one": Broken(),
        "NaN": (x / 0, y),
        "complex": (x + 1j, y),
        "a split without a label": Rows({"a": [1.0, 2.0], "b": [2.0, 3.0]}),
    }[what]


@pytest.mark.parametrize(
    ("what", "shape", "test"),
    [
        ("arrays", (2,), 4),
        ("a dataset", (2,), 4),
        ("items", (1, 2, 2), 4),
        ("a pair", (2,), 4),
        ("a pair of datasets", (2,), 4),
        ("a dict", (2,), 4),
        ("a split", (1, 2, 3), 4),
        ("columns", (2,), 4),
    ],
)
def test_what_a_function_may_return(what, shape, test):
    found = loaded(class_=f"{HERE}:given", args={"what": what})
    assert (found.shape, found.task.outputs, len(found.test)) == (shape, 2, test)
    assert len(found.train) + len(found.valid) == (20 if "pair" in what or "dict" in what else 16)
    if what == "columns":
        assert found.labels == ("u", "v")


def test_a_dataset_class_can_be_named_itself():
    assert loaded(class_=f"{HERE}:Squares", args={"count": 10}).sizes == {"train": 6, "valid": 2, "test": 2}


def test_whole_numbers_stay_whole_if_they_are_not_standardized():
    found = loaded(class_=f"{HERE}:ramp", args={"dtype": "int32"}, standardize=False)
    assert found.train.x.dtype == torch.int64
    assert loaded(class_=f"{HERE}:ramp", args={"dtype": "int32"}).train.x.dtype == torch.float32


def test_what_a_function_draws_at_random_depends_on_the_seed_alone():
    before = torch.get_rng_state()
    first = loaded(class_=f"{HERE}:drawn")
    assert torch.equal(before, torch.get_rng_state())
    data.loading._load.cache_clear()
    torch.rand(3)
    assert torch.equal(first.train.x, loaded(class_=f"{HERE}:drawn").train.x)
    assert not torch.equal(first.train.x, loaded(class_=f"{HERE}:drawn", seed=1).train.x)


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("nothing", "must return tensors (x, y), a Dataset, or a pair (train, test) of these, got NoneType"),
        ("a number", "must return tensors (x, y), a Dataset, or a pair (train, test) of these, got int"),
        ("one tensor", "must return tensors (x, y), a Dataset, or a pair (train, test) of these, got Tensor"),
        ("three", "got tuple of 3: Tensor, Tensor, Tensor"),
        ("a misfit", "got inputs of shape (20, 2) and targets of shape (3,)"),
        ("a pair with a test of another shape", "the test must hold inputs of shape (2,)"),
        ("an endless one", "got Endless"),
        ("items of two shapes", "must have items of one shape, got (2,) and, at 1, (3,)"),
        ("items that are no pairs", "must have items (input, target), got list of 3: int, int, int at 0"),
        ("a broken one", "gives examples that cannot be read: KeyError: 'lost'"),
        ("NaN", "must be finite numbers, got nan at [0, 0]"),
        ("complex", "must be real numbers, got torch.complex64"),
        ("a split without a label", "data.target: must name the column to predict"),
    ],
)
def test_a_function_that_returns_the_wrong_thing_is_told(what, line):
    assert line in refused(**{"class": f"{HERE}:given", "args": {"what": what}})


@pytest.mark.parametrize(
    ("path", "args", "line"),
    [
        ("no.such:load", {}, "data.class: 'no.such:load' cannot be imported"),
        (f"{HERE}:lod", {}, "cannot be imported"),
        ("math:pi", {}, "data.class: must name a Dataset, or a function of yours"),
        ("sys:exit", {}, "data.class: must name a Dataset, or a function of yours"),
        ("torch.nn:Linear", {}, "data.class: must name a Dataset, or a function of yours"),
        (f"{HERE}:ramp", {"cuont": 3}, "data.args.cuont: unknown key, valid: count, dtype"),
        (f"{HERE}:given", {}, "data.args: tests.integration.test_own_data:given() cannot be made"),
    ],
)
def test_a_function_that_cannot_be_called_is_told(path, args, line):
    assert line in refused(**{"class": path, "args": args})


# Splits


def test_stratified_parts_have_the_share_of_each_class(tmp_path):
    # Of 200 rows 120 are u, 60 v and 20 w: in any part 6, 3 and 1 of ten.
    path = table(tmp_path, rows(200, lambda i: "uuuuuuvvvw"[i % 10]))
    found = loaded(name="csv", path=path, target="y", stratified=True, test_size=50, valid_size=30, train_size=90)
    for part in (found.train, found.valid, found.test):
        counts, share = part.y.bincount(minlength=3), torch.tensor([0.6, 0.3, 0.1]) * len(part)
        assert (counts - share).abs().max() <= 2, counts
    less = loaded(name="csv", path=path, target="y", stratified=True, test_size=50, valid_size=30, train_size=40)
    assert torch.equal(less.train.y, found.train.y[:40])
    other = loaded(name="csv", path=path, target="y", stratified=True, test_size=50, valid_size=30, seed=1)
    assert torch.equal(other.test.y, found.test.y)
    assert not torch.equal(other.valid.x, found.valid.x)


# Regression and binary tasks, through the whole of a study


def test_the_figures_of_a_regression_are_those_of_numpy():
    found = loaded(name="diabetes")
    torch.manual_seed(0)
    model = nn.Linear(10, 1)
    (row,) = evaluate(model, found)
    for name, part in (("train", found.train), ("valid", found.valid), ("test", found.test)):
        residuals = (model(part.x) - part.y).detach().double().numpy()
        assert row[f"{name}_loss"] == pytest.approx(np.mean(residuals**2), rel=1e-5)
        assert row[f"{name}_error"] == pytest.approx(np.sqrt(np.mean(residuals**2)) * found.task.scale.item(), rel=1e-5)


def test_a_regression_learns_what_least_squares_finds():
    """Diabetes: the linear model of a study ends at scikit-learn's test error, in the target's own units."""
    from sklearn.linear_model import LinearRegression

    tree = {
        **TREE,
        "data": {"name": "diabetes", "valid_size": 1},
        "model": {"name": "mlp", "hidden": []},
        "optimizer": {"name": "SGD", "lr": 0.02},
        "train": {"epochs": 300, "batch_size": 400},
    }
    (run,) = config.resolve(tree).runs
    found = data.load(run.data, CPU)
    torch.manual_seed(0)
    model = nn.Linear(10, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(600):
        train_epoch(model, optimizer, found.train, [torch.arange(len(found.train))], task=found.task)
    best = LinearRegression().fit(found.train.x.numpy(), found.train.y.numpy())
    residuals = best.predict(found.test.x.numpy()) - found.test.y.numpy()
    wanted = np.sqrt(np.mean(residuals**2)) * found.task.scale.item()
    (row,) = evaluate(model, found)
    assert row["test_error"] == pytest.approx(wanted, rel=0.01)
    assert 40 < wanted < 65  # of disease progression, whose standard deviation is 77


def test_a_regression_is_recorded_and_reported_without_percents(tmp_path):
    arms = [{"name": "none"}, {"name": "decay", "strengths": [0.1, 1.0]}]
    run_study(small(data={"name": "diabetes"}, arms=arms, seeds=[0, 1]), tmp_path, CPU)
    record = Record(tmp_path / "runs" / "none" / "seed0")
    assert record.history[0]["task"] == "regression"
    assert record.result["examples"] == {"train": 283, "valid": 71, "test": 88}
    assert 40 < record.result["test_error"] < 100
    summary = summarize(tmp_path)
    text = report.table(summary)
    assert "train RMSE" in text
    assert "error %" not in text
    assert "RMSE: the root mean squared error, in units of the target." in text
    assert summary.subtitle.startswith("diabetes: 283 training examples; 4 epochs")
    page = report.write_page(summary, tmp_path).read_text()
    assert "test RMSE" in page
    assert "test error" not in page
    assert "lowest validation RMSE" in page


def test_a_regression_resumes_bit_for_bit(tmp_path):
    study_ = small(data={"name": "diabetes"}, train={"epochs": 4, "batch_size": 30, "checkpoint_seconds": 0.0})
    whole = outcome(study_, tmp_path / "whole")
    run_study(study_, tmp_path / "again", CPU)
    folder = tmp_path / "again" / "runs" / study_.runs[0].folder
    (folder / "result.json").unlink()
    again = outcome(study_, tmp_path / "again", resume=True)
    assert {**again, "files": None} == {**whole, "files": None}


@pytest.mark.parametrize(("name", "outputs"), [("breast_cancer", 2), ("wine", 3)])
def test_small_sets_of_scikit_learn_are_learnt(tmp_path, name, outputs):
    last = history(small(data={"name": name}, train={"epochs": 10, "batch_size": 30}), tmp_path)[-1]
    assert last["test_error"] < 0.15
    assert loaded(name=name).task.outputs == outputs


def test_strengths_of_a_regression_are_tuned(tmp_path):
    arms = [
        {"name": "tuned", "auto_strength": {}, "regularizers": [{"penalty": "L2", "strength": 0.01, "mode": "prox"}]}
    ]
    result = outcome(small(data={"name": "diabetes"}, arms=arms), tmp_path)
    assert result["status"] == "done"
    assert result["strengths"]


def test_amp_serves_a_regression(tmp_path):
    study_ = small(data={"name": "diabetes"}, train={"epochs": 2, "batch_size": 30, "amp": True})
    assert outcome(study_, tmp_path)["status"] == "done"


def test_arms_of_two_tasks_are_refused():
    arms = [{"name": "a"}, {"name": "b", "data": {"name": "diabetes"}}]
    tree = {**TREE, "data": {"name": "wine"}, "arms": arms}
    with pytest.raises(UserError, match=r"same task in all arms.*arms\[a\] classes, arms\[b\] regression"):
        study.check(config.resolve(tree))


def test_vectors_are_no_images_for_a_cnn():
    with pytest.raises(UserError, match=r"model: cnn\(\) cannot be made: it needs images.*\(13,\): use mlp"):
        study.check(small(data={"name": "wine"}, model={"name": "cnn"}))


class Told(nn.Linear):
    """A model that asks for the shape and the number of outputs."""

    def __init__(self, shape: tuple[int, ...], *, outputs: int, bias: bool = True) -> None:
        super().__init__(shape[0], outputs, bias)


@pytest.mark.parametrize(("name", "sizes"), [("wine", (13, 3)), ("diabetes", (10, 1))])
def test_a_model_class_is_told_the_shape_and_the_outputs(name, sizes):
    (run,) = small(data={"name": name}, model={"class": f"{HERE}:Told", "args": {"bias": False}}).runs
    made = study.build.model(run.model, data.load(run.data, CPU))
    assert (made.in_features, made.out_features, made.bias) == (*sizes, None)


def test_data_that_changes_under_a_study_is_told(tmp_path):
    path = table(tmp_path, rows(50, lambda i: i + 0.5))
    ours = small(data={"name": "csv", "path": path, "target": "y"})
    run_study(ours, tmp_path / "out", CPU)
    run_study(ours, tmp_path / "out", CPU, resume=True)
    table(tmp_path, rows(50, lambda i: 2 * i + 0.25))
    data.loading._load.cache_clear()
    with pytest.raises(UserError, match=r"t.csv gives other examples than when the study in .* began"):
        run_study(ours, tmp_path / "out", CPU, resume=True)


def test_bad_data_ends_with_one_line_and_nothing_written(tmp_path, experiments):
    table(tmp_path, "a,y\n1,2.5\n,3.5\n4,5.5\n")
    (tmp_path / "s.toml").write_text(
        'name = "s"\ndata = { name = "csv", path = "t.csv", target = "y" }\nmodel = { name = "mlp" }\n'
        'optimizer = { name = "SGD", lr = 0.1 }\ntrain = { epochs = 1, batch_size = 5 }\narms = [{ name = "none" }]\n'
    )
    code, out, err = experiments("run", "s.toml")
    assert (code, out) == (2, "")
    assert err == (
        "error: arms[none].data.path: t.csv, line 3, column 'a': is missing: correct or remove the line, or choose the "
        "columns by data.inputs\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.toml", "t.csv"]


@pytest.mark.parametrize("name", ["csv", pytest.param("images", marks=pytest.mark.torchvision), "model"])
def test_the_shipped_studies_run_from_the_repository(name, tmp_path, monkeypatch, experiments):
    monkeypatch.chdir(ROOT)
    options = ["--set", "train.epochs=2", "--set", "seeds=[0]", "--out", str(tmp_path / "out")]
    code, out, _ = experiments("run", f"configs/own/{name}.toml", *options)
    assert code == 0
    said = {
        "csv": "regression of one target",
        "images": "3 classes (circle, cross, square)",
        "model": "2 classes (0, 1)",
    }
    assert said[name] in out
    assert (tmp_path / "out" / "report.html").exists()


def test_what_make_writes_is_what_is_shipped(tmp_path, monkeypatch):
    from configs.own import make

    monkeypatch.setattr(make, "HERE", tmp_path)
    make.table()
    make.shapes()
    shipped = ROOT / "configs" / "own"
    assert (tmp_path / "diabetes.csv").read_text() == (shipped / "diabetes.csv").read_text()
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.png"))
    assert made == sorted(path.relative_to(shipped) for path in shipped.rglob("*.png"))
    for path in made[::17]:
        assert np.array_equal(np.asarray(Image.open(tmp_path / path)), np.asarray(Image.open(shipped / path)))


# Augmentation

FLIP = {"name": "RandomHorizontalFlip", "p": 1.0}


def augmented(**settings):
    found = data.load(Data(train_size=40, **settings), CPU)
    return found, study.build.augmentation(Data(train_size=40, **settings), found)


@pytest.mark.torchvision
def test_transforms_act_image_by_image_in_order():
    found, augment = augmented(augment=[FLIP, {"name": "RandomVerticalFlip", "p": 0.5}])
    x, y = augment(found.train.x, found.train.y)
    mirrored = found.train.x.flip(3)
    turned = [torch.equal(one, other.flip(1)) for one, other in zip(x, mirrored, strict=True)]
    kept = [torch.equal(one, other) for one, other in zip(x, mirrored, strict=True)]
    assert all(one != other for one, other in zip(turned, kept, strict=True))
    assert 5 < sum(turned) < 35  # of 40, each by its own draw
    assert torch.equal(y, found.train.y)


@pytest.mark.torchvision
@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
def test_a_batch_and_its_targets_are_mixed(name):
    found, augment = augmented(mix={"name": name, "alpha": 1.0})
    torch.manual_seed(0)
    x, y = augment(found.train.x, found.train.y)
    assert y.shape == (40, 10)
    assert_close(y.sum(1), torch.ones(40))
    assert not torch.equal(x, found.train.x)
    if name == "MixUp":  # each image with the one before it, and so the targets
        one_hot = nn.functional.one_hot(found.train.y, 10).float()
        i = int((found.train.y != found.train.y.roll(1)).nonzero()[0])
        share = y[i, found.train.y[i]].item()
        assert_close(x, share * found.train.x + (1 - share) * found.train.x.roll(1, 0), rtol=1e-4, atol=1e-4)
        assert_close(y, share * one_hot + (1 - share) * one_hot.roll(1, 0))


@pytest.mark.torchvision
def test_a_study_with_augmentation_differs_and_resumes_bit_for_bit(tmp_path):
    settings = {**TREE["data"], "augment": [{"name": "RandomCrop", "size": 8, "padding": 1}], "mix": {"name": "MixUp"}}
    train = {"epochs": 4, "batch_size": 30, "checkpoint_seconds": 0.0}
    study_ = small(data=settings, train=train)
    whole = outcome(study_, tmp_path / "whole")
    plain = outcome(small(train=train), tmp_path / "plain")
    assert whole["sha256"] != plain["sha256"]
    kill(run_study, small(data=settings, train={**train, "epochs": 4}), tmp_path / "again", lambda: has_begun(tmp_path))
    again = outcome(study_, tmp_path / "again", resume=True)
    assert {**again, "files": None} == {**whole, "files": None}


def has_begun(folder: Path) -> bool:
    return bool(list(folder.glob("again/runs/*/seed0/checkpoint.pt")))


@pytest.mark.torchvision
@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"augment": [{"name": "RandomFlip"}]}, "data.augment.0.name: unknown name 'RandomFlip'"),
        ({"augment": [{"name": "RandomCrop"}]}, "data.augment.0: RandomCrop() cannot be made"),
        ({"augment": [{"name": "RandomCrop", "size": 4}]}, "data.augment: must keep the shape (1, 8, 8) of the images"),
        ({"augment": [{"name": "ToPILImage"}]}, "data.augment: cannot alter images of shape (1, 8, 8)"),
        ({"mix": {"name": "RandomCrop", "size": 4}}, "data.mix.name: unknown name 'RandomCrop'"),
        ({"mix": {"name": "MixUp", "num_classes": 3}}, "data.mix.num_classes: unknown key"),
        (
            {"name": "wine", "train_size": 20, "augment": [FLIP]},
            "data.augment: is for images, got inputs of shape (13,)",
        ),
    ],
)
def test_an_augmentation_that_cannot_be_is_told(settings, line):
    with pytest.raises(UserError) as error:
        study.check(small(data={"valid_size": 20, **settings}))
    assert f"arms[none].{line}" in str(error.value)
    assert "\n" not in str(error.value)


LINES = [
    line.partition("#")[0].split()[3:]
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("python -m experiments run configs/own/")
]


@pytest.mark.torchvision
@pytest.mark.parametrize("line", LINES, ids=lambda line: line[1])
def test_the_lines_of_readme_run_on_a_users_own_files(line, tmp_path, monkeypatch, experiments):
    """In a copy of the repository's configs, with a table, a folder of photos and a class that a user might have."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    table(
        tmp_path, "area,rooms,price\n" + "".join(f"{50 + i % 37},{i % 5},{3 * i}.5\n" for i in range(80)), "flats.csv"
    )
    for i in range(24):
        picture(tmp_path / "photos" / ["bus", "car", "van"][i % 3] / f"{i}.jpg", size=(20, 16), mode="RGB", value=i)
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self, shape, outputs):\n"
        "        super().__init__(nn.Linear(shape[0], 8), nn.ReLU(), nn.Linear(8, outputs))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "nets", None)  # so that at the end what was there before is there again
    del sys.modules["nets"]
    code, out, err = experiments(*line, "--set", "train.epochs=2", "--set", "seeds=[0]")
    assert code == 0, err
    said = {"csv": "flats.csv: regression", "images": "photos: 3 classes (bus, car, van); images", "model": "2 classes"}
    assert said[Path(line[1]).stem] in out


def test_readme_has_a_line_for_each():
    assert [Path(line[1]).stem for line in LINES] == ["csv", "images", "model"]

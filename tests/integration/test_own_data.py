"""The user's images, functions and classes, and what each fault in them is told as."""

import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from experiments.errors import UserError
from experiments.running.study import run_study
from experiments.training import data
from tests.integration.own import loaded, picture, refused, rows, table
from tests.integration.studies import CPU, small

ROOT = Path(__file__).parents[2]
HERE = "tests.integration.test_own_data"


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
        (
            "no.such:load",
            {},
            "data.class: 'no.such:load' cannot be imported: ModuleNotFoundError: No module named 'no'",
        ),
        ("no.such:load", {}, "'no': it is neither installed nor in /"),
        ("torch.no:load", {}, "ModuleNotFoundError: No module named 'torch.no'"),
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


LINES = [
    shlex.split(line, comments=True)[3:]
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
    picture(tmp_path / "photos" / "bus" / "another.jpg", size=(16, 20), mode="RGB", value=1)
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

"""Images: splits that are fixed by a seed, labels made wrong on purpose, and files that are not what they should be."""

import pickle
import struct
import sys

import numpy as np
import pytest
import torch

from experiments.config import Data
from experiments.errors import UserError
from experiments.training import data
from experiments.training.data import loading
from tests.integration.studies import arm, outcome

CPU = torch.device("cpu")


def rows(split: data.Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.x}


def test_splits_have_the_sizes_asked_for_and_share_no_image():
    images = data.load(Data(train_size=300, valid_size=400), CPU)
    assert [len(images.train), len(images.valid), len(images.test)] == [300, 400, 797]
    assert images.shape == (1, 8, 8)
    # 1,797 digits hold no two equal images
    assert len(rows(images.train) | rows(images.valid) | rows(images.test)) == 1497


def test_all_images_that_validation_leaves_are_the_default():
    assert len(data.load(Data(valid_size=400), CPU).train) == 600


def test_without_validation_all_images_are_trained_on_and_stand_for_those_held_out():
    images = data.load(Data(valid_size=0), CPU)
    assert images.sizes == {"train": 1000, "valid": 0, "test": 797}
    assert len(rows(images.train)) == 1000
    assert images.valid is images.train


def test_a_run_that_holds_nothing_out_has_the_figures_of_its_training_images(tmp_path):
    found = outcome(arm(data={"name": "digits", "train_size": 100, "valid_size": 0}), tmp_path)
    assert found["valid_error"] == found["train_error"]
    assert found["examples"] == {"train": 100, "valid": 0, "test": 797}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"train": {"early_stopping": {"patience": 2}}},
            "train.early_stopping needs validation examples: set data.val",
        ),
        ({"auto_strength": {}}, "auto_strength needs validation examples: set data.valid_size to 1 or more"),
        ({"strengths": [0.1, 0.2], "regularizers": [{"penalty": "L1"}]}, "strengths are chosen by validation examples"),
    ],
)
def test_nothing_is_chosen_by_what_is_not_held_out(changes, line):
    with pytest.raises(UserError, match=line):
        arm(data={"name": "digits", "valid_size": 0}, **changes)


def test_the_mean_image_may_be_subtracted_without_a_division():
    raw, less = (data.load(Data(train_size=300, standardize=how), CPU) for how in (False, "mean"))
    mean = raw.train.x.double().mean(0)
    for part in ("train", "valid", "test"):
        expected = getattr(raw, part).x.double() - mean
        torch.testing.assert_close(getattr(less, part).x.double(), expected, atol=1e-6, rtol=0)


def test_exactly_the_fraction_of_labels_is_wrong():
    clean = data.load(Data(train_size=300), CPU)
    noisy = data.load(Data(train_size=300, label_noise=0.2), CPU)
    torch.testing.assert_close(noisy.train.x, clean.train.x)
    assert (noisy.train.y != clean.train.y).sum() == 60
    assert torch.equal(noisy.valid.y, clean.valid.y)


def test_wrong_labels_are_uniform_over_the_other_classes():
    y = torch.zeros(9000, dtype=torch.long)
    noisy = loading._corrupted(y, 1.0, 10, torch.Generator().manual_seed(0))
    counts = noisy.bincount(minlength=10)
    assert counts[0] == 0
    assert (counts[1:] - 1000).abs().max() < 5 * 1000**0.5


def test_the_seed_decides_the_split():
    first, again, other = (data.load(Data(train_size=300, seed=seed), CPU) for seed in (1, 1, 2))
    assert torch.equal(first.train.x, again.train.x)
    assert not torch.equal(first.train.x, other.train.x)
    assert torch.equal(first.test.y, other.test.y)


def test_a_larger_training_set_holds_the_smaller_one():
    few, more = (data.load(Data(train_size=size), CPU) for size in (100, 200))
    assert torch.equal(few.train.y, more.train.y[:100])
    assert torch.equal(few.valid.y, more.valid.y)


def test_pixels_are_normalized_by_the_training_images():
    images = data.load(Data(train_size=300), CPU)
    assert images.train.x.mean().abs() < 1e-6
    assert (images.train.x.std() - 1).abs() < 1e-6


def idx(sizes: tuple[int, ...], content: bytes) -> bytes:
    return struct.pack(f">HBB{len(sizes)}I", 0, 8, len(sizes), *sizes) + content


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.torchvision
def test_fashion_mnist_is_read_from_its_folder(raw, monkeypatch):
    for part, count in (("train", 30), ("t10k", 10)):
        pixels = bytes(range(count)) * 28 * 28
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx((count, 28, 28), pixels))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx((count,), bytes(i % 10 for i in range(count))))
    monkeypatch.setenv("TORCHREG_DATA", str(raw.parents[1]))
    images = data.load(Data(name="fashion_mnist", train_size=20, valid_size=5), CPU)
    assert [len(images.train), len(images.valid), len(images.test)] == [20, 5, 10]
    assert (images.shape, images.task.outputs) == ((1, 28, 28), 10)
    assert images.test.y.tolist() == list(range(10))


def written(folder, names, images, labels, sizes):
    """Files of ten training and five test images, whose pixels tell their number."""
    folder.mkdir(parents=True)
    for name, count in zip(names, (10, 5), strict=True):
        pixels = np.arange(count, dtype=np.uint8)[:, None, None] + np.zeros((28, 28), np.uint8)
        pixels[:, 0, 1] = 255  # above the diagonal
        (folder / images.format(name)).write_bytes(idx((count, 28, 28), pixels.tobytes()))
        (folder / labels.format(name)).write_bytes(sizes(count))


def bytes_of(count):
    return idx((count,), bytes(1 + i % 9 for i in range(count)))


def rows_of(count):
    """Eight numbers an image, of four bytes each, the first of them the class."""
    numbers = b"".join(struct.pack(">8i", 1 + i % 9, *[7] * 7) for i in range(count))
    return struct.pack(">HBBII", 0, 12, 2, count, 8) + numbers


FAMILY = {
    "kmnist": ("KMNIST", {}, ("train", "t10k"), "{}-images-idx3-ubyte", "{}-labels-idx1-ubyte", bytes_of, 10),
    "qmnist": (
        "QMNIST",
        {},
        ("train", "test"),
        "qmnist-{}-images-idx3-ubyte",
        "qmnist-{}-labels-idx2-int",
        rows_of,
        10,
    ),
    "letters": (
        "EMNIST",
        {"name": "emnist", "split": "letters"},
        *(
            ("train", "test"),
            "emnist-letters-{}-images-idx3-ubyte",
            "emnist-letters-{}-labels-idx1-ubyte",
            bytes_of,
            26,
        ),
    ),
    "balanced": (
        "EMNIST",
        {"name": "emnist"},
        *(
            ("train", "test"),
            "emnist-balanced-{}-images-idx3-ubyte",
            "emnist-balanced-{}-labels-idx1-ubyte",
            bytes_of,
            47,
        ),
    ),
}


@pytest.mark.torchvision
@pytest.mark.parametrize("name", FAMILY)
def test_the_likes_of_mnist_are_read_from_their_folder(tmp_path, name):
    folder, settings, names, images, labels, sizes, classes = FAMILY[name]
    written(tmp_path / folder / "raw", names, images, labels, sizes)
    found = data.load(Data(**{"name": name, **settings}, root=str(tmp_path), valid_size=2, standardize=False), CPU)
    assert found.sizes == {"train": 8, "valid": 2, "test": 5}
    assert (found.shape, found.task.outputs, len(found.labels)) == ((1, 28, 28), classes, classes)
    first = 0 if name == "letters" else 1  # letters are counted from 1
    assert found.test.y.tolist() == [first + i for i in range(5)]
    assert (found.test.x[:, 0, 5, 5] * 255).round().tolist() == [0, 1, 2, 3, 4]
    at = (1, 0) if folder == "EMNIST" else (0, 1)  # EMNIST's images lie on their side
    assert found.test.x[:, 0, *at].eq(1).all()
    assert found.labels[first] == {"kmnist": "ki", "qmnist": "1", "letters": "a", "balanced": "1"}[name]


@pytest.mark.torchvision
def test_cifar10_is_read_from_its_folder(tmp_path, monkeypatch):
    from torchvision import datasets

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)
    for number, (name, _) in enumerate(datasets.CIFAR10.train_list + datasets.CIFAR10.test_list):
        pixels = np.zeros((2, 3, 32, 32), np.uint8)
        pixels[:, 2, 4, 7] = 10 * number
        batch = {"data": pixels.reshape(2, -1), "labels": [number, 9]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    found = data.load(Data(name="cifar10", root=str(tmp_path), valid_size=4, standardize=False), CPU)
    assert (found.shape, found.task.outputs, found.sizes) == ((3, 32, 32), 10, {"train": 6, "valid": 4, "test": 2})
    assert found.test.y.tolist() == [5, 9]
    assert (found.test.x[0, :, 4, 7] * 255).round().tolist() == [0, 0, 50]


@pytest.mark.torchvision
@pytest.mark.parametrize("name", ["emnist", "qmnist", "cifar10"])
def test_damaged_files_of_the_others_are_told_in_one_line(tmp_path, monkeypatch, name):
    from torchvision import datasets

    def offline(*_, **__):
        raise OSError("no route to host")

    for module in (datasets.mnist, datasets.cifar):
        monkeypatch.setattr(module, "download_and_extract_archive", offline)
    with pytest.raises(UserError, match=rf"{name} is not in .* downloaded there \(no route to host\)") as error:
        data.load(Data(name=name, root=str(tmp_path / "data")), CPU)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
    if name != "cifar10":
        folder = tmp_path / name.upper() / "raw"
        folder.mkdir(parents=True)
        for file in ("images-idx3-ubyte", "labels-idx1-ubyte", "labels-idx2-int"):
            for part in ("train", "test"):
                (folder / f"{'qmnist' if name == 'qmnist' else 'emnist-balanced'}-{part}-{file}").write_bytes(b"no")
        with pytest.raises(UserError, match=f"data.root: {name} is not in"):
            data.load(Data(name=name, root=str(tmp_path)), CPU)


@pytest.mark.torchvision
@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (idx((3, 2, 2), bytes(11)), "must hold 28 bytes, got 27"),
        (idx((3, 2, 2), bytes(13)), "must hold 28 bytes, got 29"),
        (b"\0\0", "must be an IDX file, is not one"),
        (b"<html>not found</html>", "is damaged"),
        (b"", "must be an IDX file, is not one"),
    ],
    ids=["truncated", "too long", "too short for a header", "a web page", "empty"],
)
def test_a_damaged_file_is_named(raw, content, fault):
    (raw / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(UserError, match="train-images-idx3-ubyte is damaged") as error:
        data.load(Data(name="fashion_mnist", root=str(raw.parents[1])), CPU)
    assert fault in str(error.value)


@pytest.mark.torchvision
@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"train-images": idx((30, 784), bytes(30 * 784))}, "train-images-idx3-ubyte is damaged: must be an IDX file"),
        ({"train-images": b"\0\0\x0d\3" + idx((1, 1, 1), b"0")[4:]}, "must be an IDX file, is not one of bytes"),
        ({"train-images": idx((0, 28, 28), b"")}, "must hold images, has the sizes (0, 28, 28)"),
        ({"train-images": idx((4, 0, 28), b"")}, "must hold images, has the sizes (4, 0, 28)"),
        ({"train-labels": idx((31,), bytes(31))}, "must hold a label for each of the 30 images, got 31"),
        ({"t10k-labels": idx((9,), bytes(9))}, "must hold a label for each of the 10 images, got 9"),
        ({"train-labels": idx((30,), bytes([10] * 30))}, "must hold labels from 0 to 9, got 10"),
        ({"t10k-labels": idx((10,), bytes([255] * 10))}, "must hold labels from 0 to 9, got 255"),
        ({"t10k-labels": idx((10, 1), bytes(10))}, "must be an IDX file, is not one of bytes in 1 dimensions"),
        ({"t10k-images": idx((10, 14, 14), bytes(1960))}, "must hold images of one size with those to train on"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_are_malformed_or_do_not_fit_together_are_named(raw, files, fault):
    whole = {"train-images": idx((30, 28, 28), bytes(30 * 784)), "train-labels": idx((30,), bytes(30))}
    whole |= {"t10k-images": idx((10, 28, 28), bytes(7840)), "t10k-labels": idx((10,), bytes(10))}
    for name, content in {**whole, **files}.items():
        (raw / f"{name}-idx{3 if 'images' in name else 1}-ubyte").write_bytes(content)
    with pytest.raises(UserError, match="ubyte is damaged") as error:
        data.load(Data(name="fashion_mnist", root=str(raw.parents[1]), valid_size=5), CPU)
    assert fault in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.torchvision
def test_a_folder_in_the_place_of_a_file_is_named(raw):
    (raw / "train-images-idx3-ubyte").mkdir()
    with pytest.raises(UserError, match="train-images-idx3-ubyte cannot be read: Is a directory"):
        data.load(Data(name="fashion_mnist", root=str(raw.parents[1])), CPU)


@pytest.mark.torchvision
def test_another_file_of_the_right_size_fails_its_checksum(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(idx((4,), bytes(4)))
    with pytest.raises(UserError, match="must have the MD5 checksum 27ae3e4e09519cfbb04c329615203637"):
        data.load(Data(name="mnist", root=str(tmp_path)), CPU)


@pytest.mark.torchvision
def test_files_that_are_missing_and_cannot_be_downloaded(tmp_path, monkeypatch):
    from torchvision import datasets

    def offline(self):
        (tmp_path / "data" / "MNIST" / "raw").mkdir(parents=True)
        raise RuntimeError("no route to host")

    monkeypatch.setattr(datasets.MNIST, "download", offline)
    said = r"mnist is not in .*: set data.root or .* MNIST.raw; it cannot be downloaded there \(no route to host\)\Z"
    with pytest.raises(UserError, match=said):
        data.load(Data(name="mnist", root=str(tmp_path / "data")), CPU)
    assert list(tmp_path.iterdir()) == []


def test_without_torchvision_digits_work_and_mnist_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UserError, match=r"needs torchvision.*pip install --upgrade torch torchvision"):
        data.load(Data(name="mnist"), CPU)
    assert len(data.load(Data(train_size=10), CPU).train) == 10


@pytest.mark.mnist
def test_mnist_is_all_there():
    images = data.load(Data(name="mnist", train_size=1000, valid_size=5000), CPU)
    assert [len(images.train), len(images.valid), len(images.test)] == [1000, 5000, 10_000]
    assert images.shape == (1, 28, 28)
    # LeCun, Cortes, Burges: the test set holds 980 zeros, 1,135 ones and so on
    assert images.test.y.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]

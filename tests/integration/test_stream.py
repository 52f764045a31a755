"""Examples that are read anew each time: the same figures as in memory, resumed to the bit, and each fault told."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from experiments.errors import UserError
from experiments.running.study import run_study
from experiments.training.data import Stream, loading, stream
from experiments.training.record import Record
from tests.integration.own import loaded, picture, refused
from tests.integration.studies import CPU, small, stopped_after

HERE = "tests.integration.test_stream"
NUMBERS = {"class": f"{HERE}:Numbers"}


class Numbers(Dataset):
    """Vectors, of which the sum tells the target; ``fault`` at the 30th."""

    def __init__(self, kind: str = "classes", fault: str = "") -> None:
        self.x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)) + 10
        self.kind, self.fault = kind, fault

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int):
        x = self.x[i]
        y = int(x.sum() > 40) if self.kind == "classes" else float(x.sum())
        if i == 30 and self.fault:
            return {"shape": (x[:3], y), "no pair": x}[self.fault]
        return (x.numpy() if self.kind == "arrays" else x), y


def photos(folder, count=40):
    for i in range(count):
        picture(folder / ["cat", "dog"][i % 2] / f"{i}.png", value=40 + 3 * i)
    return {"name": "images", "path": str(folder)}


SOURCES = {
    "classes": {"class_": f"{HERE}:Numbers"},
    "regression": {"class_": f"{HERE}:Numbers", "args": {"kind": "numbers"}},
    "arrays": {"class_": f"{HERE}:Numbers", "args": {"kind": "arrays"}},
    "images": photos,
}


def source(name, tmp_path):
    settings = SOURCES[name]
    return settings(tmp_path / "photos") if callable(settings) else settings


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    """So that several batches, and workers, take part."""
    monkeypatch.setattr(stream, "_READ_AT_ONCE", 7)


@pytest.mark.torchvision
@pytest.mark.parametrize("standardize", [True, False, [2.0, 3.0]])
@pytest.mark.parametrize("name", SOURCES)
def test_a_stream_holds_what_is_in_memory(name, standardize, tmp_path):
    settings = {**source(name, tmp_path), "standardize": standardize}
    memory, streamed = (loaded(**settings, stream=is_streamed) for is_streamed in (False, True))
    assert streamed.text == memory.text
    for part in ("train", "valid", "test"):
        ours, theirs = getattr(streamed, part), getattr(memory, part)
        assert ours.is_streamed
        assert not theirs.is_streamed
        assert ours.x.shape == tuple(theirs.x.shape)
        torch.testing.assert_close(ours.x.clone(), theirs.x, rtol=1e-5, atol=1e-5)
        assert torch.equal(ours.y, theirs.y)
        for size in (1, 5, 1000):
            torch.testing.assert_close(torch.cat([x for x, _ in ours.in_order(size)]), ours.x.clone())
        positions = [torch.tensor([3, 0]), torch.tensor([5]), torch.tensor([1, 2, 4])]
        for (x, y), where in zip(ours.batches(positions), positions, strict=True):
            torch.testing.assert_close(x, theirs.x[where], rtol=1e-5, atol=1e-5)
            assert torch.equal(y, theirs.y[where])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_number_of_workers_changes_nothing(workers, monkeypatch):
    monkeypatch.setattr(stream, "_WORKERS", workers)
    found = loaded(**SOURCES["classes"], stream=True)
    assert torch.equal(torch.cat(list(found.train.x.in_order(4))), found.train.x.clone())


def made(folder, data, stop=None, resume=False, **train):
    """The history of a streamed or other study's only run."""
    settings = {"epochs": 4, "batch_size": 8, "checkpoint_seconds": 0.0, **train}
    model = {"name": "mlp", "hidden": [8], "dropout": {"name": "Dropout", "p": 0.2}}
    study = small(data=data, train=settings, model=model)
    run_study(study, folder, CPU, resume=resume)
    return Record(folder / "runs" / study.runs[0].folder).history


@pytest.mark.torchvision
@pytest.mark.parametrize("more", [{}, {"accumulate": 2}], ids=["", "accumulated"])
@pytest.mark.parametrize("name", ["classes", "regression", "images"])
def test_a_study_that_streams_ends_as_in_memory(name, more, tmp_path):
    data = {key.rstrip("_"): value for key, value in source(name, tmp_path).items()}
    ours, theirs = (made(tmp_path / str(wanted), {**data, "stream": wanted}, **more) for wanted in (True, False))
    assert len(ours) == 4
    for row, other in zip(ours, theirs, strict=True):
        for key in ("train_loss", "valid_loss", "test_loss"):
            assert row[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5)


def test_a_study_that_streams_resumes_bit_for_bit(tmp_path):
    data = {**NUMBERS, "stream": True}
    whole = made(tmp_path / "whole", data)
    with stopped_after(2):
        made(tmp_path / "cut", data)
    assert made(tmp_path / "cut", data, resume=True) == whole


def test_runs_that_stream_are_made_one_after_another(tmp_path, capsys):
    data = {**NUMBERS, "stream": True}
    study = small(data=data, seeds=[0, 1], train={"epochs": 1, "batch_size": 30, "stack": True})
    run_study(study, tmp_path, CPU)
    assert "one after another: data.stream: the members would read" in capsys.readouterr().err


@pytest.mark.torchvision
def test_what_does_not_fit_is_streamed_by_itself(tmp_path, monkeypatch):
    settings = photos(tmp_path)  # 40 images of 6 x 4 pixels of 4 bytes
    for free, is_streamed in ((7679, True), (7680, False)):
        monkeypatch.setattr(stream, "_free_memory", lambda free=free: free)
        loading._load.cache_clear()
        assert loaded(**settings).train.is_streamed == is_streamed
        assert not loaded(**settings, stream=False).train.is_streamed


def test_the_free_memory_is_known_here():
    assert 1e7 < stream._free_memory() < 1e14


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"class": f"{HERE}:Numbers", "args": {"fault": "shape"}},
            "data: all inputs must have one shape, got (4,) and (3",
        ),
        (
            {"class": f"{HERE}:Numbers", "args": {"fault": "no pair"}},
            "must have items (input, target), got Tensor at 30",
        ),
        ({"name": "csv", "path": "x.csv", "target": "y"}, "data: stream is for images and class, not for csv"),
        ({"name": "digits"}, "data: stream is for images and class, not for digits"),
    ],
)
def test_a_fault_in_a_stream_is_told(settings, line):
    assert line in refused(**settings, stream=True)


@pytest.mark.torchvision
@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_named(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "_WORKERS", workers)
    settings = photos(tmp_path)
    found = loaded(**settings, stream=True, standardize=False)
    for path in tmp_path.rglob("*.png"):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"data.path: .*\.png cannot be read as an image") as error:
        list(found.train.x.in_order(5))
    assert "\n" not in str(error.value)


def test_strengths_are_not_tuned_on_a_stream():
    study = small(
        data={**NUMBERS, "stream": True},
        regularizers=[{"penalty": "L2", "strength": 0.1}],
        auto_strength={},
    )
    with pytest.raises(UserError, match=r"auto_strength: needs validation examples in memory, .* data.stream = false"):
        run_study(study, None, CPU)


def test_moments_are_those_of_numpy():
    values = np.random.default_rng(0).normal(1e4, 1.0, (23, 4)).astype(np.float32)

    class Rows:
        identity = ""

        def __len__(self):
            return len(values)

        def __getitem__(self, i):
            return torch.from_numpy(values[i])

    means, deviations = Stream.of(Rows()).measured()
    np.testing.assert_allclose(means, values.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(deviations, values.astype(np.float64).std(0, ddof=1), rtol=1e-9)

"""Training images that are altered at random."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from experiments.config import Data
from experiments.errors import UserError
from experiments.running import rehearsal
from experiments.running.study import run_study
from experiments.training import build, data
from tests.integration.studies import CPU, TREE, kill, outcome, small

ROOT = Path(__file__).parents[2]

ROOT = Path(__file__).parents[2]


FLIP = {"name": "RandomHorizontalFlip", "p": 1.0}


def augmented(**settings):
    found = data.load(Data(train_size=40, **settings), CPU)
    return found, build.augmentation(Data(train_size=40, **settings), found)


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
        rehearsal.check(small(data={"valid_size": 20, **settings}))
    assert f"arms[none].{line}" in str(error.value)
    assert "\n" not in str(error.value)

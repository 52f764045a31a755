"""Folders are named so that every system takes them, and as before where that was so."""

import re

import pytest

from experiments import config
from experiments.config.names import folder_name, slug
from experiments.errors import UserError

STUDY = {
    "name": "names",
    "data": {"train_size": 50, "valid_size": 50},
    "model": {"name": "mlp", "hidden": [8]},
    "optimizer": {"name": "SGD", "lr": 0.1},
    "train": {"epochs": 1, "batch_size": 25},
}
L1 = {"regularizers": [{"penalty": "L1"}]}
DEVICES = ["CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in "0123456789¹²³")]


def windows_takes(name: str) -> bool:
    """Microsoft's rules, "Naming Files, Paths, and Namespaces"."""
    if re.search(r'[<>:"/\\|?*\x00-\x1f]|[. ]$', name) or len(name) > 255:
        return False
    return name != "" and name.split(".")[0].rstrip(" ").upper() not in DEVICES


def places(arms: list[dict], **more: object) -> list[str]:
    return list(dict.fromkeys(run.place for run in config.resolve({**STUDY, "arms": arms, **more}).runs))


@pytest.mark.parametrize(
    "name",
    [
        *DEVICES,
        "aux.tar.gz",
        "Nul.",
        "con..",
        "con .x",
        "ends with a dot.",
        "ends with a space ",
        "...",
        '<>:"/\\|?*',
        "ä" * 80,
        "字" * 80,
    ],
)
def test_every_system_takes_the_folders_of_any_name(name):
    for place in (folder_name(slug(name)), *places([{"name": name, "strengths": [0.1, 1.0], **L1}])):
        assert windows_takes(place), place
        assert len(place.encode()) <= 255  # Linux counts bytes


def test_the_checker_knows_microsofts_rules():
    assert not any(map(windows_takes, ["con", "Aux.txt", "a.", "a ", "a:b", "COM¹", "x" * 256, ""]))
    assert all(map(windows_takes, ["con_", "contrast", "a.b", "com10", "L1@0.1"]))


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("none", "none"),
        ("L2, far too strong", "L2_far_too_strong"),
        ("dropout + L2", "dropout_+_L2"),
        ("L1, 95 % zeros", "L1_95_zeros"),
        (".hidden", "hidden"),
        ("ä" * 80, "ä" * 80),
        ("contrast", "contrast"),
        ("com10", "com10"),
        ("lpt", "lpt"),
        ("null", "null"),
        ("v1.5", "v1.5"),
        ("x.con", "x.con"),
    ],
)
def test_names_that_were_fine_stay(name, folder):
    assert places([{"name": name}]) == [folder]
    assert places([{"name": name, "strengths": [0.0, 1e-05], **L1}]) == [f"{folder}@0", f"{folder}@1e-05"]


def test_long_points_keep_the_folders_that_they_had():
    name = "tests.integration.test_config:" + "ü" * 120
    space = {"model.class": [name], "optimizer.lr": [0.5]}
    (place,) = places([{"name": "a"}], sweep={"space": space}, model={"class": "torch.nn:Linear"})
    assert place == "a/model.class=tests.integration.test_config_" + "ü" * 78 + "-99a0902ad780"  # sha256 of the whole


def test_long_names_that_begin_the_same_stay_apart():
    letters = "\N{MATHEMATICAL BOLD CAPITAL A}" * 79  # four bytes each, so that 255 of them end before the last letter
    assert len(set(places([{"name": letters + end, "strengths": [0.1, 0.2], **L1} for end in "xy"]))) == 4


@pytest.mark.parametrize(("one", "other"), [("aux", "AUX_"), ("a.", "a_"), ("A", "a"), ("a:b", "a?b")])
def test_names_that_would_share_a_folder_are_refused(one, other):
    with pytest.raises(UserError, match="arms: must be distinct"):
        places([{"name": one}, {"name": other}])

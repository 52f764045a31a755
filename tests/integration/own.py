"""Data of a user: tables, pictures, and what is said of them."""

from pathlib import Path

import pytest
from PIL import Image

from experiments import config
from experiments.config import Data
from experiments.errors import UserError
from experiments.training import data
from tests.integration.studies import CPU, TREE


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


def picture(path: Path, size=(6, 4), mode="L", value=100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 255)).save(path)

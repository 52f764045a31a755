"""What the README shows, runs: its Python, its table of parameters, its study."""

import re
import tomllib
from pathlib import Path

import torch

from experiments import config
from experiments.running import search, study

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_python_runs_and_prints_the_table_that_is_shown(capsys):
    names: dict = {"x": torch.randn(4, 784), "y": torch.zeros(4, dtype=torch.long)}
    for block in blocks("python"):
        exec(block, names)  # one after another, as a reader would
    table = capsys.readouterr().out
    assert table.startswith("Regularizer(mode='prox'")
    assert f"```\n{table.split('strength_path:')[0]}```" in README  # which tells how it has trained, and differs


def test_the_study_builds_with_and_without_the_search_below_it():
    alone, below = blocks("toml")
    study.check(config.resolve(tomllib.loads(alone)))
    searched = config.resolve(tomllib.loads(alone + below))
    study.check(searched)
    search.check(searched.sweep)


def test_nothing_is_left_to_fill_in():
    assert "@@" not in README

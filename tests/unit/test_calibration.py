"""Every layer drops as often as it says, and keeps the mean."""

import math
from pathlib import Path

import pytest
import torch
from torch import Generator

from tests.calibration import LAYERS, NORMAL, RATES, SIGMAS, Row, rows
from torchreg.nn import DropBlock2d

ROWS = list(rows())
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.layer}, {row.p:g}")


@each_row
def test_the_realized_rate_is_the_nominal_one(row: Row):
    if row.rate is not None:
        assert row.rate == pytest.approx(row.p, abs=row.rate_bound)
        assert row.rate_bound < 0.02


@each_row
def test_the_mean_is_kept(row: Row):
    if not math.isnan(row.mean):
        assert row.mean == pytest.approx(1, abs=row.mean_bound)


@each_row
def test_the_variance_is_that_of_dropout(row: Row):
    if row.variance is not None:
        assert row.variance == pytest.approx(1, rel=0.06)


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("kind", NORMAL.values(), ids=NORMAL.keys())
def test_alpha_dropout_keeps_mean_and_variance_of_normal_inputs(kind, p):
    x = torch.randn(1000, 1000, generator=Generator().manual_seed(0))
    y = kind(p, generator=Generator().manual_seed(1))(x).double()
    assert abs(y.mean().item()) < SIGMAS / 1000
    assert y.var().item() == pytest.approx(1, abs=0.01)


def test_drop_blocks_of_7_on_14_x_14_drop_30_percent_at_every_position():
    y = DropBlock2d(0.3, 7, generator=Generator().manual_seed(2))(torch.ones(1000, 64, 14, 14))
    dropped = (y == 0).double()
    assert dropped.mean().item() == pytest.approx(0.3, abs=0.001)
    by_position = dropped.mean((0, 1))
    assert (by_position - 0.3).abs().max().item() < SIGMAS * math.sqrt(0.21 / 64_000)


def test_the_table_in_the_docs_is_that_of_todays_layers():
    lines = (Path(__file__).parents[2] / "docs" / "calibration.md").read_text(encoding="utf-8").splitlines()
    named = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")][1:]
    assert list(dict.fromkeys(named)) == list(LAYERS)

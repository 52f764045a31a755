"""Optimizers of others: in each mode a penalty is right, or it is refused with advice; it is never wrong silently."""

import pytest

from tests.clients.optimizers import MODES, PAGE, RIGHT, ROWS, outcome, page
from torchreg.regularizer import regularizer

pytestmark = pytest.mark.clients
BY_ID = {row.id: row for row in ROWS}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BY_ID)
def test_a_penalty_under_it_is_right_or_refused(name, mode):
    row = BY_ID[name]
    pytest.importorskip(row.module.split(".")[0])
    assert outcome(row, mode) == row.expected[MODES.index(mode)]


def test_the_page_shows_what_is_expected():
    expected = {(row.id, mode): cell for row in ROWS for mode, cell in zip(MODES, row.expected, strict=True)}
    assert PAGE.read_text(encoding="utf-8") == page(expected), "python -m tests.clients.optimizers"


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("pytorch_optimizer.SAM", "decoupled"),
        ("pytorch_optimizer.FTRL", "decoupled"),
        ("pytorch_optimizer.FTRL", "prox"),
    ],
)
def test_without_the_check_the_same_measurement_finds_the_fault(name, mode, monkeypatch):
    pytest.importorskip("pytorch_optimizer")
    monkeypatch.setattr(regularizer, "check_steps", lambda *_: None)
    assert outcome(BY_ID[name], mode) not in (RIGHT, BY_ID[name].expected[MODES.index(mode)])

"""Studies whose strengths are tuned in training: recorded each epoch, told in the report, with what they cost."""

import pytest

from experiments.config import resolve
from experiments.errors import UserError
from experiments.report import summarize
from experiments.report.page import row, table
from experiments.running import rehearsal
from experiments.running.sweep import run_sweep
from tests.integration.studies import CPU, TREE, arm, history, outcome

TUNED = {"regularizers": [{"penalty": "L2", "strength": 1e-2, "mode": "decoupled"}], "auto_strength": {"lr": 0.2}}


def test_the_strength_moves_and_is_recorded_each_epoch(tmp_path):
    rows = history(arm(**TUNED), tmp_path)
    strengths = [found["strengths"]["L2"] for found in rows]
    assert len({*strengths, 1e-2}) == 5
    assert summarize(tmp_path).cells[0].strength == pytest.approx(strengths[-1], rel=1e-12)


def test_without_it_the_bits_are_those_of_a_fixed_strength(tmp_path):
    fixed = outcome(arm(regularizers=TUNED["regularizers"]), tmp_path / "fixed")
    held = {**TUNED, "auto_strength": {"bounds": [1e-2, 1e-2]}}
    still = outcome(arm(**held), tmp_path / "held")
    tuned = outcome(arm(**TUNED), tmp_path / "tuned")
    assert still["sha256"] == fixed["sha256"] != tuned["sha256"]
    assert "strengths" not in fixed


def test_a_search_shows_what_tuning_has_found_and_what_each_way_costs(tmp_path):
    searched = {"name": "L2", "regularizers": [{"penalty": "L2", "mode": "decoupled"}]}
    tree = {
        **TREE,
        "sweep": {"arms": ["L2"], "space": {"regularizers.0.strength": [0.1, 1.0, 10.0]}},
        "arms": [{"name": "none"}, searched, {"name": "tuned", **TUNED}],
    }
    run_sweep(resolve(tree), tmp_path, CPU)
    summary = summarize(tmp_path)
    rows = {cells[0]: cells for cells in (row(cell, summary) for cell in summary.chosen)}
    tuned = next(cell for cell in summary.cells if cell.arm == "tuned")
    assert rows["tuned"][1] == f"{tuned.strength:.4g}"
    assert rows["none"][-1] == "1.0x"
    plain, spent = summary.plain.seconds, sum(cell.seconds for cell in summary.cells if cell.arm == "L2")
    assert rows["L2"][-1] == f"{spent / plain:.1f}x"
    assert "cost" in table(summary).splitlines()[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auto_strength": {}}, "auto_strength: needs a regularizer to tune, got none"),
        ({**TUNED, "regularizers": [{"penalty": "L2", "strength": 0.1}]}, "auto_strength: .*mode must be .*got 'loss'"),
        ({**TUNED, "regularizers": [{"penalty": "L2", "strength": 0.0, "mode": "prox"}]}, "strength must be > 0"),
        ({**TUNED, "auto_strength": {"bounds": [1.0, 0.1]}}, "auto_strength: .*bounds must be"),
        ({**TUNED, "auto_strength": {"lr": 0.0}}, "auto_strength.lr: "),
        ({**TUNED, "auto_strength": {"speed": 1}}, "auto_strength.speed: unknown key"),
    ],
)
def test_a_mistake_is_told_before_anything_is_trained(changes, message):
    with pytest.raises(UserError, match=message):
        rehearsal.check(arm(**changes))

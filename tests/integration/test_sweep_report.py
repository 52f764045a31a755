"""What the report makes of a search: the point that it chooses, and its pictures."""

import numpy as np
import pytest

from experiments.report import page as report
from experiments.report.cells import Cell, best_of, one_standard_error
from experiments.report.summary import summarize
from experiments.running.sweep import run_sweep
from tests.integration.studies import CPU, L1, STRENGTH, TREE, small, swept


def cells(errors: dict[float, list[float]], valid_size: int = 100) -> list[Cell]:
    """Made-up points: a strength and the validation errors of its seeds."""
    found = []
    for strength, values in errors.items():
        arm = {"name": "L2", "strengths": [strength], "regularizers": [{"penalty": "L2"}]}
        data = {**TREE["data"], "valid_size": valid_size}
        runs = small(arms=[arm], seeds=list(range(len(values))), data=data).runs
        found.append(Cell(runs, [{"status": "done", "valid_error": e, "valid_loss": e} for e in values]))
    return found


@pytest.mark.parametrize(
    ("errors", "metric", "expected"),
    [
        # Seeds .10 .12 .14, on the same 100 images: mean .12, SE sqrt(.12 * .88 / 100) = .0325; the limit is .1525.
        ({0.1: [0.2] * 3, 1.0: [0.10, 0.12, 0.14], 2.0: [0.152] * 3, 3.0: [0.153] * 3}, "valid_error", 2.0),
        ({0.1: [0.121] * 3, 1.0: [0.10, 0.12, 0.14], 2.0: [0.2] * 3}, "valid_error", 1.0),  # never the weaker side
        ({1.0: [0.10, 0.12, 0.14], 2.0: [0.2] * 3, 3.0: [0.13] * 3}, "valid_error", 3.0),  # nor the next one only
        # One seed: sqrt(.1 * .9 / 100) = .03; the limit is .13.
        ({1.0: [0.1], 2.0: [0.1299], 3.0: [0.1301]}, "valid_error", 2.0),
        ({1.0: [0.1], 2.0: [0.1001]}, "valid_loss", 1.0),  # a loss of one seed has no known error
        # Losses .10 .12 .14: SD .02, SE .02 / sqrt(3) = .0115; the limit is .1315.
        ({1.0: [0.10, 0.12, 0.14], 2.0: [0.131] * 3, 3.0: [0.132] * 3}, "valid_loss", 2.0),
    ],
    ids=["seeds", "stronger", "strongest", "binomial", "loss", "losses"],
)
def test_the_strongest_within_one_standard_error_is_that_by_hand(errors, metric, expected):
    tried = cells(errors)
    assert one_standard_error(tried, best_of(tried, metric), metric).strength == expected


STRENGTHS = swept(
    {STRENGTH: {"low": 1e-3, "high": 10.0, "log": True, "count": 5}},
    [{"name": "none"}, L1],
    [0, 1],
    arms_searched=["L1"],
)


@pytest.fixture(scope="module")
def strengths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strengths")
    run_sweep(STRENGTHS, folder, CPU)
    return folder


def test_a_search_over_a_strength_has_a_row_for_the_best_and_one_for_the_strongest_that_may_be_as_good(strengths):
    summary = summarize(strengths)
    path = summary.paths[0]
    errors = np.array([[result["valid_error"] for result in cell.results] for cell in path])
    best = max(i for i in range(5) if errors[i].mean() == errors.mean(axis=1).min())
    lowest = errors[best].mean()
    limit = lowest + np.sqrt(lowest * (1 - lowest) / STRENGTHS.runs[0].data.valid_size)
    strongest = max(i for i in range(5) if errors[i].mean() <= limit)
    expected = [path[best].strength] + ([path[strongest].strength] if strongest != best else [])
    assert [cell.strength for cell in summary.chosen] == [None, *expected]
    heads, _, *rows = report.table(summary).splitlines()
    assert heads.split()[:5] == ["arm", "strength", "valid", "error", "%"]
    assert rows[0].startswith("none")
    assert ("L1, one SE" in report.table(summary)) == (strongest != best)


def test_the_page_has_the_paths_of_a_single_number(strengths):
    page = report.write_page(summarize(strengths), strengths).read_text()
    assert "Along the strength" in page
    for text in ("validation error", "norm of the weights", "exact zeros", "best: ", "linear1.weight", "All 5 points"):
        assert f">{text}" in page


def test_the_page_has_a_picture_for_each_of_several_keys(tmp_path):
    space = {
        "optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True},
        "model.hidden": [[4], [8, 8]],
        STRENGTH: [0.0, 1],
    }
    run_sweep(swept(space, [L1], trials=6, metric="valid_loss"), tmp_path, CPU)
    summary = summarize(tmp_path)
    page = report.write_page(summary, tmp_path).read_text()
    assert "Every point that was tried" in page
    assert "Along the" not in page
    for text in ("lr", "hidden", "strength", "[8, 8]", "validation loss"):
        assert f">{text}<" in page
    lowest = min(summary.cells, key=lambda cell: cell.mean("valid_loss").mean)
    assert [cell.point for cell in summary.chosen] == [lowest.point]

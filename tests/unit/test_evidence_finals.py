"""The measures of final models: their errors, what is left of them, and strengths that were tuned in one run."""

import pytest

from experiments.config.published import Finals, Tuned
from experiments.report.cells import Cell
from experiments.report.evidence.measures import of_finals, of_tuned
from tests.unit.test_evidence import cell_of, checks, of_seed


def tuned(error, loss, seconds=2.0):
    grid = [
        cell_of("net", s, test_error=e, valid_error=v, test_loss=e, seconds=1.0)
        for s, e, v in ((0.1, 0.20, 0.3), (0.2, 0.30, 0.2), (0.4, 0.10, 0.4))
    ]
    cell = cell_of("net, tuned", changes={"optimizer": {"weight_decay": 0.3}}, test_error=error, test_loss=loss)
    cell = Cell(cell.runs, [{**row, "seconds": seconds} for row in cell.results])
    return of_tuned(Tuned(), {"net": grid, "net, tuned": [cell]}, "valid_error")


def test_a_tuned_strength_is_held_against_the_grids_best_by_validation():
    """That has error 0.3; differences 0, 0.01, 0.02 have the mean 0.01 and the standard error 0.01 / sqrt(3)."""
    assert checks(tuned((0.29, 0.30, 0.28), (0.3, 0.3, 0.3), 2.0)) == [
        ("1 of 1 settings", True),
        ("1 of 1 settings", True),
        ("at most 2.00 runs", True),
    ]
    assert [reached for _, reached in checks(tuned((0.30, 0.31, 0.32), (0.1, 0.2, 0.1), 2.1))] == [True, False, False]
    assert [reached for _, reached in checks(tuned((0.30, 0.30, 0.301), (0.3, 0.3, 0.3)))] == [True, True, True]


def test_a_tuned_loss_and_time_at_the_limit_are_within_it():
    """0.1 + 0.2 is more than 0.3, and the standard error 0."""
    assert checks(tuned(0.3, 0.1 + 0.2, 2 * (0.1 + 0.2) / 0.3)) == [
        ("1 of 1 settings", True),
        ("1 of 1 settings", True),
        ("at most 2.00 runs", True),
    ]


@pytest.mark.parametrize(("seeds", "said"), [((0, 0), "one seed: no standard error"), ((0, 1), "no seed in common")])
def test_arms_of_one_seed_are_not_called_unfinished(seeds, said):
    first, second = seeds
    pair = {"a": [of_seed(cell_of("a", 0.1, test_loss=1.0), first)]}
    pair["a, tuned"] = [of_seed(cell_of("a, tuned", test_loss=1.0), second)]
    assert checks(of_tuned(Tuned(), pair, "valid_error"))[:2] == [(said, None)] * 2


def finals_of(settings, **cells):
    return checks(
        of_finals(Finals.model_validate(settings), {name: [cell] for name, cell in cells.items()}, "valid_error")
    )


def test_arms_without_a_seed_in_common_cannot_be_compared():
    pair = {"a": of_seed(cell_of("a"), 0), "b": of_seed(cell_of("b"), 1)}
    assert finals_of({"lower": [{"arm": "a", "than": "b"}]}, **pair) == [("no seed in common", None)]


def test_a_limit_that_is_met_exactly_is_met():
    """100 * 0.0057 is more than 0.57, and 1.1 - 0.1 less than 1."""
    assert finals_of({"at_most": {"a": 0.57}}, a=cell_of("a", test_error=0.0057)) == [("0.57 %", True)]
    pair = {"a": cell_of("a", test_error=0.0010), "b": cell_of("b", test_error=0.0110)}
    assert finals_of({"lower": [{"arm": "a", "than": "b", "by": 1.0}]}, **pair) == [("1.00 points", True)]
    small = cell_of("a", compression={"weights": 3 * 1.1, "bytes": 16_113})
    assert finals_of({"compression": {"a": 3.3}, "bytes": {"a": 16_113}}, a=small) == [("3.3", True), ("16113", True)]
    less = cell_of("a", compression={"weights": 0.3, "bytes": 16_114})
    assert finals_of({"compression": {"a": 0.1 + 0.2}, "bytes": {"a": 16_113}}, a=less) == [
        ("0.3", True),
        ("16114", False),
    ]


def test_an_equal_error_is_not_lower():
    """The same errors in another order of seeds differ by rounding alone."""
    pair = {"a": cell_of("a", test_error=(0.1, 0.2, 0.3)), "b": cell_of("b", test_error=(0.3, 0.1, 0.2))}
    assert finals_of({"lower": [{"arm": "a", "than": "b"}]}, **pair)[0][1] is False
    assert finals_of({"lower": [{"arm": "b", "than": "a"}]}, **pair)[0][1] is False
    assert finals_of({"order": ["a", "b"]}, **pair) == [("a = b", False)]
    assert finals_of({"order": ["b", "a"]}, **pair)[0][1] is False


def test_a_model_without_weights_is_no_success():
    nothing = cell_of("a", compression=({"weights": None, "bytes": 40}, *[{"weights": 2.0, "bytes": 80}] * 2))
    told = ("no weight is left", False)
    assert finals_of({"compression": {"a": 2.0}, "bytes": {"a": 100}}, a=nothing) == [told, told]


def test_a_record_without_a_count_does_not_tell():
    cells = cell_of("a"), cell_of("a", compression={"weights": 2.0, "bytes": None})
    told = ("its records do not tell", None)
    assert finals_of({"compression": {"a": 2.0}, "bytes": {"a": 100}}, a=cells[0]) == [told, told]
    assert finals_of({"compression": {"a": 2.0}, "bytes": {"a": 100}}, a=cells[1]) == [("2.0", True), told]


@pytest.mark.parametrize(("most", "text"), [(0.5, "0.5"), (16_113, "16,113"), (10_000_001, "10,000,001")])
def test_a_limit_of_bytes_is_written_as_it_is(most, text):
    arms = {"a": [cell_of("a", compression={"weights": 2.0, "bytes": 10})]}
    (check,) = of_finals(Finals(bytes={"a": most}), arms, "valid_error").checks
    assert check.must == f"a: at most {text} bytes"


def test_final_errors_their_order_and_their_differences():
    arms = {
        "L2": [cell_of("L2", test_error=(0.016, 0.017, 0.018), compression={"weights": 1.0})],
        "dropout": [
            cell_of("dropout", test_error=(0.010, 0.012, 0.011), compression={"weights": 70.0, "bytes": 15_000})
        ],
    }
    tree = {
        "published": {"L2": 1.62, "dropout": 1.25},
        "order": ["L2", "dropout"],
        "at_most": {"dropout": 1.1, "L2": 1.6},
        "lower": [{"arm": "dropout", "than": "L2", "by": 0.6}],
        "compression": {"dropout": 68.0},
        "bytes": {"dropout": 16_113, "L2": 20_000},
    }
    found = of_finals(Finals.model_validate(tree), arms, "valid_error")
    assert checks(found) == [
        ("1.10 ± 0.06 %", True),
        ("1.70 ± 0.06 %", False),
        ("0.60 ± 0.06 points", True),
        ("70.0", True),
        ("15000", True),
        ("its records do not tell", None),
        ("L2 > dropout", True),
    ]
    tree["order"], tree["lower"] = ["dropout", "L2"], [{"arm": "L2", "than": "dropout"}]
    assert [check.is_reached for check in of_finals(Finals.model_validate(tree), arms, "valid_error").checks[2:]] == [
        *(False, True, True, None, False)
    ]

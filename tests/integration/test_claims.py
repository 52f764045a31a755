"""What a report claims and notes of arms, from made-up results: where it is shown, and where it is not."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from experiments.report import page as report
from experiments.report.cells import Cell, difference
from experiments.report.claims import compared, single_runs
from experiments.report.summary import Summary
from experiments.training.outcomes import packed, unpacked
from tests.integration.studies import small

L2 = {"penalty": "L2"}


def cell(
    name: str,
    train: float,
    test: float,
    spread: float = 0.0,
    sha256: str = "",
    seeds: Sequence[int] = (0, 1, 2),
    stack: int | None = None,
    **changes: Any,
) -> Cell:
    """A made-up arm of several seeds."""
    runs = small(arms=[{"name": name, **changes}], seeds=list(seeds)).runs
    errors = [(train + offset * spread, test + offset * spread) for offset in (-1, 0, 1)[: len(seeds)]]
    keys = ("train_error", "test_error", "valid_error", "status", "sha256", "stack")
    return Cell(runs, [dict(zip(keys, (*e, e[1], "done", sha256 or name, stack), strict=True)) for e in errors])


def with_outcomes(made: Cell, rate: float, seed: int) -> Cell:
    """The same arm, with made-up errors on 400 test images, which nearly agree over seeds."""
    draw = np.random.default_rng(seed)
    hard = draw.random(400) < rate
    sizes = {"train": 100, "valid": 100, "test": 400}
    rows = [
        {**row, "outcomes": {"test": packed(hard ^ (draw.random(400) < 0.01))}, "examples": sizes}
        for row in made.results
    ]
    return replace(made, results=rows)


def titles(*cells: Cell) -> list[str]:
    return [claim.title.split(",")[0] for claim in report.claims(Summary("made up", cells, 9, {}))]


NONE = cell("none", 0.0, 0.2)
PENALTY = {"regularizers": [{"penalty": "L2", "strength": 1.0}]}
OFF = {"regularizers": [{"penalty": "L2", "strength": 0.0}]}
DROPOUT = {"dropout": {"name": "Dropout", "p": 0.5}}


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (cell("better", 0.1, 0.1, **PENALTY), ["In between"]),
        (cell("dropout", 0.1, 0.1, model=DROPOUT), ["In between"]),
        (cell("decay", 0.1, 0.1, optimizer={"weight_decay": 1.0}), ["In between"]),
        (cell("better, but within its error", 0.1, 0.1, spread=0.15, **PENALTY), []),
        (cell("less gap, but no better", 0.1, 0.2, **PENALTY), []),
        (cell("under-fitted", 0.8, 0.9, **PENALTY), ["Too strong"]),
        (cell("no better, but not under-fitted", 0.0, 0.3, **PENALTY), []),
        (cell("another learning rate", 0.8, 0.9, optimizer={"lr": 1e-9}), []),
        (cell("other data", 0.1, 0.1, data={"label_noise": 0.0}, **PENALTY), []),
        (cell("off", 0.0, 0.2, sha256="none", **OFF), ["Strength 0 is the plain loss."]),
        (cell("off, and yet another", 0.0, 0.2, **OFF), ["Strength 0 is not the plain loss here!"]),
        (cell("off, in a stack", 0.0, 0.2, stack=4, **OFF), ["Strength 0 is the plain loss up to rounding."]),
        (cell("off, in a stack, and far away", 0.0, 0.3, stack=4, **OFF), ["Strength 0 is not the plain loss here!"]),
        (cell("off, with dropout", 0.0, 0.2, model=DROPOUT, **OFF), []),
    ],
    ids=lambda value: value.arm if isinstance(value, Cell) else "",
)
def test_a_claim_is_made_where_the_study_shows_it(other, expected):
    assert titles(NONE, other) == expected


def test_each_arm_is_compared_with_the_unregularized_one_of_its_data_and_network():
    more, wide = {"data": {"train_size": 120}}, {"model": {"hidden": [24]}}
    plains = [NONE, cell("none, more", 0.0, 0.4, **more), cell("none, wide", 0.0, 0.3, **wide)]
    others = [
        cell("L2", 0.1, 0.1, **PENALTY),
        cell("L2, more", 0.1, 0.3, **more, **PENALTY),
        cell("L2, wide", 0.1, 0.2, **wide, **PENALTY),
        cell("off, more", 0.0, 0.4, sha256="none, more", **more, **OFF),
        cell("L2, another rate", 0.1, 0.1, optimizer={"lr": 1e-9}, **PENALTY),
    ]
    summary = Summary("made up", [*plains, *others], 9, {})
    assert [summary.counterpart(one).arm for one in others] == [
        *("none", "none, more", "none, wide", "none, more"),
        "none",  # the first one, where none fits
    ]
    table = compared(summary)
    assert table.title == "Against the unregularized arms"
    assert [row[:2] for row in table.rows] == [
        ["none, wide less none", "+10.0"],  # another network on the same data
        ["L2 less none", "-10.0"],
        ["L2, more less none, more", "-10.0"],
        ["L2, wide less none, wide", "-10.0"],
        ["L2, another rate less none", "-10.0"],
    ]
    zero, between = report.claims(summary)
    assert zero.evidence == "off, more at strength 0 ends with the unregularized weights, bit for bit."
    assert "test error 20.0 %. L2: training error 10.0 %, test error 10.0 %." in between.evidence


@pytest.mark.parametrize("seeds", [[0], [0, 3, 4]], ids=["a single seed", "a single seed in common"])
@pytest.mark.parametrize("errors", [(0.1, 0.1), (0.8, 0.9)], ids=["better", "under-fitted"])
def test_a_single_seed_shows_no_difference(seeds, errors):
    assert len(titles(NONE, cell("several", *errors, **PENALTY))) == 1
    assert titles(NONE, cell("one", *errors, seeds=seeds, **PENALTY)) == []
    assert titles(cell("none", 0.0, 0.2, seeds=[0]), cell("one", *errors, seeds=[0], **PENALTY)) == []


def test_what_needs_no_standard_error_is_told_of_a_single_seed():
    off = cell("off", 0.0, 0.2, sha256="none", seeds=[0], **OFF)
    assert titles(cell("none", 0.0, 0.2, seeds=[0]), off) == ["Strength 0 is the plain loss."]


def of_regression(made: Cell, size: float) -> Cell:
    """The same arm with errors so many times as large, as root mean squared errors of 100 test examples."""
    keys = ("train_error", "test_error", "valid_error")
    sizes = {"train": 100, "valid": 50, "test": 100}
    rows = [{**row, **{key: size * row[key] for key in keys}} for row in made.results]
    return replace(made, results=[{**row, "task": "regression", "examples": sizes} for row in rows])


@pytest.mark.parametrize("size", [1e-3, 1.0, 500.0])
@pytest.mark.parametrize(
    ("plain", "other", "expected"),
    [
        ((0.1, 2.0), (0.8, 0.9), ["In between"]),
        ((0.1, 2.0), (1.6, 1.7), []),  # two standard errors by the examples: 2 sqrt((1.7^2 + 2^2) / 200) = .37 > .3
        ((0.9, 1.0), (2.0, 2.1), ["Too strong"]),
        ((0.9, 1.0), (1.1, 1.2), []),
    ],
)
def test_a_claim_about_a_regression_has_the_error_of_its_examples(plain, other, expected, size):
    none = of_regression(cell("none", *plain, spread=0.001), size)
    ours = of_regression(cell("other", *other, spread=0.001, **PENALTY), size)
    found = difference(ours, none, "test_error")
    limit = size * np.sqrt((other[1] ** 2 + plain[1] ** 2) / 200)
    assert found.of_images == pytest.approx(limit, rel=1e-9)
    assert titles(none, ours) == expected


def test_half_a_percent_of_an_rmse_is_claimed_and_less_is_not():
    for less, expected in ((0.0049, []), (0.0052, ["In between"])):
        none, ours = (
            of_regression(cell(name, 0.5, test, spread=1e-7, **changes), 1.0)
            for name, test, changes in (("none", 1.0, {}), ("other", 1.0 - less, PENALTY))
        )
        many = {"train": 100, "valid": 50, "test": 10**9}
        none, ours = (replace(one, results=[{**row, "examples": many} for row in one.results]) for one in (none, ours))
        assert titles(none, ours) == expected


def test_the_report_of_a_regression_is_in_units_of_the_target():
    none = of_regression(cell("none", 0.1, 2.0, spread=0.001), 30.0)
    other = of_regression(cell("other", 0.8, 0.9, spread=0.001, **PENALTY), 30.0)
    summary = Summary("made up", [none, other], 6, {})
    (claim,) = report.claims(summary)
    assert claim.evidence.startswith(
        "Unregularized: training RMSE 3.00 ± 0.02, test RMSE 60.00 ± 0.02. other: training RMSE 24.00 ± 0.02"
    )
    assert re.search(r"Test RMSE -33\.00 \(95 % interval -42\.\d\d to -23\.\d\d, 3 seeds\)\.$", claim.evidence)
    table = compared(summary)
    assert table.heads[1] == "test RMSE"
    assert table.text.startswith("Differences in units of the target, seed by seed.")
    assert table.rows[0][1] == "-33.00"
    assert table.rows[0][4] == f"{np.hypot(27, 60) / np.sqrt(200):.2f}"
    assert single_runs(summary) is None
    note = (
        f"By their 100 images, test RMSEs have a standard error of {27 / 200**0.5:.2f} to {60 / 200**0.5:.2f} besides."
    )
    assert note in summary.note


def test_arms_are_compared_seed_by_seed():
    # Seeds move both arms by .1, alike: unpaired, two standard errors are 2 sqrt(2) .1 / sqrt(3) = .163. Paired there
    # is the error of the 797 test images: 2 sqrt((.2 * .8 + .14 * .86) / 797) = .038, less than the difference of .06.
    plain, better = cell("none", 0.0, 0.2, spread=0.1), cell("better", 0.06, 0.14, spread=0.1, **PENALTY)
    assert titles(plain, better) == ["In between"]
    # The same, but the seed that is bad for one is good for the other.
    worse = cell("better", 0.06, 0.14, spread=-0.1, **PENALTY)
    assert titles(plain, worse) == []


def test_the_error_of_the_images_is_measured_where_records_tell_them():
    plain, better = with_outcomes(NONE, 0.2, seed=0), with_outcomes(cell("better", 0.1, 0.1, **PENALTY), 0.1, seed=1)
    wrong = [np.mean([unpacked(row["outcomes"]["test"]) for row in one.results], axis=0) for one in (better, plain)]
    expected = np.std(wrong[0] - wrong[1], ddof=1) / np.sqrt(400)
    assert difference(better, plain, "test_error").of_images == pytest.approx(expected, rel=1e-12)
    assert better.examples("test") == 400
    # A record of an earlier version tells none: then both arms count as if they erred on other images.
    limit = np.sqrt((0.1 * 0.9 + 0.2 * 0.8) / 797)
    old = cell("better", 0.1, 0.1, **PENALTY)
    assert difference(old, NONE, "test_error").of_images == pytest.approx(limit, rel=1e-9)
    assert old.examples("test") == 797
    mixed = replace(better, results=[*better.results[:2], old.results[2]])
    limit = np.sqrt((0.1 * 0.9 + 0.2 * 0.8) / 400)
    assert difference(mixed, plain, "test_error").of_images == pytest.approx(limit, rel=1e-9)


@pytest.mark.parametrize(("count", "expected"), [(1, ["In between"]), (20, [])])
def test_all_strengths_count_as_comparisons(count, expected):
    # t is 5.8 with two degrees of freedom: p = .028, which is too much if there are 20 more strengths without effect.
    better = cell("better", 0.05, 0.1, spread=0.03, data={"name": "mnist"}, **PENALTY)
    plain = cell("none", 0.0, 0.2, data={"name": "mnist"})
    assert difference(better, plain, "test_error").of_seeds == pytest.approx(0.03 / np.sqrt(3))
    others = [cell(f"no effect {i}", 0.0, 0.2, spread=0.1, data={"name": "mnist"}, **PENALTY) for i in range(count - 1)]
    assert titles(plain, better, *others) == expected
    summary = Summary("made up", [plain, better, *others], 9, {})
    table = compared(summary)
    assert [row[-1] for row in table.rows] == ["yes" if expected else "no", *["no"] * (count - 1)]
    low, high = stats.t.interval(0.95, 2, -10, 100 * 0.03 / np.sqrt(3))
    assert table.rows[0][1] == "-10.0"
    ends = [float(end) for end in table.rows[0][2].split(" to ")]
    assert ends[0] <= low
    assert ends[1] >= high  # the images come besides
    assert ends == pytest.approx([low, high], abs=0.2)


def test_single_runs_are_compared_by_mcnemars_test_and_nothing_is_claimed():
    runs = [cell("none", 0.0, 0.2, seeds=[0]), cell("better", 0.1, 0.1, seeds=[0], **PENALTY)]
    plain, better = with_outcomes(runs[0], 0.3, seed=0), with_outcomes(runs[1], 0.1, seed=1)
    summary = Summary("made up", [plain, better], 2, {})
    ours, theirs = (unpacked(one.results[0]["outcomes"]["test"]) for one in (better, plain))
    only = [int((ours & ~theirs).sum()), int((theirs & ~ours).sum())]
    p = stats.binomtest(only[0], sum(only)).pvalue
    assert single_runs(summary).rows == [["better", *map(str, only), f"{p:.2g}"]]
    assert p < 1e-6
    assert report.claims(summary) == []
    assert compared(summary) is None
    assert single_runs(Summary("made up", runs, 2, {})) is None  # of an earlier version


def test_the_note_tells_what_the_choice_and_the_test_set_cost():
    def at(strength: float, error: float) -> Cell:
        made = small(arms=[{"name": "L2", "strengths": [strength], "regularizers": [L2]}], seeds=[0, 1, 2]).runs
        rows = [
            {"status": "done", "valid_error": error, "test_error": 0.1, "train_error": 0.0, "norms": {}}
            for _ in range(3)
        ]
        return Cell(made, rows)

    near = 100 * np.sqrt((0.1 * 0.9 + 0.11 * 0.89) / 100) / np.sqrt(2 * np.pi)  # of two, 1 / sqrt(pi) times
    note = Summary("made up", [at(0.1, 0.1), at(0.2, 0.11), at(0.3, 0.9)], 9, {}).note
    assert f"lower than it is, by up to about {near:.1f} points (L2, 2 of 3 alike)." in note
    own = 100 * np.sqrt(0.1 * 0.9 / 797)
    assert f"By their 797 images, test errors have a standard error of {own:.1f} points besides." in note
    clear = Summary("made up", [at(0.1, 0.1), at(0.3, 0.9)], 6, {}).note
    assert "All others are clearly worse in that, so the choice does not bias it." in clear
    assert "choice" not in Summary("made up", [at(0.1, 0.1)], 3, {}).note


@pytest.mark.parametrize(("data", "expected"), [("digits", []), ("mnist", ["In between"])])
def test_the_error_of_the_test_images_counts(data, expected):
    # Two standard errors of .20 - .17 are .039 with 797 images, .011 with 10,000.
    data = {"data": {"name": data}}
    assert titles(cell("none", 0.0, 0.2, **data), cell("better", 0.1, 0.17, **data, **PENALTY)) == expected


@pytest.mark.parametrize(
    ("plain", "other"),
    [((0.367, 0.2), (0.28, 0.08)), ((0.3, 0.25), (0.1, 0.1)), ((0.1, 0.2), (0.25, 0.1))],
    ids=["further below 0", "from below 0", "as far on the other side"],
)
def test_a_gap_narrows_only_towards_0_and_from_above(plain, other):
    assert titles(cell("none", *plain), cell("other", *other, **PENALTY)) == []


def test_no_claim_is_made_without_an_unregularized_arm():
    assert titles(cell("a", 0.0, 0.2, **PENALTY), cell("b", 0.8, 0.9, **PENALTY)) == []


def with_strengths(name: str, *errors: float, regularizers: Sequence[Any] = (L2,)) -> list[Cell]:
    """An arm at strengths 0, 1, ... with these errors."""
    cells = []
    for i, error in enumerate(errors):
        made = small(arms=[{"name": name, "strengths": [float(i)], "regularizers": list(regularizers)}], seeds=[0, 1])
        row = {"status": "done", "valid_error": error, "test_error": error, "train_error": 0.0, "norms": {}}
        cells.append(Cell(made.runs, [row, row]))
    return cells


def test_the_note_tells_that_there_is_nothing_to_compare_with():
    alone = [*with_strengths("L2", 0.3, 0.2), *with_strengths("L1", 0.3, 0.1)]
    said = "No arm is without regularization, so there is none to compare the others with."
    assert said in Summary("made up", alone, 8, {}).note
    plain = Cell(small(arms=[{"name": "none"}], seeds=[0, 1]).runs, alone[0].results)
    assert said not in Summary("made up", [plain, *alone], 10, {}).note
    assert said not in Summary("made up", with_strengths("L2", 0.3, 0.2), 4, {}).note


def test_the_note_tells_of_arms_for_which_strength_0_was_chosen():
    cells = [*with_strengths("L2", 0.1, 0.2), *with_strengths("L1", 0.1, 0.2), *with_strengths("other", 0.3, 0.2)]
    note = Summary("made up", cells, 12, {}).note
    assert "L2, L1: strength 0 was chosen, which is no regularization." in note

"""The measures of published results, on figures whose outcome is known in closed form."""

import math
from types import SimpleNamespace

import pytest

from experiments.config import Published, resolve
from experiments.config.published import Finals, Onset, Peak, Slope, Tuned
from experiments.errors import UserError
from experiments.report.cells import Cell
from experiments.report.evidence.measures import measured, of_finals, of_onset, of_peak, of_slope, of_tuned
from experiments.report.summary import Summary

SEEDS = (0, 1, 2)
TEXTS = dict.fromkeys(("claim", "authors", "title", "where", "figures", "budget", "teaches", "uses"), "text")
TREE = {
    "name": "fake",
    "seeds": list(SEEDS),
    "data": {"name": "digits", "train_size": 100},
    "model": {"name": "mlp", "hidden": [4]},
    "optimizer": {"name": "AdamW", "lr": 1e-2},
    "train": {"epochs": 1, "batch_size": 30},
}


def cell_of(arm="arm", strength=None, histories=(), changes=None, **figures):
    """A finished cell; a figure is one number for each seed, or one for all."""
    own = {"name": arm, **(changes or {})}
    if strength is not None:
        own |= {"strengths": [strength]}
    runs = resolve({**TREE, "arms": [own]}).runs
    rows = [{key: value[i] if isinstance(value, tuple) else value for key, value in figures.items()} for i in range(3)]
    defaults = {"status": "done", "valid_error": 0.1, "test_error": 0.1, "train_error": 0.0, "seconds": 1.0}
    examples = {"examples": {"train": 100, "valid": 1, "test": 1}}
    records = [SimpleNamespace(history=history) for history in histories]
    return Cell(runs, [{**defaults, **examples, **row} for row in rows], records=records)


def ended(cell, status="diverged"):
    """The cell as if its last run had ended without figures."""
    return Cell(cell.runs, [*cell.results[:-1], {"status": status, "reason": "nan", "seconds": 1.0}])


def of_seed(cell, seed):
    """The cell with one seed."""
    return Cell(cell.runs[seed : seed + 1], cell.results[seed : seed + 1])


def checks(found):
    return [(check.ours, check.is_reached) for check in found.checks]


RATES = [1e-3, 2e-3, 4e-3, 8e-3]


def decays_of(rule, power, center, shifts=(0.0, 0.0, 0.0)):
    """Cells whose validation loss is a parabola in log(decay), lowest at center * rate ** power."""
    cells = {}
    for rate in RATES:
        bottom = math.log(center) + power * math.log(rate / RATES[0])
        cells[f"{rule}, lr {rate}"] = [
            cell_of(
                f"{rule}, lr {rate}",
                2.0**k,
                changes={"optimizer": {"lr": rate}},
                valid_loss=tuple((math.log(2.0**k) - bottom - shift) ** 2 for shift in shifts),
            )
            for k in range(-8, 9)
        ]
    return cells


@pytest.mark.parametrize(("power", "is_reached"), [(-1.0, True), (-0.86, True), (-0.8, False), (0.0, False)])
def test_the_slope_is_the_power_of_the_best_decay(power, is_reached):
    found = of_slope(Slope(expected={"lr": -1.0}), decays_of("lr", power, 3.0), "valid_error")
    (check,) = found.checks
    assert check.value == pytest.approx(power)
    assert check.is_reached is is_reached


def test_the_slope_has_the_standard_error_of_its_seeds():
    """Each seed's optimum moves by its own amount times log(rate)."""
    arms = decays_of("lr", -1.0, 3.0)
    for rate in RATES:
        cells = arms[f"lr, lr {rate}"]
        moved = decays_of("lr", -1.0, 3.0, [d * math.log(rate / RATES[0]) for d in (-0.1, 0.0, 0.1)])
        cells[:] = moved[f"lr, lr {rate}"]
    (check,) = of_slope(Slope(expected={"lr": -1.0}), arms, "valid_error").checks
    assert check.value == pytest.approx(-1.0)
    assert check.se == pytest.approx(0.1 / math.sqrt(3), rel=1e-5)


def test_a_slope_of_optima_at_the_edge_is_not_reached():
    arms = decays_of("lr", -1.0, 2.0**-9)
    (check,) = of_slope(Slope(expected={"lr": -1.0}, within=100.0), arms, "valid_error").checks
    assert check.is_reached is False


def test_a_slope_is_not_reached_if_the_best_decay_of_one_seed_is_at_the_edge():
    """Of the mean over seeds all are inside."""
    found = of_slope(Slope(expected={"lr": -1.0}, within=100.0), decays_of("lr", -1.0, 3.0, (0, 0, -8)), "valid_error")
    assert found.checks[0].is_reached is False
    assert found.tables[0].rows[0][3] == "0 of 4"


def test_a_slope_at_its_limit_is_reached():
    """0.9 and 1.0 are 0.09999999999999998 apart, and 0.9 and 0.8 by more than 0.1."""
    for expected in (-0.9, -1.1):
        expecting = Slope(expected={"lr": expected}, within=0.1)
        (check,) = of_slope(expecting, decays_of("lr", -1.0, 3.0), "valid_error").checks
        assert check.is_reached is True


def test_a_slope_without_all_its_rates_is_open():
    arms = decays_of("lr", -1.0, 3.0)
    arms["lr, lr 0.004"] = []
    (check,) = of_slope(Slope(expected={"lr": -1.0}), arms, "valid_error").checks
    assert check.is_reached is None


def test_a_slope_of_seeds_that_no_two_rates_share_is_open():
    arms = decays_of("lr", -1.0, 3.0)
    for i, cells in enumerate(arms.values()):
        cells[:] = [of_seed(cell, i % 3) for cell in cells]
    assert checks(of_slope(Slope(expected={"lr": -1.0}), arms, "valid_error")) == [("no seed in common", None)]


@pytest.mark.parametrize(
    "measure",
    [
        {"finals": {"at_most": {"dropout": 1.0}, "compression": {"dropout": 2.0}, "order": ["dropout"]}},
        {"peak": {"at": 200, "grid": "ridge", "chosen": ["ridge"]}},
        {"onset": {"level": 0.5, "arms": ["dropout"], "never": ["dropout"]}},
        {"slope": {"expected": {"dropout": 0.0}}},
        {"tuned": {}},
    ],
)
def test_before_any_run_is_finished_all_is_open(measure):
    published = Published(**TEXTS, year=2014, **measure)
    names = ["dropout", "dropout, ridge", "dropout, tuned"]
    (found,) = measured(published, Summary("fake", [], 3, {}), names)
    assert {check.is_reached for check in found.checks} == {None}
    assert found.picture.rows == []


PEAK = Peak(at=200, grid="ridge", chosen=["ridge", "loo"], within=1.0)


def peaked(plain=(0.4, 0.8, 0.3), loo=(0.30, 0.25, 0.20)):
    """Of three sizes the errors: a grid whose best by validation is 0.5 points above its best on the test."""
    arms = {}
    for size, high, own in zip((100, 200, 300), plain, loo, strict=True):
        at = {"data": {"train_size": size}}
        arms[f"{size}"] = [cell_of(f"{size}", changes=at, test_error=high)]
        arms[f"{size}, ridge"] = [
            cell_of(f"{size}, ridge", 0.1, changes=at, test_error=own, valid_error=0.30),
            cell_of(f"{size}, ridge", 0.2, changes=at, test_error=own + 0.005, valid_error=0.29),
            cell_of(f"{size}, ridge", 0.05, changes=at, test_error=own + 0.1, valid_error=0.40),
        ]
        arms[f"{size}, loo"] = [cell_of(f"{size}, loo", changes=at, test_error=own)]
    return arms


def test_a_peak_that_chosen_strengths_end():
    assert checks(of_peak(PEAK, peaked(), "valid_error")) == [
        ("80.0 % at 200", True),
        ("0.50 points at most (ridge, 100)", True),
        ("-5.00 points at most (ridge, 200)", True),
        ("3 of 3", True),
    ]


def test_a_grid_whose_best_is_at_its_end_is_told():
    arms = peaked()
    del arms["200, ridge"][2]
    assert checks(of_peak(PEAK, arms, "valid_error"))[3] == ("2 of 3", False)


def test_a_peak_elsewhere_or_none_is_no_peak():
    for plain in ((0.4, 0.5, 0.8), (0.8, 0.5, 0.4)):
        assert of_peak(PEAK, peaked(plain), "valid_error").checks[0].is_reached is False


def test_a_rule_that_leaves_the_peak_falls_short():
    found = of_peak(PEAK, peaked(loo=(0.30, 0.315, 0.20)), "valid_error")
    assert checks(found)[2] == ("1.50 points at most (ridge, 200)", False)


def test_the_yardstick_is_the_best_on_the_test_and_the_choice_is_not():
    arms = peaked()
    for size in (100, 200, 300):
        arms[f"{size}, ridge"][0] = cell_of(
            f"{size}, ridge", 0.1, changes={"data": {"train_size": size}}, test_error=0.1, valid_error=0.9
        )
    (_, excess, *_) = of_peak(PEAK, arms, "valid_error").checks
    assert excess.value == pytest.approx(20.5)
    assert excess.is_reached is False


def test_a_rise_and_an_excess_at_the_limit_are_allowed():
    """0.31 and 0.30 are 1.0000000000000009 points apart."""
    found = of_peak(PEAK, peaked(loo=(0.30, 0.31, 0.30)), "valid_error")
    assert checks(found)[1:3] == [
        ("0.50 points at most (ridge, 100)", True),
        ("1.00 points at most (ridge, 200)", True),
    ]


def test_a_peak_at_the_limit_of_what_is_around_is_there():
    """0.29 * 100 is less than 29."""
    around = Peak(at=100, around=0.29, grid="ridge", chosen=["ridge", "loo"])
    arms = peaked()
    for name in [name for name in arms if name.startswith("200")]:
        arms[name.replace("200", "129")] = [
            cell_of(cell.arm, cell.strength, changes={"data": {"train_size": 129}}, **of_first(cell))
            for cell in arms.pop(name)
        ]
    assert checks(of_peak(around, arms, "valid_error"))[0] == ("80.0 % at 129", True)


def of_first(cell):
    return {key: cell.results[0][key] for key in ("test_error", "valid_error")}


def test_arms_without_a_seed_in_common_are_no_peak():
    arms = peaked()
    arms["200, loo"] = [of_seed(arms["200, loo"][0], 1)]
    arms["200, ridge"] = [of_seed(cell, 0) for cell in arms["200, ridge"]]
    assert checks(of_peak(PEAK, arms, "valid_error"))[1] == ("no seed in common", None)


def test_places_are_told_apart():
    arms = {}
    for name, cells in peaked().items():
        size = 10_000_000 + int(name[:3])
        arms[name] = [
            cell_of(name, cell.strength, changes={"data": {"train_size": size}}, **of_first(cell)) for cell in cells
        ]
    found = of_peak(PEAK, arms, "valid_error")
    assert [row[0] for row in found.tables[0].rows] == ["10000100", "10000200", "10000300"]
    assert found.checks[0].ours == "80.0 % at 10000200"


def test_a_rule_of_which_another_rule_s_name_is_the_end_has_its_own_arms():
    arms = {}
    for name, cells in peaked().items():
        arms[name.replace("loo", "a, ridge")] = cells
    both = Peak(at=200, grid="ridge", chosen=["ridge", "a, ridge"])
    assert checks(of_peak(both, arms, "valid_error"))[3] == ("3 of 3", True)


def grokking(decay, at, end=1000):
    """Accuracy 0.5 until epoch ``at``, then 1; evaluated each 10 epochs, of 4 steps each."""
    history = [
        {"epoch": epoch, "test_error": 0.0 if epoch >= at else 0.5, "train_error": 0.0} for epoch in range(10, end, 10)
    ]
    return [cell_of(changes={"optimizer": {"weight_decay": decay}}, histories=[history] * 3)]


@pytest.mark.parametrize(("late", "is_reached"), [(800, True), (600, True), (400, False)])
def test_steps_times_decay(late, is_reached):
    """At 0.75 the line between two evaluations passes 5 epochs before the second one, 20 steps."""
    arms = {"none": grokking(0.0, 10_000), "0.2": grokking(0.2, 400), "0.1": grokking(0.1, late)}
    found = of_onset(Onset(level=0.75, arms=["0.1", "0.2"], never=["none"]), arms, "valid_error")
    products = 0.1 * (4 * late - 20), 0.2 * (4 * 400 - 20)
    middle = sum(products) / 2
    assert found.checks[0].value == pytest.approx(abs(products[0] - middle) / middle, rel=1e-5)
    assert found.checks[0].is_reached is is_reached
    assert checks(found)[1] == ("at most 50.0 %", True)


def test_seeds_that_never_reach_the_level_are_counted():
    (early,), (late,) = grokking(0.1, 400), grokking(0.1, 10_000)
    some = cell_of(changes={"optimizer": {"weight_decay": 0.1}}, histories=[*early.histories[:1], *late.histories[:2]])
    arms = {"0.1": [early], "some": [some], "none": [late]}
    found = of_onset(Onset(level=0.75, arms=["0.1"], shown=["some", "none"]), arms, "valid_error")
    steps = {row[0]: str(row[2]) for row in found.tables[0].rows}
    assert steps == {"0.1": "1580", "some": "2 of 3 never in 3,960", "none": "never in 3,960"}


def test_a_decay_that_never_generalizes_and_none_that_does_fall_short():
    arms = {"none": grokking(0.0, 500), "0.2": grokking(0.2, 400), "0.1": grokking(0.1, 10_000)}
    found = of_onset(Onset(level=0.75, arms=["0.1", "0.2"], never=["none"]), arms, "valid_error")
    assert [check.is_reached for check in found.checks] == [False, False]


def test_an_onset_is_of_the_strength_that_validation_chooses():
    def at(decay, error):
        (cell,) = grokking(decay, 400)
        return Cell(cell.runs, [{**row, "valid_error": error} for row in cell.results], records=cell.records)

    found = of_onset(Onset(level=0.75, arms=["a"]), {"a": [at(0.1, 0.3), at(0.2, 0.2)]}, "valid_error")
    assert found.tables[0].rows[0][1] == "0.2"


@pytest.mark.parametrize(("level", "is_below"), [(0.5, False), (0.5 + 2e-16, False), (0.51, True)])
def test_a_level_that_is_met_exactly_is_passed(level, is_below):
    arms = {"none": grokking(0.0, 10_000), "a": grokking(0.1, 10)}
    found = of_onset(Onset(level=level, arms=["a"], never=["none"]), arms, "valid_error")
    assert found.checks[1].is_reached is is_below


def test_products_at_the_limit_are_within_it():
    """0.9 * 380 and 1.1 * 380 are 0.10000000000000014 of their mean away from it."""
    arms = {"a": grokking(0.9, 100), "b": grokking(1.1, 100)}
    found = of_onset(Onset(level=0.75, arms=["a", "b"], within=0.1), arms, "valid_error")
    assert found.checks[0].is_reached is True


def test_an_onset_whose_arms_are_not_finished_is_open():
    arms = {"none": [], "0.2": grokking(0.2, 400), "0.1": []}
    found = of_onset(Onset(level=0.75, arms=["0.1", "0.2"], never=["none"]), arms, "valid_error")
    assert [check.is_reached for check in found.checks] == [None, None]


def lost_finals():
    tree = {"order": ["L1", "L2"], "at_most": {"L1": 1.0}, "lower": [{"arm": "L2", "than": "L1"}]}
    tree |= {"compression": {"L1": 2.0}, "bytes": {"L1": 100}}
    return of_finals, Finals.model_validate(tree), {"L1": [cell_of("L1")], "L2": [cell_of("L2")]}, "L1"


def lost_onset():
    arms = {"none": grokking(0.0, 500), "0.2": grokking(0.2, 400), "0.1": grokking(0.1, 400)}
    return of_onset, Onset(level=0.75, arms=["0.1", "none"], never=["0.1"]), arms, "0.1"


def lost_rule():
    (first, cells), *others = decays_of("lr", -1.0, 3.0).items()
    return of_slope, Slope(expected={"lr": -1.0}), {first: cells, **{name: [] for name, _ in others}}, first


LOST = {
    "finals": lost_finals,
    "peak, plain": lambda: (of_peak, PEAK, peaked(), "200"),
    "peak, grid": lambda: (of_peak, PEAK, peaked(), "200, ridge"),
    "peak, rule": lambda: (of_peak, PEAK, peaked(), "300, loo"),
    "onset": lost_onset,
    "slope": lambda: (of_slope, Slope(expected={"lr": -1.0}), decays_of("lr", -1.0, 3.0), "lr, lr 0.004"),
    "slope of a whole rule": lost_rule,
    "tuned": lambda: (of_tuned, Tuned(), {"a": [cell_of("a", 0.1)], "a, tuned": [cell_of("a, tuned")]}, "a, tuned"),
    "grid": lambda: (of_tuned, Tuned(), {"a": [cell_of("a", 0.1)], "a, tuned": [cell_of("a, tuned")]}, "a"),
}


@pytest.mark.parametrize(("status", "is_reached"), [("diverged", False), ("pruned", False), ("failed", None)])
@pytest.mark.parametrize("case", LOST.values(), ids=LOST)
def test_an_arm_that_has_ended_without_a_model_is_told_and_its_checks_are_not_reached(case, status, is_reached):
    """A run that failed can be made again, so its check is open."""
    measure, settings, arms, name = case()
    arms[name] = [ended(cell, status) for cell in arms[name]]
    for ours, reached in checks(measure(settings, arms, "valid_error")):
        assert f"{name} {status}" in ours
        assert reached is is_reached


def test_an_arm_of_which_one_strength_diverged_is_that_of_the_others():
    grid = peaked()
    for name, cells in grid.items():
        if name.endswith("ridge"):
            cells.append(ended(cell_of(name, 100.0)))
    assert checks(of_peak(PEAK, grid, "valid_error")) == checks(of_peak(PEAK, peaked(), "valid_error"))


@pytest.mark.parametrize(
    ("measure", "said"),
    [
        ({"finals": {"at_most": {"dropuot": 1.0}}}, "published.finals: unknown arm 'dropuot', valid: dropout"),
        ({"onset": {"level": 0.5, "arms": ["dropout", "drop"]}}, "published.onset: unknown arm 'drop', valid: dropout"),
    ],
)
def test_a_measure_that_names_an_unknown_arm_is_refused(measure, said):
    published = {**TEXTS, "year": 2014, **measure}
    with pytest.raises(UserError) as error:
        resolve({**TREE, "arms": [{"name": "dropout"}], "published": published})
    assert str(error.value) == said


def test_along_must_be_the_key_of_a_number():
    published = Published(**TEXTS, year=2014, slope=Slope(along="model.name", expected={}))
    summary = Summary("fake", [cell_of("lr, 1", 0.1, valid_loss=1.0)], 3, {})
    with pytest.raises(UserError, match="along must be the key of a number"):
        measured(published, summary, ["lr, 1"])


def test_a_regression_has_no_errors_in_percent():
    published = Published(**TEXTS, year=2014, finals=Finals())
    summary = Summary("fake", [cell_of(task="regression")], 3, {})
    with pytest.raises(UserError, match="this study is a regression"):
        measured(published, summary, ["arm"])


@pytest.mark.parametrize(
    "measure",
    [
        {"finals": Finals()},
        {"finals": Finals(lower=[{"arm": "a", "than": "b"}])},
        {"peak": Peak(at=100, grid="grid", chosen=["rule"])},
        {"onset": Onset(level=0.5, arms=["arm"])},
        {"slope": Slope(expected={})},
        {"tuned": Tuned()},
    ],
    ids=str,
)
def test_what_is_left_out_can_be_read_from_a_record(measure):
    published = Published(**TEXTS, year=2014, **measure)
    assert Published.model_validate_json(published.model_dump_json()) == published


def test_a_paper_without_a_measure_is_refused():
    with pytest.raises(ValueError, match="a measure must be given"):
        Published(**TEXTS, year=2014)

"""What no measure could be made of is told before the runs."""

import pytest

from experiments.config import resolve
from experiments.errors import UserError
from experiments.report.evidence import check_measures
from tests.unit.test_evidence import TEXTS, TREE

SIZES = (100, 200, 300)
PEAK = {"at": 200, "grid": "ridge", "chosen": ["ridge", "cv"]}
ONSET = {"level": 0.5, "arms": ["a"]}
SLOPE = {"expected": {"lr": -1.0}}


def arm(name, **changes):
    return {"name": name, **changes}


def peaked():
    ends = {"": {}, ", ridge": {"strengths": [0.1, 0.2]}, ", cv": {}}
    return [arm(f"{n}{end}", data={"train_size": n}, **own) for n in SIZES for end, own in ends.items()]


def sloped(key="lr", values=(0.1, 0.2)):
    return [arm(f"lr, {value}", optimizer={key: value}, strengths=[0.1, 0.2]) for value in values]


def decayed(name="a", decay=0.1, **changes):
    return arm(name, optimizer={"weight_decay": decay}, **changes)


def check(arms, **measure):
    check_measures(resolve({**TREE, "arms": arms, "published": {**TEXTS, "year": 2014, **measure}}))


def refusal(arms, **measure):
    with pytest.raises(UserError) as error:
        check(arms, **measure)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("measure", "arms"),
    [
        ({"peak": PEAK}, [*peaked(), arm("400")]),
        ({"onset": {**ONSET, "never": ["b"]}}, [decayed(), arm("b")]),
        ({"slope": SLOPE}, [*sloped(), arm("none")]),
        ({"tuned": {}}, [arm("none"), arm("a", strengths=[0.1]), arm("a, tuned")]),
        ({"finals": {}}, [arm("a")]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_study_with_all_its_arms_is_taken(measure, arms):
    check(arms, **measure)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"grid": "rigde"}, "'100, ridge' needs the arm '100, rigde', which is missing: add it, or rename one"),
        ({"chosen": ["vc"]}, "'100, ridge' needs the arm '100, vc', which is missing: add it, or rename one"),
        (
            {"grid": "rigde", "chosen": ["rigde"]},
            "no arm's name ends in ', rigde': name some so, or change grid and chosen",
        ),
    ],
)
def test_a_rule_of_a_peak_that_there_is_not(change, said):
    assert refusal(peaked(), peak={**PEAK, **change}) == f"published.peak: {said}"


def test_an_arm_of_a_peak_that_is_misspelled_or_missing():
    arms = peaked()
    arms[5]["name"] = "200, vc"
    said = "which is missing: add it, or rename one"
    assert refusal(arms, peak=PEAK) == f"published.peak: '200, ridge' needs the arm '200, cv', {said}"
    assert refusal(peaked()[1:], peak=PEAK) == f"published.peak: '100, ridge' needs the arm '100', {said}"


def test_the_arms_of_a_peak_must_be_three_at_places_of_their_own():
    arms = peaked()
    assert refusal(arms[:6], peak=PEAK) == (
        "published.peak: a peak needs three arms without a penalty or more, got 100, 200"
    )
    arms[3]["data"] = {"train_size": 100}
    assert refusal(arms, peak=PEAK) == (
        "published.peak: '100' and '200' must differ in data.train_size, both have 100: change or remove one"
    )


@pytest.mark.parametrize("name", ["no penalty", "best of the grid on the test", "ridge by validation"])
def test_a_rule_with_the_name_of_another_column(name):
    arms = [*peaked(), *(arm(f"{n}, {name}", data={"train_size": n}) for n in SIZES)]
    assert refusal(arms, peak={**PEAK, "chosen": ["ridge", name]}) == (
        f"published.peak.chosen: {name!r} is the name of another column: rename the rule"
    )


def test_an_onset_needs_weight_decay():
    """That of a penalty is another one, and so is a strength of 0."""
    said = (
        "published.onset.arms: 'a' must have an optimizer.weight_decay above 0, got 0: set it, or move the arm to "
        "never or shown"
    )
    assert refusal([arm("a")], onset=ONSET) == said
    assert refusal([arm("a", regularizers=[{"penalty": "L2", "strength": 0.1}])], onset=ONSET) == said
    assert refusal([arm("a", strengths=[0.1, 0.0])], onset=ONSET) == said


def test_an_onset_needs_weight_decay_at_all_points_of_a_search():
    tree = {**TREE, "arms": [arm("a")], "sweep": {"space": {"optimizer.weight_decay": [0.1, 0.0]}}}
    study = resolve({**tree, "published": {**TEXTS, "year": 2014, "onset": ONSET}})
    with pytest.raises(UserError, match=r"must have an optimizer\.weight_decay above 0"):
        check_measures(study)


@pytest.mark.parametrize("part", ["arms", "never", "shown"])
def test_an_onset_needs_all_epochs(part):
    arms = [decayed(), decayed("b", 0.2, train={"early_stopping": {"patience": 1}})]
    assert refusal(arms, onset={**ONSET, "arms": ["a"], part: ["b"]}) == (
        "published.onset: 'b' must train all its epochs: remove train.early_stopping"
    )


def test_a_rule_of_a_slope_that_there_is_not():
    assert refusal(sloped(), slope={"expected": {"lrr": -1.0}}) == (
        "published.slope.expected: unknown rule 'lrr', valid: lr"
    )
    assert refusal([arm("a")], slope=SLOPE) == 'published.slope: no arm is named "RULE, X": name some so'


@pytest.mark.parametrize(
    ("along", "arms", "said"),
    [
        (
            "data.label_noise",
            [arm(f"lr, {x}", data={"label_noise": x}, strengths=[0.1]) for x in (0.1, 0.0)],
            "data.label_noise must be above 0, since its logarithm is taken, got 0 of 'lr, 0.0': change it, or remove "
            "the arm",
        ),
        (
            "data.train_size",
            sloped(),
            "'lr, 0.1' and 'lr, 0.2' must differ in data.train_size, both have 100: change or remove one",
        ),
        ("optimizer.lr", sloped(values=[0.1]), "the rule 'lr' needs two arms or more, got 'lr, 0.1': add one"),
        (
            "optimizer.lr",
            [*sloped(), arm("lr, 0.3", optimizer={"lr": 0.3})],
            "'lr, 0.3' needs a grid of decays: give it strengths",
        ),
    ],
)
def test_arms_that_have_no_slope(along, arms, said):
    assert refusal(arms, slope={**SLOPE, "along": along}) == f"published.slope: {said}"


def test_a_key_along_which_there_are_no_numbers():
    said = "published: along must be the key of a number, such as data.train_size, got 'model.name'"
    assert refusal(sloped(), slope={**SLOPE, "along": "model.name"}) == said
    assert refusal(peaked(), peak={**PEAK, "along": "model.name"}) == said


def test_a_tuned_arm_needs_its_grid_and_the_suffix_an_arm():
    assert refusal([arm("a"), arm("a, tuned")], tuned={"suffix": "tund"}) == (
        "published.tuned: no arm's name ends in ', tund': name one so, or change suffix"
    )
    assert refusal([arm("a"), arm("b, tuned")], tuned={}) == (
        "published.tuned: 'b, tuned' needs the arm 'b', which is missing: add it, or rename one"
    )


def test_an_arm_of_averaged_weights_counts_too():
    averaged = arm("a, b", train={"average": {"name": "ema"}})
    check([arm("a"), averaged], tuned={"suffix": "b (EMA)"})


@pytest.mark.parametrize(
    ("measure", "said"),
    [
        (
            {"peak": {**PEAK, "chosen": ["ridge", "cv", "cv"]}},
            "published.peak.chosen: must be distinct, got 'cv' twice",
        ),
        ({"onset": {**ONSET, "arms": ["a", "a", "b"]}}, "published.onset.arms: must be distinct, got 'a' twice"),
        ({"onset": {**ONSET, "never": ["a", "a"]}}, "published.onset.never: must be distinct, got 'a' twice"),
        ({"onset": {**ONSET, "shown": ["a", "a"]}}, "published.onset.shown: must be distinct, got 'a' twice"),
        ({"finals": {"order": ["a", "b", "a"]}}, "published.finals.order: must be distinct, got 'a' twice"),
        ({"finals": {"arms": ["a", "a"]}}, "published.finals.arms: must be distinct, got 'a' twice"),
        ({"uses": ["L1", "L1"], "finals": {}}, "published.uses: must be distinct, got 'L1' twice"),
        (
            {"finals": {"lower": [{"arm": "a", "than": "a"}]}},
            "published.finals.lower.0: arm and than must be two arms, got 'a' for both",
        ),
        ({"claim": " \n ", "finals": {}}, "published.claim: must have at least 1 character"),
        ({"notes": [" "], "finals": {}}, "published.notes.0: must have at least 1 character"),
    ],
)
def test_a_table_that_says_things_twice_or_nothing(measure, said):
    assert refusal([decayed("a"), decayed("b")], **measure).startswith(said)

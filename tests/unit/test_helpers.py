"""The comparisons fail where they must: a helper that drops its comparison makes every test pass."""

import pytest
import torch
from torch import nn

from tests.helpers import assert_bit_equal, assert_close, assert_differs, make_model, train, weights_of

ONE = torch.ones(3, dtype=torch.float64)
NEXT = torch.nextafter(ONE, 2 * ONE)

UNEQUAL = {
    "value": (ONE, NEXT),
    "dtype": (ONE, ONE.float()),
    "shape": (ONE, ONE[None]),
    "sign of zero": (torch.zeros(1), -torch.zeros(1)),
    "nan": (torch.tensor([1.0]), torch.tensor([torch.nan])),
    "missing key": ({"a": ONE}, {"a": ONE, "b": ONE}),
    "extra key": ({"a": ONE, "b": ONE}, {"a": ONE}),
    "nested": ({"a": [ONE, ONE]}, {"a": [ONE, NEXT]}),
    "length": ([ONE], [ONE, ONE]),
    "number": ({"lr": 1.0}, {"lr": 1.1}),
    "type of number": (1, 1.0),
}


@pytest.mark.parametrize("pair", UNEQUAL.values(), ids=UNEQUAL.keys())
def test_bit_equality_fails_on_unequal_inputs(pair):
    with pytest.raises(AssertionError):
        assert_bit_equal(*pair)
    assert_differs(*pair)


@pytest.mark.parametrize(
    "value", [ONE, torch.tensor([torch.nan, -0.0]), torch.tensor(1.0), torch.ones(2, 3).T, {"a": [ONE, 1.0]}], ids=str
)
def test_bit_equality_holds_for_equal_inputs(value):
    assert_bit_equal(value, value)
    with pytest.raises(AssertionError, match="found none"):
        assert_differs(value, value)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (ONE, ONE + 3e-12),
        (1.0, 1.0 + 3e-12),
        (ONE, ONE.float()),
        (ONE, ONE[:2]),
        ({"a": ONE}, {"b": ONE}),
        ([ONE, ONE], [ONE, 2 * ONE]),
        (ONE, torch.full_like(ONE, torch.nan)),
    ],
)
def test_closeness_fails_beyond_its_tolerance(actual, expected):
    with pytest.raises(AssertionError):
        assert_close(actual, expected)


def test_closeness_holds_within_its_tolerance():
    assert_close({"a": ONE, "b": [1.0]}, {"a": ONE + 1e-12, "b": [1.0 + 1e-12]})
    assert_close(ONE, ONE + 0.01, tolerance=0.1)


def test_training_is_reproducible_and_moves_every_weight():
    runs = []
    for _ in range(2):
        model = make_model()
        start = weights_of(model)
        runs.append(train(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=3))
        for name, before in start.items():
            assert_differs(runs[-1][name], before)
    assert_bit_equal(*runs)


@pytest.mark.parametrize("options", [{"micro_batches": 4}, {"closure": True}, {"scaler": "cpu"}], ids=str)
def test_every_kind_of_loop_trains_to_the_same_weights(options):
    if "scaler" in options:
        options = {"scaler": torch.amp.GradScaler("cpu", init_scale=1024.0)}
    plain, other = make_model(), make_model()
    expected = train(plain, torch.optim.SGD(plain.parameters(), lr=0.1), steps=5)
    actual = train(other, torch.optim.SGD(other.parameters(), lr=0.1), steps=5, **options)
    assert_close(actual, expected)


def test_the_model_is_the_same_whatever_was_drawn_before():
    first = weights_of(make_model())
    nn.Linear(5, 5)
    assert_bit_equal(weights_of(make_model()), first)

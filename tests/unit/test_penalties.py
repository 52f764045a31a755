"""Penalties as objects: their values, their algebra, and what they refuse."""

import copy
import pickle
from dataclasses import FrozenInstanceError, dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

import torchreg
from tests.cases import each_penalty
from tests.helpers import assert_bit_equal, assert_close
from torchreg import L1, L2, Penalty, ProximalPenalty


@dataclass(frozen=True)
class Cubic(Penalty):
    """A user's own penalty, without a proximal operator."""

    def value(self, w: Tensor) -> Tensor:
        return w.abs().pow(3).sum()

    def gradient(self, w: Tensor) -> Tensor:
        return 3 * w.abs() * w


@each_penalty
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4), (2, 3, 2, 2)], ids=str)
def test_value_is_its_formula(case, shape):
    w = torch.randn(shape, dtype=torch.float64)
    assert_close(case.penalty.value(w), case.formula(w))


@each_penalty
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_keep_the_dtype_and_shape_of_the_weights(case, dtype):
    w = torch.randn(4, 3, dtype=dtype)
    assert case.penalty.value(w).dtype == dtype
    assert case.penalty.value(w).shape == ()
    for same in (case.penalty.gradient(w), case.penalty.prox(w, 0.1), case.penalty.prox(w, torch.tensor(0.1))):
        assert same.dtype == dtype
        assert same.shape == w.shape


@pytest.mark.parametrize("penalty", [L1(1e-5), L2(2e-5)], ids=repr)
def test_the_value_of_many_half_precision_weights_is_finite(penalty):
    # The bare sum, 1e5, leaves float16; the penalty, 1, does not.
    assert_close(penalty.value(torch.ones(100_000).half()), torch.tensor(1.0).half(), tolerance=1e-3)


@each_penalty
def test_the_subgradient_at_the_kink_is_zero(case):
    assert_bit_equal(case.penalty.gradient(torch.zeros(3)), torch.zeros(3))


@each_penalty
def test_prox_makes_exact_zeros_where_it_should(case):
    w = torch.tensor([1e-3, -1e-3, 0.0, 2.0])
    zeros = case.penalty.prox(w, 1.0) == 0
    assert zeros.tolist() == ([True, True, True, False] if case.exact_zeros else [False, False, True, False])


@each_penalty
def test_penalties_survive_copies_and_their_repr_is_the_call(case):
    penalty = case.penalty
    copies = [copy.deepcopy(penalty), pickle.loads(pickle.dumps(penalty)), eval(repr(penalty), dict(vars(torchreg)))]
    for other in copies:
        assert other == penalty
        assert hash(other) == hash(penalty)
        assert type(other) is type(penalty)


@each_penalty
def test_penalties_are_immutable(case):
    for term in case.penalty.terms:
        with pytest.raises(FrozenInstanceError):
            term.strength = 1.0


def test_terms_of_one_kind_merge():
    assert L1(0.5) + L1(0.25) == L1(0.75)
    assert L1(1) + L2(1) + L1(2) == L1(3) + L2(1)
    assert (L1(1) + L2(1)) + (L1(1) + L2(1)) == L1(2) + L2(2)


def test_sums_are_associative():
    assert (L1(1) + L2(2)) + Cubic() == L1(1) + (L2(2) + Cubic())


def test_the_terms_of_a_sum_are_its_parts():
    assert (L1(1) + L2(2)).terms == (L1(1), L2(2))
    assert L1(1).terms == (L1(1),)


def test_penalties_of_other_kind_or_strength_are_unequal():
    assert len({L1(1), L2(1), L1(2), L1(1) + L2(1), L1(1) + L2(2), Cubic()}) == 6
    assert L1(1) == L1(1.0)


def test_replace_sweeps_a_strength_and_checks_it_again():
    assert replace(L1(1), strength=2) == L1(2)
    with pytest.raises(ValueError, match="strength"):
        replace(L1(1), strength=-1)


@pytest.mark.parametrize("number", [1, 0.5, np.float64(0.5), np.float32(0.5), np.int64(2)], ids=repr)
def test_any_real_number_is_kept_as_a_plain_float(number):
    assert type(L2(number).strength) is float
    assert L2(number).strength == number


@pytest.mark.parametrize("kind", [L1, L2])
@pytest.mark.parametrize("strength", [-1, -1e-12, float("nan"), float("inf"), -float("inf")])
def test_a_strength_must_be_finite_and_not_negative(kind, strength):
    with pytest.raises(ValueError, match=rf"{kind.__name__}: strength must be finite and >= 0, got {strength!r}"):
        kind(strength)


@pytest.mark.parametrize("kind", [L1, L2])
@pytest.mark.parametrize("strength", [True, "1e-4", None, 1j, torch.tensor(1.0), [1.0]], ids=repr)
def test_a_strength_must_be_a_number(kind, strength):
    with pytest.raises(TypeError, match=rf"{kind.__name__}: strength must be a number, got "):
        kind(strength)


@pytest.mark.parametrize("other", [1.0, None, "L1(1.0)"])
def test_a_penalty_adds_up_with_penalties_only(other):
    with pytest.raises(TypeError, match="unsupported operand"):
        L1(1) + other


def test_a_sum_is_proximal_only_if_a_closed_form_is_known():
    assert isinstance(L1(1) + L2(1), ProximalPenalty)
    assert isinstance(L2(1) + L1(1), ProximalPenalty)
    assert not isinstance(L1(1) + Cubic(), ProximalPenalty)
    assert not isinstance(L2(1) + Cubic(), ProximalPenalty)


def test_the_order_of_terms_does_not_change_the_prox():
    w = torch.randn(100, dtype=torch.float64)
    assert_close((L1(0.3) + L2(0.7)).prox(w, 0.5), (L2(0.7) + L1(0.3)).prox(w, 0.5))


def test_a_users_own_penalty_added_twice_counts_twice():
    w = torch.tensor([1.0, -2.0], dtype=torch.float64)
    twice = Cubic() + Cubic()
    assert_close(twice.value(w), 2 * Cubic().value(w))
    assert_close(twice.gradient(w), 2 * Cubic().gradient(w))


def test_a_sum_leaves_the_weights_alone_even_where_a_gradient_is_the_weights():
    class Half(Penalty):
        def value(self, w):
            return w.square().sum() / 2

        def gradient(self, w):
            return w

    w = torch.ones(3)
    assert_close((Half() + L1(1.0)).gradient(w), torch.full((3,), 2.0))
    assert_close(w, torch.ones(3))

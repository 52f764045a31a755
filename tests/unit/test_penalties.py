"""Penalties as objects: their values, their algebra, and what they refuse."""

import copy
import pickle
import re
from dataclasses import FrozenInstanceError, dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

import torchreg
from tests.cases import PENALTIES, SHAPED, each_case, each_penalty, each_proximal, each_shrinking, each_term
from tests.helpers import assert_bit_equal, assert_close
from torchreg import L1, L2, L2SP, MCP, SCAD, ElasticNet, Heads, Huber, LogSum, Lp, Penalty, ProximalPenalty
from torchreg.penalties import Term

each_penalty_and_grouping = each_case(lambda case: True, PENALTIES + SHAPED)


@dataclass(frozen=True)
class Cubic(Penalty):
    """A user's own penalty, without a proximal operator."""

    def value(self, w: Tensor) -> Tensor:
        return w.abs().pow(3).sum()

    def gradient(self, w: Tensor) -> Tensor:
        return 3 * w.abs() * w


@pytest.mark.shows("value")
@each_penalty
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4), (2, 3, 2, 2)], ids=str)
def test_value_is_its_formula(case, shape):
    w = torch.randn(shape, dtype=torch.float64)
    assert_close(case.penalty.value(w), case.formula(w))


@pytest.mark.shows("tensors")
@each_penalty
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_keep_the_dtype_and_shape_of_the_weights(case, dtype):
    w = torch.randn(4, 3, dtype=dtype)
    assert case.penalty.value(w).dtype == dtype
    assert case.penalty.value(w).shape == ()
    results = [case.penalty.gradient(w), case.penalty._gradient_times(w, 0.5)]
    if case.is_proximal:
        results += [case.penalty.prox(w, 0.1), case.penalty.prox(w, torch.tensor(0.1))]
    for same in results:
        assert same.dtype == dtype
        assert same.shape == w.shape


@pytest.mark.parametrize("penalty", [L1(1e-5), L2(2e-5)], ids=repr)
def test_the_value_of_many_half_precision_weights_is_finite(penalty):
    # The bare sum, 1e5, leaves float16; the penalty, 1, does not.
    assert_close(penalty.value(torch.ones(100_000).half()), torch.tensor(1.0).half(), tolerance=1e-3)


@pytest.mark.shows("gradient")
@each_penalty
def test_the_subgradient_at_the_kink_is_zero(case):
    kink = torch.full((3,), case.rest)
    assert_bit_equal(case.penalty.gradient(kink), torch.zeros(3))


@pytest.mark.shows("prox")
@each_proximal
def test_prox_makes_exact_zeros_where_it_should(case):
    w = torch.tensor([1e-3, -1e-3, 0.0, 2.0]) + case.rest
    still = case.penalty.prox(w, 1.0) == torch.tensor(case.rest)
    expected = [True, True, True, False] if case.exact_zeros else [False, False, True, False]
    assert still.tolist() == expected


def tensor(values):
    """As in the representation of a penalty: a reference or weights in double precision, or an index."""
    is_index = not torch.tensor(values).is_floating_point()
    return torch.tensor(values, dtype=torch.int64 if is_index else torch.float64)


@pytest.mark.shows("algebra")
@each_penalty_and_grouping
def test_penalties_survive_copies_and_their_repr_is_the_call(case):
    penalty = case.penalty
    names = {**vars(torchreg), "Heads": Heads, "tensor": tensor}
    copies = [copy.deepcopy(penalty), pickle.loads(pickle.dumps(penalty)), eval(repr(penalty), names)]
    for other in copies:
        assert other == penalty
        assert hash(other) == hash(penalty)
        assert type(other) is type(penalty)
    if isinstance(penalty, Term) and penalty.is_linear:
        assert 2 * penalty == penalty + penalty == replace(penalty, strength=2 * penalty.strength)


@pytest.mark.shows("algebra")
@each_term
def test_penalties_are_immutable(case):
    with pytest.raises(FrozenInstanceError):
        case.penalty.strength = 1.0


def test_terms_of_one_kind_merge():
    assert L1(0.5) + L1(0.25) == L1(0.75)
    assert L1(1) + L2(1) + L1(2) == L1(3) + L2(1)
    assert (L1(1) + L2(1)) + (L1(1) + L2(1)) == L1(2) + L2(2)


def test_sums_are_associative():
    assert (L1(1) + L2(2)) + Cubic() == L1(1) + (L2(2) + Cubic())


def test_the_builtin_sum_adds_penalties_up():
    assert sum([L1(1.0), L2(2.0), L1(0.5)]) == L1(1.5) + L2(2.0)
    for other in (1, 0.5, "0"):
        with pytest.raises(TypeError):
            other + L1(1.0)


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


each_bad_strength = pytest.mark.parametrize("strength", [-1, -1e-12, float("nan"), float("inf"), -float("inf")])


@pytest.mark.shows("algebra")
@each_term
@each_bad_strength
def test_a_strength_must_be_finite_and_not_negative(case, strength):
    kind = type(case.penalty)
    with pytest.raises(ValueError, match=rf"{kind.__name__}: strength must be finite and >= 0, got {strength!r}"):
        kind(strength)


@pytest.mark.shows("algebra")
@each_term
@pytest.mark.parametrize("strength", [True, "1e-4", None, 1j, torch.tensor(1.0), [1.0]], ids=repr)
def test_a_strength_must_be_a_number(case, strength):
    kind = type(case.penalty)
    with pytest.raises(TypeError, match=rf"{kind.__name__}: strength must be a number, got "):
        kind(strength)


@pytest.mark.parametrize(
    ("kind", "name", "bad", "expectation"),
    [
        (ElasticNet, "l1_ratio", 1.1, "in [0, 1]"),
        (Huber, "delta", 0, "positive and finite"),
        (Lp, "p", 0.0, "positive and finite"),
        (LogSum, "epsilon", -1.0, "positive and finite"),
        (MCP, "gamma", float("inf"), "positive and finite"),
        (SCAD, "a", 2.0, "above 2 and finite"),
    ],
)
def test_the_other_parameters_are_checked_too(kind, name, bad, expectation):
    for value in (bad, float("nan")):
        with pytest.raises(
            ValueError, match=re.escape(f"{kind.__name__}: {name} must be {expectation}, got {value!r}")
        ):
            kind(1.0, **{name: value})
    with pytest.raises(TypeError, match=f"{kind.__name__}: {name} must be a number, got '1'"):
        kind(1.0, **{name: "1"})


# -- a number times a penalty -------------------------------------------------------------------------------------


@pytest.mark.shows("algebra")
@each_penalty
@pytest.mark.parametrize("factor", [0, 0.5, 3])
def test_a_number_times_a_penalty_is_that_number_of_it(case, factor):
    w, gradient = torch.randn(2, 20, dtype=torch.float64)
    for scaled in (factor * case.penalty, case.penalty * factor):
        assert_close(scaled.value(w), factor * case.penalty.value(w))
        assert_close(scaled.gradient(w), factor * case.penalty.gradient(w))
        assert isinstance(scaled, ProximalPenalty) == case.is_proximal
        assert [term.label for term in scaled.terms] == [term.label for term in case.penalty.terms]
        if case.is_proximal:
            assert_close(scaled.prox(w, 0.4), case.penalty.prox(w, 0.4 * factor))
        residual = torch.autograd.grad(scaled.value(w.requires_grad_()), w)[0] + gradient
        assert_close(scaled.optimality(w.detach(), gradient), residual.norm())
        w = w.detach()


def test_a_number_multiplies_the_strength_where_that_is_the_same():
    assert 0.5 * L1(1e-3) == L1(5e-4)
    assert 2 * (L1(1) + L2(2)) == L1(2) + L2(4)
    assert 2 * ElasticNet(1, l1_ratio=0.3) == ElasticNet(2, l1_ratio=0.3)
    assert 2 * MCP(1) != MCP(2)
    assert repr(2 * (3 * MCP(1))) == "6.0 * MCP(1.0, gamma=3.0)"


@pytest.mark.parametrize("factor", [-1, float("nan"), float("inf")])
def test_a_factor_must_be_finite_and_not_negative(factor):
    with pytest.raises(ValueError, match=f"L1: a factor must be finite and >= 0, got {factor!r}"):
        factor * L1(1)


@pytest.mark.parametrize("factor", [True, "2", None, L2(1)], ids=repr)
def test_a_factor_must_be_a_number(factor):
    with pytest.raises(TypeError, match=r"unsupported operand|can't multiply"):
        factor * L1(1)


def test_terms_merge_only_if_they_differ_in_nothing_but_strength():
    assert ElasticNet(1, l1_ratio=0.3) + ElasticNet(2, l1_ratio=0.3) == ElasticNet(3, l1_ratio=0.3)
    assert len((ElasticNet(1, l1_ratio=0.3) + ElasticNet(2, l1_ratio=0.4)).terms) == 2
    assert len((MCP(1) + MCP(1)).terms) == 2  # twice MCP(1) is not MCP(2)
    anchor = torch.zeros(3)
    assert L2SP(1, reference=anchor) + L2SP(2, reference=anchor) == L2SP(3, reference=anchor)
    assert len((L2SP(1, reference=anchor) + L2SP(2, reference=anchor.clone())).terms) == 2  # it may change in place
    assert len((L2SP(1, reference=anchor) + L2SP(2, reference=anchor + 1)).terms) == 2


@pytest.mark.shows("tensors")
@each_shrinking
def test_complex_weights_are_penalized_by_their_magnitudes(case):
    size, phase = torch.rand(20, dtype=torch.float64), torch.randn(20, dtype=torch.complex128).sgn()
    w = size * phase
    assert_close(case.penalty.value(w), case.penalty.value(size))
    assert_close(case.penalty.gradient(w), case.penalty.gradient(size) * phase)
    if case.is_proximal:
        assert_close(case.penalty.prox(w, 0.4), case.penalty.prox(size, 0.4) * phase)
    leaf = w.clone().requires_grad_()
    case.penalty.value(leaf).backward()
    assert_close(case.penalty.gradient(w), leaf.grad)


@pytest.mark.shows("tensors")
@each_penalty_and_grouping
def test_meta_tensors_give_the_shapes_without_the_numbers(case):
    w = torch.empty(4, 3, device="meta")
    assert case.penalty.value(w).shape == ()
    results = [case.penalty.gradient(w), case.penalty._add_gradient_(w.clone(), w)]
    for result in results + ([case.penalty.prox(w, 0.1)] if case.is_proximal else []):
        assert result.is_meta
        assert result.shape == w.shape


@pytest.mark.shows("gradient")
@each_penalty
def test_the_gradient_has_finite_differences_for_its_derivative(case):
    w = 0.1 + torch.rand(6, dtype=torch.float64)  # away from the kink at 0
    assert torch.autograd.gradgradcheck(case.penalty.value, w.requires_grad_())


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


def test_tiny_proximal_steps_of_the_log_sum_do_not_round_the_wrong_way():
    w, penalty = torch.tensor([1e-3, 1e-7]), LogSum(1.0, epsilon=10.0)
    assert_bit_equal(penalty.prox(w, 0.0), w)
    for _ in range(1000):
        w = penalty.prox(w, 1e-6)
    assert_close(w, torch.tensor([9.0001e-4, 0.0]), tolerance=1e-7)

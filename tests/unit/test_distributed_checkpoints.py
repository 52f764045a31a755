"""``torch.distributed.checkpoint`` in one process; ``tests/distributed`` has two. It makes steps that are none."""

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from tests.carried import adam, begun, each_kind, half, scheduled, sgd, tensors, without_entries
from tests.helpers import assert_bit_equal, assert_differs, make_model, weights_of
from torchreg import L1, L2, Regularizer
from torchreg.optim import SGDW, AdamCPR, ProxAdam


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # in one process, by design
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@each_kind
def test_a_distributed_checkpoint_goes_on_to_the_same_bits(kind, flat, tmp_path):
    options = StateDictOptions(flatten_optimizer_state_dict=flat)

    def state_of(model, optimizer):
        return {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer, options=options)}

    model, optimizer, owners = begun(kind)
    half(model, optimizer)
    optimizer.zero_grad()
    dcp.save(state_of(model, optimizer), checkpoint_id=tmp_path / "it", no_dist=True)
    expected = half(model, optimizer, seed=1)  # saving has made a step of an optimizer without a state

    model, optimizer, again = begun(kind)
    state = state_of(model, optimizer)
    dcp.load(state, checkpoint_id=tmp_path / "it", no_dist=True)
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)
    assert_bit_equal(half(model, optimizer, seed=1), expected)
    assert_bit_equal([owner.state_dict() for owner in again], [owner.state_dict() for owner in owners])

    straight = begun(kind)
    half(*straight[:2])
    assert_bit_equal(half(*straight[:2], seed=1), expected)


SHRINKING = {  # of ours: what a step without gradients changes
    "independent": lambda m: SGDW(m.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, coupling="independent"),
    "a bound": lambda m: AdamCPR(m.parameters(), lr=0.1, bound=1e-3),
    "a threshold": lambda m: ProxAdam(m.parameters(), L1(1.0), lr=0.1, weight_decay=0.1, decay="L1"),
}


@pytest.mark.parametrize("make", SHRINKING.values(), ids=SHRINKING)
def test_the_step_that_creates_an_optimizers_state_changes_no_weight(make):
    model = make_model()
    before, optimizer = weights_of(model), make(model)
    get_optimizer_state_dict(model, optimizer)
    assert_bit_equal(weights_of(model), before)
    model.zero_grad()
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert_differs(weights_of(model), before)


@pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0)], ids=["number", "tensor"])
@pytest.mark.parametrize(("gradient", "counts"), [(0.0, 0), (1e-9, 1), (float("nan"), 1)])
def test_only_a_step_without_rate_and_gradients_is_none(lr, gradient, counts):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    owners = scheduled(model, optimizer, "grad")
    for param in model.parameters():
        param.grad = torch.full_like(param, gradient)
    optimizer.step()
    assert owners.state_dict()["steps"] == counts
    assert bool((model[0].weight.grad == gradient).all()) == (counts == 0)


def test_without_moments_the_gradient_is_that_of_the_penalty_at_any_rate():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    Regularizer(model, L2(0.5), mode="grad").attach(optimizer)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert_bit_equal(model[0].weight.grad, 0.5 * model[0].weight.detach())


def test_the_moments_that_are_created_are_those_of_torch_alone():
    states = []
    for is_regularized in (True, False):
        model = make_model()
        optimizer = adam(model)
        if is_regularized:
            scheduled(model, optimizer, "grad")
        states.append(without_entries(get_optimizer_state_dict(model, optimizer))["state"])
    assert_bit_equal(*states)


def test_a_step_without_gradients_at_a_rate_above_zero_counts_as_ever():
    model = make_model()
    optimizer = sgd(model)
    schedule = Regularizer(model, L2(0.1), mode="decoupled", schedule=tensors).attach(optimizer)
    optimizer.step()
    assert schedule.state_dict()["steps"] == 1

"""The largest weights of a whole model: what torch's global pruning leaves, and loops written by hand."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from tests.helpers import assert_bit_equal, assert_close, make_data, make_model, resume, train, weights_of
from torchreg import L1, L2, Regularizer, Sparsest, Stacked, everything
from torchreg.optim import ProxAdam, ProxSGD


def all_of(model):
    return torch.cat([model[0].weight.detach().flatten(), model[2].weight.detach().flatten()])


def masked_by_hand(model, count):
    """The ``count`` largest of all weights stay, in NumPy."""
    flat = all_of(model)
    order = np.argsort(-flat.abs().numpy(), kind="stable")
    flat[torch.from_numpy(order[count:].copy())] = 0
    with torch.no_grad():
        first = model[0].weight.numel()
        model[0].weight.copy_(flat[:first].view_as(model[0].weight))
        model[2].weight.copy_(flat[first:].view_as(model[2].weight))


@pytest.mark.parametrize("make_optimizer", [torch.optim.SGD, torch.optim.Adam], ids=["SGD", "Adam"])
def test_together_a_training_is_the_loop_written_by_hand(make_optimizer):
    ours, theirs = make_model(), make_model()
    optimizer = make_optimizer(ours.parameters(), lr=0.05)
    regularizer = Regularizer(ours, Sparsest(count=9, together=True), mode="prox").attach(optimizer)
    assert regularizer.value() == torch.inf
    train(ours, optimizer, steps=10)
    optimizer = make_optimizer(theirs.parameters(), lr=0.05)
    for _ in range(10):
        train(theirs, optimizer, steps=1)
        masked_by_hand(theirs, 9)
    assert_close(weights_of(ours), weights_of(theirs), tolerance=1e-12)
    assert all_of(ours).count_nonzero() == 9
    assert regularizer.value() == 0
    assert regularizer.terms() == {"Sparsest": torch.zeros((), dtype=torch.float64)}


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_together_the_share_is_what_torchs_global_pruning_leaves(share):
    ours, theirs = make_model(), make_model()
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.0)
    Regularizer(ours, Sparsest(share, together=True), mode="prox").attach(optimizer)
    train(ours, optimizer, steps=1)
    layers = [(theirs[0], "weight"), (theirs[2], "weight")]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=1 - share)
    for mine, (their, name) in zip((ours[0], ours[2]), layers, strict=True):
        assert_bit_equal(mine.weight.detach() + 0.0, getattr(their, name).detach() + 0.0)


def test_together_groups_of_all_weights_are_ordered_by_their_norms():
    model = make_model()
    layers = (model[0], model[2])
    before = {layer: layer.weight.detach().clone() for layer in layers}
    norms = sorted((row.norm().item() for w in before.values() for row in w), reverse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    Regularizer(model, Sparsest(count=3, groups="output", together=True), mode="prox").attach(optimizer)
    train(model, optimizer, steps=1)
    for layer in layers:
        expected = torch.where(before[layer].norm(dim=1, keepdim=True) >= norms[2], before[layer], 0.0)
        assert_bit_equal(layer.weight.detach() + 0.0, expected + 0.0)


def test_together_the_outputs_of_a_transposed_convolution_are_its_second_dimension():
    model = nn.Sequential(nn.ConvTranspose1d(2, 3, 1, bias=False), nn.Linear(5, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 9.0, 0.0], [1.0, 0.0, 0.0]])[..., None])
        model[1].weight.fill_(0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    Regularizer(model, Sparsest(count=1, groups="output", together=True), mode="prox").attach(optimizer)
    model(torch.ones(1, 2, 5)).sum().backward()
    optimizer.step()
    assert model[0].weight.squeeze(-1).tolist() == [[0, 9, 0], [0, 0, 0]]
    assert not model[1].weight.any()


def test_together_ties_go_to_the_first_weights():
    model = nn.ParameterList([torch.ones(2, 2), torch.ones(2, 2, dtype=torch.float16), torch.ones(2, 2)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    Regularizer(model, Sparsest(count=6, together=True), mode="prox", select=everything).attach(optimizer)
    for p in model:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert [p.tolist() for p in model] == [[[1, 1], [1, 1]], [[1, 1], [0, 0]], [[0, 0], [0, 0]]]


def test_together_frozen_weights_do_not_count_and_those_without_a_gradient_do_not_move():
    model = nn.ParameterList([torch.full((4,), 9.0), torch.full((4,), 3.0), torch.arange(4.0)])
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    regularizer = Regularizer(model, Sparsest(count=4, together=True), mode="prox", select=everything).attach(optimizer)
    model[2].grad = torch.zeros(4)
    optimizer.step()
    assert model[0].tolist() == [9] * 4
    assert model[1].tolist() == [3] * 4
    assert model[2].tolist() == [0] * 4  # 3.0 is the last of five equal ones
    model[2].grad = torch.tensor([0.0, 0.0, 0.0, -5.0])
    optimizer.step()
    assert model[2].tolist() == [0, 0, 0, 5]
    assert regularizer.value() == torch.inf
    model[1].grad = torch.zeros(4)
    optimizer.step()
    assert model[1].tolist() == [3, 3, 3, 0]
    assert regularizer.value() == 0


def test_together_with_a_penalty_of_another_pattern():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    rules = {"0.*": L1(0.25), "*": Sparsest(count=3, together=True)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, rules, mode="prox").attach(optimizer)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert sum(model[i].weight.count_nonzero() for i in (1, 2)) == 3
    assert_close(regularizer.value(), 0.25 * model[0].weight.abs().sum())
    assert regularizer.terms().keys() == {"L1", "Sparsest"}
    regularizer.value().backward()


def test_together_a_spoilt_weight_stays_visible():
    model = nn.ParameterList([torch.ones(2, 2), torch.ones(2, 2)])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    regularizer = Regularizer(model, Sparsest(count=1, together=True), mode="prox").attach(optimizer)
    for p in model:
        p.grad = torch.zeros_like(p)
    model[1].grad[0, 1] = torch.nan
    optimizer.step()
    assert model[1][0, 1].isnan()
    assert regularizer.value().isnan()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_together_a_copy_acts_on_its_own_model(duplicate):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, Sparsest(count=5, together=True), mode="prox")
    model, optimizer, regularizer = duplicate((model, optimizer, regularizer))
    regularizer.attach(optimizer)
    train(model, optimizer, steps=2)
    assert all_of(model).count_nonzero() == 5


def test_together_training_resumes_to_the_bit():
    def setting():
        model = make_model()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        return model, optimizer, Regularizer(model, Sparsest(0.2, together=True), mode="prox").attach(optimizer)

    whole, broken, resumed = setting(), setting(), setting()
    train(*whole[:2], steps=6)
    train(*broken[:2], steps=3)
    resume(resumed, broken)
    train(*resumed[:2], steps=3)
    assert_bit_equal(weights_of(resumed[0]), weights_of(whole[0]))


def test_together_a_compiled_step_is_the_eager_one():
    found = []
    for is_compiled in (False, True):
        torch._dynamo.reset()
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        Regularizer(model, Sparsest(count=7, together=True), mode="prox").attach(optimizer)
        step = torch.compile(optimizer.step, backend="eager") if is_compiled else optimizer.step
        x, y = make_data()
        for _ in range(3):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            step()
        found.append(weights_of(model))
    assert_close(*found, tolerance=1e-12)


def test_together_what_cannot_be_is_refused_in_one_line():
    constraint = Sparsest(0.5, together=True)
    model = make_model()
    with pytest.raises(ValueError, match=r"together must not be part of a sum, got .*: make one Regularizer for each"):
        Regularizer(model, L2(0.1) + constraint, mode="prox")
    first, second = (torch.optim.SGD(model[i].parameters()) for i in (0, 2))
    with pytest.raises(ValueError, match="acts in the steps of one optimizer, got 2: make a Regularizer for each"):
        Regularizer(model, constraint, mode="prox").attach(first, second)
    with pytest.raises(ValueError, match=r"cannot act on a stack of models: use it on each of its members"):
        Regularizer(Stacked([make_model(), make_model()]), constraint, mode="prox")
    for make in (ProxSGD, ProxAdam):
        with pytest.raises(ValueError, match=f"{make.__name__}: .* one parameter at a time, .* use a Regularizer"):
            make(model.parameters(), constraint)

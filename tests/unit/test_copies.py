"""Copies and pickles of a regularized training take the same steps, each on its own."""

import copy

import pytest
import torch

from tests.cases import each_step_mode
from tests.helpers import (
    assert_bit_equal,
    assert_differs,
    by_pickle,
    by_torch,
    make_model,
    through_a_file,
    train,
    weights_of,
)
from tests.optimizers import each_optimizer
from tests.unit.training import PENALTY, run, sgd
from torchreg import Regularizer, linear


@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle, by_torch])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)], ids=str)
@each_step_mode
def test_a_copy_of_all_three_stays_attached_and_goes_its_own_way(mode, order, duplicate):
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    regularizer = Regularizer(model, PENALTY, mode=mode, schedule=linear(20)).attach(optimizer)
    train(model, optimizer, steps=3)
    copied = duplicate([(model, optimizer, regularizer)[index] for index in order])
    twin, its_optimizer, its_regularizer = (copied[order.index(index)] for index in range(3))

    before = weights_of(model)
    after = train(twin, its_optimizer, steps=3)
    assert_bit_equal(weights_of(model), before)
    assert_bit_equal(train(model, optimizer, steps=3), after)

    its_regularizer.remove()
    assert_differs(train(twin, its_optimizer, steps=3), train(model, optimizer, steps=3))
    assert len(optimizer._optimizer_step_pre_hooks) == 1


@each_step_mode
def test_a_copy_of_a_removed_one_stays_removed(mode):
    model = make_model()
    optimizer = sgd(model)
    regularizer = Regularizer(model, PENALTY, mode=mode).attach(optimizer)
    regularizer.remove()
    twin, its_optimizer, _ = copy.deepcopy((model, optimizer, regularizer))
    assert_bit_equal(train(twin, its_optimizer, steps=3), train(model, optimizer, steps=3))
    assert not its_optimizer._optimizer_step_pre_hooks


@each_step_mode
def test_a_shallow_copy_is_detached_so_nothing_counts_twice(mode):
    model = make_model()
    optimizer = sgd(model)
    regularizer = Regularizer(model, PENALTY, mode=mode).attach(optimizer)
    twin = copy.copy(regularizer)
    assert_bit_equal(train(model, optimizer, steps=5), run(mode))
    regularizer.remove()
    twin.attach(optimizer)  # it can take over


@each_optimizer
@each_step_mode
def test_the_state_of_an_attached_optimizer_loads_with_weights_only(make_optimizer, mode):
    model = make_model()
    optimizer = make_optimizer(model.parameters())
    Regularizer(model, PENALTY, mode=mode).attach(optimizer)
    train(model, optimizer, steps=2)
    assert_bit_equal(through_a_file(optimizer.state_dict()), optimizer.state_dict())

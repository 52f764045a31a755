"""Whoever saves and loads the model's and the optimizer's state resumes the regularization with them."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F

from tests.carried import (
    HALF,
    KEY,
    STEPS,
    adam,
    begun,
    each_kind,
    half,
    halfway,
    scheduled,
    sgd,
    without_entries,
)
from tests.helpers import (
    assert_bit_equal,
    assert_differs,
    by_pickle,
    make_model,
    resume,
    through_a_file,
    train,
    weights_of,
)
from torchreg import L1, L2, L2SP, Regularizer, linear

# -- resuming -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attached", [True, False], ids=["attached before", "attached after"])
@each_kind
def test_a_training_goes_on_to_the_same_bits(kind, attached):
    saved, expected, ends = halfway(kind)
    model, optimizer, owners = begun(kind, attached=attached)
    for part, state in zip((model, optimizer), saved, strict=True):
        part.load_state_dict(state)
    if not attached:
        owners = [attach(model, optimizer) for attach in kind.attach]
    assert_bit_equal(half(model, optimizer, seed=1), expected)
    assert_bit_equal([owner.state_dict() for owner in owners], ends)
    assert not optimizer.param_groups[0].get(KEY)


@each_kind
def test_without_its_state_it_would_go_elsewhere_and_says_so(kind):
    saved, expected, _ = halfway(kind)
    model, optimizer, owners = begun(kind)
    model.load_state_dict(saved[0])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        optimizer.load_state_dict(without_entries(saved[1]))
    said = [str(warning.message) for warning in said]
    counting = [owner for owner in owners if owner._is_counting]
    assert [text.split(":")[0] for text in said if text.startswith("Regularizer")] == ["Regularizer"] * sum(
        isinstance(owner, Regularizer) for owner in counting
    )
    assert len(said) == len(counting)
    assert all("does not hold its state, so it goes on from where it is" in text and "\n" not in text for text in said)
    assert_differs(half(model, optimizer, seed=1), expected)


def test_an_older_checkpoint_without_it_says_nothing_where_nothing_counts():
    model = make_model()
    optimizer = adam(model)
    state = copy.deepcopy(optimizer.state_dict())
    Regularizer(model, L1(0.1), mode="prox").attach(optimizer)
    optimizer.load_state_dict(state)  # a warning would be an error


def test_a_warning_points_at_the_line_that_loads():
    model = make_model()
    optimizer = sgd(model)
    state = copy.deepcopy(optimizer.state_dict())
    scheduled(model, optimizer)
    with pytest.warns(UserWarning, match="does not hold its state") as said:
        optimizer.load_state_dict(state)
    assert said[0].filename == __file__


@pytest.mark.parametrize(
    "scale", [0.3, torch.tensor(0.3), {"0.weight": 0.3, "2.weight": 0.0}], ids=["one", "0-d", "each"]
)
def test_a_scale_that_was_set_by_hand_is_resumed(scale):
    model = make_model()
    optimizer = adam(model)
    Regularizer(model, L1(0.1), mode="prox").attach(optimizer).scale = scale
    train(model, optimizer, 3)
    saved = through_a_file(optimizer.state_dict())
    other = adam(model)
    regularizer = Regularizer(model, L1(0.1), mode="prox").attach(other)
    other.load_state_dict(saved)
    assert_bit_equal(regularizer.scale, scale)


def test_the_reference_is_resumed_and_not_taken_from_the_loaded_weights():
    def value_after(order):
        model = make_model()
        model.load_state_dict(saved[0])  # before the regularizer is made: its own start would be these weights
        optimizer = adam(model)
        regularizer = Regularizer(model, L2SP(0.5), mode="grad")
        for act in order:
            (regularizer.attach if act == "attach" else optimizer.load_state_dict)(
                optimizer if act == "attach" else saved[1]
            )
        return regularizer.value()

    model = make_model()
    optimizer = adam(model)
    regularizer = Regularizer(model, L2SP(0.5), mode="grad").attach(optimizer)
    train(model, optimizer, 3)
    saved = through_a_file([model.state_dict(), optimizer.state_dict()])
    assert regularizer.value() > 0
    for order in (["attach", "load"], ["load", "attach"]):
        assert_bit_equal(value_after(order), regularizer.value())


@pytest.mark.parametrize("lr_first", [True, False], ids=["scheduler first", "attached first"])
def test_beside_a_scaler_and_a_scheduler_of_the_learning_rate(lr_first):
    def made():
        model = make_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0)
        parts = [model, optimizer, torch.amp.GradScaler("cpu", 8.0)]
        if not lr_first:
            scheduled(model, optimizer)
        parts.append(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS))
        if lr_first:
            scheduled(model, optimizer)
        return parts

    def go_on(parts):
        for _ in range(HALF):
            train(*parts[:2], 1, scaler=parts[2])
            parts[3].step()
        return weights_of(parts[0])

    straight = made()
    go_on(straight)
    resumed = made()
    resume(resumed, straight)
    assert_bit_equal(go_on(resumed), go_on(straight))


def test_the_schedule_of_mode_loss_is_resumed():
    def made():
        model = make_model()
        optimizer = adam(model)
        return model, optimizer, Regularizer(model, L2(0.5), schedule=linear(STEPS)).attach(optimizer)

    straight = made()
    train(*straight[:2], HALF, criterion=straight[2].penalize(F.mse_loss))
    resumed = made()
    resume(resumed[:2], straight[:2])
    ends = [train(*it[:2], HALF, criterion=it[2].penalize(F.mse_loss)) for it in (straight, resumed)]
    assert_bit_equal(*ends)
    assert straight[2].state_dict() == resumed[2].state_dict() == {"steps": STEPS, "scale": 0.0}


# -- several ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attached", [True, False], ids=["attached before", "attached after"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)], ids=str)
def test_regularizers_of_one_optimizer_know_their_own_states_in_any_order(order, attached):
    def made(order):
        every = [
            Regularizer(model, L1(0.1), mode="prox", schedule=linear(20)),
            Regularizer(model, L2(0.1), mode="decoupled", schedule=linear(10)),
            Regularizer(model, L2(0.1), mode="grad"),
        ]
        every[2].scale = 0.25 if order is None else 1.0
        for i in order or range(3):
            every[i].attach(optimizer)
        return every

    model = make_model()
    optimizer = adam(model)
    first = made(None)
    train(model, optimizer, 4)
    saved = through_a_file(optimizer.state_dict())
    optimizer = adam(model)
    if attached:
        again = made(order)
        optimizer.load_state_dict(saved)
    else:
        optimizer.load_state_dict(saved)
        again = made(order)
    assert [it.state_dict() for it in again] == [it.state_dict() for it in first]


def test_equal_ones_get_their_states_in_the_order_in_which_they_are_attached_also_after_two_rounds():
    model = make_model()
    optimizer = adam(model)
    for scale in (0.25, 0.5):
        Regularizer(model, L1(0.1), mode="prox").attach(optimizer).scale = scale
    saved = through_a_file(optimizer.state_dict())
    for _ in range(2):  # in the second round the first was saved while the second was not attached yet
        optimizer = adam(model)
        optimizer.load_state_dict(saved)
        first = Regularizer(model, L1(0.1), mode="prox").attach(optimizer)
        saved = through_a_file(optimizer.state_dict())
        second = Regularizer(model, L1(0.1), mode="prox").attach(optimizer)
        assert (first.scale, second.scale) == (0.25, 0.5)


def test_of_several_optimizers_the_last_carries_it():
    def made():
        model = make_model()
        halves = [torch.optim.Adam(layer.parameters(), lr=0.05) for layer in (model[0], model[2])]
        return model, *halves, Regularizer(model, L1(0.1), mode="prox", schedule=linear(STEPS)).attach(*halves)

    def go_on(model, first, second, _):
        for _ in range(HALF):
            first.zero_grad()
            train(model, second, 1)
            first.step()
        return weights_of(model)

    straight = made()
    go_on(*straight)
    resumed = made()
    resume(resumed[:3], straight[:3])
    assert KEY not in straight[1].state_dict()["param_groups"][0]
    assert resumed[3].state_dict() == straight[3].state_dict()
    assert_bit_equal(go_on(*resumed), go_on(*straight))


@pytest.mark.parametrize("attached", [True, False], ids=["attached before", "attached after"])
def test_it_is_found_in_whichever_group_it_is_now(attached):
    def made():
        model = make_model()
        return model, torch.optim.SGD([{"params": layer.parameters()} for layer in (model[0], model[2])], lr=0.05)

    model, optimizer = made()
    regularizer = scheduled(model, optimizer)
    train(model, optimizer, 3)
    saved = through_a_file(optimizer.state_dict())
    saved["param_groups"][1][KEY] = saved["param_groups"][0].pop(KEY)  # as a tool that sorts groups by names does
    model, optimizer = made()
    if attached:
        again = scheduled(model, optimizer)
        optimizer.load_state_dict(saved)
    else:
        optimizer.load_state_dict(saved)
        optimizer.param_groups.reverse()
        again = scheduled(model, optimizer)
    assert again.state_dict() == regularizer.state_dict()
    assert not any(group.get(KEY) for group in optimizer.param_groups)


# -- without torchreg, and no longer with it ----------------------------------------------------------------------


@each_kind
def test_an_optimizer_alone_loads_it_and_trains_as_if_it_were_not_there(kind):
    saved, _, _ = halfway(kind)
    ends = []
    for state in (copy.deepcopy(saved[1]), without_entries(copy.deepcopy(saved[1]))):
        model, optimizer, _ = begun(kind, attached=False)
        model.load_state_dict(saved[0])
        optimizer.load_state_dict(state)
        assert_bit_equal(optimizer.state_dict()["state"], saved[1]["state"])
        ends.append(half(model, optimizer))
    assert_bit_equal(*ends)


@each_kind
def test_once_removed_nothing_is_left(kind):
    def bare(optimizer):
        return through_a_file(optimizer.state_dict())

    model, optimizer, owners = begun(kind)
    half(model, optimizer)
    saved = through_a_file(optimizer.state_dict())
    for owner in owners:
        owner.remove()
    after = bare(optimizer)
    assert_bit_equal(after, without_entries(copy.deepcopy(saved)))
    assert [group.keys() for group in optimizer.param_groups] == [group.keys() for group in after["param_groups"]]

    model, optimizer, _ = begun(kind, attached=False)
    optimizer.load_state_dict(saved)
    for owner in [attach(model, optimizer) for attach in kind.attach]:
        owner.remove()
    assert_bit_equal(bare(optimizer), after)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle])
def test_a_copy_carries_a_state_of_its_own_once(duplicate):
    model = make_model()
    optimizer = adam(model)
    regularizer = scheduled(model, optimizer)
    Regularizer(model, L2(0.1), mode="grad").attach(optimizer)
    train(model, optimizer, 3)
    waiting = through_a_file(optimizer.state_dict())
    optimizer = adam(model)
    optimizer.load_state_dict(waiting)
    regularizer = scheduled(model, optimizer)  # the other's state still waits
    twin, its_optimizer, its_regularizer = duplicate((model, optimizer, regularizer))
    assert its_regularizer.state_dict() == regularizer.state_dict()
    train(twin, its_optimizer, 2)
    entries = its_optimizer.state_dict()["param_groups"][0][KEY]
    assert [entry["state"]["steps"] for entry in entries] == [5, 3]
    assert [entry["state"]["steps"] for entry in optimizer.state_dict()["param_groups"][0][KEY]] == [3, 3]


def test_a_copy_of_the_optimizer_alone_carries_nothing():
    model = make_model()
    optimizer = adam(model)
    scheduled(model, optimizer)
    train(model, optimizer, 2)
    optimizer.state_dict()
    for alone in (copy.deepcopy(optimizer), by_pickle(optimizer)):
        assert not alone.state_dict()["param_groups"][0].get(KEY)

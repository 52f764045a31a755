"""A checkpoint that does not hold what is attached is refused or told of, and nothing of it is loaded."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from tests.carried import (
    KEY,
    Kind,
    adam,
    begun,
    each_kind,
    fading_dropout,
    half,
    halfway,
    scheduled,
    tuned,
    without_entries,
)
from tests.helpers import (
    assert_bit_equal,
    make_data,
    make_model,
    through_a_file,
    train,
)
from tests.unit.training import sgd
from torchreg import L2, L2SP, DropoutSchedule, Regularizer, late, linear
from torchreg.optim import SGDW

OTHER_LAYERS = Kind(adam, (lambda m, o: DropoutSchedule(nn.Sequential(nn.Dropout(0.5)), linear(4)).attach(o),))
MISFITS = {
    "other layers": (Kind(adam, (fading_dropout,)), OTHER_LAYERS, "DropoutSchedule: .*layers 0"),
}
OTHERS = {
    "a reference": (Kind(adam, (scheduled,)), partial(scheduled, mode="grad", penalty=L2SP(0.5))),
    "another mode": (Kind(adam, (scheduled,)), partial(scheduled, mode="grad")),
    "others tuned": (Kind(adam, (tuned,)), partial(tuned, per="regularizer")),
}


@pytest.mark.parametrize("attached", [True, False], ids=["attach, then load", "load, then attach"])
@pytest.mark.parametrize(("saved", "attach"), OTHERS.values(), ids=OTHERS)
def test_the_state_of_a_regularizer_of_another_kind_is_not_taken_and_that_is_told(saved, attach, attached):
    model, optimizer, _ = begun(saved)
    half(model, optimizer)
    state = through_a_file(optimizer.state_dict())
    model = make_model()
    optimizer = adam(model)
    owners = []
    steps = [lambda: owners.append(attach(model, optimizer)), lambda: optimizer.load_state_dict(state)]
    first, second = steps if attached else reversed(steps)
    first()
    with pytest.warns(UserWarning, match="does not hold its state, so it goes on from where it is") as said:
        second()
    assert len(said) == 1
    (it,) = owners
    assert it.state_dict()["steps"] == 0


def decoupled(model, penalty, name="*", schedule=None):
    return Regularizer(model, {name: penalty}, mode="decoupled", schedule=schedule)


def test_a_regularizer_without_a_schedule_takes_nothing_of_one_that_has_one():
    model = make_model()
    optimizer = sgd(model)
    decoupled(model, L2(0.1), schedule=late(steps=100)).attach(optimizer)
    train(model, optimizer, 3)
    state = copy.deepcopy(optimizer.state_dict())
    optimizer = sgd(model)
    optimizer.load_state_dict(state)
    new = decoupled(model, L2(1.0)).attach(optimizer)
    assert new.scale == 1.0
    old = decoupled(model, L2(0.1), schedule=late(steps=100)).attach(optimizer)
    assert (old.scale, old.state_dict()["steps"]) == (0.0, 3)


@pytest.mark.parametrize("attached", [True, False])
def test_regularizers_of_other_parameters_resume_in_any_order(attached):
    model = make_model()
    optimizer = sgd(model)
    first = decoupled(model, L2(0.1), "0.*", linear(100)).attach(optimizer)
    train(model, optimizer, 3)
    second = decoupled(model, L2(0.1), "2.*", linear(100)).attach(optimizer)
    train(model, optimizer, 2)
    state, expected = copy.deepcopy(optimizer.state_dict()), (first.scale, second.scale)
    optimizer = sgd(model)
    if not attached:
        optimizer.load_state_dict(state)
    second = decoupled(model, L2(0.2), "2.*", linear(100)).attach(optimizer)  # of another strength
    first = decoupled(model, L2(0.1), "0.*", linear(100)).attach(optimizer)
    if attached:
        optimizer.load_state_dict(state)
    assert (first.scale, second.scale) == expected == (0.95, 0.98)


@pytest.mark.parametrize(("saved", "other", "message"), MISFITS.values(), ids=MISFITS)
def test_a_state_of_another_is_refused_in_one_line_and_nothing_is_loaded(saved, other, message):
    model, optimizer, _ = begun(saved)
    half(model, optimizer)
    state = through_a_file(optimizer.state_dict())
    model, optimizer, owners = begun(other)
    half(model, optimizer, seed=1)
    refuses_and_stays(optimizer, owners, state, message)

    model, optimizer, _ = begun(other, attached=False)
    optimizer.load_state_dict(state)
    with pytest.raises(ValueError, match=f"(?s)^{message}.*: attach what was attached when it was saved"):
        other.attach[0](model, optimizer)
    assert_bit_equal(optimizer.state_dict()["param_groups"][0][KEY][-1], state["param_groups"][0][KEY][-1])


def refuses_and_stays(optimizer, owners, state, message):
    before = copy.deepcopy(without_entries(optimizer.state_dict())), [owner.state_dict() for owner in owners]
    with pytest.raises(ValueError, match=message) as refused:
        optimizer.load_state_dict(state)
    assert "\n" not in str(refused.value)
    assert_bit_equal(without_entries(optimizer.state_dict()), before[0])
    assert_bit_equal([owner.state_dict() for owner in owners], before[1])


def spoil_everything(entries):
    return 7


def spoil_class(entries):
    return [{key: value for key, value in entry.items() if key != "of"} for entry in entries]


def spoil_state(entries):
    return [{**entry, "state": None} for entry in entries]


def spoil_count(entries):
    return [
        {**entry, "state": {key: -1 if key in ("steps", "made") else v for key, v in entry["state"].items()}}
        for entry in entries
    ]


@pytest.mark.parametrize("spoil", [spoil_everything, spoil_class, spoil_state, spoil_count])
@each_kind
def test_a_damaged_state_is_refused_in_one_line_and_nothing_is_loaded(kind, spoil):
    saved, _, _ = halfway(kind)
    _, optimizer, owners = begun(kind)
    group = saved[1]["param_groups"][0]
    group[KEY] = spoil(group[KEY])
    refuses_and_stays(optimizer, owners, saved[1], r"^\w+: its state in the checkpoint of \w+ must be that of an equal")


def test_a_load_that_torch_refuses_changes_no_regularizer():
    model = make_model()
    optimizer = adam(model)
    scheduled(model, optimizer)
    train(model, optimizer, 3)
    state = optimizer.state_dict()
    model = make_model()
    optimizer = torch.optim.Adam([{"params": layer.parameters()} for layer in (model[0], model[2])])
    regularizer = scheduled(model, optimizer)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(state)
    assert regularizer.state_dict()["steps"] == 0


def test_an_optimizer_of_ours_does_not_keep_what_an_earlier_checkpoint_held():
    model = make_model()
    optimizer = SGDW(model.parameters(), lr=0.1)
    bare = copy.deepcopy(optimizer.state_dict())
    regularizer = scheduled(model, optimizer)
    train(model, optimizer, 3)
    optimizer_alone = SGDW(model.parameters(), lr=0.1)
    optimizer_alone.load_state_dict(optimizer.state_dict())
    optimizer_alone.load_state_dict(bare)
    assert KEY not in optimizer_alone.param_groups[0]
    regularizer.remove()


class OwnFormat(torch.optim.SGD):
    """Writes its checkpoints itself."""

    def state_dict(self):
        return {"state": {}, "param_groups": [{"lr": group["lr"]} for group in self.param_groups]}


def test_an_optimizer_that_cannot_carry_a_state_is_told_of_where_the_state_changes():
    model = make_model()
    optimizer = OwnFormat(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="^Regularizer: the checkpoints of OwnFormat do not hold its state, .*: save"):
        scheduled(model, optimizer)
    Regularizer(model, L2(0.1), mode="grad").attach(optimizer)  # a warning would be an error


class WithoutLength:
    def __iter__(self):
        return iter([make_data()] * 3)


def test_examples_without_a_length_go_on_from_where_they_are_and_the_rest_is_resumed():
    kind = Kind(adam, (partial(tuned, examples=WithoutLength()),))
    saved, expected, ends = halfway(kind)
    model, optimizer, owners = begun(kind)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    assert_bit_equal(half(model, optimizer, seed=1), expected)  # as all batches are the same
    assert_bit_equal([owner.state_dict() for owner in owners], ends)

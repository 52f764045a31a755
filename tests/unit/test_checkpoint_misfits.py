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
from torchreg import L2, L2SP, DropoutSchedule, Regularizer, linear
from torchreg.optim import SGDW

OTHER_LAYERS = Kind(adam, (lambda m, o: DropoutSchedule(nn.Sequential(nn.Dropout(0.5)), linear(4)).attach(o),))
OTHER_REFERENCE = Kind(adam, (partial(scheduled, mode="grad", penalty=L2SP(0.5)),))
MISFITS = {
    "a reference": (Kind(adam, (scheduled,)), OTHER_REFERENCE, "Regularizer: .*the keys 'steps' and 'scale' and 'ref"),
    "other layers": (Kind(adam, (fading_dropout,)), OTHER_LAYERS, "DropoutSchedule: .*layers 0"),
    "others tuned": (
        Kind(adam, (tuned,)),
        Kind(adam, (partial(tuned, per="regularizer"),)),
        "AutoStrength: .*state must be that of the strengths L2, got",
    ),
}


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

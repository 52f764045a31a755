"""New dropout layers behind any module of a model that exists."""

import copy
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.cases import each_duplicate
from tests.helpers import assert_bit_equal, assert_differs, drawn_from, make_data, make_model, modules_of
from torchreg.nn import insert_dropout
from torchreg.nn.block import DropBlock2d
from torchreg.nn.dropout import Dropout


def hooks_of(model):
    return [hook for module in model.modules() for hook in module._forward_hooks.values()]


def test_an_inserted_layer_is_applied_to_the_output():
    model, (x, _) = make_model(), make_data()
    keys, weights = list(model.state_dict()), copy.deepcopy(model.state_dict())
    insert_dropout(model, 0.3, after=(nn.Tanh, "0"))
    assert list(model.state_dict()) == keys
    model.load_state_dict(weights)
    twin = make_model()
    expected = drawn_from(0, nn.Sequential(twin[0], Dropout(0.3), twin[1], Dropout(0.3), twin[2]), x)
    assert_bit_equal(drawn_from(0, model, x), expected)
    assert_bit_equal(model.eval()(x), twin(x))


def test_undo_leaves_no_trace():
    model, (x, _) = make_model(), make_data()
    before, expected = modules_of(model), model(x)
    put = insert_dropout(model, after=["", "1"])
    assert_differs(model(x), expected)
    for _ in range(2):
        put.undo()
        assert modules_of(model) == before
        assert hooks_of(model) == []
        assert_bit_equal(model(x), expected)


def test_undo_leaves_what_was_inserted_since():
    model = make_model()
    first = insert_dropout(model, 0.1, after="1")
    first.undo()
    insert_dropout(model, 0.2, after="1")
    first.undo()
    assert model[1].torchreg_dropout.p == 0.2
    assert len(hooks_of(model)) == 1


def test_a_sequential_runs_the_layer_last_and_once():
    model, (x, _) = make_model(), make_data()
    insert_dropout(model, 0.5, after=nn.Sequential)
    assert hooks_of(model) == []
    assert_bit_equal(drawn_from(0, model, x), drawn_from(0, nn.Sequential(*make_model(), Dropout(0.5)), x))


def test_the_layers_are_copies_in_the_mode_of_the_modules_before_them():
    model, layer = make_model(), DropBlock2d(0.2, 3)
    model[0].eval()
    insert_dropout(model, layer, after=nn.Linear)
    copies = [model[i].torchreg_dropout for i in (0, 2)]
    assert [(type(it), it.p, it.training) for it in copies] == [(DropBlock2d, 0.2, False), (DropBlock2d, 0.2, True)]
    assert len({layer, *copies}) == 3
    model.eval()
    assert not any(it.training for it in copies)


def test_a_module_at_two_places_gets_one_layer():
    shared = nn.ReLU()
    model = nn.Sequential(nn.Linear(6, 6), shared, nn.Linear(6, 6), shared)
    assert insert_dropout(model, after=nn.ReLU).names == ("1",)
    assert len(hooks_of(model)) == 1


Pair = namedtuple("Pair", ["first", "second"])


class Packing(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(2, 3)

    def forward(self, x):
        packed, state = self.lstm(pack_padded_sequence(x, [4, 2]))
        return pad_packed_sequence(packed)[0], state


class Pairing(nn.Module):
    def forward(self, x):
        return Pair(x + 1, x)


@pytest.mark.parametrize(("make", "after"), [(lambda: nn.LSTM(2, 3), ""), (Packing, "lstm"), (Pairing, "")])
def test_of_a_tuple_the_first_tensor_is_dropped_and_the_rest_left(make, after):
    model, x = make(), torch.randn(4, 2, 2)
    plain = model(x)
    insert_dropout(model, Dropout(1.0), after=after)
    dropped = model(x)
    assert type(dropped) is type(plain)
    assert plain[0].count_nonzero() > 0
    assert dropped[0].count_nonzero() == 0
    assert_bit_equal(dropped[1], plain[1])


@pytest.mark.parametrize("output", [{"a": torch.ones(2)}, (), None, ([torch.ones(2)],)], ids=repr)
def test_an_output_that_begins_with_no_tensor_is_refused(output):
    model = nn.Identity()
    insert_dropout(model, after="")
    with pytest.raises(
        TypeError, match="insert_dropout: the output of Identity must be a tensor, or a tuple that begi"
    ):
        model(output)


@each_duplicate
def test_a_model_with_inserted_layers_can_be_copied(duplicate):
    model, (x, _) = make_model(), make_data()
    put = insert_dropout(model, Dropout(0.5, generator=torch.Generator().manual_seed(1)), after="1")
    twin, its_put = duplicate((model, put))
    assert twin[1].torchreg_dropout is not model[1].torchreg_dropout
    assert_bit_equal(twin(x), model(x))
    its_put.undo()
    assert hooks_of(twin) == []
    assert_bit_equal(twin(x), make_model()(x))
    assert_differs(model(x), twin(x))


def test_a_generator_is_copied_with_its_state_to_one_place_alone():
    model, x = nn.Sequential(nn.Identity(), nn.Identity()), torch.ones(50)
    layer = Dropout(0.5, generator=torch.Generator().manual_seed(3))
    with pytest.raises(ValueError, match=r"layer must have no generator for 2 places.*: call seed_dropout"):
        insert_dropout(model, nn.Sequential(layer), after=nn.Identity)
    insert_dropout(model, layer, after="0")
    assert_bit_equal(model(x), layer(x))


def test_the_repr_of_an_insertion_says_where():
    put = insert_dropout(make_model(), nn.Dropout(0.2), after=["1", ""])
    assert repr(put).splitlines() == [
        "Insertion: 2 places",
        "     Sequential, nn.Dropout(p=0.2, inplace=False)",
        "  1  Tanh, nn.Dropout(p=0.2, inplace=False)",
    ]


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.list = nn.ModuleList([nn.ReLU()])
        self.dict = nn.ModuleDict({"a": nn.ReLU()})
        self.residual = Residual(nn.ReLU())
        self.attention = nn.MultiheadAttention(4, 2)
        self.taken = nn.ReLU()
        insert_dropout(self, after="taken")


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ("list", "modules that are called, list is a ModuleList, a container"),
        ("dict", "modules that are called, dict is a ModuleDict, a container"),
        ("residual", "modules that are called, residual is a Residual, a container"),
        (nn.Linear, r"modules that are called, attention\.out_proj is not: its MultiheadAttention only reads"),
        ("taken", "modules without inserted dropout, taken has it already"),
        ("nothing", "some, 'nothing' matches none of"),
    ],
)
def test_a_place_that_will_not_do_is_refused_before_anything_is_changed(after, message):
    model = Holder()
    before = modules_of(model), hooks_of(model)
    with pytest.raises(ValueError, match=f"^insert_dropout: after must select {message}"):
        insert_dropout(model, after=["list.0", after])
    assert (modules_of(model), hooks_of(model)) == before


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (nn.Linear(3, 3), ValueError, r"layer must have no parameters or buffers, .*got Linear\("),
        (nn.BatchNorm1d(3, affine=False), ValueError, "layer must have no parameters or buffers"),
        (1.5, ValueError, r"p, the probability of dropping, must be in \[0, 1\], got 1\.5"),
        ("half", TypeError, "p, the probability of dropping, must be a number"),
        (nn.Dropout, TypeError, "p, the probability of dropping, must be a number"),
    ],
)
def test_a_layer_that_will_not_do_is_refused(layer, error, message):
    with pytest.raises(error, match=f"insert_dropout: {message}"):
        insert_dropout(make_model(), layer, after=nn.Tanh)


def test_bad_models_and_choices_are_refused():
    with pytest.raises(TypeError, match=r"insert_dropout: model must be a torch\.nn\.Module, got list"):
        insert_dropout([], after="*")
    with pytest.raises(
        TypeError, match="insert_dropout: after must be a pattern, type or predicate, or several of these, got 3"
    ):
        insert_dropout(make_model(), after=3)


@pytest.mark.parametrize("after", [nn.Tanh(), "Tanh", "nn.Tanh", [nn.Linear, nn.Tanh()]])
def test_a_new_layer_or_a_name_of_a_type_is_told_of_the_class(after):
    with pytest.raises(ValueError, match=r"^insert_dropout: after .* matches none of .*: pass the class nn\.Tanh$"):
        insert_dropout(make_model(), 0.2, after=after)


@pytest.mark.parametrize("after", [nn.GELU(), "GELU"])
def test_a_type_that_the_model_has_not_is_not_proposed(after):
    with pytest.raises(ValueError, match=r"matches none of [^:]*$"):
        insert_dropout(make_model(), 0.2, after=after)

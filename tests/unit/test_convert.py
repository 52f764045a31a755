"""Dropout that moves into a model that exists, and out again without a trace."""

import copy
import pickle
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import torchreg
from tests.helpers import assert_bit_equal, assert_differs, make_data, make_model
from torchreg.nn import insert_dropout, replace_dropout
from torchreg.nn.block import DropBlock2d
from torchreg.nn.dropout import Dropout, GaussianDropout

KINDS = ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"]
duplicates = pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"]
)


class Own(nn.Dropout):
    """A subclass, which may compute anything."""


class Net(nn.Module):
    """Dropout as an attribute, in each container, and one layer at two places."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.1)
        self.many = nn.ModuleList([nn.Linear(6, 6), nn.Dropout(0.2, inplace=True)])
        self.named = nn.ModuleDict({"x": nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.3))})
        self.shared = self.named["x"][1]
        self.own = Own(0.4)

    def forward(self, x):
        for layer in (self.drop, *self.many, self.named["x"], self.shared, self.own):
            x = layer(x)
        return x


def result(model, *args, seed=0):
    torch.manual_seed(seed)
    return model(*args)


def modules_of(model):
    return list(model.named_modules(remove_duplicate=False))


def hooks_of(model):
    return [hook for module in model.modules() for hook in module._forward_hooks.values()]


# -- torchreg's for torch's ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_each_of_torchs_layers_gets_its_twin_with_all_that_was_set(kind, training):
    model = nn.Sequential(getattr(nn, kind)(0.3, inplace=True)).train(training)
    replace_dropout(model)
    new = model[0]
    assert type(new) is getattr(torchreg.nn, kind)
    assert (new.p, new.inplace, new.training) == (0.3, True, training)
    x = torch.randn(4, 8, *[5] * (int(kind[-2]) if kind[-1] == "d" else 1))
    assert_bit_equal(result(model, x.clone()), result(type(new)(0.3, inplace=True).train(training), x))


def test_every_place_is_found_and_a_shared_layer_stays_shared():
    model = Net()
    keys, changes = list(model.state_dict()), replace_dropout(model)
    assert changes.names == ("drop", "shared", "many.1", "named.x.1")
    assert [type(model.get_submodule(name)) for name in changes.names] == [Dropout] * 4
    assert [model.get_submodule(name).p for name in changes.names] == [0.1, 0.3, 0.2, 0.3]
    assert model.shared is model.named["x"][1]
    assert type(model.own) is Own
    assert list(model.state_dict()) == keys


def test_undo_puts_the_same_objects_back_and_keeps_the_mode():
    model = Net()
    before, x = modules_of(model), torch.randn(4, 6)
    expected = result(model, x)
    changes = replace_dropout(model)
    model.eval()
    changes.undo()
    assert all(new is old for (_, new), (_, old) in zip(modules_of(model), before, strict=True))
    assert not any(module.training for _, module in before)
    assert_bit_equal(result(model.train(), x), expected)


def test_undo_leaves_what_has_taken_the_place_since_and_may_be_called_again():
    model = Net()
    changes = replace_dropout(model)
    model.drop = nn.Identity()
    changes.undo()
    again = replace_dropout(model)
    standing = modules_of(model)
    changes.undo()
    assert modules_of(model) == standing
    assert type(model.drop) is nn.Identity
    again.undo()
    assert type(model.shared) is nn.Dropout


def test_hooks_go_on_working_and_so_do_their_handles():
    model, seen = nn.Sequential(nn.Dropout(0.5)), []
    early = model[0].register_forward_hook(lambda module, args, output: seen.append("early"))
    changes = replace_dropout(model)
    late = model[0].register_forward_pre_hook(lambda module, args, kwargs: seen.append("late"), with_kwargs=True)
    model(torch.ones(3))
    assert seen == ["late", "early"]
    early.remove()
    changes.undo()
    model(torch.ones(3))
    assert seen == ["late", "early", "late"]
    late.remove()
    model(torch.ones(3))
    assert len(seen) == 3


def test_kinds_choose_what_is_made_of_which_layers():
    model, seen = Net(), []
    model.drop.register_forward_hook(lambda *_: seen.append("kept inside"))
    model.many[1].register_forward_hook(lambda *_: seen.append("taken over"))
    kinds = {
        nn.Dropout: lambda old: nn.Sequential(old, nn.Identity()) if old.p == 0.1 else GaussianDropout(0.6),
        Own: lambda old: old,
    }
    changes = replace_dropout(model.eval(), kinds)
    assert changes.names == ("drop", "shared", "many.1", "named.x.1")
    assert [type(model.get_submodule(name)) for name in changes.names[1:]] == [GaussianDropout] * 3
    assert model.shared is model.named["x"][1]
    assert model.shared.p == 0.6
    assert not any(module.training for module in model.modules())
    model(torch.ones(2, 6))
    assert seen == ["kept inside", "taken over"]


def test_a_seed_gives_the_new_layers_generators_of_their_own():
    models = [nn.Sequential(nn.Dropout(), Dropout(0.5), nn.Dropout()) for _ in range(2)]
    for model in models:
        replace_dropout(model, seed=7)
        assert model[1].generator is None
    x = torch.ones(50)
    assert_bit_equal([models[0][i](x) for i in (0, 2)], [models[1][i](x) for i in (0, 2)])
    assert_differs(models[0][0](x), models[0][2](x))


def test_a_model_is_trained_and_copied_as_before():
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
    replace_dropout(model)
    twin, x = copy.deepcopy(model), torch.randn(3, 4, 8)
    assert_bit_equal(result(twin, x), result(model, x))
    model(x).sum().backward()
    assert all(param.grad is not None for param in model.parameters())


def test_the_repr_of_a_replacement_says_what_became_what():
    model = nn.Sequential(nn.Dropout(0.2), nn.Sequential(nn.AlphaDropout(0.1)))
    changes = replace_dropout(model, {nn.Dropout: lambda old: GaussianDropout(old.p)})
    assert repr(changes).splitlines() == [
        "Replacement: 2 places",
        "  0    nn.Dropout(p=0.2, inplace=False) -> GaussianDropout(p=0.2, inplace=False)",
        "  1.0  nn.AlphaDropout(p=0.1, inplace=False) -> AlphaDropout(p=0.1, inplace=False)",
    ]
    with pytest.raises(AttributeError):
        changes.swaps = ()


def patched():
    model = nn.Sequential(nn.Dropout(0.5))
    model[0].forward = lambda x: x
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (make_model(), r"Sequential has none to replace; calls of torch\.nn\.functional\.dropout cannot be seen"),
        (nn.Sequential(Own(0.5)), r"only what cannot be swapped: 0 \(Own\(p=0\.5, inplace=False\)\);"),
        (nn.Sequential(DropBlock2d()), r"only what cannot be swapped: 0 \(DropBlock2d\("),
        (patched(), r"only what cannot be swapped: 0 \(nn\.Dropout\("),
        (nn.Sequential(nn.LSTM(2, 2, 2, dropout=0.3)), r"cannot be swapped: 0 \(LSTM, dropout=0\.3\)"),
        (nn.MultiheadAttention(2, 1, dropout=0.1), r"swapped: the model \(MultiheadAttention, dropout=0\.1\)"),
        (nn.Dropout(0.5), r"model must hold its dropout in a module, got Dropout\(p=0\.5, inplace=False\) itself"),
    ],
    ids=["none", "subclass", "torchreg", "patched", "LSTM", "attention", "itself"],
)
def test_a_model_with_nothing_to_replace_is_refused_with_what_it_has(model, message):
    with pytest.raises(ValueError, match=f"^replace_dropout: .*{message}"):
        replace_dropout(model)


def test_an_attention_without_dropout_is_not_named():
    with pytest.raises(ValueError, match="has none to replace; calls"):
        replace_dropout(nn.MultiheadAttention(2, 1))


def test_what_is_no_module_is_refused_and_nothing_has_changed():
    model = nn.Sequential(nn.Dropout(0.1), nn.AlphaDropout(0.2))
    before = modules_of(model)
    with pytest.raises(TypeError, match=r"replace_dropout: kinds must make modules, got 0\.2 for AlphaDropout"):
        replace_dropout(model, {nn.AlphaDropout: lambda old: old.p})
    assert modules_of(model) == before
    with pytest.raises(TypeError, match=r"replace_dropout: model must be a torch\.nn\.Module, got list"):
        replace_dropout([model])


# -- new layers ---------------------------------------------------------------------------------------------------


def test_an_inserted_layer_is_applied_to_the_output():
    model, (x, _) = make_model(), make_data()
    keys, weights = list(model.state_dict()), copy.deepcopy(model.state_dict())
    insert_dropout(model, 0.3, after=[nn.Tanh, "0"])
    assert list(model.state_dict()) == keys
    model.load_state_dict(weights)
    twin = make_model()
    expected = result(nn.Sequential(twin[0], Dropout(0.3), twin[1], Dropout(0.3), twin[2]), x)
    assert_bit_equal(result(model, x), expected)
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
    assert_bit_equal(result(model, x), result(nn.Sequential(*make_model(), Dropout(0.5)), x))


def test_the_layers_are_copies_in_the_mode_of_their_hosts():
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


@pytest.mark.parametrize(("make", "host"), [(lambda: nn.LSTM(2, 3), ""), (Packing, "lstm"), (Pairing, "")])
def test_of_a_tuple_the_first_tensor_is_dropped_and_the_rest_left(make, host):
    model, x = make(), torch.randn(4, 2, 2)
    plain = model(x)
    insert_dropout(model, Dropout(1.0), after=host)
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


@duplicates
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
        ("list", "modules that are called as they are, list is a ModuleList, a container"),
        ("dict", "modules that are called as they are, dict is a ModuleDict, a container"),
        ("residual", "modules that are called as they are, residual is a Residual, a container"),
        (nn.Linear, r"modules that are called, attention\.out_proj is not: its MultiheadAttention only reads"),
        ("taken", "modules without inserted dropout, taken has it already"),
        ("nothing", "some, 'nothing' matches none of"),
    ],
)
def test_a_place_that_will_not_do_is_refused_before_anything_is_changed(after, message):
    model = Holder()
    before = modules_of(model), hooks_of(model)
    with pytest.raises(ValueError, match=f"^insert_dropout: after must choose {message}"):
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
    with pytest.raises(TypeError, match="insert_dropout: after must be a pattern, type or predicate, got 3"):
        insert_dropout(make_model(), after=3)

"""torchreg's dropout in the place of torch's, and out again without a trace."""

import copy

import pytest
import torch
from torch import nn

import torchreg
from tests.helpers import assert_bit_equal, assert_differs, drawn_from, make_model, modules_of
from torchreg.nn import replace_dropout
from torchreg.nn.block import DropBlock2d
from torchreg.nn.dropout import Dropout, GaussianDropout

KINDS = ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"]


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
    assert_bit_equal(drawn_from(0, model, x.clone()), drawn_from(0, type(new)(0.3, inplace=True).train(training), x))


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
    expected = drawn_from(0, model, x)
    changes = replace_dropout(model)
    model.eval()
    changes.undo()
    assert all(new is old for (_, new), (_, old) in zip(modules_of(model), before, strict=True))
    assert not any(module.training for _, module in before)
    assert_bit_equal(drawn_from(0, model.train(), x), expected)


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
    model = nn.ModuleDict(
        {
            "layer": nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True),
            "rnn": nn.LSTM(2, 2, 2, dropout=0.2),
        }
    )
    with pytest.warns(UserWarning, match=r"held as numbers stay as they are: rnn \(LSTM, dropout=0.2\)$"):
        replace_dropout(model)
    model = model["layer"]
    twin, x = copy.deepcopy(model), torch.randn(3, 4, 8)
    assert_bit_equal(drawn_from(0, twin, x), drawn_from(0, model, x))
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
        changes._swaps = ()


def patched():
    model = nn.Sequential(nn.Dropout(0.5))
    model[0].forward = lambda x: x
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (make_model(), r"Sequential has none to replace; calls of torch\.nn\.functional\.dropout cannot be found"),
        (nn.Sequential(Own(0.5)), r"only others: 0 \(Own\(p=0\.5, inplace=False\)\);"),
        (nn.Sequential(DropBlock2d()), r"only others: 0 \(DropBlock2d\("),
        (patched(), r"only others: 0 \(nn\.Dropout\("),
        (nn.Sequential(nn.LSTM(2, 2, 2, dropout=0.3)), r"only others: 0 \(LSTM, dropout=0\.3\)"),
        (
            nn.MultiheadAttention(2, 1, dropout=0.1),
            r"contain dropout layers, got the layer nn\.MultiheadAttention\(\) its",
        ),
        (nn.Dropout(0.5), r"contain dropout layers, got the layer nn\.Dropout\(p=0\.5, inplace=False\) itself"),
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


@pytest.mark.parametrize("kinds", [nn.Dropout, 0.3, [nn.Dropout]], ids=["type", "rate", "list"])
def test_kinds_that_are_no_dictionary_are_refused(kinds):
    with pytest.raises(TypeError, match=r"^replace_dropout: kinds must be a dictionary from types .*, got .*: pass"):
        replace_dropout(nn.Sequential(nn.Dropout(0.1)), kinds)

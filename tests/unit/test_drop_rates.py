"""Dropout that is no layer call: rates held as numbers, and layers whose rate is only read."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers import assert_bit_equal, assert_close, by_pickle
from torchreg import DropoutSchedule
from torchreg.nn import Dropout, mc_dropout, replace_dropout, seed_dropout


class Read(nn.Module):
    """Fused attention that reads the rate of its layer, as timm and transformers do."""

    def __init__(self, make=lambda: nn.Dropout(0.5)):
        super().__init__()
        self.qkv, self.drop, self.norm = nn.Linear(8, 24), make(), nn.BatchNorm1d(5)
        self.is_fused = True

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        if self.is_fused:
            return F.scaled_dot_product_attention(q, k, v, dropout_p=self.rate() if self.training else 0.0)
        return self.drop((q @ k.mT).softmax(-1)) @ v

    def rate(self):
        return self.drop.p


class Listed(Read):
    """... of a layer in a list."""

    def __init__(self):
        super().__init__(lambda: nn.ModuleList([nn.Dropout(0.5)]))

    def rate(self):
        return self.drop[0].p


class Held(Read):
    """... or a number."""

    def __init__(self):
        super().__init__(nn.Identity)
        self.p = 0.5

    def rate(self):
        return self.p


class Functional(nn.Module):
    """A call of torch's function beside a layer, and a normalization that must stay in evaluation mode."""

    def __init__(self, function=F.dropout):
        super().__init__()
        self.first, self.norm, self.dropout, self.function = nn.Linear(8, 8), nn.BatchNorm1d(5), 0.5, function

    def forward(self, x):
        return self.function(self.norm(self.first(x)), self.dropout, self.training)


class DropPath(nn.Module):
    """A layer of another library, for each example or for the batch."""

    def __init__(self, rate=0.5, rows=True):
        super().__init__()
        self.drop_prob, self.rows = rate, rows

    def forward(self, x):
        if not self.training:
            return x
        return x * torch.empty(len(x) if self.rows else 1, 1, 1).bernoulli_(1 - self.drop_prob) / (1 - self.drop_prob)


class OnlyInTraining(nn.Module):
    """A layer that is not called in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(x) if self.training else x


class First(nn.Module):
    def __init__(self, module, times=1):
        super().__init__()
        self.module, self.times = module, times

    def forward(self, x):
        return self.module(*[x] * self.times)[0]


HOLDERS = {
    "read": Read,
    "read in a list": Listed,
    "number in attention": Held,
    "function": Functional,
    "alpha function": lambda: Functional(F.alpha_dropout),
    "feature function": lambda: Functional(F.dropout1d),
    "path": DropPath,
    "only in training": OnlyInTraining,
    "nn.MultiheadAttention": lambda: First(nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True), 3),
    "nn.LSTM": lambda: First(nn.LSTM(8, 8, 2, dropout=0.5, batch_first=True)),
    "nn.GRU": lambda: First(nn.GRU(8, 8, 3, dropout=0.5, batch_first=True)),
}
each_holder = pytest.mark.parametrize("make", HOLDERS.values(), ids=HOLDERS.keys())


def input_of(batch=6):
    return torch.randn(batch, 5, 8, generator=torch.Generator().manual_seed(1))


# -- Monte Carlo --------------------------------------------------------------------------------------------------


@each_holder
@pytest.mark.parametrize("inside", [False, True])
def test_the_variance_is_that_of_training_mode_with_all_else_in_evaluation(make, inside):
    torch.manual_seed(0)
    model = (nn.Sequential(make(), nn.Linear(8, 2)) if inside else make()).eval()
    x, state = input_of(), {name: value.clone() for name, value in model.state_dict().items()}
    with mc_dropout(model) as mc:
        ours = mc(x, 300, "values").variance
    assert_bit_equal(dict(model.state_dict()), state)
    assert not any(module.training for module in model.modules())
    for module in model.train().modules():
        module.training = not isinstance(module, nn.BatchNorm1d)
    theirs = torch.stack([model(x) for _ in range(300)]).detach().var(0)
    assert ours.mean() > 0
    assert abs(ours.mean() / theirs.mean() - 1) < 0.2


@each_holder
def test_a_loop_of_the_users_own_drops_too(make):
    model, x = make().eval(), input_of()
    with mc_dropout(model):
        assert (model(x) - model(x)).abs().max() > 0
    assert_bit_equal(model(x), model(x))


def test_draws_that_the_batch_shares_are_drawn_for_each_pass():
    with mc_dropout(DropPath(rows=False)) as mc:
        samples = mc(torch.ones(3, 5, 8), 200, "values").samples
    assert_close(samples, samples[:, :1, :1, :1].expand_as(samples))
    assert_close(samples.unique(), torch.tensor([0.0, 2.0]))


@pytest.mark.parametrize(
    "compiled",
    [lambda m: torch.compile(m, backend="eager"), lambda m: m.compile(backend="eager") or m],
    ids=["function", "method"],
)
def test_a_compiled_model_is_searched_too(compiled):
    model = compiled(nn.Sequential(Read(), Functional()).eval())
    with mc_dropout(model) as mc:
        assert (mc(input_of(), 50, "values").variance > 0).all()
        assert {type(module) for module in mc.layers} == {Read, nn.Dropout, Functional}


def test_a_forward_of_the_models_own_is_put_back():
    model = Read()
    with mc_dropout(model):
        pass
    assert "forward" not in vars(model)
    own = model.forward = lambda x: Read.forward(model, x)
    with mc_dropout(model) as mc:
        assert mc(input_of(), 5, "values").variance.max() > 0
    assert vars(model)["forward"] is own


class Normalizes(Functional):
    """In training mode it also counts its batches."""

    def forward(self, x):
        mean, variance = self.norm.running_mean, self.norm.running_var
        return super().forward(F.batch_norm(x, mean, variance, training=self.training))


class Learns(Functional):
    """In training mode it wants targets."""

    def forward(self, x, y=None):
        if self.training and y is None:
            raise ValueError("no targets")
        return super().forward(x)


@pytest.mark.parametrize(("kind", "why"), [(Normalizes, "changes their buffers"), (Learns, "raises ValueError")])
def test_what_does_more_than_to_drop_in_training_mode_is_named_and_stays_as_it_is(kind, why):
    model = nn.Sequential(kind(), nn.Dropout(0.5))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with (
        mc_dropout(model) as mc,
        pytest.warns(UserWarning, match=f"mc_dropout: 0 may drop in training mode, which {why}"),
    ):
        assert mc(input_of(), 5, "values").variance.max() > 0
    assert_bit_equal(dict(model.state_dict()), state)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.rate_of_dropping = nn.Dropout(0.3), 0.2

    def forward(self, x):
        return x


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


class Plus(Times):
    def forward(self, x):
        return x + self.factor


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(Unused()),
            r"does not use 0\.drop \(nn\.Dropout\(p=0\.3, inplace=False\)\), 0 \(Unused, ",
        ),
        (nn.Sequential(nn.Dropout(1.0)), "all outputs are 0"),
        (nn.Sequential(Unused(), nn.Linear(8, 2), Times(0.0)), "all outputs are 0, whatever is dropped"),
        (
            nn.Sequential(Unused(), nn.Dropout(0.5), Times(0.0), Plus(1.0)),
            r"does not use 0\.drop \(nn\.Dropout\([^()]*\)\) \(",
        ),
    ],
)
def test_passes_that_are_equal_say_why(model, message):
    with mc_dropout(model) as mc, pytest.warns(UserWarning, match=f"all 4 passes are equal, so that the .*{message}"):
        assert mc(input_of(), 4, "values").variance.max() == 0


class Hidden(nn.Module):
    """A call of torch's function with a rate that no name tells, beside a layer with the rate 0."""

    def __init__(self, rate, layer=None):
        super().__init__()
        self.attn_q, self.layer = rate, layer

    def forward(self, x):
        return F.dropout(x, self.attn_q, self.training)


@pytest.mark.parametrize("layer", [None, nn.Dropout(0.0)], ids=["none", "p=0"])
def test_the_first_pass_decides_whether_a_model_without_known_rates_drops(layer):
    with mc_dropout(Hidden(0.5, layer)) as mc:
        assert mc(input_of(), 50, "values").variance.min() > 0
    has = "p=0 in all its layers" if layer else "none"
    for call in (lambda mc: mc(input_of(), 2), lambda mc: mc.model(input_of())):
        with (
            mc_dropout(Hidden(0.0, layer)) as mc,
            pytest.raises(ValueError, match=f"mc_dropout: .*Hidden has {has}, and its forward pass drops nothing: add"),
        ):
            call(mc)


# -- schedules ----------------------------------------------------------------------------------------------------


def test_a_schedule_changes_the_numbers_of_torchs_modules_and_the_rates_that_are_read():
    model = nn.ModuleDict(
        {"layer": nn.TransformerEncoderLayer(8, 2, 16, 0.4), "rnn": nn.RNN(4, 4, 2, dropout=0.2), "r": Read()}
    )
    schedule = DropoutSchedule(model, lambda step: 1 / (1 + step))
    parts = ("self_attn", "dropout", "dropout1", "dropout2")
    assert schedule.rates.keys() == {"rnn", "r.drop", *(f"layer.{part}" for part in parts)}
    schedule.step()
    assert (model["layer"].self_attn.dropout, model["rnn"].dropout, model["r"].drop.p) == (0.2, 0.1, 0.25)
    again = DropoutSchedule(copy.deepcopy(model), lambda step: 1 / (1 + step))
    again.load_state_dict(schedule.state_dict())
    assert again.model["rnn"].dropout == 0.1
    schedule.remove()
    assert (model["layer"].self_attn.dropout, model["rnn"].dropout) == (0.4, 0.2)


def test_a_scheduled_attention_without_dropout_is_that_of_evaluation_mode():
    model, x = nn.TransformerEncoderLayer(8, 2, 16, 0.5, batch_first=True), input_of()
    DropoutSchedule(model, lambda step: 0.0)
    assert_close(model(x), model.eval()(x), tolerance=1e-6)


@pytest.mark.parametrize("kind", [Functional, DropPath])
def test_a_schedule_names_numbers_of_other_modules(kind):
    with pytest.warns(UserWarning, match=rf"DropoutSchedule: numbers of other modules .*: 0 \({kind.__name__}, drop"):
        DropoutSchedule(nn.Sequential(kind(), nn.Dropout(0.5)), lambda step: 1.0)
    with pytest.raises(ValueError, match=rf"Sequential has none, only numbers: 0 \({kind.__name__}"):
        DropoutSchedule(nn.Sequential(kind()), lambda step: 1.0)


class Configured(nn.Module):
    """Keeps the rates that it was built with; its layers drop."""

    def __init__(self, rate=0.1, attention_dropout=0.2):
        super().__init__()
        self.dropout, self.attention_dropout = rate, attention_dropout
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, rate, batch_first=True)
        self.layer.self_attn.dropout = attention_dropout

    def forward(self, x):
        return self.layer(x)


class Uses(Configured):
    """... and uses one of them too."""

    def forward(self, x):
        return F.dropout(self.layer(x), self.dropout, self.training)


class Differs(Configured):
    """... and has another one, which nothing has."""

    def __init__(self):
        super().__init__()
        self.dropout = 0.3


def warnings_of(model):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        DropoutSchedule(model, lambda step: 1.0).remove()
        seed_dropout(nn.ModuleList([model, Dropout(0.0)]), 1)
    return [str(warning.message) for warning in said]


def test_numbers_that_layers_were_made_from_are_not_named():
    assert not any("Configured" in message for message in warnings_of(Configured()))
    for kind in (Uses, Differs):
        for message in warnings_of(kind()):
            assert f"({kind.__name__}, dropout=" in message
            assert "attention_dropout" not in message


# -- replaced and seeded ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: nn.LSTM(8, 8, 2, dropout=0.5), Functional, DropPath])
def test_numbers_are_named_by_those_that_do_not_reach_them(make):
    model = nn.Sequential(make(), nn.Dropout(0.5))
    with pytest.warns(UserWarning, match=r"replace_dropout: rates that are held as numbers stay as they are: 0 \("):
        replace_dropout(model)
    with pytest.warns(UserWarning, match=r"seed_dropout: other masks do not depend on this seed: 0 \("):
        seed_dropout(model, 1)


def test_layers_of_torch_that_were_not_replaced_are_named():
    with pytest.warns(UserWarning, match=r"seed_dropout: other masks .*: 1 \(nn\.Dropout\(p=0\.5, inplace=False\)\)"):
        assert seed_dropout(nn.Sequential(Dropout(0.5), nn.Dropout(0.5), nn.Dropout(0.0)), 1) == ["0"]


duplicates = pytest.mark.parametrize(
    "duplicate", [lambda m: m, copy.deepcopy, by_pickle], ids=["itself", "copy", "pickle"]
)


@duplicates
@pytest.mark.parametrize("kind", [Read, Listed])
def test_a_layer_that_is_only_read_is_named_in_the_first_pass_in_training_mode_and_never_again(kind, duplicate):
    model = nn.Sequential(kind(), kind())
    replace_dropout(model)
    seed_dropout(model, 3)
    model = duplicate(model)
    with torch.no_grad():
        model.eval()(input_of())
    name = "0.drop.0" if kind is Listed else "0.drop"
    with pytest.warns(UserWarning, match=rf"replace_dropout: {name} was not called .* \({kind.__name__};") as said:
        model.train()(input_of())
    assert len(said) == 1
    model(input_of())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_layer_that_is_called_is_not_named():
    model = nn.Sequential(Read(), OnlyInTraining())
    model[0].is_fused = False
    replace_dropout(model, seed=3)
    model(input_of())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Nested(Read):
    """The layer is in a Sequential that is never called."""

    def __init__(self):
        super().__init__(lambda: nn.Sequential(nn.Identity(), nn.Dropout(0.5)))

    def rate(self):
        return self.drop[1].p


def test_a_layer_in_a_sequential_that_is_only_read_is_named():
    model = nn.Sequential(Nested())
    with mc_dropout(model) as mc:
        assert mc(input_of(), 50, "values").variance.max() > 0
    replace_dropout(model)
    with pytest.warns(UserWarning, match=r"replace_dropout: 0\.drop\.1 was not called .* \(Nested;"):
        model(input_of())


class Auxiliary(nn.Module):
    """A second head that only training mode calls."""

    def __init__(self):
        super().__init__()
        self.drop, self.head = nn.Dropout(0.5), nn.Sequential(nn.Linear(8, 2), nn.Dropout(0.5))

    def forward(self, x):
        x = self.drop(x)
        return (x, self.head(x)) if self.training else x


def test_an_auxiliary_head_stays_off():
    with mc_dropout(Auxiliary()) as mc:
        assert mc(input_of(), 5, "values").variance.max() > 0


def test_undo_takes_the_check_away():
    model = Read()
    replace_dropout(model).undo()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    model(input_of())


@pytest.mark.parametrize("how", ["compile", "trace"])
def test_compilers_and_tracers_pass_by(how):
    model = OnlyInTraining()
    replace_dropout(model)
    made = torch.compile(model, backend="eager", fullgraph=True) if how == "compile" else torch.fx.symbolic_trace(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0 < made(torch.ones(100)).count_nonzero() < 100

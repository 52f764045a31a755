"""Every layer in graphs: of torch.fx, of feature extractors, of torch.jit, of torch.export."""

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace

import torchreg.nn
from tests.helpers import assert_bit_equal, assert_differs, by_pickle, drawn_from
from torchreg.nn import Dropout, insert_dropout, mc_dropout, seed_dropout

VECTORS, MAPS, WORDS = torch.ones(40, 8), torch.ones(3, 8, 6, 6), torch.arange(60).reshape(20, 3)
LAYERS = {
    "Dropout": (lambda t: t.Dropout(0.5), VECTORS),
    "Dropout, shaped": (lambda t: t.Dropout(0.5, noise_shape=(None, 1)), VECTORS),
    "Dropout1d": (lambda t: t.Dropout1d(0.5), MAPS[0]),
    "Dropout2d": (lambda t: t.Dropout2d(0.5), MAPS),
    "Dropout3d": (lambda t: t.Dropout3d(0.5), MAPS),
    "AlphaDropout": (lambda t: t.AlphaDropout(0.5), VECTORS),
    "FeatureAlphaDropout": (lambda t: t.FeatureAlphaDropout(0.5), MAPS),
    "GaussianDropout": (lambda t: t.GaussianDropout(0.5), VECTORS),
    "DropBlock1d": (lambda t: t.DropBlock1d(0.5, 2), MAPS[0]),
    "DropBlock2d": (lambda t: t.DropBlock2d(0.5, 2), MAPS),
    "DropBlock3d": (lambda t: t.DropBlock3d(0.5, 2), MAPS),
    "StochasticDepth": (lambda t: t.StochasticDepth(nn.Linear(8, 4), 0.5), VECTORS),
    "DropConnect": (lambda t: t.DropConnect(nn.Linear(8, 4), 0.5), VECTORS),
    "DropConnect, recurrent": (lambda t: nn.Sequential(t.DropConnect(nn.GRU(8, 4), 0.5), First()), VECTORS[:, None]),
    "LockedDropout": (lambda t: t.LockedDropout(0.5), VECTORS[None]),
    "WordDropout": (lambda t: t.WordDropout(0.5, unknown=60), WORDS),
    "EmbeddingDropout": (lambda t: t.EmbeddingDropout(nn.Embedding(60, 4), 0.5), WORDS),
    **{
        f"MultiheadAttention, {drop}": (
            lambda t, d=drop: Itself(t.MultiheadAttention(8, 2, 0.5, drop=d)),
            VECTORS.view(5, 8, 8),
        )
        for drop in ("weights", "keys", "heads")
    },
    "ConcreteDropout": (lambda t: t.ConcreteDropout(nn.Linear(8, 4), 0.5), VECTORS),
    "VariationalDropout": (lambda t: t.VariationalDropout(nn.Linear(8, 4), 0.0), VECTORS),
    "HardConcrete": (lambda t: t.HardConcrete(nn.Linear(8, 4)), VECTORS),
    "your own": (lambda t: Own(0.5), VECTORS),
}
each_layer = pytest.mark.parametrize(("make", "x"), LAYERS.values(), ids=LAYERS.keys())


class First(nn.Module):
    def forward(self, outputs):
        return outputs[0]


class Itself(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return self.attention(x * 1, x, x + x.cumsum(0))[0]


class Own(Dropout):
    def forward(self, x):
        return super().forward(x) if x.ndim > 0 else x


def test_the_table_has_every_layer():
    layers = {name for name in torchreg.nn.__all__ if isinstance(getattr(torchreg.nn, name), type(nn.Module))}
    layers -= {"Gated", "Insertion", "LayerDrop", "MonteCarlo", "Prediction", "Replacement"}  # LayerDrop is a list
    assert layers <= {name.partition(",")[0] for name in LAYERS}


def extracted(model):
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    extractor = extraction.create_feature_extractor(model, {"1": "out"})
    return nn.Sequential(extractor, Taken())


class Taken(nn.Module):
    def forward(self, outputs):
        return outputs["out"]


@each_layer
@pytest.mark.parametrize("trace", [symbolic_trace, extracted])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("is_seeded", [True, False])
def test_a_traced_model_drops_in_the_mode_that_it_has_when_it_runs(make, x, trace, training, is_seeded):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), make(torchreg.nn))
    if is_seeded:
        seed_dropout(model, 7)
    traced = trace(model.train(training))
    for mode in (True, False):
        traced.train(mode)
        outputs = []
        for each in (model.train(mode), traced):
            if is_seeded:
                seed_dropout(each, 7)
            outputs.append(drawn_from(3, each, x.clone()))
        assert_bit_equal(outputs[1], outputs[0])
        second = traced(x.clone())
        (assert_differs if mode else assert_bit_equal)(second, outputs[0])


@each_layer
def test_a_traced_model_is_pickled_and_its_rates_change(make, x):
    traced = by_pickle(symbolic_trace(nn.Sequential(nn.Identity(), make(torchreg.nn)).eval()))
    layer = next(module for module in traced.modules() if hasattr(module, "generator"))
    assert not layer.training
    with mc_dropout(traced):
        assert layer.training
    assert_bit_equal(traced(x), traced(x))


def test_an_inserted_layer_is_in_the_graph():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(8, 8), Square())

        def forward(self, x):
            return self.inner(x)

    model = Net().eval()
    insert_dropout(model, 0.5, after=[nn.Linear, Square])
    traced = symbolic_trace(model).train()
    assert_bit_equal(drawn_from(1, traced, VECTORS), drawn_from(1, model.train(), VECTORS))
    assert (traced(VECTORS) == 0).any()
    assert (traced.eval()(VECTORS) != 0).all()


class Square(nn.Module):
    def forward(self, x):
        return x * x + 1


@each_layer
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_script_is_refused_in_one_line_and_the_model_stays_as_it_is(make, x):
    model = nn.Sequential(make(torchreg.nn))
    before = dict(model.named_modules())
    with pytest.raises(TypeError, match=r"^\w+: torch\.jit\.script compiles only torch's own layers: .*$") as refused:
        torch.jit.script(model)
    assert "\n" not in str(refused.value)
    assert dict(model.named_modules()) == before


@each_layer
@pytest.mark.filterwarnings("ignore:The tensor attributes")
def test_an_exported_model_computes_what_the_model_does(make, x):
    torch.manual_seed(0)
    model = nn.Sequential(make(torchreg.nn)).eval()
    assert_bit_equal(torch.export.export(model, (x,)).module()(x), model(x))

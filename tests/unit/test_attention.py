"""Attention: torch's own without dropout, and what each kind of dropout does to it."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from tests.helpers import assert_bit_equal, assert_close, assert_differs, by_pickle, drawn_from, seeded
from torchreg import DropoutSchedule, linear
from torchreg.nn import MultiheadAttention, StochasticDepth, mc_dropout, replace_dropout, seed_dropout

BATCH, QUERIES, KEYS, WIDTH, HEADS = 3, 4, 6, 8, 2
DROPS = ("weights", "keys", "heads")
TINY = 1e-7  # a rate that rounds to 0 on the CPU: the layer computes itself, and drops nothing
each_drop = pytest.mark.parametrize("drop", DROPS)


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(math.prod(shape)), dtype=torch.float64)


def masks(batched):
    padding = torch.zeros(BATCH, KEYS, dtype=torch.bool)
    padding[:, -2:] = padding[0, 1] = True
    each = draw(BATCH * HEADS, QUERIES, KEYS) > 0.5
    each[..., 0] = False
    causal = torch.ones(QUERIES, KEYS, dtype=torch.bool).triu(1)
    if not batched:
        padding, each = padding[0], each[:HEADS]
    numbers = draw(QUERIES, KEYS)
    return {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "causal": {"attn_mask": causal},
        "hint": {"attn_mask": causal, "is_causal": True, "need_weights": False},
        "each head": {"attn_mask": each},
        "both": {"attn_mask": each, "key_padding_mask": padding},
        "numbers": {"attn_mask": numbers},
        "padding in numbers": {"attn_mask": numbers, "key_padding_mask": draw(*padding.shape)},
    }


def inputs(batched, batch_first, kdim=None, vdim=None):
    x = draw(BATCH, QUERIES, WIDTH), draw(BATCH, KEYS, kdim or WIDTH), draw(BATCH, KEYS, vdim or WIDTH) + 1
    if not batched:
        return tuple(part[0] for part in x)
    return x if batch_first else tuple(part.transpose(0, 1) for part in x)


def pair(drop="weights", **options):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(WIDTH, HEADS, dtype=torch.float64, **options)
    ours = MultiheadAttention(WIDTH, HEADS, TINY, dtype=torch.float64, drop=drop, **options)
    for name, param in theirs.named_parameters():
        if "bias" in name:
            nn.init.normal_(param)  # some are 0 at first
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


# -- torch's own layer ------------------------------------------------------------------------------------------------


@each_drop
@pytest.mark.parametrize("mask", masks(True))
@pytest.mark.parametrize(("batched", "batch_first"), [(True, True), (True, False), (False, False)])
def test_without_dropout_outputs_and_weights_are_torchs(drop, mask, batched, batch_first):
    arguments = masks(batched)[mask]
    for bias, kv, zero, dims in itertools.product(
        [True, False], [True, False], [True, False], [{}, {"kdim": 5, "vdim": 7}]
    ):
        if mask == "hint" and (kv or zero):
            continue  # torch then takes the hint as a mask that hides the added keys, which attn_mask does not
        options = {"bias": bias, "add_bias_kv": kv, "add_zero_attn": zero, "batch_first": batch_first, **dims}
        ours, theirs = pair(drop, **options)
        x = inputs(batched, batch_first, **dims)
        for need, average in ((True, True), (True, False), (False, True)):
            each = {"need_weights": need, "average_attn_weights": average, **arguments}
            found, expected = ours(*x, **each), theirs(*x, **each)
            assert [part is None for part in found] == [part is None for part in expected]
            assert_close(*([part for part in parts if part is not None] for parts in (found, expected)))


@each_drop
@pytest.mark.parametrize("need_weights", [True, False])
def test_gradients_are_torchs(drop, need_weights):
    ours, theirs = pair(drop, batch_first=True)
    x = draw(BATCH, KEYS, WIDTH)
    grads = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        layer(leaf, leaf, leaf, need_weights=need_weights)[0].square().sum().backward()
        grads.append([leaf.grad, *(param.grad for param in layer.parameters())])
    assert_close(*grads)


@each_drop
def test_in_evaluation_it_is_torchs_layer(drop):
    ours, theirs = pair(drop, batch_first=True)
    ours.p = 0.5
    x = draw(BATCH, KEYS, WIDTH)
    assert_bit_equal(ours.eval()(x, x, x), theirs.eval()(x, x, x))
    with torch.no_grad():  # the fast path
        assert_bit_equal(ours(x, x, x, need_weights=False)[0], theirs(x, x, x, need_weights=False)[0])
    ours.train().p = 0.0
    assert_bit_equal(ours(x, x, x), theirs.train()(x, x, x))


@each_drop
def test_a_query_without_keys_gives_what_it_gives_in_torch(drop):
    ours, theirs = pair(drop, batch_first=True)
    x, mask = draw(BATCH, KEYS, WIDTH), torch.zeros(BATCH, KEYS, dtype=torch.bool)
    mask[1] = True
    for need_weights in (True, False):
        arguments = {"key_padding_mask": mask, "need_weights": need_weights}
        torch.testing.assert_close(ours(x, x, x, **arguments)[0], theirs(x, x, x, **arguments)[0], equal_nan=True)
    leaf = x.clone().requires_grad_()
    ours(leaf, leaf, leaf, key_padding_mask=mask, need_weights=False)[0].sum().backward()
    assert leaf.grad.isfinite().all()


@each_drop
def test_half_precision_and_autocast_work(drop):
    x = draw(BATCH, KEYS, WIDTH)
    half = MultiheadAttention(WIDTH, HEADS, 0.3, drop=drop, dtype=torch.bfloat16)
    assert half(*[x.bfloat16()] * 3)[0].dtype == torch.bfloat16
    layer = MultiheadAttention(WIDTH, HEADS, TINY, drop=drop)
    with torch.autocast("cpu", torch.bfloat16):
        y, weights = layer(*[x.float()] * 3)
        again = layer.eval()(*[x.float()] * 3)
    assert_close((y.float(), weights.float()), tuple(map(torch.Tensor.float, again)), tolerance=2e-2)


# -- what is dropped --------------------------------------------------------------------------------------------------


def weights_of(drop, p, times, mask=None, **options):
    """The weights of each head with and without dropout, ``(times, heads, queries, keys)``."""
    layer, _ = pair(drop, batch_first=True)
    layer.p, layer.generator = p, seeded(1)
    x = draw(1, KEYS, WIDTH).expand(times, -1, -1)
    _, dropped = layer(x, x, x, average_attn_weights=False, attn_mask=mask, **options)
    _, plain = layer.eval()(x, x, x, average_attn_weights=False, attn_mask=mask, **options)
    return dropped, plain


@pytest.mark.parametrize("p", [0.125, 0.5])
def test_weights_are_dropped_and_scaled_as_by_torch(p):
    dropped, plain = weights_of("weights", p, 2000)
    kept = dropped != 0
    assert abs(kept.double().mean() - (1 - p)) < 0.01
    assert_close(dropped[kept], (plain / (1 - p))[kept])
    assert_close(dropped.mean(0), plain.mean(0), tolerance=0.02)
    theirs = nn.MultiheadAttention(WIDTH, HEADS, p, batch_first=True, dtype=torch.float64)
    theirs.load_state_dict(pair(batch_first=True)[1].state_dict())
    x = draw(1, KEYS, WIDTH).expand(2000, -1, -1)
    _, others = drawn_from(0, lambda x: theirs(x, x, x, average_attn_weights=False), x)
    assert_close(dropped.var(0), others.var(0), tolerance=0.01)


@pytest.mark.parametrize("p", [0.125, 0.5])
def test_keys_are_dropped_before_the_softmax(p):
    dropped, plain = weights_of("keys", p, 2000)
    kept = dropped != 0
    share = 1 - p + p**KEYS  # a query that loses all its keys keeps them all
    assert abs(kept.double().mean() - share) < 0.01
    assert_close(dropped.sum(-1), torch.ones(2000, HEADS, KEYS, dtype=torch.float64))
    assert_close(dropped, plain * kept / (plain * kept).sum(-1, keepdim=True))


def test_keys_are_dropped_as_by_the_authors_code():
    """``attn + torch.bernoulli(ratio) * -1e12`` and then a softmax, with the mask that the layer has drawn."""
    dropped, plain = weights_of("keys", 0.3, 50)
    logits = plain.log() + (dropped == 0).double() * -1e12
    assert_close(dropped, logits.softmax(-1), tolerance=1e-3)


def test_each_query_and_head_loses_keys_of_its_own():
    kept = (weights_of("keys", 0.5, 2000)[0] != 0).double().flatten(1)
    correlation = torch.corrcoef(kept.T) - torch.eye(kept.shape[1])
    assert correlation.abs().max() < 0.12


@pytest.mark.parametrize("p", [0.125, 0.5])
def test_heads_are_dropped_whole_for_each_example(p):
    dropped, plain = weights_of("heads", p, 4000)
    heads = (dropped != 0).flatten(2).double()
    assert_bit_equal(heads, heads[..., :1].expand_as(heads))
    assert abs(heads.mean() - (1 - p)) < 0.02
    assert_close(dropped, plain / (1 - p) * heads[..., :1, None])
    assert abs(torch.corrcoef(heads[..., 0].T)[0, 1]) < 0.06


@each_drop
def test_outputs_are_the_same_whether_weights_are_needed_or_not(drop):
    layer, _ = pair(drop, batch_first=True)
    x, mask = draw(BATCH, KEYS, WIDTH), masks(True)["padding"]["key_padding_mask"]
    outputs = []
    layer.p = 0.4
    for need_weights in (True, False):
        layer.generator = seeded(5)
        outputs.append(layer(x, x, x, key_padding_mask=mask, need_weights=need_weights)[0])
    assert_close(*outputs)


@pytest.mark.parametrize("numbers", [False, True])
def test_a_query_whose_keys_are_all_dropped_keeps_those_that_the_mask_leaves(numbers):
    mask = torch.ones(KEYS, KEYS, dtype=torch.bool).triu(1)
    if numbers:
        mask = torch.zeros(KEYS, KEYS, dtype=torch.float64).masked_fill(mask, -math.inf)
    dropped, plain = weights_of("keys", 0.9, 500, mask)
    assert dropped.isfinite().all()
    assert_close(dropped[:, :, 0], plain[:, :, 0])  # the first query has one key, which is dropped nine times in ten
    assert_close(dropped.sum(-1), torch.ones_like(dropped[..., 0]))
    assert not dropped[plain == 0].any()
    second = dropped[:, :, 1, :2]
    whole = (second == plain[:, :, 1, :2]).all(-1).double().mean()  # both dropped, or both kept
    assert abs(whole - (0.81 + 0.01)) < 0.05


@each_drop
def test_gradients_with_dropout_are_autograds_of_the_same_masks(drop):
    layer, _ = pair(drop, batch_first=True)
    layer.p = 0.4

    def outputs(x):
        layer.generator = seeded(3)
        return layer(x, x, x, need_weights=False)[0]

    assert torch.autograd.gradcheck(outputs, draw(2, 3, WIDTH).requires_grad_())


# -- a layer like the others ------------------------------------------------------------------------------------------


@each_drop
def test_a_seed_decides_the_masks_and_is_saved(drop):
    layer = MultiheadAttention(WIDTH, HEADS, 0.5, drop=drop, dtype=torch.float64)
    x = draw(KEYS, BATCH, WIDTH)
    assert seed_dropout(layer, 7) == [""]
    state = torch.get_rng_state()
    layer(x, x, x)
    saved = copy.deepcopy(layer.state_dict())
    expected = [layer(x, x, x) for _ in range(2)]
    assert_bit_equal(torch.get_rng_state(), state)
    assert_differs(*expected)
    for twin in (MultiheadAttention(WIDTH, HEADS, 0.5, drop=drop, dtype=torch.float64), by_pickle(layer)):
        twin.generator = seeded(1)
        twin.load_state_dict(saved)
        assert_bit_equal([twin(x, x, x) for _ in range(2)], expected)


@each_drop
def test_without_a_generator_torchs_decides(drop):
    layer = MultiheadAttention(WIDTH, HEADS, 0.5, drop=drop)
    x = draw(KEYS, BATCH, WIDTH).float()
    first, second = (drawn_from(3, lambda x: layer(x, x, x), x) for _ in range(2))
    assert_bit_equal(first, second)
    assert_differs(layer(x, x, x), first)


def test_its_parameters_are_torchs():
    ours, theirs = (
        MultiheadAttention(WIDTH, HEADS, add_bias_kv=True),
        nn.MultiheadAttention(WIDTH, HEADS, add_bias_kv=True),
    )
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())


def test_a_schedule_and_monte_carlo_reach_it():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = MultiheadAttention(WIDTH, HEADS, 0.5, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    model, x = Model(), draw(BATCH, KEYS, WIDTH).float()
    schedule = DropoutSchedule(model, linear(steps=2))
    schedule.step()
    assert model.attention.p == model.attention.dropout == 0.25
    model.eval()
    with mc_dropout(model) as mc:
        prediction = mc(x, passes=200, outputs="values")
    assert prediction.variance.min() > 0
    assert (prediction.mean - model(x)).abs().max() < 6 * (prediction.variance / 200).max().sqrt()


@each_drop
def test_it_works_in_torchs_transformer(drop):
    kinds = {nn.MultiheadAttention: lambda old: MultiheadAttention.of(old, drop=drop)}
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 16, 0.3, batch_first=True), 2)
    twin, x = copy.deepcopy(encoder).eval(), draw(BATCH, KEYS, WIDTH).float()
    params = dict(encoder.named_parameters())
    changes = replace_dropout(encoder, kinds, seed=3)
    assert "layers.1.self_attn" in changes.names
    assert all(param is params[name] for name, param in encoder.named_parameters())
    mask = nn.Transformer.generate_square_subsequent_mask(KEYS)
    encoder(x, mask=mask, is_causal=True).sum().backward()
    assert all(param.grad is not None for param in encoder.parameters())
    encoder.eval()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert_bit_equal(encoder(x), twin(x))
    changes.undo()
    assert type(encoder.layers[0].self_attn) is nn.MultiheadAttention


def test_replace_dropout_keeps_the_rate_the_hooks_and_the_mode():
    model = nn.ModuleDict(
        {"a": nn.MultiheadAttention(WIDTH, HEADS, 0.2, batch_first=True), "b": nn.MultiheadAttention(8, 2)}
    )
    calls = []
    handle = model["a"].register_forward_hook(lambda *_: calls.append(1))
    model["a"].eval()
    assert replace_dropout(model).names == ("a",)
    new, x = model["a"], draw(BATCH, KEYS, WIDTH).float()
    assert (type(new), new.p, new.drop, new.training) == (MultiheadAttention, 0.2, "weights", False)
    new(x, x, x)
    handle.remove()
    new(x, x, x)
    assert calls == [1]
    assert repr(new).startswith("MultiheadAttention(\n  8, 2, p=0.2, drop='weights'")


def test_replace_dropout_knows_the_paths_of_timm_and_torchvision():
    timm = pytest.importorskip("timm")
    ops = pytest.importorskip("torchvision.ops")
    model = nn.Sequential(
        timm.layers.DropPath(0.3), timm.layers.DropPath(0.3, scale_by_keep=False), ops.StochasticDepth(0.2, "batch")
    )
    replace_dropout(model)
    assert [(type(layer), layer.p, layer.mode, layer.scale_by_keep) for layer in model] == [
        (StochasticDepth, 0.3, "row", True),
        (StochasticDepth, 0.3, "row", False),
        (StochasticDepth, 0.2, "batch", True),
    ]
    assert not model.state_dict()


def test_it_compiles():
    layer = MultiheadAttention(WIDTH, HEADS, 0.5, batch_first=True, drop="keys")
    x = draw(BATCH, KEYS, WIDTH).float()
    compiled = torch.compile(lambda x: layer(x, x, x)[0], fullgraph=True, backend="eager")
    assert compiled(x).shape == x.shape
    layer.eval()
    assert_close(compiled(x), layer(x, x, x)[0], tolerance=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 1.5}, r"p, the probability of dropping, must be in \[0, 1\], got 1\.5"),
        ({"drop": "values"}, "drop must be one of weights, keys, heads, got 'values'"),
        ({"dropout": 1.0, "drop": "keys"}, "dropout must be below 1 for keys, because none would be left, got 1"),
    ],
)
def test_unfit_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"MultiheadAttention: {message}"):
        MultiheadAttention(WIDTH, HEADS, **options)
    with pytest.raises(
        TypeError, match=r"MultiheadAttention: layer must be a torch\.nn.MultiheadAttention, got Linear"
    ):
        MultiheadAttention.of(nn.Linear(2, 2))


@each_drop
def test_unfit_inputs_are_refused(drop):
    layer, x = (
        MultiheadAttention(WIDTH, HEADS, 0.5, drop=drop, batch_first=True, dtype=torch.float64),
        draw(3, 6, WIDTH),
    )
    for arguments, message in (
        ({"attn_mask": torch.zeros(5, 6)}, r"attn_mask must have the shape \(6, 6\) or \(6, 6, 6\), got \(5, 6\)"),
        ({"attn_mask": torch.zeros(3, 6, 6)}, r"attn_mask must have the shape .* got \(3, 6, 6\)"),
        ({"attn_mask": torch.zeros(6)}, "attn_mask must have 2 or 3 dimensions, got 1"),
        ({"key_padding_mask": torch.zeros(3, 5)}, r"key_padding_mask must have the shape \(3, 6\), got \(3, 5\)"),
        ({"is_causal": True}, "is_causal says that attn_mask is causal: pass it too, got None"),
    ):
        with pytest.raises(ValueError, match=f"MultiheadAttention: {message}"):
            layer(x, x, x, **arguments)
    with pytest.raises(TypeError, match=r"key_padding_mask must be boolean or floating-point, got torch\.int64"):
        layer(x, x, x, key_padding_mask=torch.zeros(3, 6, dtype=torch.int64))
    for others in ((x, x[:, :5]), (x[0], x[0]), (x[None], x[None])):
        with pytest.raises(ValueError, match="query, key and value must be three batches of sequences or three seq"):
            layer(x, *others)

"""Models of torchvision and timm get smaller with the same outputs; torch-pruning couples the same channels."""

import random

import pytest
import torch
from torch import nn

from tests.helpers import assert_bit_equal, assert_close
from torchreg import CoupledGroupLasso, compress
from torchreg.diagnostics import coupled_units

pytestmark = pytest.mark.clients
BIG = pytest.mark.slow


def torchvision(name, **options):
    return lambda: getattr(pytest.importorskip("torchvision").models, name)(num_classes=10, **options)


def transformer():
    models = pytest.importorskip("torchvision").models
    return models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=16, mlp_dim=32, num_classes=10
    )


def timm_transformer():
    timm = pytest.importorskip("timm")
    return timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=4, num_classes=10, init_values=0.5
    )


MODELS = {
    "ResNet-18": torchvision("resnet18"),
    "MobileNetV2": torchvision("mobilenet_v2"),
    "ViT": transformer,
    "timm ViT": timm_transformer,
    "SqueezeNet": torchvision("squeezenet1_1"),
    "DenseNet-121": torchvision("densenet121"),
    "MobileNetV3": torchvision("mobilenet_v3_small"),
    "ShuffleNetV2": torchvision("shufflenet_v2_x0_5"),
    "RegNet": torchvision("regnet_y_400mf"),
    "EfficientNet": torchvision("efficientnet_b0"),
    "GoogLeNet": torchvision("googlenet", init_weights=False, aux_logits=False),
}
QUICK = ("ResNet-18", "MobileNetV2", "ViT", "timm ViT", "SqueezeNet")
IMAGES = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def made(name):
    """The model in double precision with random statistics of its normalization."""
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    for p in model.parameters():  # a ViT's head begins with zeros
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return model


def size(model):
    return sum(p.numel() for p in model.parameters())


def empty(model, streams, share, seed):
    """Sets all that makes a random share of the units to zero; returns how many. One of each stream stays."""
    draw, held, count = random.Random(seed), dict(model.named_parameters()), 0
    for stream in streams:
        free = [unit for unit in range(stream.size) if unit not in stream.reasons]
        chosen = draw.sample(free[1:], int(share * len(free))) if len(free) > 2 else []
        count += len(chosen)
        for (name, dim), index in stream.written.items():
            if name in held:
                gone = torch.isin(index, torch.tensor(chosen, dtype=torch.long)).nonzero()[:, 0]
                held[name].data.index_fill_(dim, gone, 0.0)
    return count


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=BIG) for name in MODELS])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_units_that_are_emptied_together_go(name, share):
    model = made(name)
    streams = coupled_units(model, IMAGES)
    emptied = empty(model, streams, share, seed=name)
    small = compress(model, IMAGES)
    with torch.no_grad():
        assert_close(small(IMAGES), model(IMAGES), tolerance=1e-9)
    before, after = (sum(stream.size for stream in found) for found in (streams, coupled_units(small, IMAGES)))
    assert before - after >= emptied > 0.03 * before
    assert size(small) < size(model)
    assert type(small) is type(model)
    assert [n for n, _ in small.named_modules()] == [n for n, _ in model.named_modules()]


def test_heads_of_vision_transformers_go():
    for name in ("ViT", "timm ViT"):
        model = made(name)
        layers = [m for m in model.modules() if hasattr(m, "num_heads") and "Attention" in type(m).__name__]
        for layer in layers:
            out = layer.out_proj if name == "ViT" else layer.proj
            out.weight.data[:, 4:12] = 0
        small = compress(model, IMAGES)
        assert_close(small(IMAGES), model(IMAGES), tolerance=1e-10)
        places = {m: place for place, m in model.named_modules()}
        assert [small.get_submodule(places[m]).num_heads for m in layers] == [2, 2]


def test_what_a_vision_transformer_must_keep_is_named():
    for name in ("ViT", "timm ViT"):
        reasons = {r.split(": ")[-1] for s in coupled_units(made(name), IMAGES) for r in s.reasons.values()}
        assert "cat joins it to what is no unit" in reasons
        assert "it is an output of the model" in reasons


def test_a_resnet_after_the_proximal_operator_is_smaller():
    model = made("ResNet-18")
    penalty = CoupledGroupLasso(model, IMAGES, 1.0)
    before = torch.cat(list(penalty.norms().values()))
    penalty.prox(1e-2)  # which ends no channel, and shortens each by its share
    penalty.strength *= float((before / (before - torch.cat(list(penalty.norms().values())))).quantile(0.3))
    penalty.prox(1e-2)
    zeros = sum(int((norms == 0).sum()) for norms in penalty.norms().values())
    small = compress(model, IMAGES)
    gone = len(before) + 10 - sum(stream.size for stream in coupled_units(small, IMAGES))
    assert 0 < zeros < len(before)
    assert gone >= zeros - len(penalty.norms())  # of each stream at least one channel stays
    assert_close(small(IMAGES), model(IMAGES), tolerance=1e-10)


@pytest.mark.parametrize("name", ["ResNet-18", "MobileNetV2", pytest.param("DenseNet-121", marks=BIG)])
def test_torch_pruning_couples_the_same_channels(name):
    """A removal of one channel by torch-pruning leaves the same shapes, and the same values, as ours."""
    pruning = pytest.importorskip("torch_pruning")
    model = made(name).float()
    x = IMAGES.float()
    streams = [s for s in coupled_units(model, x) if len(s.reasons) < s.size]
    for stream in streams[:: max(1, len(streams) // 8)]:
        theirs, ours = made(name).float(), made(name).float()
        graph = pruning.DependencyGraph().build_dependency(theirs, x)
        layer = theirs.get_submodule(stream.layers[0].removesuffix(".weight"))
        method = pruning.prune_linear_out_channels if isinstance(layer, nn.Linear) else pruning.prune_conv_out_channels
        graph.get_pruning_group(layer, method, idxs=[1]).prune()
        held = dict(ours.named_parameters())
        for (full, dim), index in stream.written.items():
            if full in held:
                held[full].data.index_fill_(dim, (index == 1).nonzero()[:, 0], 0.0)
        small = compress(ours, x)
        assert_bit_equal(dict(small.named_parameters()), dict(theirs.named_parameters()))

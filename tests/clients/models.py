"""Models as their users build them, small, with what the default selection must say of every parameter."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

LAYERS = 12


@dataclass(frozen=True)
class Client:
    """A model, what is fed to it, and its parameters by name pattern: None if penalized, else the reason why not."""

    make: Callable[[], nn.Module]
    feed: Callable[[nn.Module], Tensor]  # to a scalar loss
    reasons: Mapping[str, str | None]
    needs: str | None = None
    tied: Mapping[str, str] | None = None


def images(size: int) -> Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def sequence(width: int) -> Tensor:
    return torch.randn(4, 5, width, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


TOKENS = torch.arange(20).reshape(4, 5) % 11


def to_scalar(output: Any) -> Tensor:
    """The mean square of the logits of any of these models."""
    logits = output if isinstance(output, Tensor) else output.logits
    return logits.square().mean()


def resnet() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(num_classes=5)


def vision_transformer() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=16, patch_size=8, num_layers=LAYERS, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=5
    )


def convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=5)


def deit() -> nn.Module:
    from timm.models.deit import VisionTransformerDistilled

    return VisionTransformerDistilled(
        img_size=16, patch_size=8, embed_dim=8, depth=2, num_heads=2, num_classes=5, init_values=1.0
    )


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 11}
    config = BertConfig(num_hidden_layers=LAYERS, max_position_embeddings=8, **sizes)
    return BertForSequenceClassification(config)


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 8, "n_head": 2, "n_positions": 8, "vocab_size": 11}
    return GPT2LMHeadModel(GPT2Config(n_layer=2, bos_token_id=0, eos_token_id=0, **sizes))


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 11}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **sizes))


def image_transformer() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 16, "patch_size": 8}
    return ViTForImageClassification(ViTConfig(num_hidden_layers=2, **sizes))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, num_layers=2, bidirectional=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])


class Language(nn.Module):
    """One matrix for the embedding and the head, and learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 6)
        self.position_embedding_table = nn.Embedding(5, 6)
        self.norm = nn.RMSNorm(6)
        self.head = nn.Linear(6, 11)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1])
        return self.head(self.norm(self.tokens(tokens) + self.position_embedding_table(positions)))


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.same = nn.MultiheadAttention(4, 2, batch_first=True)
        self.other = nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.same(x, x, x)
        return self.other(y, x[..., :3], x.repeat(1, 1, 2)[..., :5])[0]


class LowRank(nn.Module):
    """A frozen layer and a trained update of rank 1 (LoRA)."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(1, base.in_features))
        self.lora_B = nn.Parameter(torch.randn(base.out_features, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.lora_A.T @ self.lora_B.T


def adapted() -> nn.Module:
    return nn.Sequential(LowRank(nn.Linear(4, 6)), nn.Tanh(), LowRank(nn.Linear(6, 2)))


NORM, POSITION, BIAS, SCALE = "normalization", "position embedding", "bias", "scale"
DECLARED = "no_weight_decay()"  # the model's own method names the parameter

CLIENTS = {
    "torchvision ResNet-18": Client(
        resnet,
        lambda model: to_scalar(model(images(32))),
        {
            "conv1.weight": None,
            "layer[1-4].[01].conv[12].weight": None,
            "layer[2-4].0.downsample.0.weight": None,
            "fc.weight": None,
            "bn1.weight": NORM,
            "layer[1-4].[01].bn[12].weight": NORM,
            "layer[2-4].0.downsample.1.weight": NORM,
            "bn1.bias": BIAS,
            "layer[1-4].[01].bn[12].bias": BIAS,
            "layer[2-4].0.downsample.1.bias": BIAS,
            "fc.bias": BIAS,
        },
        needs="torchvision",
    ),
    "torchvision ViT": Client(
        vision_transformer,
        lambda model: to_scalar(model(images(16))),
        {
            "class_token": "class token",
            "encoder.pos_embedding": POSITION,
            "conv_proj.weight": None,
            "conv_proj.bias": BIAS,
            "encoder.layers.encoder_layer_*.ln_[12].weight": NORM,
            "encoder.layers.encoder_layer_*.ln_[12].bias": BIAS,
            "encoder.layers.encoder_layer_*.self_attention.in_proj_weight": None,
            "encoder.layers.encoder_layer_*.self_attention.in_proj_bias": BIAS,
            "encoder.layers.encoder_layer_*.self_attention.out_proj.weight": None,
            "encoder.layers.encoder_layer_*.self_attention.out_proj.bias": BIAS,
            "encoder.layers.encoder_layer_*.mlp.[03].weight": None,
            "encoder.layers.encoder_layer_*.mlp.[03].bias": BIAS,
            "encoder.ln.weight": NORM,
            "encoder.ln.bias": BIAS,
            "heads.head.weight": None,
            "heads.head.bias": BIAS,
        },
        needs="torchvision",
    ),
    "torchvision ConvNeXt": Client(
        convnext,
        lambda model: to_scalar(model(images(16))),
        {
            "features.0.0.weight": None,
            "features.0.0.bias": BIAS,
            "features.0.1.weight": NORM,
            "features.0.1.bias": BIAS,
            "features.[13].0.layer_scale": SCALE,
            "features.[13].0.block.[035].weight": None,
            "features.[13].0.block.[0235].bias": BIAS,
            "features.[13].0.block.2.weight": NORM,
            "features.2.0.weight": NORM,
            "features.2.[01].bias": BIAS,
            "features.2.1.weight": None,
            "classifier.0.weight": NORM,
            "classifier.[02].bias": BIAS,
            "classifier.2.weight": None,
        },
        needs="torchvision",
    ),
    "timm DeiT": Client(
        deit,
        lambda model: to_scalar(model.eval()(images(16))),
        {
            "cls_token": DECLARED,
            "dist_token": DECLARED,
            "pos_embed": DECLARED,
            "patch_embed.proj.weight": None,
            "patch_embed.proj.bias": BIAS,
            "blocks.[01].norm[12].weight": NORM,
            "blocks.[01].norm[12].bias": BIAS,
            "blocks.[01].ls[12].gamma": SCALE,
            "blocks.[01].attn.qkv.weight": None,
            "blocks.[01].attn.qkv.bias": BIAS,
            "blocks.[01].attn.proj.weight": None,
            "blocks.[01].attn.proj.bias": BIAS,
            "blocks.[01].mlp.fc[12].weight": None,
            "blocks.[01].mlp.fc[12].bias": BIAS,
            "norm.weight": NORM,
            "norm.bias": BIAS,
            "head.weight": None,
            "head.bias": BIAS,
            "head_dist.weight": None,
            "head_dist.bias": BIAS,
        },
        needs="timm",
    ),
    "transformers BERT": Client(
        bert,
        lambda model: to_scalar(model(input_ids=TOKENS)),
        {
            "bert.embeddings.word_embeddings.weight": None,
            "bert.embeddings.token_type_embeddings.weight": None,
            "bert.embeddings.position_embeddings.weight": POSITION,
            "bert.embeddings.LayerNorm.weight": NORM,
            "bert.embeddings.LayerNorm.bias": BIAS,
            "bert.encoder.layer.*.attention.self.query.weight": None,
            "bert.encoder.layer.*.attention.self.query.bias": BIAS,
            "bert.encoder.layer.*.attention.self.key.weight": None,
            "bert.encoder.layer.*.attention.self.key.bias": BIAS,
            "bert.encoder.layer.*.attention.self.value.weight": None,
            "bert.encoder.layer.*.attention.self.value.bias": BIAS,
            "bert.encoder.layer.*.attention.output.dense.weight": None,
            "bert.encoder.layer.*.attention.output.dense.bias": BIAS,
            "bert.encoder.layer.*.attention.output.LayerNorm.weight": NORM,
            "bert.encoder.layer.*.attention.output.LayerNorm.bias": BIAS,
            "bert.encoder.layer.*.intermediate.dense.weight": None,
            "bert.encoder.layer.*.intermediate.dense.bias": BIAS,
            "bert.encoder.layer.*[0-9].output.dense.weight": None,
            "bert.encoder.layer.*[0-9].output.dense.bias": BIAS,
            "bert.encoder.layer.*[0-9].output.LayerNorm.weight": NORM,
            "bert.encoder.layer.*[0-9].output.LayerNorm.bias": BIAS,
            "bert.pooler.dense.weight": None,
            "bert.pooler.dense.bias": BIAS,
            "classifier.weight": None,
            "classifier.bias": BIAS,
        },
        needs="transformers",
    ),
    "transformers GPT-2": Client(
        gpt2,
        lambda model: to_scalar(model(input_ids=TOKENS)),
        {
            "transformer.wte.weight": None,
            "transformer.wpe.weight": POSITION,
            "transformer.h.[01].ln_[12].weight": NORM,
            "transformer.h.[01].ln_[12].bias": BIAS,
            "transformer.h.[01].attn.c_attn.weight": None,
            "transformer.h.[01].attn.c_attn.bias": BIAS,
            "transformer.h.[01].attn.c_proj.weight": None,
            "transformer.h.[01].attn.c_proj.bias": BIAS,
            "transformer.h.[01].mlp.c_fc.weight": None,
            "transformer.h.[01].mlp.c_fc.bias": BIAS,
            "transformer.h.[01].mlp.c_proj.weight": None,
            "transformer.h.[01].mlp.c_proj.bias": BIAS,
            "transformer.ln_f.weight": NORM,
            "transformer.ln_f.bias": BIAS,
        },
        needs="transformers",
        tied={"transformer.wte.weight": "lm_head.weight"},
    ),
    "transformers Llama": Client(
        llama,
        lambda model: to_scalar(model(input_ids=TOKENS)),
        {
            "model.embed_tokens.weight": None,
            "model.layers.[01].self_attn.?_proj.weight": None,
            "model.layers.[01].mlp.gate_proj.weight": None,
            "model.layers.[01].mlp.up_proj.weight": None,
            "model.layers.[01].mlp.down_proj.weight": None,
            "model.layers.[01].input_layernorm.weight": NORM,
            "model.layers.[01].post_attention_layernorm.weight": NORM,
            "model.norm.weight": NORM,
            "lm_head.weight": None,
        },
        needs="transformers",
    ),
    "transformers ViT": Client(
        image_transformer,
        lambda model: to_scalar(model(pixel_values=images(16))),
        {
            "vit.embeddings.cls_token": "cls token",
            "vit.embeddings.position_embeddings": POSITION,
            "vit.embeddings.patch_embeddings.projection.weight": None,
            "vit.embeddings.patch_embeddings.projection.bias": BIAS,
            "vit.*layer*.[01].attention.*.weight": None,
            "vit.*layer*.[01].attention.*.bias": BIAS,
            "vit.*layer*.[01].layernorm_*.weight": NORM,
            "vit.*layer*.[01].layernorm_*.bias": BIAS,
            "vit.*layer*.[01].mlp.fc[12].weight": None,
            "vit.*layer*.[01].mlp.fc[12].bias": BIAS,
            "vit.layernorm.weight": NORM,
            "vit.layernorm.bias": BIAS,
            "classifier.weight": None,
            "classifier.bias": BIAS,
        },
        needs="transformers",
    ),
    "LSTM": Client(
        Recurrent,
        lambda model: to_scalar(model(sequence(3))),
        {"lstm.weight_?h_l*": None, "lstm.bias_?h_l*": BIAS, "head.weight": None, "head.bias": BIAS},
    ),
    "tied embeddings": Client(
        Language,
        lambda model: to_scalar(model(TOKENS)),
        {
            "tokens.weight": None,
            "position_embedding_table.weight": POSITION,
            "norm.weight": NORM,
            "head.bias": BIAS,
        },
        tied={"tokens.weight": "head.weight"},
    ),
    "MultiheadAttention": Client(
        Attentive,
        lambda model: to_scalar(model(sequence(4))),
        {
            "same.in_proj_weight": None,
            "other.[qkv]_proj_weight": None,
            "other.bias_[kv]": BIAS,
            "*.in_proj_bias": BIAS,
            "*.out_proj.weight": None,
            "*.out_proj.bias": BIAS,
        },
    ),
    "LoRA": Client(
        adapted,
        lambda model: to_scalar(model(sequence(4))),
        {"[02].lora_A": None, "[02].lora_B": None, "[02].base.weight": None, "[02].base.bias": BIAS},
    ),
}


def needing(package: str | None) -> list[pytest.MarkDecorator]:
    """What a test of it is marked with."""
    return [pytest.mark.torchvision] if package == "torchvision" else []


each_client = pytest.mark.parametrize(
    "client", [pytest.param(client, id=name, marks=needing(client.needs)) for name, client in CLIENTS.items()]
)


def build(client: Client) -> nn.Module:
    """The same float64 weights at every call, in training mode; a skip where the package is lacking."""
    if client.needs is not None:
        pytest.importorskip(client.needs)
    torch.manual_seed(1)
    return client.make().double().train()

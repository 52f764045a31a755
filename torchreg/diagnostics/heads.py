"""Attention heads that nothing reads, or whose values are always zero."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention


def remove_heads(model: nn.Module) -> None:
    """Removes the dead heads of ``torch.nn.MultiheadAttention`` and of timm's ``Attention``, in place.

    A head is dead if no weight of the output's projection reads it, or if its values have neither weights nor biases.
    Each layer keeps one head.
    """
    places = Counter(p for m in model.modules() for p in m._parameters.values() if p is not None)
    module: Any  # that of timm is not known here
    for module in list(model.modules()):
        has_hooks = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        if has_hooks or any(places[p] > 1 for p in module.parameters()):
            continue
        if type(module) is nn.MultiheadAttention and _is_plain(module):
            kept = _kept(module.num_heads, module.in_proj_weight, module.in_proj_bias, module.out_proj.weight)
            if len(kept) < module.num_heads:
                FewerHeads.turn(module, kept)
        elif _is_timm(module):
            kept = _kept(module.num_heads, module.qkv.weight, module.qkv.bias, module.proj.weight)
            if len(kept) < module.num_heads:
                _shrink(module.qkv, "weight", 0, kept, 3, module.num_heads)
                _shrink(module.qkv, "bias", 0, kept, 3, module.num_heads)
                _shrink(module.proj, "weight", 1, kept, 1, module.num_heads)
                module.num_heads = len(kept)
                module.attn_dim = module.proj.in_features = module.proj.weight.shape[1]
                module.qkv.out_features = len(module.qkv.weight)


def _is_plain(module: nn.MultiheadAttention) -> bool:
    return module._qkv_same_embed_dim and module.bias_k is None and not module.add_zero_attn


def _is_timm(module: nn.Module) -> bool:
    if type(module).__name__ != "Attention" or not type(module).__module__.startswith("timm."):
        return False
    parts = [getattr(module, name, None) for name in ("qkv", "proj", "norm", "gate", "num_heads", "attn_dim")]
    return (
        type(parts[0]) is type(parts[1]) is nn.Linear
        and isinstance(parts[2], nn.Identity)
        and parts[3] is None
        and isinstance(parts[4], int)
        and isinstance(parts[5], int)
    )


def _kept(heads: int, packed: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """The numbers of the heads that are not dead, at least one."""
    values = packed.detach().chunk(3)[2].reshape(heads, -1).any(1)
    if bias is not None:
        values |= bias.detach().chunk(3)[2].reshape(heads, -1).any(1)
    alive = values & out.detach().reshape(len(out), heads, -1).any(2).any(0)
    if not bool(alive.any()):
        alive[0] = True
    return alive.nonzero()[:, 0]


def _shrink(module: nn.Module, name: str, dim: int, kept: Tensor, parts: int, heads: int) -> None:
    """Keeps some heads along a dimension of a parameter, in each of its parts."""
    old = getattr(module, name)
    if old is not None:
        smaller = old.detach().unflatten(dim, (parts, heads, -1)).index_select(dim + 1, kept).flatten(dim, dim + 2)
        setattr(module, name, nn.Parameter(smaller, old.requires_grad))


class FewerHeads(nn.MultiheadAttention):
    """Attention with fewer heads than its width would have: what :func:`~torchreg.compress` makes of a layer of torch.

    It returns None in place of the attention's weights, since those of the removed heads are gone.
    """

    kept: list[int]
    heads: int

    @classmethod
    def turn(cls, layer: nn.MultiheadAttention, kept: Tensor) -> None:
        """Makes a layer of torch one with some of its heads, in place."""
        _shrink(layer, "in_proj_weight", 0, kept, 3, layer.num_heads)
        _shrink(layer, "in_proj_bias", 0, kept, 3, layer.num_heads)
        _shrink(layer.out_proj, "weight", 1, kept, 1, layer.num_heads)
        layer.out_proj.in_features = layer.out_proj.weight.shape[1]
        layer.__class__ = cls
        assert isinstance(layer, cls)
        layer.kept, layer.heads = kept.tolist(), layer.num_heads
        layer.num_heads = len(kept)
        layer._qkv_same_embed_dim = False  # so that torch's encoder calls this layer, and no kernel in its place

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        has_batch = query.ndim == 3
        given = [x if has_batch else x.unsqueeze(0 if self.batch_first else 1) for x in (query, key, value)]
        given = [x if self.batch_first else x.transpose(0, 1) for x in given]
        packed = zip(given, self.in_proj_weight.chunk(3), self._biases(), strict=True)
        q, k, v = (linear(x, w, b).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x, w, b in packed)
        mask = self._mask(key_padding_mask, attn_mask, q)
        x = scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        x = self.out_proj(x.transpose(1, 2).flatten(2))
        x = x if self.batch_first else x.transpose(0, 1)
        return (x if has_batch else x.squeeze(0 if self.batch_first else 1)), None

    def _biases(self) -> Any:
        return (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)

    def _mask(self, padding: Tensor | None, mask: Tensor | None, q: Tensor) -> Tensor | None:
        """Both masks as numbers to add, for (batch, heads, queries, keys)."""
        masks = []
        if padding is not None:
            masks.append(_as_numbers(padding, q).view(-1, 1, 1, padding.shape[-1]))
        if mask is not None:
            if mask.ndim == 3:
                mask = mask.unflatten(0, (-1, self.heads))[:, self.kept]
            masks.append(_as_numbers(mask, q))
        return torch.stack(torch.broadcast_tensors(*masks)).sum(0) if masks else None


def _as_numbers(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, float("-inf"))

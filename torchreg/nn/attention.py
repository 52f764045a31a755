"""Attention whose dropout is a layer's: with a generator, and of weights, keys or heads."""

from __future__ import annotations

import math
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from torchreg import functional as f
from torchreg.nn.seeded import Seeded

Dropped = Literal["weights", "keys", "heads"]


class MultiheadAttention(Seeded, nn.MultiheadAttention):
    r"""A replacement of :class:`torch.nn.MultiheadAttention` with a generator, which can drop keys or heads instead.

    .. math:: \operatorname{head}_h = \operatorname{drop}\!\left(\operatorname{softmax}\!\left(
              Q_h K_h^\top / \sqrt{d} + M\right)\right) V_h

    with the mask :math:`M`. ``drop`` chooses what is dropped, with probability :math:`p`:

    - ``"weights"``: each attention weight, as in torch; the others are divided by :math:`1 - p`. The weights of a query
      then do not add up to 1.
    - ``"keys"``: each key, for each query and head on its own, before the softmax: its logit becomes
      :math:`-\infty`, so the other weights add up to 1 (DropKey). If all keys that the masks leave to a query are
      dropped, it keeps them all; the authors' code, which adds :math:`-10^{12}`, gives them equal weights.
    - ``"heads"``: each head of each example; the others are divided by :math:`1 - p` (DropHead). The paper divides by
      the share of heads that were kept instead, and varies the rate, as a :class:`~torchreg.DropoutSchedule` does.

    In evaluation mode, and at ``dropout=0``, it is torch's layer. Its rate is ``p`` and ``dropout``, which are one
    number. So it is a dropout layer like the others: generators, :func:`seed_dropout`, Monte Carlo dropout and
    schedules reach it. On the CPU its masks are drawn as those of :class:`Dropout`, which is faster than torch's. On
    other devices weights are dropped by torch's fused kernels, unless there is a generator: then the weights of all
    queries are held in memory.

    Parameters and ``state_dict`` are those of torch's layer. :func:`replace_dropout` puts it into a model.

    Args:
        embed_dim: as in torch, and so are ``num_heads`` to ``dtype``.
        dropout: probability of dropping, in [0, 1]; below 1 for keys.
        drop: ``"weights"``, ``"keys"`` or ``"heads"``.
        generator: source of the random bits, as in :class:`Dropout`.

    Shape:
        As in torch, also of the masks. Returned weights are those that were applied, after dropout.

    Raises:
        ValueError: ``dropout`` or ``drop`` out of range; in the forward pass inputs or masks whose shapes do not fit.
        TypeError: in the forward pass a mask that is neither boolean nor floating-point.

    Example:
        >>> layer = MultiheadAttention(8, 2, dropout=0.5, batch_first=True, drop="keys")
        >>> x = torch.ones(3, 5, 8)
        >>> y, weights = layer(x, x, x)
        >>> weights.sum(-1).allclose(torch.ones(3, 5))
        True

    References:
        Ashish Vaswani, Noam Shazeer, Niki Parmar, Jakob Uszkoreit, Llion Jones, Aidan N. Gomez, Łukasz Kaiser, Illia
        Polosukhin, "Attention Is All You Need", NIPS 2017. Bonan Li, Yinhan Hu, Xuecheng Nie, Congying Han, Xiangjian
        Jiang, Tiande Guo, Luoqi Liu, "DropKey for Vision Transformer", CVPR 2023. Wangchunshu Zhou, Tao Ge, Furu Wei,
        Ming Zhou, Ke Xu, "Scheduled DropHead: A Regularization Method for Transformer Models", Findings of EMNLP 2020.
    """

    drop: Dropped = "weights"

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        drop: Dropped = "weights",
        generator: Generator | None = None,
    ) -> None:
        super().__init__(
            embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype
        )
        self.drop = drop
        self.generator = generator
        self._check_rate()

    @classmethod
    def of(cls, layer: nn.MultiheadAttention, dropout: float | None = None, drop: Dropped = "weights") -> Self:
        """One with the parameters of a layer of torch, which both then hold.

        Args:
            layer: the layer; it is not changed.
            dropout: another rate than the layer's.
            drop: what to drop.

        Example:
            >>> old = nn.MultiheadAttention(8, 2, dropout=0.1)
            >>> new = MultiheadAttention.of(old, drop="heads")
            >>> new.in_proj_weight is old.in_proj_weight
            True
        """
        if not isinstance(layer, nn.MultiheadAttention):
            raise TypeError(f"MultiheadAttention: layer must be a torch.nn.MultiheadAttention, got {layer!r}")
        new = cls.__new__(cls)
        vars(new).update(vars(layer))  # the dicts of parameters and hooks too, so that the handles of hooks stay valid
        new.drop = drop
        new.p = layer.dropout if dropout is None else dropout
        new._check_rate()
        return new

    @property
    def p(self) -> float:
        """The rate, under the name that other layers have for it."""
        rate: float = self.dropout
        return rate

    @p.setter
    def p(self, p: float) -> None:
        self.dropout = p

    def _check_rate(self) -> None:
        f.check_probability("MultiheadAttention", self.dropout)
        if self.drop not in get_args(Dropped):
            raise ValueError(
                f"MultiheadAttention: drop must be one of {', '.join(get_args(Dropped))}, got {self.drop!r}"
            )
        if self.drop == "keys" and self.dropout == 1:
            raise ValueError("MultiheadAttention: dropout must be below 1 for keys, because none would be left, got 1")

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
    ) -> tuple[Tensor, Tensor | None]:
        self._check_rate()
        is_torchs = self.drop == "weights" and self.generator is None and not f.is_plain(query)
        if not self.training or self.dropout == 0 or is_torchs or query.is_nested:
            result: tuple[Tensor, Tensor | None] = super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
            return result
        self._check_inputs(query, key, value, attn_mask, is_causal)
        is_batched = query.ndim == 3
        q, k, v = self._projected(query, key, value)
        keys = key.shape[0 if is_batched and not self.batch_first else -2]
        mask = self._mask(q, keys, attn_mask, key_padding_mask)
        self._check_generator(q)
        heads, weights = self._attended(q, k, v, mask, need_weights)
        output = F.linear(heads.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not is_batched:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1), weights

    # -- parts of the forward pass --------------------------------------------------------------------------------

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of each head: ``(batch, heads, length, head_dim)``."""
        if query is key and key is value and self.in_proj_weight is not None:
            each = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            weights = (
                (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
                if self.in_proj_weight is None
                else self.in_proj_weight.chunk(3)
            )
            biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
            each = tuple(map(F.linear, (query, key, value), weights, biases))
        if query.ndim == 2:
            each = tuple(x[None] for x in each)
        elif not self.batch_first:
            each = tuple(x.transpose(0, 1) for x in each)
        q, k, v = each
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                torch.cat([x, extra.expand(len(x), -1, -1)], 1) for x, extra in ((k, self.bias_k), (v, self.bias_v))
            )
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        return q, k, v

    def _mask(self, q: Tensor, keys: int, attn_mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """Both masks as numbers to add to the logits, broadcastable to ``(batch, heads, queries, keys)``."""
        batch, heads, queries, _ = q.shape
        parts = []
        if attn_mask is not None:
            shape = {2: (1, 1, queries, keys), 3: (batch, heads, queries, keys)}[attn_mask.ndim]
            if attn_mask.numel() != math.prod(shape) or attn_mask.shape[-2:] != shape[-2:]:
                raise ValueError(
                    f"MultiheadAttention: attn_mask must have the shape {(queries, keys)} or "
                    f"{(batch * heads, queries, keys)}, got {tuple(attn_mask.shape)}"
                )
            parts.append(_added("attn_mask", attn_mask, q.dtype).view(shape))
        if padding is not None:
            if padding.numel() != batch * keys or padding.shape[-1:] != (keys,):
                raise ValueError(
                    f"MultiheadAttention: key_padding_mask must have the shape {(batch, keys)}, got "
                    f"{tuple(padding.shape)}"
                )
            parts.append(_added("key_padding_mask", padding, q.dtype).view(batch, 1, 1, keys))
        extra = (self.bias_k is not None) + bool(self.add_zero_attn)
        return F.pad(sum(parts[1:], start=parts[0]), (0, extra)) if parts else None

    def _attended(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """What each head gives, and the weights if they are needed."""
        shape = (*q.shape[:-1], k.shape[-2])
        if self.drop == "keys":
            mask = self._without_keys(q, shape, mask)
        if not need_weights and self.drop != "weights" and not f.is_transformed():  # vmap has no rule for it
            heads = F.scaled_dot_product_attention(q, k, v, mask)
            return (self._dropped(heads, (*shape[:2], 1, 1)) if self.drop == "heads" else heads), None
        is_alone = None
        if mask is not None and not need_weights:  # queries without keys give 0, as in scaled_dot_product_attention
            is_alone = (mask == -math.inf).all(-1, keepdim=True)
            mask = mask.masked_fill(is_alone, 0.0)
        logits = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
        weights = (logits if mask is None else logits + mask).softmax(-1)
        if self.drop != "keys":
            weights = self._dropped(weights, shape if self.drop == "weights" else (*shape[:2], 1, 1))
        heads = weights @ v
        return heads if is_alone is None else heads.masked_fill(is_alone, 0.0), weights if need_weights else None

    def _dropped(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        return f.drop(x, self.dropout, shape, generator=self.generator)

    def _without_keys(self, q: Tensor, shape: tuple[int, ...], mask: Tensor | None) -> Tensor | None:
        """The mask with minus infinity at the dropped keys. A query none of whose keys is left keeps them all."""
        p = f.drawn_rate(q, self.dropout, self.generator)
        if p == 0 or 0 in shape:
            return mask
        kept = f.keep_mask(q.new_empty(0), p, shape, self.generator).bool()  # in the order of shape, not of q's memory
        left = kept if mask is None else kept & (mask != -math.inf)
        kept = kept | ~left.any(-1, keepdim=True)
        zero = q.new_zeros(()) if mask is None else mask
        return torch.where(kept, zero, -math.inf)

    def _check_inputs(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool
    ) -> None:
        if query.ndim not in (2, 3) or not query.ndim == key.ndim == value.ndim or key.shape[:-1] != value.shape[:-1]:
            shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value))
            raise ValueError(
                "MultiheadAttention: query, key and value must be three batches of sequences or three sequences, keys "
                f"and values of one length, got the shapes {shapes}"
            )
        if attn_mask is not None and attn_mask.ndim not in (2, 3):
            raise ValueError(f"MultiheadAttention: attn_mask must have 2 or 3 dimensions, got {attn_mask.ndim}")
        if is_causal and attn_mask is None:
            raise ValueError("MultiheadAttention: is_causal says that attn_mask is causal: pass it too, got None")

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, {self.num_heads}, p={self.dropout}, drop={self.drop!r}"


def _added(name: str, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers: minus infinity where a boolean one is True."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
    if not mask.is_floating_point():
        raise TypeError(f"MultiheadAttention: {name} must be boolean or floating-point, got {mask.dtype}")
    return mask.to(dtype)

"""Dropout of the weights of a layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.autograd.function import once_differentiable

from torchreg import functional as f
from torchreg.nn.parametrized import PARAMETRIZATION, rewriting
from torchreg.nn.seeded import Seeded

Inference = Literal["mean", "moments"]
_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_CHUNK = 1 << 20  # masked weights that are in memory at once


class DropConnect(Seeded):
    r"""Drops weights of a layer, different ones for each example.

    .. math:: y_i = \Big(\frac{M_i}{1 - p} \circ W\Big) x_i + b, \qquad M_{ijk} \sim \operatorname{Bernoulli}(1 - p)

    for example :math:`i`. Biases are not dropped; the paper drops them too. In evaluation mode no weight is dropped.
    With ``inference="moments"`` the output is the mean of the activation :math:`\phi` over a normal distribution with
    the same moments, as in the paper:

    .. math:: y_i = \mathbb{E}\, \phi(u), \qquad
              u \sim N\Big(W x_i + b, \; \frac{p}{1 - p} W^{\circ 2} x_i^{\circ 2}\Big)

    It is computed in closed form for a ReLU, and by samples for other activations. Weights are scaled during training;
    the paper scales them in evaluation.

    In recurrent layers the weights between hidden states are dropped, the same ones at each time step and for the whole
    batch.

    The masks are stored until the backward pass. In a linear layer on the CPU they take one byte for each weight and
    example: 100 MB for a 1000 x 1000 layer and 100 examples. There is then no second derivative. Convolutions, and all
    layers under autocast, also store the masked weights: 5 bytes in single precision. On other devices, in compiled
    code and in transforms of ``torch.func`` the mask has the dtype of the weights: 8 bytes.

    Args:
        layer: ``nn.Linear``, ``nn.Conv1d`` to ``nn.Conv3d``, ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN``.
        p: probability of dropping a weight, in [0, 1]; on the CPU rounded to the nearest ``2**-16``.
        per_example: True: a mask for each example (along the first dimension); False: one mask for the batch. None
            means True, and for recurrent layers False, because they do not support masks for each example.
        inference: ``"mean"`` or ``"moments"``, in evaluation mode.
        activation: applied to the output in both modes; ``"moments"`` needs it here.
        samples: the number of samples for an activation without a closed form.
        generator: source of the random bits, as in :class:`Dropout`.

    Shape:
        That of the layer, with the batch as the first dimension if ``per_example``.

    Raises:
        ValueError: ``p`` outside [0, 1]; an unknown inference; fewer than one sample; for recurrent layers masks for
            each example, an activation, moments, or parametrized weights between hidden states; for others weights
            that the older functions of ``torch.nn.utils`` (pruning among them) compute before each call.
        TypeError: ``layer`` is of another type.

    Example:
        >>> import torch
        >>> layer = DropConnect(nn.Linear(8, 4), p=0.5)
        >>> layer(torch.ones(3, 8)).shape
        torch.Size([3, 4])
        >>> moments = DropConnect(nn.Linear(8, 4), p=0.5, inference="moments", activation=nn.ReLU()).eval()
        >>> bool((moments(torch.ones(3, 8)) > 0).all())
        True

    References:
        Li Wan, Matthew Zeiler, Sixin Zhang, Yann LeCun, Rob Fergus, "Regularization of Neural Networks using
        DropConnect", ICML 2013. For recurrent layers: Stephen Merity, Nitish Shirish Keskar, Richard Socher,
        "Regularizing and Optimizing LSTM Language Models", ICLR 2018.
    """

    def __init__(
        self,
        layer: nn.Module,
        p: float = 0.5,
        *,
        per_example: bool | None = None,
        inference: Inference = "mean",
        activation: Callable[[Tensor], Tensor] | None = None,
        samples: int = 100,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        f.check_probability("DropConnect", p)
        if not isinstance(layer, nn.Linear | _Convolution | nn.LSTM | nn.GRU | nn.RNN):
            raise TypeError(
                "DropConnect: layer must be a torch.nn.Linear, Conv1d to Conv3d, LSTM, GRU or RNN, "
                f"got {type(layer).__name__}"
            )
        is_recurrent = isinstance(layer, nn.RNNBase)
        if inference not in get_args(Inference):
            raise ValueError(
                f"DropConnect: inference must be one of {', '.join(get_args(Inference))}, got {inference!r}"
            )
        if is_recurrent and (per_example or inference == "moments" or activation is not None):
            raise ValueError(
                f"DropConnect: a {type(layer).__name__} must have one mask for the batch, inference 'mean' and no "
                "activation: leave them at their defaults"
            )
        if type(samples) is not int or samples < 1:
            raise ValueError(f"DropConnect: samples must be a whole number >= 1, got {samples!r}")
        self.layer = layer
        self.p = p
        self.per_example = not is_recurrent if per_example is None else per_example
        self.inference: Inference = inference
        self.activation = activation
        self.samples = samples
        self.generator = generator

    @property
    def shares_mask(self) -> bool:
        """Whether the whole batch has one mask."""
        return not self.per_example

    def forward(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        f.check_probability("DropConnect", self.p)
        if not self.training and self.inference == "moments" and 0 < self.p < 1:
            return self._expected(input)
        compute = self._dropped if self.training and self.p > 0 else self.layer
        output = compute(input, *args, **kwargs)
        return output if self.activation is None else self.activation(output)

    def _dropped(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        layer = self.layer
        self._check_generator(next(layer.parameters()))
        if isinstance(layer, nn.RNNBase):
            ends = ("", "_reverse") if layer.bidirectional else ("",)
            names = [f"weight_hh_l{level}{end}" for level in range(layer.num_layers) for end in ends]
            if not layer._parameters.keys() >= set(names):  # nothing, or something else, would be dropped
                raise ValueError(
                    f"DropConnect: {', '.join(names)} must be parameters of the layer, got parametrized ones: "
                    "remove the parametrization, such as weight normalization or pruning"
                )
            hidden = {name: param for name, param in layer.named_parameters() if name.startswith("weight_hh")}
            masked = {name: self._masked(param) for name, param in hidden.items()}
            return torch.func.functional_call(layer, masked, (input, *args), kwargs)
        assert isinstance(layer, nn.Linear | _Convolution)
        if "weight" not in layer._parameters and (kind := rewriting(layer, "weight")) not in (None, PARAMETRIZATION):
            raise ValueError(  # the weight is that of the layer's last call
                f"DropConnect: the layer's weight must be a parameter, it is behind {kind}: remove that"
            )
        is_batched = input.ndim > 1 if isinstance(layer, nn.Linear) else input.ndim == layer.weight.ndim
        p = f.drawn_rate(layer.weight, self.p, self.generator)
        if not (self.per_example and is_batched and len(input)) or p == 1:
            return applied(layer, input, self._masked(layer.weight), layer.bias)
        masks = f.keep_mask(layer.weight, p, (len(input), *layer.weight.shape), self.generator)
        if isinstance(layer, nn.Linear):
            return _linear_by_example(layer, input, masks, 1 / (1 - p))
        return _convolution_by_example(layer, input, masks, 1 / (1 - p))

    def _masked(self, weight: Tensor) -> Tensor:
        return f.drop(weight, self.p, weight.shape, generator=self.generator)

    def _expected(self, input: Tensor) -> Tensor:
        layer = self.layer
        assert isinstance(layer, nn.Linear | _Convolution)
        mean: Tensor = layer(input)
        if self.activation is None:
            return mean
        variance = applied_to_squares(layer, input, f.wide(layer.weight).square()) * (self.p / (1 - self.p))
        deviation = variance.clamp(min=0).sqrt().to(mean.dtype)
        if isinstance(self.activation, nn.ReLU) or self.activation in (torch.relu, F.relu):
            return _rectified_mean(mean, deviation)
        self._check_generator(mean)
        total = torch.zeros_like(mean)
        for _ in range(self.samples):
            noise = f.drawn(torch.randn, mean.shape, mean.device, self.generator, mean.dtype)
            total = total + self.activation(mean + noise * deviation)
        return total / self.samples

    def extra_repr(self) -> str:
        return f"p={self.p}, per_example={self.per_example}, inference={self.inference!r}"


def applied(layer: nn.Linear | _Convolution, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's map with another weight and bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    output: Tensor = layer._conv_forward(x, weight, bias)
    return output


def applied_to_squares(layer: nn.Linear | _Convolution, x: Tensor, weight: Tensor) -> Tensor:
    """The layer's map of squares with another weight, without a bias; in float32 instead of float16."""
    device = x.device.type
    is_cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    computed = torch.get_autocast_dtype(device) if is_cast else x.dtype
    if computed != torch.float16:
        return applied(layer, x.square(), weight.to(x.dtype), None)
    with torch.autocast(device, enabled=False):  # squares of 256 overflow there, those of 1e-4 vanish
        return applied(layer, f.wide(x).square(), f.wide(weight), None)


def _rectified_mean(mean: Tensor, deviation: Tensor) -> Tensor:
    """The mean of a normal variable's positive part."""
    ratio = mean / deviation.clamp(min=torch.finfo(mean.dtype).tiny)
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    expected = mean * torch.special.ndtr(ratio) + deviation * density
    return torch.where(deviation > 0, expected, mean.clamp(min=0))


def _linear_by_example(layer: nn.Linear, x: Tensor, masks: Tensor, scale: float) -> Tensor:
    """``(masks[i] * weight * scale) @ x[i] + bias`` for each example; dimensions between are positions in one."""
    weight, rows = layer.weight, x.reshape(len(x), math.prod(x.shape[1:-1]), x.shape[-1])
    is_plain = weight.dtype == x.dtype and f.is_plain(x) and not torch.is_autocast_enabled("cpu")
    if masks.dtype == torch.int8 and is_plain:
        y: Tensor = _MaskedProducts.apply(rows, weight, masks)
    else:
        y = torch.bmm(rows, (weight * masks).transpose(1, 2))
    y = (y * scale).view(*x.shape[:-1], len(weight))
    return y if layer.bias is None else y + layer.bias.to(y.dtype)  # another one under autocast


class _MaskedProducts(torch.autograd.Function):
    """``rows[i] @ (weight * masks[i]).T``, with the masked weights of only a few examples in memory at once."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, masks: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight, masks)
        y = rows.new_empty(*rows.shape[:2], len(weight))
        for some, mask, out in _chunks(weight, rows, masks, y):
            torch.bmm(some, (weight * mask).transpose(1, 2), out=out)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, weight, masks = ctx.saved_tensors
        needs_rows, needs_weight, _ = ctx.needs_input_grad
        if not f.is_plain(grad):  # many gradients at once
            of_rows = torch.bmm(grad, weight * masks) if needs_rows else None
            return of_rows, (torch.bmm(grad.mT, rows) * masks).sum(0) if needs_weight else None, None
        of_rows = torch.empty_like(rows) if needs_rows else None
        of_weight = torch.zeros_like(weight) if needs_weight else None
        for some, mask, out, place in _chunks(weight, rows, masks, grad, rows if of_rows is None else of_rows):
            if of_rows is not None:
                torch.bmm(out, weight * mask, out=place)
            if of_weight is not None:
                of_weight += torch.bmm(out.transpose(1, 2), some).mul_(mask).sum(0)
        return of_rows, of_weight, None


def _chunks(weight: Tensor, *tensors: Tensor) -> Any:
    size = max(1, _CHUNK // max(weight.numel(), 1))
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


def _convolution_by_example(layer: _Convolution, x: Tensor, masks: Tensor, scale: float) -> Tensor:
    """Each example with its own weights, as groups of one convolution."""
    weights = (layer.weight * masks).mul(scale).flatten(0, 1)
    grouped = type(layer).__new__(type(layer))
    grouped.__dict__.update(vars(layer), groups=len(x) * layer.groups)
    y: Tensor = grouped._conv_forward(x.reshape(1, -1, *x.shape[2:]), weights, None)
    y = y.view(len(x), layer.out_channels, *y.shape[2:])
    return y if layer.bias is None else y + layer.bias.to(y.dtype).view(-1, *[1] * (x.ndim - 2))

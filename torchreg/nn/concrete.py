"""Masks and gates that are learned by a continuous relaxation."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from torchreg import functional as f
from torchreg.nn.gated import Gated
from torchreg.nn.parametrized import Layer, plain_copy

Units = Literal["inputs", "outputs"]


class ConcreteDropout(Gated):
    r"""Dropout of a layer's inputs with a learned rate.

    .. math:: y = F\left(\frac{1 - z}{1 - p} x\right), \qquad
              z = \sigma\left(\frac{\operatorname{logit} p + \operatorname{logit} u}{t}\right), \quad u \sim U(0, 1)

    where :math:`F` is the layer. The mask :math:`z` is a continuous relaxation, so the rate :math:`p` has a gradient.
    The loss alone would make the rate 0. The complexity, a divergence from a prior of the weights, prevents that:

    .. math:: C = \frac{l^2}{2 (1 - p)} \|W\|^2 - K \operatorname{H}(p), \qquad
              \operatorname{H}(p) = -p \log p - (1 - p) \log(1 - p)

    for :math:`K` inputs (of a convolution: channels, which are dropped as a whole). Add it with
    ``Regularizer(model, Complexity(1 / N))`` for :math:`N` training examples. In evaluation mode nothing is dropped.

    Args:
        layer: ``nn.Linear`` or ``nn.Conv1d`` to ``nn.Conv3d``.
        p: the initial rate, in (0, 1).
        temperature: ``t > 0``. The lower it is, the closer the mask is to zero and one.
        length_scale: ``l > 0``, the length scale of the prior.
        generator: source of the random numbers, as in :class:`Dropout`.

    Shape:
        That of the layer.

    Raises:
        ValueError: an argument out of range.
        TypeError: ``layer`` is of another type.

    Example:
        >>> layer = ConcreteDropout(nn.Linear(8, 4), p=0.2)
        >>> round(layer.p.item(), 3)
        0.2
        >>> layer(torch.ones(2, 8)).shape
        torch.Size([2, 4])

    References:
        Yarin Gal, Jiri Hron, Alex Kendall, "Concrete Dropout", NIPS 2017.
    """

    rates, cost, depends_on = "logit_p", "KL", ("logit_p", "layer.weight")

    def __init__(
        self,
        layer: Layer,
        p: float = 0.1,
        *,
        temperature: float = 0.1,
        length_scale: float = 1e-2,
        generator: Generator | None = None,
    ) -> None:
        super().__init__(layer, generator)
        _check("ConcreteDropout", "p", p, 0, 1)
        self.temperature = _check("ConcreteDropout", "temperature", temperature)
        self.length_scale = _check("ConcreteDropout", "length_scale", length_scale)
        self.logit_p = nn.Parameter(layer.weight.new_tensor(math.log(p / (1 - p))))

    @property
    def p(self) -> Tensor:
        """The learned rate, a 0-d tensor."""
        return self.logit_p.sigmoid()

    def forward(self, input: Tensor) -> Tensor:
        self._check_parameters()
        if self.training:
            is_linear = isinstance(self.layer, nn.Linear)
            noise = self._uniform(input, tuple(input.shape) if is_linear else self._over_channels(input))
            logit = -f.wide(self.logit_p)  # of keeping; its sigmoid vanishes in half precision
            kept = f.interpolate_gate(logit, noise, self.temperature) / logit.sigmoid()
            input = input * kept.to(input.dtype)
        output: Tensor = self.layer(input)
        return output

    def complexity_of(self, logit_p: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        logit_p, weight = f.wide(logit_p), f.wide(weight)
        p = logit_p.sigmoid()
        inputs = weight.shape[1] * getattr(self.layer, "groups", 1)
        entropy = F.softplus(logit_p) - p * logit_p
        return self.length_scale**2 * weight.square().sum() / (2 * (-logit_p).sigmoid()) - inputs * entropy

    def pruned(self) -> Layer:
        return plain_copy(self, self.layer)

    def extra_repr(self) -> str:
        p = "?" if self.logit_p.is_meta else f"{self.p.item():.3f}"
        return f"p={p}, temperature={self.temperature}, length_scale={self.length_scale}"


class HardConcrete(Gated):
    r"""Learned gates on whole units, which become exactly zero; their expected number is penalized (L0 regularization).

    .. math:: z = \min\big(1, \max(0, s (\zeta - \gamma) + \gamma)\big), \qquad
              s = \sigma\left(\frac{\log \alpha + \operatorname{logit} u}{\beta}\right), \quad u \sim U(0, 1)

    The gates :math:`z` multiply the layer's inputs or outputs. In evaluation mode :math:`s = \sigma(\log \alpha)`. The
    complexity is the expected number of weights whose gate is not zero:

    .. math:: C = \frac{|W|}{|g|} \sum_g \sigma\left(\log \alpha_g - \beta \log \frac{-\gamma}{\zeta}\right)

    for :math:`|W|` weights and :math:`|g|` gates. Add it with ``Regularizer(model, Complexity(strength / N))`` for
    :math:`N` training examples.

    Args:
        layer: ``nn.Linear`` or ``nn.Conv1d`` to ``nn.Conv3d``.
        p: the initial rate, in (0, 1): :math:`\log \alpha = \log \frac{1-p}{p}` plus noise of size 0.01, so that
            :math:`s` is below one half with probability ``p``. Fewer gates are exactly zero: 17 % for ``p=0.5`` and 2 %
            for ``p=0.1``.
        units: what has gates: the layer's ``"inputs"`` (of a convolution: input channels) or ``"outputs"``.
        temperature: :math:`\beta > 0`.
        stretch: :math:`(\gamma, \zeta)`, below 0 and above 1.
        generator: source of the random numbers, as in :class:`Dropout`.

    Shape:
        That of the layer.

    Raises:
        ValueError: an argument out of range, or gates on the inputs of a grouped convolution.
        TypeError: ``layer`` is of another type.

    Example:
        >>> layer = HardConcrete(nn.Linear(8, 4), p=0.5)
        >>> layer(torch.ones(2, 8)).shape
        torch.Size([2, 4])
        >>> round(layer.complexity().item() / 32, 2)  # of the 32 weights
        0.83

    References:
        Christos Louizos, Max Welling, Diederik P. Kingma, "Learning Sparse Neural Networks through L0 Regularization",
        ICLR 2018.
    """

    rates, cost, depends_on = "log_alpha", "L0", ("log_alpha",)

    def __init__(
        self,
        layer: Layer,
        p: float = 0.5,
        *,
        units: Units = "inputs",
        temperature: float = 2 / 3,
        stretch: tuple[float, float] = (-0.1, 1.1),
        generator: Generator | None = None,
    ) -> None:
        super().__init__(layer, generator)
        owner = "HardConcrete"
        _check(owner, "p", p, 0, 1)
        if units not in get_args(Units):
            raise ValueError(f"{owner}: units must be one of {', '.join(get_args(Units))}, got {units!r}")
        if units == "inputs" and getattr(layer, "groups", 1) > 1:
            raise ValueError(f"{owner}: a grouped convolution must have units='outputs', got 'inputs'")
        if not stretch[0] < 0 < 1 < stretch[1]:
            raise ValueError(f"{owner}: stretch must reach below 0 and above 1, got {stretch!r}")
        self.units: Units = units
        self.temperature = _check(owner, "temperature", temperature)
        self.stretch = stretch
        count = layer.weight.shape[1 if units == "inputs" else 0]
        start = torch.randn(count, generator=generator, dtype=layer.weight.dtype, device=layer.weight.device) * 1e-2
        self.log_alpha = nn.Parameter(start + math.log((1 - p) / p))

    @property
    def gates(self) -> Tensor:
        """The gates in evaluation mode, in [0, 1]."""
        return self._stretched(self.log_alpha.sigmoid())

    def forward(self, input: Tensor) -> Tensor:
        self._check_parameters()
        if self.units == "inputs":
            output: Tensor = self.layer(input * self._draw(input))
            return output
        output = self.layer(input)
        return output * self._draw(output)

    def complexity_of(self, log_alpha: Tensor) -> Tensor:  # type: ignore[override]
        low, high = self.stretch
        is_open = torch.sigmoid(f.wide(log_alpha) - self.temperature * math.log(-low / high))
        return is_open.sum() * (self._weights() / max(len(log_alpha), 1))

    def _weights(self) -> int:
        """The number of weights. It does not read them: a spectral norm makes a step each time that it is read."""
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return layer.in_features * layer.out_features
        return layer.out_channels * (layer.in_channels // layer.groups) * math.prod(layer.kernel_size)

    @torch.no_grad()
    def pruned(self) -> Layer:
        layer, gates = plain_copy(self, self.layer), self.gates
        if self.units == "inputs":
            layer.weight.mul_(gates.view(-1, *[1] * self._spatial))
        else:
            layer.weight.mul_(gates.view(-1, *[1] * (self._spatial + 1)))
            if layer.bias is not None:
                layer.bias.mul_(gates)
        return layer

    def _draw(self, x: Tensor) -> Tensor:
        log_alpha = self.log_alpha.view(-1, *[1] * self._spatial)
        if not self.training:
            return self._stretched(log_alpha.sigmoid()).to(x.dtype)
        return self._stretched(
            f.interpolate_gate(log_alpha, self._uniform(x, self._over_channels(x)), self.temperature)
        ).to(x.dtype)

    def _stretched(self, gate: Tensor) -> Tensor:
        low, high = self.stretch
        return (gate * (high - low) + low).clamp(0, 1)

    def extra_repr(self) -> str:
        return f"units={self.units!r}, temperature={self.temperature:.3g}, stretch={self.stretch}"


def _check(owner: str, name: str, value: float, low: float = 0, high: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
        raise ValueError(f"{owner}: {name} must be a number in ({low:g}, {high:g}), got {value!r}")
    return float(value)

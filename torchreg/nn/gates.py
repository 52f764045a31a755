"""Layers that learn what to drop. What their rates cost is for :class:`torchreg.Complexity` to add to the loss."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from operator import attrgetter
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from torchreg import functional as f
from torchreg.nn.dropout import Seeded

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
Units = Literal["inputs", "outputs"]

_K1, _K2, _K3 = 0.63576, 1.8732, 1.48695  # of the divergence of variational dropout
_LIMIT, _TINY = 8.0, 1e-8  # of log alpha, and what is added to squared weights before their logarithm


class Gated(Seeded):
    """A linear layer or convolution with rates of dropping that are learned with its weights.

    Args:
        layer: ``nn.Linear`` or ``nn.Conv1d`` to ``nn.Conv3d``; it becomes the submodule ``layer``.
        generator: source of the random numbers; torch's global one if None.

    Raises:
        TypeError: any other layer.
    """

    rates: ClassVar[str]  # the parameter that holds the learned rates
    cost: ClassVar[str]  # what the complexity is called: "KL" or "L0"
    depends_on: ClassVar[tuple[str, ...]]  # the parameters that the complexity is a function of

    def __init__(self, layer: Layer, generator: Generator | None) -> None:
        super().__init__()
        if not isinstance(layer, Layer):
            kind = type(layer).__name__
            raise TypeError(
                f"{type(self).__name__}: layer must be a torch.nn.Linear, Conv1d, Conv2d or Conv3d, got {kind}"
            )
        self.layer = layer
        self.generator = generator

    def complexity(self) -> Tensor:
        """What the rates cost: 0-d, differentiable in all parameters it depends on."""
        return self.complexity_of(*(attrgetter(name)(self) for name in self.depends_on))

    @abstractmethod
    def complexity_of(self, *tensors: Tensor) -> Tensor:
        """:meth:`complexity` for other values of the parameters it depends on."""

    def complexity_gradient(self, index: int, *tensors: Tensor) -> Tensor:
        """The derivative of :meth:`complexity_of` in one of its tensors, differentiable if gradients are enabled."""
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            inputs = list(tensors)
            if not (again and inputs[index].requires_grad):
                inputs[index] = inputs[index].detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.complexity_of(*inputs), inputs[index], create_graph=again)
        return gradient

    @abstractmethod
    def pruned(self) -> Layer:
        """A copy of the layer that computes in evaluation mode what this computes, with zeros for what is dropped."""

    def _uniform(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Numbers in (0, 1), never at the ends, at least in single precision."""
        if self.generator is not None:
            f.check_generator(type(self).__name__, self.generator, x.device)
        drawn = torch.rand(shape, generator=self.generator, device=x.device)
        tiny = torch.finfo(drawn.dtype).eps
        return drawn * (1 - 2 * tiny) + tiny

    def _over_channels(self, x: Tensor) -> tuple[int, ...]:
        """The shape of one number for each example and channel: the inputs of a linear layer, or maps."""
        if isinstance(self.layer, nn.Linear):
            leading = x.shape[:1] if x.ndim > 1 else ()
            return (*leading, *[1] * (x.ndim - len(leading) - 1), x.shape[-1])
        spatial = self.layer.weight.ndim - 2
        return (*x.shape[:-spatial], *[1] * spatial)


class ConcreteDropout(Gated):
    r"""Dropout of a layer's inputs with a rate that is learned, by a continuous relaxation of the mask.

    .. math:: y = F\left(\frac{1 - z}{1 - p} x\right), \qquad
              z = \sigma\left(\frac{\operatorname{logit} p + \operatorname{logit} u}{t}\right), \quad u \sim U(0, 1)

    The rate would shrink to 0 without its complexity, the divergence from a prior of the weights:

    .. math:: C = \frac{l^2}{2 (1 - p)} \|W\|^2 - K \operatorname{H}(p), \qquad
              \operatorname{H}(p) = -p \log p - (1 - p) \log(1 - p)

    with :math:`K` inputs (of a convolution: channels, which are dropped whole). Add it with
    ``Regularizer(model, Complexity(1 / N))``, :math:`N` the number of training examples.
    In evaluation mode this is the layer.

    Args:
        layer: ``nn.Linear`` or ``nn.Conv1d`` to ``nn.Conv3d``.
        p: the rate to start from, in (0, 1).
        temperature: ``t > 0``; the lower, the closer to zero and one the mask.
        length_scale: ``l > 0`` of the prior, in units of the inverse weights.
        generator: source of the random numbers, as in :class:`Dropout`.

    Raises:
        ValueError: an argument out of range.
        TypeError: any other layer.

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
        """The learned rate, 0-d."""
        return self.logit_p.sigmoid()

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            is_linear = isinstance(self.layer, nn.Linear)
            noise = self._uniform(input, tuple(input.shape) if is_linear else self._over_channels(input))
            kept = f.interpolate_gate(-self.logit_p, noise, self.temperature) / (-self.logit_p).sigmoid()
            input = input * kept.to(input.dtype)
        output: Tensor = self.layer(input)
        return output

    def complexity_of(self, logit_p: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        p = logit_p.sigmoid()
        inputs = weight.shape[1] * getattr(self.layer, "groups", 1)
        entropy = F.softplus(logit_p) - p * logit_p
        return self.length_scale**2 * weight.square().sum() / (2 * (-logit_p).sigmoid()) - inputs * entropy

    def pruned(self) -> Layer:
        return copy.deepcopy(self.layer)

    def extra_repr(self) -> str:
        return f"p={self.p.item():.3f}, temperature={self.temperature}, length_scale={self.length_scale}"


class VariationalDropout(Gated):
    r"""Sparse variational dropout: each weight has a noise level that is learned, and drowned weights are dropped.

    .. math:: y_i \sim N\Big(\sum_j \theta_{ij} x_j + b_i, \; \sum_j \sigma_{ij}^2 x_j^2\Big), \qquad
              \alpha = \frac{\sigma^2}{\theta^2}

    for each example on its own. In evaluation mode, weights with :math:`\log \alpha` above the threshold are zero. The
    complexity is the divergence from the log-uniform prior, in the paper's approximation:

    .. math:: C = \sum k_1 - k_1 \sigma(k_2 + k_3 \log \alpha) + \tfrac12 \log(1 + \alpha^{-1})

    with :math:`k = (0.63576, 1.8732, 1.48695)`; it is least, 0, where a weight is all noise. Add it with
    ``Regularizer(model, Complexity(1 / N), schedule=...)``, :math:`N` the number of training examples: at full strength
    from the start it takes too many weights, so let a schedule bring it in. A learning rate of the noise levels as
    large as the weights' will do.

    Args:
        layer: ``nn.Linear`` or ``nn.Conv1d`` to ``nn.Conv3d``.
        log_sigma2: :math:`\log \sigma^2` to start from.
        threshold: of :math:`\log \alpha`; 3 is a binary dropout rate of 0.95.
        generator: source of the random numbers, as in :class:`Dropout`.

    Raises:
        TypeError: any other layer.

    Example:
        >>> layer = VariationalDropout(nn.Linear(8, 4))
        >>> layer(torch.ones(2, 8)).shape
        torch.Size([2, 4])
        >>> layer.pruned().weight.count_nonzero()
        tensor(32)

    References:
        Dmitry Molchanov, Arsenii Ashukha, Dmitry Vetrov, "Variational Dropout Sparsifies Deep Neural Networks",
        ICML 2017. Diederik P. Kingma, Tim Salimans, Max Welling, "Variational Dropout and the Local
        Reparameterization Trick", NIPS 2015.
    """

    rates, cost, depends_on = "log_sigma2", "KL", ("log_sigma2", "layer.weight")

    def __init__(
        self, layer: Layer, log_sigma2: float = -10.0, *, threshold: float = 3.0, generator: Generator | None = None
    ) -> None:
        super().__init__(layer, generator)
        self.threshold = threshold
        self.log_sigma2 = nn.Parameter(torch.full_like(layer.weight, log_sigma2))

    @property
    def log_alpha(self) -> Tensor:
        """The logarithm of noise over signal of each weight, from -8 to 8."""
        return _log_alpha(self.log_sigma2, self.layer.weight)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return _applied(self.layer, input, self._kept_weight(), self.layer.bias)
        mean: Tensor = self.layer(input)
        variance = _applied(self.layer, input.square(), self.log_sigma2.exp(), None)
        if self.generator is not None:
            f.check_generator("VariationalDropout", self.generator, input.device)
        noise = torch.randn(mean.shape, generator=self.generator, dtype=mean.dtype, device=mean.device)
        return mean + noise * (variance + 1e-8).sqrt()  # whose slope at 0 would be infinite

    def complexity_of(self, log_sigma2: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        log_alpha = _log_alpha(log_sigma2, weight)
        return (_K1 - _K1 * torch.sigmoid(_K2 + _K3 * log_alpha) + 0.5 * F.softplus(-log_alpha)).sum()

    def complexity_gradient(self, index: int, *tensors: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().complexity_gradient(index, *tensors)
        log_sigma2, weight = tensors  # written out, for there are as many as weights
        signal = weight.square().add_(_TINY)
        log_alpha = log_sigma2 - signal.log()
        is_clamped = log_alpha.abs() > _LIMIT
        bend = log_alpha.mul(_K3).add_(_K2).sigmoid_()
        slope = log_alpha.neg_().sigmoid_().mul_(-0.5).addcmul_(bend, 1 - bend, value=-_K1 * _K3)
        slope.masked_fill_(is_clamped, 0.0)
        return slope if index == 0 else slope.mul_(weight).div_(signal).mul_(-2)

    def pruned(self) -> Layer:
        layer = copy.deepcopy(self.layer)
        layer.weight.data = self._kept_weight().detach()
        return layer

    def _kept_weight(self) -> Tensor:
        return self.layer.weight.masked_fill(self.log_alpha > self.threshold, 0.0)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}"


class HardConcrete(Gated):
    r"""Gates on whole units that can be exactly zero in training and are learned with their expected number.

    .. math:: z = \min\big(1, \max(0, s (\zeta - \gamma) + \gamma)\big), \qquad
              s = \sigma\left(\frac{\log \alpha + \operatorname{logit} u}{\beta}\right), \quad u \sim U(0, 1)

    In evaluation mode :math:`s = \sigma(\log \alpha)`. The complexity is the expected number of weights whose gate is
    not zero:

    .. math:: C = \frac{|W|}{|g|} \sum_g \sigma\left(\log \alpha_g - \beta \log \frac{-\gamma}{\zeta}\right)

    Add it with ``Regularizer(model, Complexity(strength / N))``.

    Args:
        layer: ``nn.Linear`` or ``nn.Conv1d`` to ``nn.Conv3d``.
        p: probability that a gate is closed to start with, in (0, 1); the gates get some noise of size 0.01.
        units: what has a gate: the layer's ``"inputs"`` (of a convolution: input channels) or ``"outputs"``.
        temperature: :math:`\beta > 0`.
        stretch: :math:`(\gamma, \zeta)`, below 0 and above 1.
        generator: source of the random numbers, as in :class:`Dropout`.

    Raises:
        ValueError: an argument out of range, or gates on the inputs of a grouped convolution.
        TypeError: any other layer.

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
        if self.units == "inputs":
            output: Tensor = self.layer(input * self._draw(input))
            return output
        output = self.layer(input)
        return output * self._draw(output)

    def complexity_of(self, log_alpha: Tensor) -> Tensor:  # type: ignore[override]
        low, high = self.stretch
        is_open = torch.sigmoid(log_alpha - self.temperature * math.log(-low / high))
        return is_open.sum() * (self.layer.weight.numel() / max(len(log_alpha), 1))

    @torch.no_grad()
    def pruned(self) -> Layer:
        layer, gates = copy.deepcopy(self.layer), self.gates
        if self.units == "inputs":
            layer.weight.mul_(gates.view(-1, *[1] * (layer.weight.ndim - 2)))
        else:
            layer.weight.mul_(gates.view(-1, *[1] * (layer.weight.ndim - 1)))
            if layer.bias is not None:
                layer.bias.mul_(gates)
        return layer

    def _draw(self, x: Tensor) -> Tensor:
        log_alpha = self.log_alpha.view(-1, *[1] * (self.layer.weight.ndim - 2))
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


def pruned(model: nn.Module) -> nn.Module:
    """A copy of the model with an ordinary layer for each that learned what to drop; the outputs in evaluation agree.

    What was dropped is exactly zero there, so :func:`torchreg.compress` can take out whole units.

    Example:
        >>> model = nn.Sequential(VariationalDropout(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 2))
        >>> pruned(model)
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
          (1): ReLU()
          (2): Linear(in_features=3, out_features=2, bias=True)
        )
    """
    if isinstance(model, Gated):
        return model.pruned().train(model.training)
    copied = copy.deepcopy(model)
    made: dict[nn.Module, nn.Module] = {}
    for parent in list(copied.modules()):
        for name, child in list(parent._modules.items()):  # each place of those that stand in several
            if isinstance(child, Gated):
                parent._modules[name] = made.setdefault(child, child.pruned().train(child.training))
    return copied


def _log_alpha(log_sigma2: Tensor, weight: Tensor) -> Tensor:
    return (log_sigma2 - (weight.square() + _TINY).log()).clamp(-_LIMIT, _LIMIT)


def _applied(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The layer's map with another weight and bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    output: Tensor = layer._conv_forward(x, weight, bias)
    return output


def _check(owner: str, name: str, value: float, low: float = 0, high: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < high:
        raise ValueError(f"{owner}: {name} must be a number in ({low:g}, {high:g}), got {value!r}")
    return float(value)

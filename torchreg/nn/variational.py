"""Sparse variational dropout."""

from __future__ import annotations

import math
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from torchreg import functional as f
from torchreg.nn.connect import applied, applied_to_squares
from torchreg.nn.gated import Gated
from torchreg.nn.parametrized import Layer, plain_copy

_K1, _K2, _K3 = 0.63576, 1.8732, 1.48695  # of the approximate divergence
_LIMIT, _TINY = 8.0, 1e-8  # of log alpha, and what is added to squared weights before their logarithm


class VariationalDropout(Gated):
    r"""Sparse variational dropout: each weight has a learned noise level, and weights with too much noise are dropped.

    .. math:: y_i \sim N\Big(\sum_j \theta_{ij} x_j + b_i, \; \sum_j \sigma_{ij}^2 x_j^2\Big), \qquad
              \alpha = \frac{\sigma^2}{\theta^2}

    for weights :math:`\theta` and noise levels :math:`\sigma`, with independent noise for each example. In evaluation
    mode, weights with :math:`\log \alpha` above the threshold are zero. The complexity is the divergence from the
    log-uniform prior, in the paper's approximation:

    .. math:: C = \sum k_1 - k_1 \sigma(k_2 + k_3 \log \alpha) + \tfrac12 \log(1 + \alpha^{-1})

    with :math:`k = (0.63576, 1.8732, 1.48695)`. Its minimum is 0, for a weight that is only noise. Add it with
    ``Regularizer(model, Complexity(1 / N), schedule=...)`` for :math:`N` training examples. At full strength from the
    start it drops too many weights, so use a schedule that starts at 0. The noise levels can have the learning rate of
    the weights.

    With ``train_clip`` the mean of a training pass is that of evaluation mode: weights above the threshold add nothing
    to it, so that the loss has no gradient for them. Their noise stays, and so does their complexity, which therefore
    drives them further to zero. A weight comes back when the loss lowers its :math:`\sigma^2`. The authors' experiments
    do this.

    Args:
        layer: ``nn.Linear`` or ``nn.Conv1d`` to ``nn.Conv3d``.
        log_sigma2: the initial :math:`\log \sigma^2`.
        threshold: of :math:`\log \alpha`; 3 is a binary dropout rate of 0.95, and at 8 or more no weight is dropped.
        train_clip: whether weights above the threshold are zero in the mean of a training pass too.
        generator: source of the random numbers, as in :class:`Dropout`.

    Shape:
        That of the layer.

    Raises:
        TypeError: ``layer`` is of another type.
        ValueError: ``threshold`` is not a number.

    Example:
        >>> _ = torch.manual_seed(0)
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

    train_clip = False  # of a layer that was pickled before it had the option
    rates, cost, depends_on = "log_sigma2", "KL", ("log_sigma2", "layer.weight")

    def __init__(
        self,
        layer: Layer,
        log_sigma2: float = -10.0,
        *,
        threshold: float = 3.0,
        train_clip: bool = False,
        generator: Generator | None = None,
    ) -> None:
        super().__init__(layer, generator)
        _check_threshold(threshold)
        self.threshold, self.train_clip = threshold, train_clip
        self.log_sigma2 = nn.Parameter(torch.full_like(layer.weight, log_sigma2))

    @property
    def log_alpha(self) -> Tensor:
        """:math:`\\log \\alpha` of each weight, from -8 to 8."""
        return _log_alpha(self.log_sigma2, self.layer.weight)

    def forward(self, input: Tensor) -> Tensor:
        self._check_parameters()
        if self.training and not self.train_clip:
            mean: Tensor = self.layer(input)
        else:
            mean = applied(self.layer, input, self._kept_weight(), self.layer.bias)
        if not self.training:
            return mean
        variance = applied_to_squares(self.layer, input, f.wide(self.log_sigma2).exp())
        self._check_generator(input)
        noise = f.drawn(torch.randn, mean.shape, mean.device, self.generator, mean.dtype)
        # 1e-8 because the slope of the root is infinite at 0
        return mean + noise * (f.wide(variance) + 1e-8).sqrt().to(mean.dtype)

    def complexity_of(self, log_sigma2: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        log_alpha = _log_alpha(log_sigma2, weight)
        return (_K1 - _K1 * torch.sigmoid(_K2 + _K3 * log_alpha) + 0.5 * F.softplus(-log_alpha)).sum()

    def _complexity_gradient(self, index: int, *tensors: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super()._complexity_gradient(index, *tensors)
        log_sigma2, weight = tensors  # written out, because there is one for each weight
        weight = f.wide(weight)
        signal = weight.square().add_(_TINY)
        log_alpha = log_sigma2 - signal.log()
        is_clamped = log_alpha.abs() > _LIMIT
        bend = log_alpha.mul(_K3).add_(_K2).sigmoid_()
        slope = log_alpha.neg_().sigmoid_().mul_(-0.5).addcmul_(bend, 1 - bend, value=-_K1 * _K3)
        slope.masked_fill_(is_clamped, 0.0)
        return (slope if index == 0 else slope.mul_(weight).div_(signal).mul_(-2)).to(tensors[index].dtype)

    def pruned(self) -> Layer:
        self._check_parameters()
        layer = plain_copy(self, self.layer)
        layer.weight.data = self._kept_weight().detach()
        return layer

    def _kept_weight(self) -> Tensor:
        return self.layer.weight.masked_fill(self.log_alpha > self.threshold, 0.0)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}" + (", train_clip=True" if self.train_clip else "")


def _check_threshold(threshold: object) -> None:
    if not isinstance(threshold, Real) or math.isnan(threshold):
        raise ValueError(f"VariationalDropout: threshold must be a number, got {threshold!r}")


def _log_alpha(log_sigma2: Tensor, weight: Tensor) -> Tensor:
    return (log_sigma2 - (f.wide(weight).square() + _TINY).log()).clamp(-_LIMIT, _LIMIT)

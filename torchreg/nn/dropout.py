"""Replacements of torch's dropout layers, and Gaussian dropout."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from torchreg import functional as f
from torchreg.nn.seeded import Seeded


class _Dropping(Seeded):
    """The common arguments of torch's dropout layers, with checks and a generator."""

    p: float
    inplace: bool

    def __init__(self, p: float = 0.5, inplace: bool = False, *, generator: Generator | None = None) -> None:
        self._check_rate(p)
        super().__init__(p, inplace)  # of torch's layer, which is next in the MRO
        self.generator = generator

    def _is_idle(self) -> bool:
        """Whether nothing is dropped; checks the rate, which may have been changed."""
        self._check_rate(self.p)
        return not self.training or self.p == 0

    def _check_rate(self, p: float) -> None:
        f.check_probability(type(self).__name__, p)


class _Shaped(_Dropping):
    """A layer whose noise can be the same along some dimensions."""

    def __init__(
        self,
        p: float = 0.5,
        inplace: bool = False,
        *,
        generator: Generator | None = None,
        noise_shape: Sequence[int | None] | None = None,
    ) -> None:
        super().__init__(p, inplace, generator=generator)
        self.noise_shape = None if noise_shape is None else tuple(noise_shape)

    def _shape(self, x: Tensor) -> Sequence[int]:
        """The shape of the noise."""
        return x.shape if self.noise_shape is None else f.mask_shape(type(self).__name__, self.noise_shape, x)

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.noise_shape is None else f", noise_shape={self.noise_shape}")


class Dropout(_Shaped, nn.Dropout):
    r"""A replacement of :class:`torch.nn.Dropout`: faster on the CPU, with a generator and a noise shape.

    .. math:: y_i = \frac{m_i}{1 - p} x_i, \qquad m_i \sim \operatorname{Bernoulli}(1 - p)

    In evaluation mode the layer is the identity. It is a subclass of ``torch.nn.Dropout``, so code that looks for
    dropout layers finds it. The masks for a seed differ from those of ``torch.nn.Dropout``, and differ in compiled
    code; they do not depend on the number of threads.

    Args:
        p: probability of dropping an element, in [0, 1]; on the CPU rounded to the nearest ``2**-16``. It may be
            changed at any time, for example by :class:`~torchreg.DropoutSchedule`.
        inplace: overwrites the input.
        generator: source of the random bits, on the input's device; torch's global generator if None. The
            ``state_dict`` contains its state. Activation checkpointing needs :func:`same_masks` then. ``torch.compile``
            breaks the graph at a layer with a generator, because torch cannot trace generators.
        noise_shape: shape of the mask, with 1 for a dimension along which elements are dropped together and None for
            the input's own size: ``(None, 1, None)`` drops the same features at each time step of an ``(N, T, F)``
            sequence.

    Shape:
        Any, floating-point; dtype and memory format are preserved.

    Raises:
        ValueError: ``p`` outside [0, 1] or NaN; in the forward pass a ``noise_shape`` that does not fit the input.

    Example:
        >>> import torch
        >>> drop = Dropout(0.5, generator=torch.Generator().manual_seed(0))
        >>> sorted(set(drop(torch.ones(8)).tolist()))
        [0.0, 2.0]
        >>> drop.eval()(torch.ones(2))
        tensor([1., 1.])

    References:
        Nitish Srivastava, Geoffrey Hinton, Alex Krizhevsky, Ilya Sutskever, Ruslan Salakhutdinov, "Dropout: A Simple
        Way to Prevent Neural Networks from Overfitting", Journal of Machine Learning Research 15, 2014.
    """

    def forward(self, input: Tensor) -> Tensor:
        shape = self.noise_shape
        return f.dropout(input, self.p, self.training, self.inplace, generator=self.generator, noise_shape=shape)


class _ChannelDropout(_Dropping):
    """Drops channels of inputs with or without a batch; for other ranks torch raises its errors and warnings."""

    spatial: int
    takes_no_batch = True

    def forward(self, input: Tensor) -> Tensor:
        idle, unbatched = self._is_idle(), self.takes_no_batch and input.ndim == self.spatial + 1
        fits = unbatched or input.ndim == self.spatial + 2
        if idle and fits:
            return input
        channels = math.prod(input.shape[: 1 if unbatched else 2])
        if idle or input.ndim < 2 or (self.generator is None and (not fits or f.is_small(channels))):
            result: Tensor = super().forward(input)
            return result
        if not fits:
            super().forward(
                torch.empty([0] * input.ndim, device=input.device)
            )  # torch's error or warning, without a draw
        self._check_generator(input)
        return f.channel_dropout(input, self.p, not unbatched, self.inplace, self.generator)


class Dropout1d(_ChannelDropout, nn.Dropout1d):
    r"""A replacement of :class:`torch.nn.Dropout1d` with a generator: drops whole channels.

    .. math:: y_{nc} = \frac{m_{nc}}{1 - p} x_{nc}, \qquad m_{nc} \sim \operatorname{Bernoulli}(1 - p)

    for example :math:`n` and channel :math:`c`.

    Args:
        p: probability of dropping a channel, in [0, 1].
        inplace: overwrites the input.
        generator: source of the random bits, as in :class:`Dropout`.

    Shape:
        ``(N, C, L)`` or ``(C, L)``; dtype and memory format are preserved.

    Raises:
        ValueError: ``p`` outside [0, 1] or NaN.
        RuntimeError: an input that is not 2-D or 3-D.

    Example:
        >>> import torch
        >>> y = Dropout1d(0.5)(torch.ones(4, 3, 5))
        >>> bool((y == y[..., :1]).all())
        True

    References:
        Jonathan Tompson, Ross Goroshin, Arjun Jain, Yann LeCun, Christoph Bregler, "Efficient Object Localization Using
        Convolutional Networks", CVPR 2015.
    """

    spatial = 1


class Dropout2d(_ChannelDropout, nn.Dropout2d):
    """A replacement of :class:`torch.nn.Dropout2d` with a generator: drops whole channels.

    See :class:`Dropout1d` for the formula, the arguments and the errors.

    Shape:
        ``(N, C, H, W)``. As in torch, a 3-D input is taken as ``(N, C, L)``, with a warning.

    Example:
        >>> import torch
        >>> y = Dropout2d(0.5)(torch.ones(4, 3, 5, 5))
        >>> bool((y == y[..., :1, :1]).all())
        True
    """

    spatial = 2
    takes_no_batch = False


class Dropout3d(_ChannelDropout, nn.Dropout3d):
    """A replacement of :class:`torch.nn.Dropout3d` with a generator: drops whole channels.

    See :class:`Dropout1d` for the formula, the arguments and the errors.

    Shape:
        ``(N, C, D, H, W)`` or ``(C, D, H, W)``.

    Example:
        >>> import torch
        >>> y = Dropout3d(0.5)(torch.ones(4, 3, 2, 2, 2))
        >>> bool((y == y[..., :1, :1, :1]).all())
        True
    """

    spatial = 3


class AlphaDropout(_Shaped, nn.AlphaDropout):
    r"""A replacement of :class:`torch.nn.AlphaDropout` with a generator, for SELU networks.

    It keeps mean 0 and variance 1.

    .. math:: y = a (m x + (1 - m) \alpha') + b, \qquad m \sim \operatorname{Bernoulli}(1 - p)

    with :math:`\alpha' = -\lambda\alpha \approx -1.7581`, the negative limit of SELU,
    :math:`a = ((1 - p)(1 + p \alpha'^2))^{-1/2}` and :math:`b = -a p \alpha'`.

    Args:
        p: probability of dropping an element, in [0, 1].
        inplace: overwrites the input.
        generator: source of the random bits, as in :class:`Dropout`.
        noise_shape: shape of the mask, as in :class:`Dropout`.

    Shape:
        Any, floating-point.

    Raises:
        ValueError: ``p`` outside [0, 1] or NaN; in the forward pass a ``noise_shape`` that does not fit the input.

    Example:
        >>> import torch
        >>> y = AlphaDropout(0.3)(torch.randn(100_000))
        >>> bool(y.mean().abs() < 0.05 and (y.std() - 1).abs() < 0.05)
        True

    References:
        Günter Klambauer, Thomas Unterthiner, Andreas Mayr, Sepp Hochreiter, "Self-Normalizing Neural Networks",
        NIPS 2017.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self._is_idle():
            return input
        if self.generator is None and self.noise_shape is None and f.is_small(input.numel()):
            return F.alpha_dropout(input, self.p, True, self.inplace)  # torch's layer ignores inplace
        self._check_generator(input)
        return f.alpha_dropout(input, self.p, self._shape(input), self.inplace, self.generator)


class FeatureAlphaDropout(_Dropping, nn.FeatureAlphaDropout):
    """A replacement of :class:`torch.nn.FeatureAlphaDropout` with a generator: :class:`AlphaDropout` of whole channels.

    See :class:`AlphaDropout` for the formula, the arguments and the errors.

    Shape:
        ``(N, C, ...)``.

    Example:
        >>> import torch
        >>> y = FeatureAlphaDropout(0.5)(torch.zeros(2, 3, 4))
        >>> bool((y == y[..., :1]).all())
        True
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim < 2:
            return super().forward(input)  # raises torch's error
        if self._is_idle():
            return input
        if self.generator is None and f.is_small(math.prod(input.shape[:2])):
            return F.feature_alpha_dropout(input, self.p, True, self.inplace)
        self._check_generator(input)
        shape = (*input.shape[:2], *[1] * (input.ndim - 2))
        return f.alpha_dropout(input, self.p, shape, self.inplace, self.generator)


class GaussianDropout(_Shaped, nn.Dropout):
    r"""Multiplies by normal noise with mean 1 and the variance of dropout with rate ``p``.

    .. math:: y = \epsilon x, \qquad \epsilon \sim N\left(1, \frac{p}{1 - p}\right)

    No element becomes zero. In evaluation mode the layer is the identity.

    Args:
        p: drop rate of the dropout with the same variance, in [0, 1).
        inplace: overwrites the input.
        generator: source of the random numbers, as in :class:`Dropout`.
        noise_shape: shape of the noise, as in :class:`Dropout`.

    Shape:
        Any, floating-point.

    Raises:
        ValueError: ``p`` outside [0, 1) or NaN; in the forward pass a ``noise_shape`` that does not fit the input.

    Example:
        >>> import torch
        >>> y = GaussianDropout(0.5)(torch.ones(100_000))
        >>> bool((y.mean() - 1).abs() < 0.02 and (y.var() - 1).abs() < 0.05)
        True

    References:
        Nitish Srivastava, Geoffrey Hinton, Alex Krizhevsky, Ilya Sutskever, Ruslan Salakhutdinov, "Dropout: A Simple
        Way to Prevent Neural Networks from Overfitting", Journal of Machine Learning Research 15, 2014, section 10.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self._is_idle():
            return input
        self._check_generator(input)
        return f.gaussian_dropout(input, self.p, self._shape(input), self.inplace, self.generator)

    def _check_rate(self, p: float) -> None:
        super()._check_rate(p)
        if p == 1:
            raise ValueError("GaussianDropout: p must be below 1, because at 1 the variance is infinite, got 1")

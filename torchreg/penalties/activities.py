"""A penalty on activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from torch import Tensor

from torchreg.penalties.base import Term

Squash = Literal["none", "sigmoid", "tanh"]


@final
@dataclass(frozen=True, repr=False, eq=False)
class KLSparsity(Term):
    r"""Draws each unit's mean activation over the batch towards a small target; the penalty of sparse autoencoders.

    .. math:: R(a) = s \, n \sum_j \operatorname{KL}(t \,\|\, \hat\rho_j), \qquad
              \hat\rho_j = \frac1n \sum_{i=1}^n \phi(a_{ij}), \qquad
              \operatorname{KL}(t \,\|\, \rho) = t \log\frac{t}{\rho} + (1 - t) \log\frac{1 - t}{1 - \rho}

    Use it with an :class:`~torchreg.ActivityRegularizer`, which divides by the batch size :math:`n` and so adds
    :math:`s \sum_j \operatorname{KL}` to the loss. The first dimension is the batch; each position in the other
    dimensions is a unit.

    The divergence is between Bernoulli variables, so activations must lie in [0, 1]. ``squash`` maps them there: use
    ``"none"`` for sigmoid units, ``"sigmoid"`` for linear outputs such as those of the layer *before* a ReLU, and
    ``"tanh"`` for units that are not negative, such as ReLUs. (The sigmoid of a ReLU is at least 1/2, so it could not
    meet a smaller target.) If a unit's mean is 0 or 1 up to rounding, the divergence is that at the nearest
    representable mean inside, with gradient 0: a dead unit costs a finite amount and is not moved.

    Args:
        strength: ``s``, finite and not negative.
        target: ``t``, the mean activation at which the penalty is 0, in (0, 1).
        squash: :math:`\phi`, applied to the activations: ``"none"``, ``"sigmoid"`` or ``"tanh"``.

    Raises:
        ValueError: an argument out of range; in ``value`` and ``gradient`` a (squashed) activation outside [0, 1]. On a
            GPU and in compiled code, where each step would wait for that, the value and its gradient are NaN.

    Example:
        >>> penalty = KLSparsity(1.0, target=0.5)
        >>> penalty.value(torch.tensor([[0.25, 0.5], [0.75, 0.5]]))
        tensor(0.)
        >>> penalty.value(torch.full((2, 1), 0.2))  # 2 * log(1.25)
        tensor(0.4463)

    References:
        Andrew Ng, "Sparse autoencoder", CS294A lecture notes, Stanford University, 2011. Vinod Nair, Geoffrey Hinton,
        "3D Object Recognition with Deep Belief Nets", NIPS 2009. Nitish Srivastava, Geoffrey Hinton, Alex Krizhevsky,
        Ilya Sutskever, Ruslan Salakhutdinov, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting",
        Journal of Machine Learning Research 15, 2014, section 6.5.
    """

    target: float = 0.05
    squash: Squash = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("target", "in (0, 1)", lambda target: 0 < target < 1)
        if self.squash not in get_args(Squash):
            raise ValueError(f"KLSparsity: squash must be one of {', '.join(get_args(Squash))}, got {self.squash!r}")

    def value(self, w: Tensor) -> Tensor:
        mean, limit = self._means(self._squashed(w))
        mean = mean.clamp(limit, 1 - limit)
        t = self.target
        divergence = t * (t / mean).log() + (1 - t) * ((1 - t) / (1 - mean)).log()
        return (self.strength * len(w) * divergence.sum()).to(w.dtype)

    def gradient(self, w: Tensor) -> Tensor:
        squashed = self._squashed(w)
        mean, limit = self._means(squashed)
        slope = (1 - self.target) / (1 - mean) - self.target / mean
        slope = (self.strength * slope).masked_fill((mean < limit) | (mean > 1 - limit), 0.0).to(w.dtype)
        if self.squash == "sigmoid":
            return slope * squashed * (1 - squashed)
        return slope * (1 - squashed.square()) if self.squash == "tanh" else slope.expand_as(w).clone()

    def _squashed(self, w: Tensor) -> Tensor:
        if self.squash == "sigmoid":
            return w.sigmoid()
        squashed, range_, hint = (
            (w.tanh(), ">= 0", "squash='sigmoid' takes any")
            if self.squash == "tanh"
            else (w, "in [0, 1]", "use squash='sigmoid', or 'tanh' if they are not negative")
        )
        outside = (squashed < 0) | (squashed > 1)
        if not w.is_cpu or torch.compiler.is_compiling():
            # A product, so that the gradient is NaN too.
            return squashed * torch.ones_like(squashed).masked_fill(outside, torch.nan)
        if outside.any():
            low, high = w.aminmax()
            raise ValueError(f"KLSparsity: activations must be {range_}, got {low:g} to {high:g}: {hint}")
        return squashed

    def _means(self, squashed: Tensor) -> tuple[Tensor, float]:
        """Each unit's mean over the batch, and the distance from 0 and 1 that rounding can resolve."""
        wide = squashed.to(torch.promote_types(squashed.dtype, torch.float32))
        return wide.sum(0) / max(len(wide), 1), torch.finfo(wide.dtype).eps

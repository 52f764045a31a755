"""The sorted L1 norm, whose weights belong to ranks: the largest weight is penalized most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from torchreg import functional as f
from torchreg.penalties.base import ProximalPenalty, Term


@final
@dataclass(frozen=True, repr=False, eq=False)
class SLOPE(Term, ProximalPenalty):
    r"""The sorted L1 norm: a lasso whose thresholds fall with the rank, so that few weights are false discoveries.

    .. math:: R(w) = s \sum_{i=1}^p \lambda_i |w|_{(i)}, \qquad
              \lambda_i = \Phi^{-1}\Big(1 - \frac{iq}{2p}\Big), \qquad
              |w|_{(1)} \ge |w|_{(2)} \ge \dots \ge |w|_{(p)}

    for a weight tensor of :math:`p` elements, with the quantiles :math:`\Phi^{-1}` of the standard normal distribution.
    These are the thresholds by which Benjamini and Hochberg test :math:`p` hypotheses at the false discovery rate
    :math:`q`. The strength has the part of the noise's standard deviation: for an orthogonal design, the share of
    falsely selected weights among the selected is at most :math:`q`. Beside zeros it makes weights of equal magnitude.

    The proximal operator, :math:`\operatorname{argmin}_u \tfrac12 \|u - w\|^2 + t R(u)`, is the isotonic regression of
    the sorted magnitudes minus :math:`ts\lambda`, which is exact. Most of its time goes to the sorting. It reads
    numbers from the device, so that a CUDA graph cannot capture it.

    Args:
        strength: ``s``, finite and not negative.
        q: :math:`q`, in (0, 1). The larger it is, the more weights stay; the ratio of the largest threshold to the
            smallest falls with it.

    Raises:
        ValueError: ``q`` is not in (0, 1).

    Example:
        >>> penalty = SLOPE(1.0, q=0.5)
        >>> penalty.value(torch.tensor([3.0, -1.0]))
        tensor(4.1255)
        >>> penalty.prox(torch.tensor([3.0, -2.8, 0.1]), step=1.0)
        tensor([ 1.7248, -1.7248,  0.0000])

    References:
        Małgorzata Bogdan, Ewout van den Berg, Chiara Sabatti, Weijie Su, Emmanuel J. Candès, "SLOPE - Adaptive
        Variable Selection via Convex Optimization", Annals of Applied Statistics, 2015.
    """

    q: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("q", "in (0, 1)", lambda q: 0 < q < 1)

    def value(self, w: Tensor) -> Tensor:
        size = f.magnitude(w).flatten()
        shares = f.sorted_shares(size.detach(), self._thresholds(w))
        return (self.strength * (shares * size).sum()).to(f.real_dtype(w))

    def gradient(self, w: Tensor) -> Tensor:
        size = f.magnitude(w).flatten()
        shares = f.sorted_shares(size, self._thresholds(w)).view(w.shape)
        return w.sgn() * (self.strength * shares).to(f.real_dtype(w)) + f.nan_of(w)

    @property
    def _curvature(self) -> float:
        return 0.0

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        thresholds = self._thresholds(w)
        amount = f.as_tensor(step, thresholds) * self.strength
        return f.sorted_threshold(w.flatten(), amount * thresholds).view(w.shape)

    def optimality(self, w: Tensor, gradient: Tensor) -> Tensor:
        thresholds = self.strength * self._thresholds(w)
        return f.sorted_distance(w.flatten(), gradient.flatten(), thresholds).to(f.real_dtype(w))

    def strength_max(self, gradient: Tensor) -> Tensor:
        if not gradient.numel():
            return f.largest(gradient)
        thresholds = self._thresholds(gradient)
        size = f.magnitude(gradient).flatten().sort(descending=True).values.to(thresholds.dtype)
        return (size.cumsum(0) / thresholds.cumsum(0)).amax().to(f.real_dtype(gradient))

    def _thresholds(self, w: Tensor) -> Tensor:
        r""":math:`\lambda`, in double precision: sums over a million weights need it."""
        rank = torch.arange(1, w.numel() + 1, dtype=torch.float64, device=w.device)
        quantiles: Tensor = torch.special.ndtri(rank * (self.q / (2 * max(w.numel(), 1))))
        return -quantiles

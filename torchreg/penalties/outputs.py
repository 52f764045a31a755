"""Penalties on logits: functions of the distributions that they stand for."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from torchreg.penalties.base import Term


@dataclass(frozen=True, repr=False, eq=False)
class OfLogits(Term):
    """The mean of a function of the logits of one distribution, times the number of examples."""

    dim: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.dim) is not int or self.dim == 0:
            raise ValueError(
                f"{type(self).__name__}: dim must be the dimension of the classes, a whole number other than 0, which "
                f"is the batch, got {self.dim!r}"
            )

    def value(self, w: Tensor) -> Tensor:
        each = self._costs(self._classes_last(w))
        return (self.strength * len(w) / max(each.numel(), 1) * each.sum()).to(w.dtype)

    def gradient(self, w: Tensor) -> Tensor:
        logits = self._classes_last(w)
        count = math.prod(logits.shape[:-1])
        slopes = self._slopes(logits).mul_(self.strength * len(w) / max(count, 1))
        return slopes.movedim(-1, self.dim).to(w.dtype)

    @abstractmethod
    def _costs(self, logits: Tensor) -> Tensor:
        """The function of each distribution, whose classes are the last dimension."""

    @abstractmethod
    def _slopes(self, logits: Tensor) -> Tensor:
        """The gradient of the function with respect to each distribution's logits, in new memory."""

    def _classes_last(self, w: Tensor) -> Tensor:
        """The logits at least in single precision, with the classes in the last dimension."""
        name = type(self).__name__
        if not w.is_floating_point():
            raise TypeError(f"{name}: logits must be real floating-point numbers, got {w.dtype}")
        if not -w.ndim < self.dim < w.ndim or w.ndim < 2:
            raise ValueError(
                f"{name}: logits must have the batch first and the classes in dimension dim={self.dim}, got the shape "
                f"{tuple(w.shape)}"
            )
        return w.to(torch.promote_types(w.dtype, torch.float32)).movedim(self.dim, -1)


@final
@dataclass(frozen=True, repr=False, eq=False)
class ZLoss(OfLogits):
    r"""Keeps the normalizer of a softmax near 1, so that logits do not drift to numbers that low precision rounds.

    .. math:: R(z) = s \, n \operatorname*{mean}_i \, (\log Z_i)^2, \qquad Z_i = \sum_{j=1}^C e^{z_{ij}}

    for the logits :math:`z_i` of distribution :math:`i`, of which a batch of :math:`n` examples has one for each
    example, token or pixel. Use it with an :class:`~torchreg.ActivityRegularizer`, which divides by the batch size
    :math:`n` and so adds :math:`s` times the mean of :math:`(\log Z)^2` to the loss, as the sources do. There is no
    factor 1/2. ST-MoE has :math:`s = 10^{-3}` for the logits of routers, PaLM :math:`10^{-4}` for those of the output.

    Probabilities do not depend on :math:`Z`, so the penalty does not act against the loss: it chooses among logits that
    are equal up to a constant. A logit of minus infinity (a class that is masked) counts nothing.

    Args:
        strength: ``s``, finite and not negative.
        dim: the dimension of the classes, with the batch first: -1 for ``(N, C)`` and ``(N, T, C)``, 1 for
            ``(N, C, H, W)``.

    Raises:
        ValueError: an argument out of range; in ``value`` and ``gradient`` a tensor without such dimensions.
        TypeError: in ``value`` and ``gradient`` complex numbers or whole ones.

    Example:
        >>> ZLoss(0.5).value(torch.zeros(2, 4))  # 0.5 * 2 * log(4)**2
        tensor(1.9218)

    References:
        Barret Zoph, Irwan Bello, Sameer Kumar, Nan Du, Yanping Huang, Jeff Dean, Noam Shazeer, William Fedus, "ST-MoE:
        Designing Stable and Transferable Sparse Expert Models", 2022, section 3. Aakanksha Chowdhery and others, "PaLM:
        Scaling Language Modeling with Pathways", Journal of Machine Learning Research 24, 2023, section 5.
    """

    def _costs(self, logits: Tensor) -> Tensor:
        return logits.logsumexp(-1).square()

    def _slopes(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1).mul_(2 * logits.logsumexp(-1, keepdim=True))


@final
@dataclass(frozen=True, repr=False, eq=False)
class Confidence(OfLogits):
    r"""Penalizes confident predictions: those whose entropy is low.

    .. math:: R(z) = s \, n \operatorname*{mean}_i \, (\log C - \operatorname{H}(p_i)), \qquad
              p_i = \operatorname{softmax}(z_i), \qquad \operatorname{H}(p) = -\sum_{j=1}^C p_j \log p_j

    for the logits :math:`z_i` of distribution :math:`i`, of which a batch of :math:`n` examples has one for each
    example, token or pixel. Use it with an :class:`~torchreg.ActivityRegularizer`, which divides by the batch size
    :math:`n` and so adds :math:`s` times the mean to the loss.

    The source has the negative entropy. The constant :math:`\log C` makes it non-negative and changes no gradient:
    :math:`\log C - \operatorname{H}(p)` is the divergence :math:`\operatorname{KL}(p \,\|\, u)` of the prediction from
    the uniform distribution. Label smoothing (``torch.nn.CrossEntropyLoss(label_smoothing=...)``) is the divergence in
    the other direction, :math:`\operatorname{KL}(u \,\|\, p)`. A logit of minus infinity (a class that is masked) has
    the probability 0 and counts as one of the :math:`C` classes.

    Args:
        strength: ``s``, finite and not negative; the source's :math:`\beta`.
        dim: the dimension of the classes, with the batch first: -1 for ``(N, C)`` and ``(N, T, C)``, 1 for
            ``(N, C, H, W)``.

    Raises:
        ValueError: an argument out of range; in ``value`` and ``gradient`` a tensor without such dimensions.
        TypeError: in ``value`` and ``gradient`` complex numbers or whole ones.

    Example:
        >>> Confidence(1.0).value(torch.zeros(2, 4))  # uniform predictions
        tensor(0.)
        >>> Confidence(1.0).value(torch.tensor([[100.0, 0.0]]))  # log(2)
        tensor(0.6931)

    References:
        Gabriel Pereyra, George Tucker, Jan Chorowski, Łukasz Kaiser, Geoffrey Hinton, "Regularizing Neural Networks by
        Penalizing Confident Output Distributions", 2017.
    """

    def _costs(self, logits: Tensor) -> Tensor:
        p, log_p = self._probabilities(logits)
        return (p * (log_p + math.log(max(logits.shape[-1], 1)))).sum(-1)

    def _slopes(self, logits: Tensor) -> Tensor:
        p, log_p = self._probabilities(logits)
        return (log_p - (p * log_p).sum(-1, keepdim=True)).mul_(p)

    def _probabilities(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The probabilities and their logarithms, which are 0 for a class that is masked."""
        log_p = logits.log_softmax(-1)
        return log_p.exp(), log_p.masked_fill(log_p == -math.inf, 0.0)

"""Penalties that look at one weight at a time."""

from typing import ClassVar, final

from torch import Tensor

from torchreg import functional as f
from torchreg.penalties.base import ProximalPenalty, Term


@final
class L1(Term, ProximalPenalty):
    r"""The Lasso penalty, which drives weights to zero; in mode ``"prox"`` to exactly zero.

    .. math:: R(w) = s \sum_i |w_i|, \qquad
              \partial R(w) \ni s \operatorname{sign}(w), \qquad
              \operatorname{prox}_{tR}(w) = \operatorname{sign}(w) \max(|w| - ts, 0)

    Args:
        strength: ``s``, finite and not negative.

    Example:
        >>> import torch
        >>> penalty = L1(0.1)
        >>> penalty.value(torch.tensor([3.0, -4.0]))
        tensor(0.7000)
        >>> penalty.prox(torch.tensor([3.0, -0.05]), step=1.0)
        tensor([2.9000, 0.0000])

    References:
        Robert Tibshirani, "Regression Shrinkage and Selection via the Lasso", Journal of the Royal Statistical Society
        B, 1996.
    """

    def value(self, w: Tensor) -> Tensor:
        return (self.strength * f.l1_norm(w)).to(f.real_dtype(w))

    def gradient(self, w: Tensor) -> Tensor:
        return w.sgn().mul_(self.strength)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        return f.soft_threshold(w, step * self.strength)


@final
class L2(Term, ProximalPenalty):
    r"""The Ridge penalty, which shrinks weights in proportion to their size.

    .. math:: R(w) = \frac{s}{2} \sum_i w_i^2, \qquad
              \nabla R(w) = s w, \qquad
              \operatorname{prox}_{tR}(w) = \frac{w}{1 + ts}

    With the factor 1/2 the gradient is ``s * w``, so mode ``"grad"`` is ``torch.optim.SGD(weight_decay=s)`` and mode
    ``"decoupled"`` is ``torch.optim.AdamW(weight_decay=s)``. (Keras' L2 has no 1/2: its strength is half of this one.)

    Args:
        strength: ``s``, finite and not negative.

    Example:
        >>> import torch
        >>> penalty = L2(0.1)
        >>> penalty.value(torch.tensor([3.0, -4.0]))
        tensor(1.2500)
        >>> penalty.gradient(torch.tensor([3.0, -4.0]))
        tensor([ 0.3000, -0.4000])

    References:
        Arthur E. Hoerl, Robert W. Kennard, "Ridge Regression: Biased Estimation for Nonorthogonal Problems",
        Technometrics, 1970.
    """

    is_ridge: ClassVar[bool] = True

    def value(self, w: Tensor) -> Tensor:
        return (self.strength * f.half_square(w)).to(f.real_dtype(w))

    def gradient(self, w: Tensor) -> Tensor:
        return self.strength * w

    # The in-place forms do the arithmetic of torch's own weight decay, to the bit.

    def add_gradient_(self, grad: Tensor, w: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        return f.axpy_(grad, w, self.strength * scale)

    def descend_(self, w: Tensor, step: float | Tensor) -> Tensor:
        return w.mul_(1 - step * self.strength)

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        return f.shrink(w, step * self.strength)

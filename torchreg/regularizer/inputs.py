"""Penalties on derivatives with respect to the inputs of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor, nn

from torchreg import functional as f
from torchreg.regularizer.of_inputs import OfInputs
from torchreg.regularizer.penalized_loss import PenalizedLoss


class Jacobian(OfInputs):
    r"""Penalizes the Jacobian of a model's outputs with respect to its inputs: how much the outputs can change.

    .. math:: \text{scale} \cdot \frac{s}{2} \operatorname*{mean}_i \, \lVert J_i \rVert_F^2, \qquad
              J_i = \frac{\partial z_i}{\partial x_i}

    for the input :math:`x_i` and the :math:`C` outputs :math:`z_i` of example :math:`i`. The exact norm takes :math:`C`
    backward passes. By default it is estimated, without bias, by one:

    .. math:: \lVert J_i \rVert_F^2 = C \operatorname{E} \lVert v^\top J_i \rVert^2, \qquad
              v \text{ uniform on the unit sphere in } \mathbb{R}^C

    with a direction for each example. :math:`k` projections divide the variance of the estimate by :math:`k`.

    The regularizer records the inputs and the outputs of the model's last forward pass by hooks, until :meth:`remove`
    or the end of its life. So the penalty costs no second forward pass, and the loop stays as it is. Only passes in
    training mode with gradients enabled are recorded. Parameters, buffers and ``state_dict`` do not change.

    Derivatives are taken with respect to all floating-point tensors that the model is called with. If it is called with
    tokens, give the part of it after the embedding. If examples influence each other (batch normalization in training
    mode), the norm is that of the Jacobian of all outputs by all inputs, which is then estimated also with
    ``projections=None``, by random signs.

    It differentiates twice, which fused attention and compiled models refuse in the backward pass: use
    ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``, and the model that is not compiled.

    Args:
        model: any module; its output is a tensor with the batch first, or holds one (a tuple, list or mapping, of
            which the first floating-point tensor is used). Call it or a wrapper of it such as
            ``DistributedDataParallel``.
        strength: ``s``, finite and not negative.
        projections: the number of random projections; None for the exact norm.
        batch_dim: the batch dimension of the inputs and of the output.
        generator: source of the random directions, on the output's device; torch's global one if None.

    Attributes:
        scale: multiplies the penalty; a number or a 0-d tensor.

    Raises:
        ValueError: an argument out of range; ``model`` is a stack.
        TypeError: ``model`` is no module; in the forward pass no input, or no output, is a floating-point tensor.

    Example:
        >>> model = nn.Linear(2, 3, bias=False)
        >>> jacobian = Jacobian(model, 0.1, projections=None)
        >>> loss = model(torch.ones(8, 2)).square().mean() + jacobian.value()
        >>> torch.testing.assert_close(jacobian.value(), 0.05 * model.weight.square().sum())
        >>> criterion = jacobian.penalize(nn.MSELoss())  # or this: it adds the value in training mode only
        >>> jacobian.remove()

    References:
        Judy Hoffman, Daniel A. Roberts, Sho Yaida, "Robust Learning with Jacobian Regularization", 2019. Jure Sokolić,
        Raja Giryes, Guillermo Sapiro, Miguel R. D. Rodrigues, "Robust Large Margin Deep Neural Networks", IEEE
        Transactions on Signal Processing 65, 2017.
    """

    def __init__(
        self,
        model: nn.Module,
        strength: float,
        projections: int | None = 1,
        *,
        batch_dim: int = 0,
        generator: Generator | None = None,
    ) -> None:
        if projections is not None and (type(projections) is not int or projections < 1):
            raise ValueError(
                f"Jacobian: projections must be a whole number >= 1, or None for the exact norm, got {projections!r}"
            )
        super().__init__(model, strength, batch_dim)
        self.projections = projections
        self.generator = generator

    def value(self) -> Tensor:
        """The penalty on the last forward pass, 0-d and differentiable; 0 if the pass was not recorded.

        Each call draws new directions.
        """
        output = self._record.output
        if output is None:
            return torch.zeros(())
        if output.ndim == 0:
            raise ValueError("Jacobian: the model's output must have a batch dimension, is 0-d")
        rows = output.movedim(self.batch_dim, 0)
        rows = rows.reshape(len(rows), math.prod(rows.shape[1:]))
        found = [half for part in self._parts(rows) if (half := self._half_of_squares(part)) is not None]
        total = sum(found[1:], start=found[0]) if found else rows.new_zeros(())
        return self.scale * (self.strength / max(len(rows), 1) * total)

    def terms(self) -> dict[str, Tensor]:
        """The value by name, ``{"Jacobian": tensor}``, as :meth:`Regularizer.terms` has them; empty without a pass."""
        return {} if self._record.output is None else {"Jacobian": self.value()}

    def _parts(self, rows: Tensor) -> Iterator[Tensor]:
        """Numbers for each example, the squares of whose gradients add up to those of the Jacobian."""
        if self.generator is not None:
            f.check_generator("Jacobian", self.generator, rows.device)
        if self.projections is None:  # signs change nothing unless examples influence each other
            signs = f.drawn(torch.rand, (len(rows), 1), rows.device, self.generator).round().mul_(2).sub_(1)
            yield from (rows * signs.to(rows.dtype)).unbind(1)
            return
        for _ in range(self.projections):
            directions = f.drawn(torch.randn, rows.shape, rows.device, self.generator)
            directions *= (rows.shape[1] / self.projections) ** 0.5 / directions.norm(dim=1, keepdim=True)
            yield (rows * directions.to(rows.dtype)).sum(1)

    def __repr__(self) -> str:
        return f"Jacobian({self.strength!r}, projections={self.projections}, scale={self.scale!r})"


class InputGradient(OfInputs):
    r"""Penalizes the gradient of the loss with respect to the inputs: how much a small change of the input can cost.

    .. math:: \text{scale} \cdot \frac{s}{2} \operatorname*{mean}_i \, \lVert \nabla_{x_i} \ell_i \rVert^2

    for the input :math:`x_i` and the loss :math:`\ell_i` of example :math:`i`. It is also known as double
    backpropagation. A loss :math:`L` that is a mean over :math:`n` examples has the gradient
    :math:`\nabla_{x_i} L = \frac1n \nabla_{x_i} \ell_i`, so the penalty is :math:`\frac{s}{2} n \sum_i \lVert
    \nabla_{x_i} L \rVert^2`. A loss may also be given for each example (``reduction="none"``).

    That is exact if examples do not influence each other and count equally in the mean. Under batch normalization in
    training mode the gradient has parts of other examples. With class weights or ignored targets :math:`L` is no such
    mean: give the loss of each example.

    What is recorded, from which passes, and which inputs count is as for :class:`Jacobian`. The loss must be that of
    the last forward pass.

    Args:
        model: any module, as for :class:`Jacobian`.
        strength: ``s``, finite and not negative.
        batch_dim: the batch dimension of the inputs.

    Attributes:
        scale: multiplies the penalty; a number or a 0-d tensor.

    Raises:
        ValueError: ``strength`` out of range; ``model`` is a stack; in ``value`` a loss that is neither a mean nor one
            number for each example, or that is not of the last forward pass.
        TypeError: ``model`` is no module; in the forward pass no input is a floating-point tensor.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> gradient = InputGradient(model, 0.1)
        >>> loss = nn.functional.cross_entropy(model(torch.randn(8, 2)), torch.zeros(8, dtype=torch.long))
        >>> loss = loss + gradient.value(loss)
        >>> criterion = gradient.penalize(nn.CrossEntropyLoss())  # or this: it adds the value in training mode only
        >>> gradient.remove()

    References:
        Harris Drucker, Yann LeCun, "Improving Generalization Performance Using Double Backpropagation", IEEE
        Transactions on Neural Networks 3, 1992. Andrew Slavin Ross, Finale Doshi-Velez, "Improving the Adversarial
        Robustness and Interpretability of Deep Neural Networks by Regularizing their Input Gradients", AAAI 2018.
    """

    def __init__(self, model: nn.Module, strength: float, *, batch_dim: int = 0) -> None:
        super().__init__(model, strength, batch_dim)

    def value(self, loss: Tensor) -> Tensor:
        """The penalty for the loss of the last forward pass, 0-d and differentiable; 0 if it was not recorded."""
        if not self._record.inputs:
            return torch.zeros(())
        count = self._batch_size
        if loss.shape not in ((), (count,)):
            raise ValueError(
                f"InputGradient: loss must be the mean or have one number for each of the {count} examples, got the "
                f"shape {tuple(loss.shape)}"
            )
        half = self._half_of_squares(loss)
        if half is None:
            raise ValueError(
                "InputGradient: loss must be that of the model's last forward pass, it does not depend on its inputs"
            )
        # Of a mean these are gradients of the n-th part of each example's loss, so n**2-th parts of the squares.
        return self.scale * (self.strength * (count if loss.ndim == 0 else 1 / max(count, 1)) * half)

    def terms(self, loss: Tensor) -> dict[str, Tensor]:
        """The value by name, ``{"InputGradient": tensor}``; empty without a recorded pass."""
        return {"InputGradient": self.value(loss)} if self._record.inputs else {}

    def penalize(self, criterion: Callable[..., Tensor]) -> PenalizedLoss:
        """The criterion plus the penalty while the model is in training mode, in evaluation the criterion alone."""
        return _WithLoss(self, criterion)

    def __repr__(self) -> str:
        return f"InputGradient({self.strength!r}, scale={self.scale!r})"


class _WithLoss(PenalizedLoss):
    """A criterion plus a penalty that depends on what the criterion returns."""

    def _penalty(self, loss: Tensor) -> Tensor:
        assert isinstance(self.regularizer, InputGradient)
        return self.regularizer.value(loss)

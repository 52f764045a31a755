"""Weights for penalties with a weight for each element: of the adaptive lasso, and of elastic weight consolidation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from torchreg import functional as f
from torchreg.selection.modules import check_model
from torchreg.selection.parameters import each_parameter

Loss = Callable[[Tensor, Tensor], Tensor]

_MOST = 1 << 25  # elements of the gradients of single examples that are held at a time


def adaptive(model: nn.Module, power: float = 1.0, floor: float = 1e-6) -> dict[str, Tensor]:
    r"""Weights of the adaptive lasso: ``L1(s, weights=adaptive(fitted))``.

    .. math:: c_i = \max(|w_i|, \epsilon)^{-\gamma}

    for the weights :math:`w` of a model that was fitted without an L1 penalty, or with a weak one. Large weights are
    then penalized little, and small ones much: with a suitable strength the lasso selects the right features, and the
    large weights have hardly any bias. Further rounds with the weights of the last fit give the reweighted lasso.

    Args:
        model: the fitted model. Its weights are read now.
        power: :math:`\gamma`, positive.
        floor: :math:`\epsilon`, positive: a weight of 0 has the penalty of this size.

    Returns:
        The weights by the names of the parameters, of all floating-point parameters.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: ``power`` or ``floor`` is not positive and finite; the weights would not be finite.

    Example:
        >>> from torchreg import L1
        >>> fitted = nn.Linear(2, 1, bias=False)
        >>> _ = fitted.weight.data.copy_(torch.tensor([[4.0, 0.1]]))
        >>> weights = adaptive(fitted)
        >>> L1(1.0, weights=weights["weight"]).prox(fitted.weight.data, step=0.1)
        tensor([[3.9750, 0.0000]])

    References:
        Hui Zou, "The Adaptive Lasso and Its Oracle Properties", Journal of the American Statistical Association, 2006.
    """
    check_model("adaptive", model)
    for name, number in {"power": power, "floor": floor}.items():
        if isinstance(number, bool) or not isinstance(number, Real) or not 0 < number < float("inf"):
            raise ValueError(f"adaptive: {name} must be positive and finite, got {number!r}")
    found: dict[str, Tensor] = {}
    for places in each_parameter(model):
        w = places[0].param.detach()
        if w.is_floating_point() or w.is_complex():
            weights = f.magnitude(w).clamp(min=floor).pow(-power).to(f.real_dtype(w))
            if not weights.isfinite().all():
                raise ValueError(
                    f"adaptive: weights must be finite, those of {places[0].name} are not with floor={floor!r} and "
                    f"power={power!r}: check the model, or raise floor"
                )
            found |= {place.name: weights for place in places}
    return found


def fisher(
    model: nn.Module,
    batches: Iterable[Sequence[Tensor]],
    *,
    loss: Loss = F.cross_entropy,
    labels: Literal["data", "model"] = "data",
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    r"""The diagonal of the Fisher information, for elastic weight consolidation (EWC).

    .. math:: F_i = \frac1n \sum_{j=1}^n \Big( \frac{\partial}{\partial w_i} \log p(y_j \mid x_j, w) \Big)^2

    ``L2SP(s, weights=fisher(model, batches))`` then keeps the weights that the examples need near their values, while
    the model learns something else; the others stay free.

    Args:
        model: the trained model. It runs in evaluation mode, and is as before afterwards.
        batches: pairs of inputs and targets with the examples in the first dimension, such as a ``DataLoader``.
        loss: minus the mean log-likelihood of a batch, from outputs and targets. Each example is one batch for it.
        labels: ``"data"`` takes the targets, which is called the empirical Fisher information. ``"model"`` draws a
            class for each example from the model's own probabilities, the softmax over the second dimension of its
            outputs, as the Fisher information is defined.
        generator: of these draws.

    Returns:
        :math:`F` by the names of the floating-point parameters. Weights that a layer computes are not among them.

    Raises:
        TypeError: ``model`` is no module, or a batch is no pair of tensors.
        ValueError: there is no example, ``labels`` is neither, or outputs are not finite.

    Example:
        >>> model = nn.Linear(1, 2, bias=False)
        >>> _ = model.weight.data.zero_()
        >>> fisher(model, [(torch.tensor([[2.0], [4.0]]), torch.tensor([0, 1]))])["weight"]  # (x / 2)**2
        tensor([[2.5000],
                [2.5000]])

    References:
        James Kirkpatrick, Razvan Pascanu, Neil Rabinowitz and others, "Overcoming Catastrophic Forgetting in Neural
        Networks", Proceedings of the National Academy of Sciences, 2017.
        Frederik Kunstner, Lukas Balles, Philipp Hennig, "Limitations of the Empirical Fisher Approximation for Natural
        Gradient Descent", NeurIPS 2019.
    """
    check_model("fisher", model)
    if labels not in ("data", "model"):
        raise ValueError(f"fisher: labels must be 'data' or 'model', got {labels!r}")
    params = {name: p.detach() for name, p in model.named_parameters() if p.is_floating_point()}
    fixed = {name: p.detach() for name, p in model.named_parameters() if name not in params}
    fixed |= dict(model.named_buffers())
    chunk = max(1, _MOST // max(1, sum(p.numel() for p in params.values())))

    def surprise(own: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(model, (own, fixed), (x.unsqueeze(0),)), y.unsqueeze(0))

    def squares(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The sums of the squares over the examples."""
        try:
            each = vmap(grad(surprise), in_dims=(None, 0, 0))(params, x, y)
            return {name: gradients.square().sum(0) for name, gradients in each.items()}
        except (
            RuntimeError,
            NotImplementedError,
        ):  # of a layer that cannot be vectorized, or of the data
            one_by_one = [grad(surprise)(params, *pair) for pair in zip(x, y, strict=True)]
            return {name: sum(g[name].square() for g in one_by_one) for name in params}

    total, count = {name: torch.zeros_like(p) for name, p in params.items()}, 0
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        for batch in batches:
            x, y = _pair(batch)
            for inputs, targets in zip(x.split(chunk), y.split(chunk), strict=True):
                if labels == "model":
                    targets = _drawn(model, inputs, generator)
                for name, sums in squares(inputs, targets).items():
                    total[name] += sums
            count += len(x)
    finally:
        for module in training:
            module.training = True
    if not count:
        raise ValueError("fisher: batches must hold at least one example, got none")
    for name, sums in total.items():
        if not sums.isfinite().all():
            raise ValueError(f"fisher: gradients must be finite, those of {name} are not: check the model and the data")
    return {name: sums / count for name, sums in total.items()}


@torch.no_grad()
def _drawn(model: nn.Module, x: Tensor, generator: torch.Generator | None) -> Tensor:
    shares = model(x).movedim(1, -1).softmax(-1)
    return torch.multinomial(shares.flatten(0, -2), 1, generator=generator).view(shares.shape[:-1])


def _pair(batch: object) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, list | tuple) or len(batch) != 2 or not all(isinstance(t, Tensor) for t in batch):
        raise TypeError(f"fisher: a batch must be a pair of tensors, inputs and targets, got {type(batch).__name__}")
    x, y = batch
    if len(x) != len(y):
        raise ValueError(f"fisher: inputs and targets must be equally many, got {len(x)} and {len(y)}")
    return x, y

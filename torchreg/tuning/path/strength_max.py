"""The smallest strength at which all penalized weights are zero, where paths begin."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from torchreg.ensemble.stacked import Stacked
from torchreg.penalties import HoyerSquare, Penalty, Term
from torchreg.penalties.concave import Magnitudes
from torchreg.regularizer import Regularizer
from torchreg.selection.parameters import ParamInfo, copied
from torchreg.selection.selectors import Selector, weights
from torchreg.tuning.path.fit import fit
from torchreg.tuning.path.problem import (
    Criterion,
    Examples,
    Problem,
    check_examples,
    check_given,
    criterion_in_double,
    in_double,
    usual_criterion,
)

_ROUND = 12  # the number of strengths that are tried at once
_FIRST = 1e-6, 1e6  # their first range
_HALVINGS = 60


class StrengthMax(NamedTuple):
    """The smallest strength at which all penalized weights are zero; :func:`strength_max` returns it.

    Attributes:
        strength: a strength at which all penalized weights are zero.
        lower: a strength at which some are not; ``strength`` itself if that is exact.
        exact: True if the strength follows from the optimality conditions, False if it was found by training.

    Example:
        >>> from torchreg import L1
        >>> found = strength_max(nn.Linear(2, 1), L1(1.0), (torch.eye(2), torch.tensor([[1.0], [3.0]])))
        >>> found.exact, found.lower == found.strength
        (True, True)
    """

    strength: float
    lower: float
    exact: bool


def strength_max(
    model: nn.Module,
    penalty: Penalty | Mapping[str, Penalty],
    train: Examples,
    *,
    criterion: Criterion | None = None,
    select: Selector | Callable[[ParamInfo], bool] = weights,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    epochs: int = 100,
    batch_size: int | None = None,
    seed: int = 0,
) -> StrengthMax:
    r"""The smallest number ``s`` such that training with ``s * penalty`` makes all penalized weights zero.

    .. math:: s_{\max} = \min \{ s : -\nabla L(0) \in \partial (s R)(0) \}, \qquad
              \text{for L1} \quad s_{\max} = \|\nabla L(0)\|_\infty

    where the gradient is taken with the penalized weights at 0 and the others (such as the bias) fitted. This is exact
    if the model's outputs are linear in the penalized weights and the penalty is convex. If only the last layer is
    penalized, it holds for the hidden layers as they are.

    In a deep network with penalties on all layers the gradient at 0 is 0. For a penalty that is not convex, such as Lp
    with p < 1, 0 is stationary at strengths at which training does not lead there. In these cases the model is trained
    from its current weights at several strengths at once, and a second time in the interval that contains the answer.

    Args:
        model: a module; it is not changed.
        penalty: as for a :class:`~torchreg.Regularizer`, usually with strength 1.
        train: inputs and targets.
        criterion: the mean loss of outputs and targets; cross entropy for whole-number targets, else the mean square.
        select: which parameters are penalized.
        optimizer, epochs, batch_size, seed: as in :func:`strength_path`; used if the model is trained.

    Returns:
        The strength, and whether it is exact.

    Raises:
        ValueError: the penalty makes no zeros, as a ridge; or no such strength was found.
        TypeError: no penalty, or examples that are no pair.

    Example:
        >>> x = torch.eye(4)
        >>> y = torch.tensor([[1.0], [0.0], [0.0], [3.0]])
        >>> from torchreg import L1
        >>> strength_max(nn.Linear(4, 1), L1(1.0), (x, y))
        StrengthMax(strength=1.0, lower=1.0, exact=True)

    References:
        Jerome Friedman, Trevor Hastie, Rob Tibshirani, "Regularization Paths for Generalized Linear Models via
        Coordinate Descent", Journal of Statistical Software, 2010, section 2.5.
    """
    check_given("strength_max", penalty, train=train)
    criterion = criterion or usual_criterion(train[1])
    model = copied(model).eval()
    if optimizer is None:  # so that rounding does not matter
        model, train, criterion = model.double(), in_double(train), criterion_in_double(criterion)
    check_examples(model, criterion, train)
    regularizer = Regularizer(model, penalty, mode="prox", select=select)
    penalized = {p: a.acting for a in regularizer.entries if a.acting and a.is_penalized for p in a.stored}
    _check_zeros(penalized)
    is_convex = not any(
        isinstance(term, Magnitudes | HoyerSquare) for rule in penalized.values() for term in rule.terms
    )
    if is_convex and is_linear_in(model, list(penalized), train[0]):
        gradients = _at_zero(model, list(penalized), criterion, train)
        strength = max(map(_held, penalized.values(), gradients))
        return StrengthMax(strength, strength, exact=True)
    problem = Problem(train, train, criterion, penalty, "prox", select, optimizer, epochs, batch_size, None, 0.0, seed)
    return _bracketed(model, problem)


@torch.no_grad()
def is_linear_in(model: nn.Module, params: Sequence[nn.Parameter], x: Tensor) -> bool:
    """Whether the model's outputs are linear in the parameters, up to a constant: ``f(a) + f(b) = f(a + b) + f(0)``."""
    names = {param: name for name, param in model.named_parameters()}
    draw = torch.Generator().manual_seed(0)

    def point() -> list[Tensor]:
        return [torch.randn(p.shape, generator=draw, dtype=p.dtype, device="cpu").to(p.device) for p in params]

    a, b = point(), point()

    def outputs(values: Iterable[Tensor]) -> Tensor:
        named = {names[param]: value for param, value in zip(params, values, strict=True)}
        found: Tensor = functional_call(model, named, (x[:64],))
        return found

    both, none = outputs(map(torch.add, a, b)), outputs(map(torch.zeros_like, a))
    apart = outputs(a) + outputs(b)
    return torch.allclose(apart, both + none, rtol=1e-3, atol=1e-4 * float(apart.abs().max()))


def _at_zero(
    model: nn.Module, penalized: list[nn.Parameter], criterion: Criterion, train: Examples
) -> Sequence[Tensor]:
    """The loss's gradients by the penalized weights, with these at zero and the others fitted."""
    with torch.no_grad():
        for param in penalized:
            param.zero_()
    rest = [param for param in model.parameters() if param.requires_grad and param not in set(penalized)]
    if rest:
        optimizer = torch.optim.LBFGS(
            rest, max_iter=1000, tolerance_grad=1e-14, tolerance_change=0.0, line_search_fn="strong_wolfe"
        )

        def closure() -> float:
            optimizer.zero_grad()
            loss = criterion(model(train[0]), train[1])
            loss.backward()
            return loss.item()

        optimizer.step(closure)
    loss = criterion(model(train[0]), train[1])
    return torch.autograd.grad(loss, penalized, allow_unused=True, materialize_grads=True)


def _held(penalty: Penalty, gradient: Tensor) -> float:
    """The smallest factor of the penalty at which 0 is stationary for the gradient."""
    if isinstance(penalty, Term) and penalty.is_linear:
        return penalty.strength_max(gradient).item() / penalty.strength if penalty.strength else math.inf
    zero = torch.zeros_like(gradient)
    low, high = 0.0, 1.0
    while (high * penalty).optimality(zero, gradient) > 0:
        low, high = high, 2 * high
        if high > 1e30:
            return math.inf
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if (middle * penalty).optimality(zero, gradient) > 0:
            low = middle
        else:
            high = middle
    return high


def _check_zeros(penalized: Mapping[nn.Parameter, Penalty]) -> None:
    """Raises ``ValueError`` for penalties that make no weight zero."""
    for param, penalty in penalized.items():
        if math.isinf(_held(penalty, torch.ones_like(param))):
            raise ValueError(f"strength_max: penalty must make weights zero, {penalty!r} never does: give strengths")


def _bracketed(model: nn.Module, problem: Problem) -> StrengthMax:
    """Found by training at the strengths of a geometric grid, and again between two neighbors of this grid."""
    low, high = _FIRST
    for _ in range(2):
        tried = [low * (high / low) ** (k / (_ROUND - 1)) for k in range(_ROUND)]
        stack = Stacked([model] * _ROUND)
        fit(stack, tried, problem)
        zero = [_is_zero(member, problem) for member in stack.members()]
        if not zero[-1]:
            raise ValueError(
                f"strength_max: even {high:g} does not make all penalized weights zero in {problem.epochs} epochs: "
                "train longer, or with a higher lr"
            )
        first = _ROUND - zero[::-1].index(False) if False in zero else 0  # from this strength on all weights are zero
        low, high = tried[max(first - 1, 0)], tried[first]
    return StrengthMax(high, low, exact=False)


def _is_zero(model: nn.Module, problem: Problem) -> bool:
    chosen = Regularizer(model, problem.penalty, mode="prox", select=problem.select).entries
    return not any(bool(a.param.any()) for a in chosen if a.is_penalized)

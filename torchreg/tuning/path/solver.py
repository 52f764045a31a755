"""A solver for the minimum of a penalized loss over all examples, for each member of a stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from torchreg.ensemble.stacked import Stacked
from torchreg.penalties import ProximalPenalty
from torchreg.penalties.groups import ByGroup
from torchreg.penalties.members import ByMember
from torchreg.tuning.path.losses import member_losses
from torchreg.tuning.path.problem import Problem

_LOOK_EVERY, _POLISH_EVERY = 10, 20  # steps between two checks of the distance, and between two Newton steps
_LENGTHS = (1.0, 0.5, 0.25, 0.125, 0.03)  # the lengths of a Newton step that are tried
_DAMPING = 0.03  # of Newton steps, in units of the distance from the minimum; it bounds steps in flat directions
_CONJUGATE = 100  # the maximal number of conjugate gradients in a Newton step
_IDLE = 500  # the solver stops after so many steps without progress, because of rounding
_STEEPEST = 1e100  # the largest L, reached for losses that are not finite
_ROUNDING = 16  # differences of the loss below so many units in the last place are rounding


def solve(stack: Stacked, strengths: Sequence[float], problem: Problem, steps: int) -> None:
    r"""Accelerated proximal gradient for all members at once, with Newton steps in the weights that are not zero.

    .. math:: w^+ = \operatorname{prox}_{R / L}\big(u - \nabla f(u) / L\big), \qquad u^+ = w^+ + \beta (w^+ - w)

    Each member has its own :math:`L`, found by doubling, and its own momentum :math:`\beta`, which restarts when it
    leads uphill. These steps soon find which weights are zero, but the values of the others only slowly. For those
    :math:`f + R` is smooth, so Newton steps are tried, with conjugate gradients. A member is finished when minus the
    gradient is within its tolerance of the subdifferential.

    References:
        Amir Beck, Marc Teboulle, "A Fast Iterative Shrinkage-Thresholding Algorithm for Linear Inverse Problems", SIAM
        Journal on Imaging Sciences, 2009. Brendan O'Donoghue, Emmanuel Candès, "Adaptive Restart for Accelerated
        Gradient Schemes", Foundations of Computational Mathematics, 2015.
    """
    descent = _Descent(stack, strengths, problem)
    nearest, last = torch.full_like(descent.scale, torch.inf), 0
    limit = descent.scale.new_tensor([problem.limit(strength) for strength in strengths])
    for step in range(1, steps + 1):
        descent.step()
        if step % _LOOK_EVERY:
            continue
        distance = descent.distance()
        if descent.has_second_derivatives and step % _POLISH_EVERY == 0 and bool((distance > limit).any()):
            distance = descent.polish(distance)
        if bool(((distance < nearest) & (nearest > limit)).any()):
            last = step
        nearest = torch.minimum(nearest, distance)
        left = (distance > limit).nonzero().flatten().tolist()
        if descent.has_second_derivatives and len(left) <= len(stack) / 2:
            descent.polish(distance)  # what is finished gains most of its digits by one more step
        if not left or step - last > _IDLE:
            return
        if len(left) <= len(stack) / 2:  # without the finished members the others are faster
            members = stack.members()
            few = Stacked([members[member] for member in left], vectorize=stack.vectorize)
            solve(few, [strengths[member] for member in left], problem, steps - step)
            for place, member in enumerate(left):
                stack.load_member(member, few.state_of(place))
            return


@torch.no_grad()
def optimality(stack: Stacked, strengths: Sequence[float], problem: Problem) -> Tensor:
    """Each member's distance from a stationary point: that of minus the gradient from the subdifferential."""
    return _Descent(stack, strengths, problem).distance()


class _Descent:
    """The state of the iteration, with one row for each member."""

    def __init__(self, stack: Stacked, strengths: Sequence[float], problem: Problem) -> None:
        self.stack, self.examples = stack.eval(), problem.train  # random masks would have no minimum
        self.losses, self.regularizer = member_losses(stack, problem.criterion), problem.regularizer(stack, strengths)
        self.params = [param for param in stack.parameters() if param.requires_grad]
        self.penalties = {p: a.acting for a in self.regularizer.entries if a.acting is not None for p in a.stored}
        self.scale = torch.tensor(strengths, dtype=torch.float64, device=self.params[0].device)
        self.points = [param.detach().clone() for param in self.params]  # where the gradient is taken
        self.curvature = torch.ones_like(self.scale)  # L
        self.age = torch.ones_like(self.scale)  # t, since the last restart

    @property
    def has_second_derivatives(self) -> bool:
        """Whether the penalties have second derivatives where no element, or group, is zero."""
        penalties = [penalty.each[0] for penalty in self.penalties.values() if isinstance(penalty, ByMember)]
        return all(penalty.is_separable or isinstance(penalty, ByGroup) for penalty in penalties)

    @torch.no_grad()
    def step(self) -> None:
        value, gradients = self._value_and_gradients(self.points)
        olds = [param.detach().clone() for param in self.params]
        slack = _ROUNDING * torch.finfo(value.dtype).eps * value.abs()
        while True:
            self._move(gradients)
            moves = [param - point for param, point in zip(self.params, self.points, strict=True)]
            model = value + _dots(gradients, moves) + self.curvature / 2 * _dots(moves, moves)
            bad = self._value() > model + slack
            if not bad.any() or self.curvature.amax() > _STEEPEST:
                break
            self.curvature = torch.where(bad, 2 * self.curvature, self.curvature)
        news = [param - old for param, old in zip(self.params, olds, strict=True)]
        self.age = torch.where(_dots(moves, news) < 0, 1.0, self.age)  # the step turns back: restart the momentum
        older, self.age = self.age, (1 + (1 + 4 * self.age.square()).sqrt()) / 2
        momentum = (older - 1) / self.age
        for point, param, new in zip(self.points, self.params, news, strict=True):
            point.copy_(param + _rows(momentum, new) * new)

    def _move(self, gradients: list[Tensor]) -> None:
        """Moves the members from the points by a proximal gradient step of 1 / L."""
        for param, point, gradient in zip(self.params, self.points, gradients, strict=True):
            param.copy_(point - gradient / _rows(self.curvature, gradient))
            penalty = self.penalties.get(param)
            if penalty is not None:
                assert isinstance(penalty, ProximalPenalty)
                penalty._prox_(param, self.scale / self.curvature)

    @torch.no_grad()
    def distance(self) -> Tensor:
        """Each member's distance from a stationary point."""
        _, gradients = self._value_and_gradients([param.detach().clone() for param in self.params])
        squares = torch.zeros_like(self.scale)
        for param, gradient in zip(self.params, gradients, strict=True):
            penalty = self.penalties.get(param)
            if penalty is None:
                squares += _dots([gradient], [gradient])
            else:
                assert isinstance(penalty, ByMember)
                squares += penalty.scaled_optimality(param, gradient, self.scale).square()
        return squares.sqrt()

    @torch.no_grad()
    def polish(self, distance: Tensor) -> Tensor:
        """Takes a Newton step in the weights that are not zero; returns the distances after it.

        Each member takes the first of the lengths at which its objective decreases. Weights that would change their
        sign become zero. If the objective is the same up to rounding, the step is taken if it reduces the distance.
        """
        olds = [param.detach().clone() for param in self.params]
        newton = self._newton_step(_DAMPING * distance)
        before = self._objective()
        slack = _ROUNDING * torch.finfo(before.dtype).eps * before.abs()
        taken = torch.zeros_like(before)
        for length in _LENGTHS:
            self._go(olds, newton, torch.where(taken > 0, taken, length))
            taken = torch.where((taken == 0) & (self._objective() < before - slack), length, taken)
        self._go(olds, newton, torch.where(taken > 0, taken, 1.0))
        reached = self.distance()
        going = (taken > 0) | (reached < distance)
        for param, old, point in zip(self.params, olds, self.points, strict=True):
            param.copy_(torch.where(_rows(going, param).bool(), param, old))
            point.copy_(torch.where(_rows(going, param).bool(), param, point))
        self.age = torch.where(going, 1.0, self.age)
        return torch.where(going, reached, distance)

    def _newton_step(self, damping: Tensor) -> list[Tensor]:
        """The Newton step in the weights that are not zero, with damped second derivatives."""
        free = [param != 0 if param in self.penalties else torch.ones_like(param) for param in self.params]
        with torch.enable_grad():
            slopes = torch.autograd.grad(
                self._objective().sum(), self.params, create_graph=True, allow_unused=True, materialize_grads=True
            )

        def curved(direction: list[Tensor]) -> list[Tensor]:
            found = torch.autograd.grad(slopes, self.params, direction, retain_graph=True, materialize_grads=True)
            pairs = zip(found, direction, free, strict=True)
            return [(part + _rows(damping, part) * own) * mask for part, own, mask in pairs]

        return _conjugate_gradients(curved, [-slope.detach() * mask for slope, mask in zip(slopes, free, strict=True)])

    def _go(self, olds: list[Tensor], step: list[Tensor], length: Tensor) -> None:
        """Moves the members by so much of the step."""
        for param, old, part in zip(self.params, olds, step, strict=True):
            new = old + _rows(length, part) * part
            penalty = self.penalties.get(param)
            if isinstance(penalty, ByMember) and penalty.is_shared:
                new = new.masked_fill(new * old < 0, 0.0)
            param.copy_(new)

    def _objective(self) -> Tensor:
        return self._value() + self.regularizer.value()

    def _value_and_gradients(self, points: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        kept = [param.detach().clone() for param in self.params]
        _put(self.params, points)
        with torch.enable_grad():
            value = self._value()
            gradients = torch.autograd.grad(value.sum(), self.params, allow_unused=True, materialize_grads=True)
        _put(self.params, kept)
        return value.detach().double(), [gradient.detach() for gradient in gradients]

    def _value(self) -> Tensor:
        x, y = self.examples
        return self.losses(self.stack(x), y).double()


def _conjugate_gradients(curved: Callable[[list[Tensor]], list[Tensor]], target: list[Tensor]) -> list[Tensor]:
    """Solves ``curved(x) = target`` for each member; a member stops when its curvature is not positive."""
    solution = [torch.zeros_like(part) for part in target]
    rest, direction = [part.clone() for part in target], [part.clone() for part in target]
    square = _dots(rest, rest)
    enough = square * torch.finfo(target[0].dtype).eps ** 2
    for _ in range(_CONJUGATE):
        image = curved(direction)
        curvature = _dots(direction, image)
        going = (curvature > 0) & (square > enough)
        if not going.any():
            break
        length = torch.where(going, square / curvature.masked_fill(~going, 1.0), 0.0)
        for x, r, d, i in zip(solution, rest, direction, image, strict=True):
            x += _rows(length, x) * d
            r -= _rows(length, r) * i
        before, square = square, torch.where(going, _dots(rest, rest), 0.0)
        ratio = square / before.masked_fill(before == 0, 1.0)
        direction = [r + _rows(ratio, r) * d for r, d in zip(rest, direction, strict=True)]
    return solution


def _put(params: list[nn.Parameter], values: list[Tensor]) -> None:
    with torch.no_grad():
        for param, value in zip(params, values, strict=True):
            param.copy_(value)


def _rows(scale: Tensor, like: Tensor) -> Tensor:
    """One number for each member, in a shape that multiplies a stack."""
    return scale.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def _dots(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """The inner product over all parameters, for each member."""
    return torch.stack([(x.double() * y).flatten(1).sum(1) for x, y in zip(a, b, strict=True)]).sum(0)

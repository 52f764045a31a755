"""The exact minimum of a penalized loss over full batches, for each member of a stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from torchreg.ensemble.stacked import Stacked
from torchreg.penalties import ProximalPenalty
from torchreg.penalties.groups import ByGroup
from torchreg.penalties.members import ByMember
from torchreg.tuning.path.problem import Problem

_LOOK_EVERY, _POLISH_EVERY = 10, 20  # steps between two looks at how far the minimum is, and two Newton steps
_LENGTHS = (1.0, 0.5, 0.25, 0.125, 0.03)  # of a Newton step, which are tried in turn
_DAMPING = 0.03  # of Newton steps, in units of the distance from the minimum: flat directions would lead too far
_CONJUGATE = 100  # gradients at most in a Newton step
_IDLE = 500  # steps without any member coming nearer, which rounding then does not let it
_STEEPEST = 1e100  # L, of losses that are not finite
_ROUNDING = 16  # units in the last place of the loss, below which it cannot tell a good step from a bad one


def solve(stack: Stacked, strengths: Sequence[float], problem: Problem, steps: int) -> None:
    r"""Accelerated proximal gradient for all members at once, polished by Newton steps among what is not zero.

    .. math:: w^+ = \operatorname{prox}_{R / L}\big(u - \nabla f(u) / L\big), \qquad u^+ = w^+ + \beta (w^+ - w)

    Each member has its own :math:`L`, found by doubling, and its own momentum :math:`\beta`, which starts anew where it
    leads uphill. That soon finds which weights are zero, but the others slowly; for those :math:`f + R` is smooth, and
    a Newton step, its equations solved by conjugate gradients, is taken where it comes nearer. A member is done when
    minus the gradient is within ``tolerance`` of the subdifferential.

    References:
        Amir Beck, Marc Teboulle, "A Fast Iterative Shrinkage-Thresholding Algorithm for Linear Inverse Problems", SIAM
        Journal on Imaging Sciences, 2009. Brendan O'Donoghue, Emmanuel Candès, "Adaptive Restart for Accelerated
        Gradient Schemes", Foundations of Computational Mathematics, 2015.
    """
    descent = _Descent(stack, strengths, problem)
    nearest, last = torch.full_like(descent.scale, torch.inf), 0
    for step in range(1, steps + 1):
        descent.step()
        if step % _LOOK_EVERY:
            continue
        distance = descent.distance()
        if descent.has_second_derivatives and step % _POLISH_EVERY == 0 and bool((distance > problem.tolerance).any()):
            distance = descent.polish(distance)
        if bool(((distance < nearest) & (nearest > problem.tolerance)).any()):
            last = step
        nearest = torch.minimum(nearest, distance)
        left = (distance > problem.tolerance).nonzero().flatten().tolist()
        if not left or step - last > _IDLE:
            return
        if len(left) <= len(stack) / 2:  # the others have arrived, and would only slow these down
            members = stack.members()
            few = Stacked([members[member] for member in left], vectorize=stack.vectorize)
            solve(few, [strengths[member] for member in left], problem, steps - step)
            for place, member in enumerate(left):
                stack.load_member(member, few.state_of(place))
            return


@torch.no_grad()
def optimality(stack: Stacked, strengths: Sequence[float], problem: Problem) -> Tensor:
    """How far each member is from a stationary point: the distance of minus the gradient to the subdifferential."""
    return _Descent(stack, strengths, problem).distance()


class _Descent:
    """The state of the iteration: one row a member."""

    def __init__(self, stack: Stacked, strengths: Sequence[float], problem: Problem) -> None:
        self.stack, self.examples = stack.eval(), problem.train  # what is drawn at random has no minimum
        self.losses, self.regularizer = stack.per_member(problem.criterion), problem.regularizer(stack, strengths)
        self.params = [param for param in stack.parameters() if param.requires_grad]
        self.penalties = {a.param: a.acting for a in self.regularizer.assignments if a.acting is not None}
        self.scale = torch.tensor(strengths, dtype=torch.float64, device=self.params[0].device)
        self.points = [param.detach().clone() for param in self.params]  # where the gradient is taken
        self.curvature = torch.ones_like(self.scale)  # L
        self.age = torch.ones_like(self.scale)  # t, since the last restart

    @property
    def has_second_derivatives(self) -> bool:
        """Whether the penalties are smooth where no element, or group, is zero, and autograd knows it."""
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
        self.age = torch.where(_dots(moves, news) < 0, 1.0, self.age)  # the step turns back: without momentum
        older, self.age = self.age, (1 + (1 + 4 * self.age.square()).sqrt()) / 2
        momentum = (older - 1) / self.age
        for point, param, new in zip(self.points, self.params, news, strict=True):
            point.copy_(param + _rows(momentum, new) * new)

    def _move(self, gradients: list[Tensor]) -> None:
        """The members from the points to where a step of 1 / L leads."""
        for param, point, gradient in zip(self.params, self.points, gradients, strict=True):
            param.copy_(point - gradient / _rows(self.curvature, gradient))
            penalty = self.penalties.get(param)
            if penalty is not None:
                assert isinstance(penalty, ProximalPenalty)
                penalty._prox_(param, self.scale / self.curvature)

    @torch.no_grad()
    def distance(self) -> Tensor:
        """Of each member, from a stationary point."""
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
        """Moves members along a Newton step among what is not zero; returns how far from the minimum they are then.

        Each goes as far as its objective falls: all the way, or a part of it. What would change its sign becomes zero.
        One whose objective has no digits left to tell goes if that is nearer.
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
        """Where the second derivatives, and a bit more where the minimum is far, put it among what is not zero."""
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
        """The members to where so much of the step leads."""
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
    """Solves ``curved(x) = target`` for each member; one whose curvature is not positive keeps what it has."""
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
    """One number a member, to multiply a stack with."""
    return scale.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def _dots(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Of each member, the inner product over all its parameters."""
    return torch.stack([(x.double() * y).flatten(1).sum(1) for x, y in zip(a, b, strict=True)]).sum(0)

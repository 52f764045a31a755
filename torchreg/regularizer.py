"""A penalty on chosen parameters of a model, in one of four modes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreg.entries import as_rules, survey, table
from torchreg.hooks import Group, StepHooks, gradient_scale, step_size
from torchreg.hosts import check_decay, check_host
from torchreg.penalties import Penalty, ProximalPenalty
from torchreg.schedules import Schedule
from torchreg.selectors import ParamInfo, Selector, as_selector, weights

Mode = Literal["loss", "grad", "decoupled", "prox"]


class Regularizer:
    r"""Applies a penalty to chosen parameters of an existing model. The model is not changed in any way.

    Training then minimizes

    .. math:: L(w) + \text{scale} \cdot \sum_{\text{chosen } w_j} R(w_j)

    where :math:`L` is the mean loss. The mode says how:

    =============  ===========================================  ==============================================
    mode           acts                                         equals
    =============  ===========================================  ==============================================
    "loss"         where you add ``value()`` to the loss, or    autograd
                   through ``penalize(criterion)``
    "grad"         before the step: ``grad += dR(w)``           mode "loss"; ``SGD(weight_decay=s)`` for L2(s)
    "decoupled"    before the step: ``w -= lr * dR(w)``         ``AdamW(weight_decay=s)`` for L2(s)
    "prox"         after the step: ``w = prox(w, lr)``          the exact Lasso, Ridge or elastic net, with zeros
    =============  ===========================================  ==============================================

    The last three are attached to an optimizer and leave the training loop as it is. They act once per optimizer step:
    under gradient accumulation, loss scaling, closures and tied parameters alike. A parameter whose ``grad`` is None is
    left alone, as torch's optimizers do; so is a frozen one. Mode "grad" acts after any gradient clipping and leaves
    the penalized gradient in ``.grad``, as mode "loss" does.

    Args:
        model: any module, built and not lazy.
        penalty: a penalty, or a dict of name patterns to penalties, of which the first that matches is taken.
        mode: ``"loss"``, ``"grad"``, ``"decoupled"`` or ``"prox"``.
        select: which parameters; by default :data:`~torchreg.selectors.weights`, so no biases, no normalization.
        schedule: a function from the number of steps made to ``scale``; see :mod:`torchreg.schedules`.

    Attributes:
        scale: multiplies every penalty; a number, or a tensor that broadcasts. A schedule overwrites it each step.

    Raises:
        ValueError: nothing is selected, a pattern matches no parameter, an unknown mode, a lazy parameter, or mode
            "prox" for a penalty without a proximal operator.
        TypeError: ``model`` is no module or ``penalty`` no penalty.

    Example:
        >>> from torchreg import L1, Regularizer
        >>> model = nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> regularizer = Regularizer(model, L1(1.0), mode="prox").attach(optimizer)
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     (model(torch.zeros(4, 3)) ** 2).mean().backward()
        ...     optimizer.step()
        >>> model.weight.count_nonzero()
        tensor(0)
        >>> regularizer.remove()
    """

    def __init__(
        self,
        model: nn.Module,
        penalty: Penalty | Mapping[str, Penalty],
        *,
        mode: Mode = "loss",
        select: Selector | Callable[[ParamInfo], bool] = weights,
        schedule: Schedule | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"Regularizer: model must be a torch.nn.Module, got {type(model).__name__}")
        if mode not in get_args(Mode):
            raise ValueError(f"Regularizer: mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        self.model = model
        self.mode: Mode = mode
        self.schedule = schedule
        self.scale = 1.0
        self.entries = survey(model, as_rules(penalty, mode), as_selector(select))
        self._penalties = {e.param: e.penalty for e in self.entries if e.penalty is not None}
        self._steps = 0
        self._optimizer: Optimizer | None = None
        self._hooks: StepHooks | None = None
        self._follow_schedule()

    @property
    def scale(self) -> float | Tensor:
        """What every penalty is multiplied with."""
        return self._scale

    @scale.setter
    def scale(self, scale: float | Tensor) -> None:
        if not isinstance(scale, Tensor) and not (isinstance(scale, Real) and 0 <= scale < math.inf):
            raise ValueError(f"Regularizer: scale must be a finite number >= 0 or a tensor, got {scale!r}")
        self._scale = scale

    # -- mode "loss": the penalty as a number ---------------------------------------------------------------------

    def value(self) -> Tensor:
        """``scale * sum R(w)`` over the penalized parameters: 0-d, differentiable. In every mode, for logging."""
        terms = list(self.terms().values())
        return sum((term.to(terms[0].device) for term in terms[1:]), start=terms[0]) if terms else torch.zeros(())

    def terms(self) -> dict[str, Tensor]:
        """The value split by kind of penalty, such as ``{"L1": tensor, "L2": tensor}``."""
        totals: dict[str, Tensor] = {}
        for param, penalty in self._penalties.items():
            if param.requires_grad:
                for term in penalty.terms:
                    label, value = type(term).__name__, self.scale * term.value(param)
                    totals[label] = totals[label] + value.to(totals[label].device) if label in totals else value
        return totals

    def penalize(self, criterion: Callable[..., Tensor]) -> PenalizedLoss:
        """The criterion with the penalty added while the model is in training mode, and without it in evaluation.

        Raises:
            ValueError: in another mode than "loss", where the penalty would count twice.
        """
        if self.mode != "loss":
            raise ValueError(
                f"Regularizer: penalize() is for mode 'loss', this one has mode {self.mode!r}, which already acts "
                "in the optimizer: use one or the other"
            )
        return PenalizedLoss(self, criterion)

    # -- the other modes: the penalty in the optimizer's step -----------------------------------------------------

    def attach(self, optimizer: Optimizer) -> Self:
        """Acts in every step of the optimizer from now on; in mode "loss", only the schedule follows its steps.

        Use it as a context manager to detach at the end: ``with regularizer.attach(optimizer): ...``

        Returns:
            The regularizer itself.

        Raises:
            ValueError: already attached; the optimizer does not hold a penalized parameter, already decays one that
                carries an L2, or is LBFGS or has no ``lr`` in mode "decoupled" or "prox"; no schedule in mode "loss".
            TypeError: not a ``torch.optim.Optimizer``.
        """
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"Regularizer: attach() takes a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if self._hooks is not None:
            raise ValueError(
                f"Regularizer: already attached to {type(self._optimizer).__name__}: call remove() first, "
                "or make a second Regularizer"
            )
        if self.mode == "loss" and self.schedule is None:
            raise ValueError(
                "Regularizer: mode 'loss' has nothing to attach: add value() to the loss or use penalize(criterion), "
                "or choose mode 'grad', 'decoupled' or 'prox'"
            )
        if self.mode != "loss":
            check_host(optimizer, self.entries, self.mode)
        check_decay(optimizer, self.entries)
        self._register(optimizer)
        return self

    def remove(self) -> None:
        """Detaches from the optimizer, which goes on as if nothing had been attached. Does nothing if not attached."""
        if self._hooks is not None:
            self._hooks.remove()
        self._hooks = self._optimizer = None

    def step(self) -> None:
        """Tells the schedule that a step was made; an attached regularizer is told by its optimizer."""
        self._steps += 1
        self._follow_schedule()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    def _register(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        objective = self._objective if self.mode == "grad" else None
        self._hooks = StepHooks(optimizer, self._on_gradients, self._after_step, objective)

    def _objective(self) -> Tensor:
        """What a closure's loss lacks of the function that the optimizer minimizes, or maximizes."""
        assert self._optimizer is not None
        return -self.value() if self._optimizer.param_groups[0].get("maximize") else self.value()

    def _moving(self) -> Iterator[tuple[nn.Parameter, Tensor, Penalty, Group]]:
        """The penalized parameters that the coming (or just made) step moves."""
        assert self._optimizer is not None
        for group in self._optimizer.param_groups:
            for param in group["params"]:
                penalty = self._penalties.get(param)
                if penalty is not None and param.grad is not None and param.requires_grad:
                    yield param, param.grad, penalty, group

    @torch.no_grad()
    def _on_gradients(self, evaluation: int) -> None:
        optimizer = self._optimizer
        assert optimizer is not None
        if self.mode == "grad":
            scale = self.scale * gradient_scale(optimizer)
            for param, grad, penalty, group in self._moving():
                if grad.layout != torch.strided:
                    raise ValueError(
                        "Regularizer: mode 'grad' needs dense gradients, got a sparse one for the parameter of shape "
                        f"{tuple(param.shape)}: use mode 'decoupled' or 'prox'"
                    )
                penalty.add_gradient_(grad, param, -scale if group.get("maximize") else scale)
        elif self.mode == "decoupled" and evaluation == 0:
            for param, _, penalty, group in self._moving():
                penalty.descend_(param, step_size(optimizer, group) * self.scale)

    @torch.no_grad()
    def _after_step(self) -> None:
        optimizer = self._optimizer
        assert optimizer is not None
        if self.mode == "prox":
            for param, _, penalty, group in self._moving():
                assert isinstance(penalty, ProximalPenalty)
                param.copy_(penalty.prox(param, step_size(optimizer, group) * self.scale))
        self.step()

    def _follow_schedule(self) -> None:
        if self.schedule is not None:
            scale = self.schedule(self._steps)
            try:
                self.scale = scale
            except ValueError:
                raise ValueError(
                    f"Regularizer: schedule must return a finite scale >= 0, got {scale!r} at step {self._steps}"
                ) from None

    # -- saving and copying ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The steps counted and the current scale; loads with ``torch.load(weights_only=True)``."""
        return {"steps": self._steps, "scale": self.scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what :meth:`state_dict` saved."""
        if set(state) != {"steps", "scale"}:
            raise ValueError(f"Regularizer: state must have the keys 'steps' and 'scale', got {sorted(state)}")
        self.scale, self._steps = state["scale"], state["steps"]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hooks": None}

    def __copy__(self) -> Self:
        """A detached one: two on the same optimizer would count the penalty twice."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__, _optimizer=None, _hooks=None)
        return twin

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._optimizer is not None:  # a copied optimizer has lost its hooks
            self._register(self._optimizer)

    def __repr__(self) -> str:
        return f"Regularizer(mode={self.mode!r}, scale={self.scale!r}): {table(self.entries)}"


class PenalizedLoss(nn.Module):
    """A criterion plus a regularizer's value while the regularized model is in training mode.

    The model is not a submodule of the loss: moving or saving the loss leaves it alone.
    """

    def __init__(self, regularizer: Regularizer, criterion: Callable[..., Tensor]) -> None:
        super().__init__()
        self.regularizer = regularizer
        self.criterion = criterion

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = self.criterion(*args, **kwargs)
        return loss + self.regularizer.value() if self.regularizer.model.training else loss

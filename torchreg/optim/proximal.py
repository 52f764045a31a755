"""A mixin that ends an optimizer's step with a penalty's proximal operator, which makes exact zeros."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreg.hooks import Group
from torchreg.optim.options import Params
from torchreg.optim.step_wrapper import Plan, StepWrapper, Weights, is_regularized, with_gradients
from torchreg.penalties import ProximalPenalty, Term
from torchreg.penalties.given import in_words
from torchreg.penalties.joint import whole_of
from torchreg.penalties.weighted import Weighted
from torchreg.schedules import check_scale
from torchreg.selection.parameters import ParamInfo
from torchreg.steps.steered import Steered


class Proximal(StepWrapper, Steered):
    r"""Mixin that ends a step with the proximal operator of a penalty, in the metric of the step.

    .. math:: w_t = \operatorname{argmin}_u \tfrac12 \sum_i \frac{(u_i - w'_i)^2}{\alpha_i} + c R(u)

    where :math:`w'` is the result of the base's update, :math:`\alpha_i` the step that it takes for the weight
    :math:`i`, and :math:`c` the group's ``scale``. An optimizer minimizes loss + R only if the penalty has the same
    steps as the gradient. :class:`ProxSGD` and :class:`ProxAdam` define them for their base.

    Args:
        params: parameters, named parameters or groups, as in ``torch.optim``, or a model.
        penalty: any penalty with a proximal operator, or a constraint. It acts on parameters with two or more
            dimensions; of a model on those that ``select`` chooses.
        scale: :math:`c`, multiplies the penalty; an option of each group.
        biases: whether parameters with fewer than two dimensions are penalized too; an option of each group.

    Attributes:
        penalty: the penalty.
        penalized: the parameters that the penalty acts on.

    Raises:
        TypeError: the penalty has no proximal operator.
        ValueError: no parameter is penalized; a ridge beside a ``weight_decay``; a penalty towards a reference without
            one.

    Example:
        >>> from torchreg import L1
        >>> from torchreg.optim import ProxSGD
        >>> weight, bias = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
        >>> optimizer = ProxSGD([weight, bias], L1(1e-3), lr=0.1)
        >>> isinstance(optimizer, Proximal), optimizer.penalized[0] is weight, len(optimizer.penalized)
        (True, True, 1)

    References:
        Neal Parikh, Stephen Boyd, "Proximal Algorithms", Foundations and Trends in Optimization, 2014.
    """

    penalty: ProximalPenalty
    _changes_weights = "prox"
    _of_all_groups = ("penalty",)

    def __init__(
        self,
        params: Params,
        penalty: ProximalPenalty | None = None,
        *args: Any,
        scale: float | Tensor = 1.0,
        biases: bool = False,
        **kwargs: Any,
    ) -> None:
        owner = type(self).__name__
        if not isinstance(penalty, ProximalPenalty):
            raise TypeError(
                f"{owner}: penalty must be one with a proximal operator, such as L1(1e-4), got {in_words(penalty)}"
            )
        if any(whole_of(term) for term in penalty.terms):
            raise ValueError(
                f"{owner}: penalty acts on one parameter at a time, got {penalty!r}: use a Regularizer in mode 'prox'"
            )
        self.penalty = penalty
        self._bound: dict[Tensor, ProximalPenalty] = {}
        self._add_options(scale=scale, biases=biases, support_fixed=False)
        super().__init__(params, *args, **kwargs)
        if not self._bound:
            raise ValueError(
                f"{owner}: a parameter must have two or more dimensions to be penalized, got none: set "
                "biases=True to penalize the others too"
            )

    def _selection_options(self, is_selected: bool) -> dict[str, Any]:
        return {"selected": is_selected}

    def add_param_group(self, param_group: Group) -> None:
        super().add_param_group(param_group)
        try:
            self._bound.update(self._bind(self.param_groups[-1]))
        except Exception:
            self.param_groups.pop()
            raise

    def _bind(self, group: Group) -> dict[Tensor, ProximalPenalty]:
        """The bound penalty of each penalized parameter of the group."""
        names = group.get("param_names") or [f"a parameter of shape {tuple(p.shape)}" for p in group["params"]]
        bound = {}
        for name, param in zip(names, group["params"], strict=True):
            if is_regularized(group, param):
                penalty = self.penalty.bind(self._places.get(param) or ParamInfo(name, param, nn.Module()))
                assert isinstance(penalty, ProximalPenalty)
                bound[param] = penalty
        return bound

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        owner = type(self).__name__
        check_scale(owner, group["scale"])
        self._refuse_second_decay(group)
        taken = [name for term in self.penalty.terms if isinstance(term, Weighted) for name in term._taken]
        if "reference" in taken:
            raise ValueError(
                f"{owner}: penalty must have a reference, got {self.penalty!r}: give it one, or use weight_decay with "
                "towards='start'"
            )
        if taken:
            raise ValueError(
                f"{owner}: weights must be tensors, got a function of the weights, which checkpoints could not hold: "
                "give its results, or use a Regularizer"
            )

    def _refuse_second_decay(self, group: Group) -> None:
        ridges = [term for term in self.penalty.terms if isinstance(term, Term) and term._ridge > 0]
        decay = group["weight_decay"]
        if ridges and (isinstance(decay, Tensor) or decay):
            raise ValueError(
                f"{type(self).__name__}: weights would decay twice, by {ridges[0]!r} and by weight_decay={decay!r}: "
                "choose one"
            )

    @property
    def penalized(self) -> list[Tensor]:
        """The penalized parameters: those with two or more dimensions; in groups with ``biases`` all."""
        return list(self._bound)

    def fix_support(self) -> None:
        """Ends the penalty and keeps the weights that are zero at zero.

        Further steps fit the other weights without shrinkage. Checkpoints contain this flag.

        References:
            Nicolai Meinshausen, "Relaxed Lasso", Computational Statistics & Data Analysis, 2007.
        """
        for group in self.param_groups:
            group["support_fixed"] = True

    def _steered_in(self, owner: str) -> Optimizer:
        return self

    def _steered_places(self) -> Sequence[ParamInfo]:
        module = nn.Module()
        return [ParamInfo(f"a parameter of shape {tuple(p.shape)}", p, module) for p in self._bound]  # type: ignore[arg-type]

    def _steered_scales(self) -> list[float | Tensor]:
        return [group["scale"] for group in self.param_groups]

    def _steer(self, scales: Sequence[float | Tensor]) -> None:
        for group, scale in zip(self.param_groups, scales, strict=False):
            group["scale"] = scale

    def _end_penalty(self) -> bool:
        self.fix_support()
        return True

    def _needed_later(self, group: Group) -> Sequence[Tensor]:
        return [*super()._needed_later(group), *(with_gradients(group) if self._keeps_old_weights(group) else ())]

    def _keeps_old_weights(self, group: Group) -> bool:
        return bool(group["support_fixed"])

    def _before_update(self) -> Plan:
        for group in self.param_groups:
            if not group["support_fixed"]:
                self._refuse_second_decay(group)  # a checkpoint or a schedule may have set the decay
        return super()._before_update()

    def _after_update(self, old: Weights, plan: Plan) -> None:
        super()._after_update(old, plan)
        for group in self.param_groups:
            for param in with_gradients(group):
                penalty = self._bound.get(param)
                if penalty is None or not param.requires_grad:
                    continue
                if group["support_fixed"]:
                    param.masked_fill_(old[param] == 0, 0)
                elif not self._has_taken_proximal_step(param):
                    self._take_proximal_step_(penalty, param, group, old)

    def _has_taken_proximal_step(self, param: Tensor) -> bool:
        """Whether the update has included the proximal step."""
        return False

    @abstractmethod
    def _take_proximal_step_(self, penalty: ProximalPenalty, param: Tensor, group: Group, old: Weights) -> None:
        """``param = prox(param)``, with the step of the base's update."""

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "penalty": self.penalty, "_bound": self._bound}


def apply_prox_(penalty: ProximalPenalty, w: Tensor, step: float | Tensor) -> None:
    """``w = prox(w, step)``, in place; differentiable if gradients are enabled."""
    if torch.is_grad_enabled():  # a differentiable step: its formulas need the old w
        w.copy_(penalty.prox(w.clone(), step))
    else:
        penalty._prox_(w, step)

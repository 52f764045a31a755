"""A penalty on selected parameters of a model, in one of four modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreg.hooks import Carried, Group, StepHooks, check_steps
from torchreg.penalties import Penalty
from torchreg.regularizer.compatibility import (
    Decays,
    check_attachable,
    check_decay,
    check_new,
    check_optimizers,
    warn_of_frozen,
)
from torchreg.regularizer.copies import check_copy
from torchreg.regularizer.model_penalty import Mode, ModelPenalty
from torchreg.regularizer.rounding import RoundingCheck
from torchreg.regularizer.steering import steered_optimizer, steered_places
from torchreg.regularizer.summary import attached_to, name_in_checkpoints, table
from torchreg.schedules import Schedule, check_schedule
from torchreg.selection.modules import check_model
from torchreg.selection.parameters import ParamInfo
from torchreg.selection.selectors import Selector, as_selector, weights
from torchreg.steps.computed import add_gradients_through
from torchreg.steps.kernels import warn_of_no_kernels
from torchreg.steps.plan import Gradients, Plan, Plans
from torchreg.steps.steered import Steered
from torchreg.steps.updates import add_gradients, descend, take_proximal_steps


class Regularizer(ModelPenalty, Steered):
    r"""Applies a penalty to selected parameters of an existing model. It does not change the model.

    Training then minimizes

    .. math:: L(w) + \text{scale} \cdot \sum_{\text{selected } w_j} R(w_j)

    where :math:`L` is the mean loss. The mode says how:

    =============  ===========================================  ==============================================
    mode           what it does                                 same result as
    =============  ===========================================  ==============================================
    "loss"         you add ``value()`` to the loss, or call     autograd
                   ``penalize(criterion)``
    "grad"         before the step: ``grad += dR(w)``           mode "loss"; ``SGD(weight_decay=s)`` for L2(s)
    "decoupled"    before the step: ``w -= lr * dR(w)``         ``AdamW(weight_decay=s)`` for L2(s)
    "prox"         after the step: ``w = prox(w, lr)``          the exact Lasso, Ridge or elastic net, with zeros
    =============  ===========================================  ==============================================

    A regularizer in one of the last three modes is attached to an optimizer; the training loop does not change. The
    penalty is applied once per optimizer step, also under gradient accumulation, loss scaling, closures and with tied
    parameters. A frozen parameter, or one whose ``grad`` is None, is not changed, as in torch's optimizers. Mode "grad"
    acts after gradient clipping. It leaves the penalized gradient in ``.grad``, as mode "loss" does.

    Of a parametrized or pruned layer the penalty is that of the weight that the layer uses. Modes "decoupled" and
    "prox", which change what is stored, refuse such weights, except for masks. If the model changes, its new parameters
    are selected in the next step or :meth:`value`.

    Args:
        model: any module without lazy parameters.
        penalty: a penalty, or a dict of name patterns to penalties. The first pattern that matches is used.
        mode: ``"loss"``, ``"grad"``, ``"decoupled"`` or ``"prox"``.
        select: which parameters; by default :data:`~torchreg.weights`: no biases, no parameters of normalization.
        schedule: a function from the number of steps made to ``scale``; see :mod:`torchreg.schedules`.
        every: the penalty acts in each ``every``-th step only, and then as strongly as in all of them together: for
            modes "decoupled" and "prox" of penalties that cost more than a step, such as
            :class:`~torchreg.Nuclear`. While ``every * lr * strength`` is small, the result is nearly the same; mode
            "prox" is stable beyond that. A compiled or captured step must be one with ``every=1``.
        compile: whether :func:`torch.compile` makes a kernel of an elementwise penalty, which takes one pass over a
            large weight instead of several. It pays for networks whose steps take ten milliseconds or more. Compiling
            takes some seconds at the first step, once for all strengths, and needs a C++ compiler. Without a compiler
            there is a warning, and the usual step, and so there is for other penalties. The last bits may differ.

    Attributes:
        scale: multiplies every penalty. It is a number or a 0-d tensor; for a :class:`~torchreg.Stacked` model also a
            tensor with one scale for each member; or a dict with a scale for the name of each penalized parameter. A
            schedule overwrites it each step.
        entries: each parameter of the model with its penalty, or with the reason why it has none.

    Raises:
        ValueError: nothing is selected, a pattern matches no parameter, the mode is unknown, a parameter is lazy, or
            the penalty has no proximal operator in mode "prox", or the mode cannot change a parametrized weight.
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
        every: int = 1,
        compile: bool = False,
    ) -> None:
        check_model("Regularizer", model)
        if mode not in get_args(Mode):
            raise ValueError(f"Regularizer: mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"Regularizer: every must be a whole number >= 1, got {every!r}")
        if every > 1 and mode not in ("decoupled", "prox"):
            raise ValueError(f"Regularizer: every={every} needs mode 'decoupled' or 'prox', got {mode!r}")
        if schedule is not None:
            check_schedule("Regularizer", schedule)
        super().__init__(model, penalty, mode, as_selector(select), schedule, compile)
        self._every = every
        # called with the regularizer and the optimizer in each step, before the regularizer acts
        self._listeners: list[Callable[[Regularizer, Optimizer], object]] = [RoundingCheck()]
        if compile:
            warn_of_no_kernels("Regularizer", (a.penalty for a in self._penalized.entries if a.penalty is not None))
        self._register(())
        self._follow_schedule()
        self._is_used = False

    @property
    def every(self) -> int:
        """The number of steps in one of which the penalty acts."""
        return self._every

    def attach(self, *optimizers: Optimizer) -> Self:
        """Applies the penalty in every step of the optimizer from now on. In mode "loss" only the schedule follows it.

        If several optimizers train the model, pass all of them, in the order of their steps; the schedule counts the
        steps of the last one. As a context manager it detaches at the end: ``with regularizer.attach(optimizer): ...``
        Until then the optimizer's ``state_dict``, of several the last one's, contains the regularizer's. If it was
        loaded before, the regularizer goes on where the saved one was.

        Returns:
            The regularizer itself.

        Raises:
            ValueError: the regularizer is attached already; a penalized parameter is in none of the optimizers, or has
                an L2 penalty beside the optimizer's own weight decay; in mode "decoupled" or "prox" an optimizer is
                LBFGS or has no ``lr``; the optimizer's steps are not what the mode assumes, see the guide "What
                torchreg can and cannot see"; in mode "loss" there is no schedule; the optimizer trains a copy of the
                model, or has loaded the state of a regularizer that is not equal.
            TypeError: an argument is no ``torch.optim.Optimizer``.
        """
        self._is_used = True  # also if it is refused
        check_attachable(
            optimizers,
            attached=self._optimizers,
            mode=self.mode,
            schedule=self.schedule,
            every=self.every,
            has_joint=self._penalized.has_joint,
        )
        self._check_parameters()
        self.scale = self.scale  # again, for a model that was moved since
        if self.mode == "loss":
            check_copy(optimizers, self.entries)
        else:
            check_optimizers(optimizers, self.entries, self.mode)
        for optimizer in optimizers:
            check_steps("Regularizer", optimizer, self.mode)
            check_decay(optimizer, self.entries)
        self._register(optimizers)
        warn_of_frozen(self.entries)
        return self

    def remove(self) -> None:
        """Detaches from the optimizer, whose further steps are as without a regularizer. It may be called twice."""
        for hooks in self._hooks:
            hooks.remove()
        self._register(())

    def step(self) -> None:
        """Advances the schedule by one step, if the regularizer is not attached.

        Raises:
            ValueError: the regularizer is attached, so that it counts the steps of its optimizer itself.
        """
        if self._hooks:
            raise ValueError(
                f"Regularizer: step() is for a regularizer that is not attached, this one counts the steps of "
                f"{type(self._optimizers[-1]).__name__}: leave step() out"
            )
        self._advance()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    def _register(self, optimizers: tuple[Optimizer, ...], *, resumes: bool = True) -> None:
        """Acts in the steps of these optimizers, and of no others."""
        objective = self._objective if self.mode == "grad" else None
        act = self._on_gradients, self._after_step, objective
        carried = [Carried(optimizers[-1], self, self._carried_name, resumes=resumes)] if optimizers else []
        hooks = [StepHooks(optimizer, *act, owner="Regularizer") for optimizer in optimizers]
        self._hooks: tuple[StepHooks | Carried, ...] = (*carried, *hooks)
        self._optimizers, self._decays, self._plans = optimizers, Decays(optimizers), Plans()

    def _objective(self, optimizer: Optimizer) -> Tensor:
        """The difference between the loss of a closure and the function that the optimizer minimizes or maximizes."""
        return -self.value() if optimizer.param_groups[0].get("maximize") else self.value()

    def _on_gradients(self, optimizer: Optimizer, evaluation: int) -> None:
        if not torch.compiler.is_compiling():
            if not self._penalized.is_current():
                self._check_parameters()
            if self._penalized.has_ridge:
                self._decays.check(optimizer, self._penalized.entries)
        mode = self.mode
        if self._listeners and evaluation == 0 and mode != "prox":
            self._tell(optimizer)
        if mode == "grad":
            plan, gradients = self._planned(optimizer)
            add_gradients(plan, gradients, self._scales.of_key, self.compile)
            for a in self._penalized.computed:
                assert a.acting is not None
                assert a.computed is not None
                add_gradients_through(optimizer, a.acting, a.computed, self._scales.of_key(a.key))
        elif mode == "decoupled" and evaluation == 0 and self._is_due:
            plan, _ = self._planned(optimizer)
            descend(plan, self._scales.of_key, self.compile, self.every)

    def _after_step(self, optimizer: Optimizer) -> None:
        if self.mode == "prox":
            if self._listeners:
                self._tell(optimizer)
            if self._is_due:
                plan, _ = self._planned(optimizer)
                take_proximal_steps(plan, self._scales.of_key, self.compile, self.every)
        if optimizer is self._optimizers[-1]:
            self._advance()

    @property
    def _is_due(self) -> bool:
        """Whether the penalty acts in this step."""
        return self.every == 1 or (self._steps + 1) % self.every == 0

    def _planned(self, optimizer: Optimizer) -> tuple[Plan, Gradients]:
        """What a step of the optimizer changes, and the gradients of these parameters now."""
        return self._plans.now(optimizer, self._penalized.acting, self._scales.of_key, self.mode == "grad")

    def _acting_in(self, optimizer: Optimizer) -> Iterator[tuple[Group, nn.Parameter, Penalty, float | Tensor]]:
        """The weights that the coming step changes: their group, their bound penalty, and its scale."""
        for _, group, param, penalty in self._planned(optimizer)[0].changed:
            yield group, param, penalty, self._scales.of_key(param)

    def _look_again(self) -> None:
        before = self._penalized.entries
        super()._look_again()
        if self._optimizers:
            check_new(self._optimizers, before, self._penalized.entries)

    def _changed(self) -> None:
        self._plans.clear()

    def _tell(self, optimizer: Optimizer) -> None:
        for listener in self._listeners:
            listener(self, optimizer)

    # -- steered by a controller ----------------------------------------------------------------------------------

    def _steered_in(self, owner: str) -> Optimizer:
        return steered_optimizer(owner, self._optimizers, self.mode, self.schedule, self.model, self.entries)

    def _steered_places(self) -> Sequence[ParamInfo]:
        return steered_places(self._optimizers[0], self._penalized.entries)

    def _steered_scales(self) -> list[float | Tensor]:
        return self._scales.each()

    def _steer(self, scales: Sequence[float | Tensor]) -> None:
        self.scale = self._scales.with_each(scales)

    def _end_penalty(self) -> bool:
        self._steer([0.0 * scale for scale in self._steered_scales()])
        return False

    # -- copying -------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        self._is_used = True  # in the copy
        attached = ("_hooks", "_decays", "_plans")
        return {key: own for key, own in vars(self).items() if key not in attached} | {"_listeners": []}

    @property
    def _is_counting(self) -> bool:
        return self.schedule is not None or self.every > 1

    @property
    def _carried_name(self) -> str:
        return name_in_checkpoints(self._penalized.entries, self.mode, self.schedule, self.every)

    def __copy__(self) -> Self:
        """The copy is detached: two regularizers on one optimizer would apply the penalty twice."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__, _listeners=[], _is_used=True)
        twin._register(())
        return twin

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._register(self._optimizers, resumes=False)  # a copied optimizer has lost its hooks

    def __repr__(self) -> str:
        first, *rows = table(self.entries).splitlines()
        attachment = attached_to(self._optimizers, self.mode, self.schedule)
        return "\n".join([f"Regularizer(mode={self.mode!r}, scale={self.scale!r}): {first}", *attachment, *rows])

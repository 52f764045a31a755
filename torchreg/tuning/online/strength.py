"""Strengths that are tuned during training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreg.ensemble.stacked import Stacked
from torchreg.hooks import Carried, StepHooks, checked_steps, is_skipped
from torchreg.regularizer import Regularizer
from torchreg.selection.modules import kind_of, listed
from torchreg.tuning.online.arguments import checked_bounds, checked_count, checked_lr, checked_spread
from torchreg.tuning.online.held_out import Batches, check_criterion, evaluating, loss_of
from torchreg.tuning.online.hypergradient import (
    PenaltyUpdate,
    check_differentiable,
    effect,
    hypergradients,
    penalty_updates_of,
)
from torchreg.tuning.online.tuned import Per, TunedStrength, tuned_strengths, with_distinct_names


class AutoStrength:
    r"""Tunes the strength of a regularizer in one run, by the gradient of the loss on held-out examples.

    .. math:: \log c \leftarrow \log c - \eta_c \frac{\bar h}{\sqrt{\overline{h^2}}}, \qquad
              h = \Big\langle \nabla L_{\text{val}}(w'), \frac{\partial w'}{\partial c} \Big\rangle

    where :math:`w'(c)` are the weights after a step of the optimizer with the scale :math:`c`, and bars are running
    averages, as in Adam. A step changes the strength by a factor of at most about :math:`e^{\eta_c}`; the initial
    strength matters little; it is that of the penalty times the regularizer's ``scale``. The strength stays above one
    whose largest effect on the weights in a step so far, relative to their norm, is 1e-6:

    .. math:: c \max_t \frac{\lVert \partial w'_t / \partial c \rVert}{\lVert w_t \rVert} \ge 10^{-6}

    Weaker ones act alike, and the way up from them would take much of a run. This replaces a search over a
    grid. It costs about one more forward and backward pass in every fourth step, in which the strength moves as far as
    in four. It looks one step ahead only, so it favors strengths with an early benefit: use it with modes "decoupled"
    and "prox", not with L1 in mode "grad" under Adam.

    Args:
        regularizer: a regularizer in mode ``"grad"``, ``"decoupled"`` or ``"prox"``, or several that share the held-out
            batches. Mode ``"grad"`` needs SGD, Adam or AdamW. Mode ``"decoupled"`` needs one of these or an optimizer
            without its own decay.
        validation: held-out examples: two tensors (inputs and targets), or any iterable of such pairs, such as a data
            loader, which is repeated. Batches are moved to the model's device. A batch that is a mapping, as
            transformers have it, is passed to the model as keywords.
        criterion: the loss of outputs and targets on the held-out examples; for batches that are mappings, of outputs
            and the batch.
        lr: :math:`\eta_c`, the size of a step of the log-strength, for each step of the optimizer.
        every: the number of steps of the optimizer after which the strength moves, then by ``every`` steps at once.
        per: ``"regularizer"``: one strength for each regularizer; ``"parameter"``: one for each parameter.
        spread: for ``"parameter"``, about the largest ratio of a strength to the geometric mean of those of its
            regularizer, relative to where they start. Each is drawn to the mean, because the slope of one alone is
            mostly noise. ``math.inf`` lets them go.
        bounds: the smallest and the largest strength to begin with and to reach. For a sum, or for several penalties by
            patterns, they bound the common factor that is tuned.
        batch_size: the size of batches from two tensors, which are shuffled in each pass.
        seed: of the shuffling.

    Attributes:
        strengths: the current strengths by name.

    Raises:
        ValueError: mode "loss", a stack, no examples, a strength or a scale of 0, a strength that starts outside
            ``bounds``, different scales for one strength, or an argument out of range; in :meth:`attach` an optimizer
            whose steps cannot be differentiated.

    Example:
        >>> from torchreg import L2, Regularizer
        >>> model = nn.Linear(4, 1)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        >>> regularizer = Regularizer(model, L2(1e-4), mode="decoupled")
        >>> held_out = torch.randn(20, 4), torch.randn(20, 1)
        >>> auto = AutoStrength(regularizer, held_out, nn.MSELoss()).attach(optimizer)
        >>> for _ in range(4):
        ...     optimizer.zero_grad()
        ...     (model(torch.ones(8, 4)) ** 2).mean().backward()
        ...     optimizer.step()
        >>> auto.strengths["L2"] != 1e-4
        True
        >>> auto.remove()

    References:
        Jelena Luketina, Mathias Berglund, Klaus Greff, Tapani Raiko, "Scalable Gradient-Based Tuning of Continuous
        Regularization Hyperparameters", ICML 2016.
    """

    def __init__(
        self,
        regularizer: Regularizer | Sequence[Regularizer],
        validation: tuple[Tensor, Tensor] | Iterable[tuple[Any, Any]],
        criterion: Callable[[Any, Any], Tensor],
        *,
        lr: float = 0.05,
        every: int = 4,
        per: Per = "regularizer",
        spread: float = 10.0,
        bounds: tuple[float, float] = (1e-8, 1e4),
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        is_one = isinstance(regularizer, str | bytes | Tensor) or not isinstance(regularizer, Iterable)
        self.regularizers: tuple[Regularizer, ...] = (regularizer,) if is_one else tuple(regularizer)  # type: ignore[assignment, arg-type]
        _check(self.regularizers, per)
        check_criterion("AutoStrength", criterion)
        self.criterion = criterion
        self.lr = checked_lr("AutoStrength", lr)
        self.every = checked_count("AutoStrength", "every", every)
        self.spread = checked_spread("AutoStrength", spread)
        self.bounds = checked_bounds("AutoStrength", bounds, math.inf)
        self.model = self.regularizers[0].model
        self._batches = Batches("AutoStrength", validation, batch_size, seed)
        self._tuned = with_distinct_names([item for each in self.regularizers for item in tuned_strengths(each, per)])
        self._start()
        self._steps = 0
        self._updates: dict[Optimizer, list[PenaltyUpdate]] = {}
        self._stepped: set[Optimizer] = set()  # those whose last step is recorded
        self._optimizers: tuple[Optimizer, ...] = ()
        self._hooks: tuple[StepHooks | Carried, ...] = ()
        self._attached: list[Regularizer] = []

    def _start(self) -> None:
        """Starts from the regularizers' scales, where they were set anew."""
        for item in self._tuned:
            item.start(self.bounds)

    @property
    def strengths(self) -> dict[str, float]:
        """The current strengths by name: of each regularizer, or of each parameter."""
        return {item.name: item.strength for item in self._tuned}

    def attach(self, *optimizers: Optimizer) -> Self:
        """Tunes the strengths during the optimizer's steps from now on; attaches unattached regularizers.

        Returns:
            The object itself, which is also a context manager that detaches at the end.
        """
        if self._hooks:
            raise ValueError("AutoStrength: already attached: call remove() first")
        for regularizer in self.regularizers:
            for optimizer in optimizers:
                check_differentiable(regularizer, optimizer)
            if regularizer._optimizers not in ((), optimizers):
                raise ValueError("AutoStrength: attach() takes the optimizers that the regularizer is attached to")
        self._start()
        try:
            for regularizer in self.regularizers:
                if not regularizer._optimizers:
                    regularizer.attach(*optimizers)
                    self._attached.append(regularizer)
            self._set_scales()
            self._listen(optimizers)
        except Exception:
            self.remove()
            raise
        return self

    def _listen(self, optimizers: tuple[Optimizer, ...], *, resumes: bool = True) -> None:
        for regularizer in self.regularizers:
            regularizer._listeners.append(self._note)
        self._optimizers = optimizers
        hooks = (StepHooks(o, _nothing, self._after_step, owner="AutoStrength") for o in optimizers)
        self._hooks = (Carried(optimizers[-1], self, ", ".join(self.strengths), resumes=resumes), *hooks)

    def remove(self) -> None:
        """Detaches, also the regularizers that it has attached. The strengths keep their current values."""
        for hooks in self._hooks:
            hooks.remove()
        for regularizer in self.regularizers:
            if self._note in regularizer._listeners:
                regularizer._listeners.remove(self._note)
        for regularizer in self._attached:
            regularizer.remove()
        self._hooks, self._optimizers, self._attached = (), (), []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    # -- in the optimizer's step ----------------------------------------------------------------------------------

    @property
    def _is_due(self) -> bool:
        return (self._steps + 1) % self.every == 0

    def _note(self, regularizer: Regularizer, optimizer: Optimizer) -> None:
        if optimizer in self._stepped:  # it steps more often than the others: its last step counts
            self._updates.pop(optimizer, None)
            self._stepped.discard(optimizer)
        if self._is_due:
            self._updates.setdefault(optimizer, []).extend(penalty_updates_of(regularizer, optimizer))

    def _after_step(self, optimizer: Optimizer) -> None:
        self._stepped.add(optimizer)
        was_due = self._is_due
        is_none = was_due and is_skipped(optimizer)
        if is_none:
            self._updates.pop(optimizer, None)
        if optimizer is not self._optimizers[-1]:
            return
        if was_due and any(self._updates.values()):
            self._tune()
            is_none = False
        self._updates.clear()
        if not is_none:  # else the next step is the one to look at
            self._steps += 1

    def _tune(self) -> None:
        self._start()
        by_param: dict[nn.Parameter, list[PenaltyUpdate]] = {}
        for updates in self._updates.values():
            for update in updates:
                by_param.setdefault(update.param, []).append(update)
        found: dict[tuple[Regularizer, nn.Parameter], list[Tensor]] = {}
        for param, gradient in self._gradients(list(by_param)).items():
            own = by_param[param]
            for update, slope in zip(own, hypergradients(own, gradient), strict=True):
                found[update.regularizer, param] = [slope, *effect(update)]
        numbers = iter(_numbers([number for each in found.values() for number in each]))
        looked = {place: [next(numbers) for _ in each] for place, each in found.items()}
        means = {each: _mean_log_scale(self._tuned, each) for each in self.regularizers}
        pull = min(self.lr * self.every / math.log(self.spread), 1.0)
        for item in self._tuned:
            parts = [looked[item.regularizer, param] for param in item.params if (item.regularizer, param) in looked]
            if parts:
                slope, size, change = (sum(column) for column in zip(*parts, strict=True))
                item.note(change, size)
                drawn = pull * (means[item.regularizer] - item.log_scale)
                item.move(slope, self.lr, self.bounds, self.every, drawn)
        self._set_scales()

    def _gradients(self, params: list[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
        """The gradients of the held-out loss, in evaluation mode."""
        with evaluating(self.model), torch.enable_grad():
            loss = loss_of(self.model, self.criterion, next(self._batches))
            gradients = torch.autograd.grad(loss, params, allow_unused=True)
        return {param: gradient for param, gradient in zip(params, gradients, strict=True) if gradient is not None}

    def _set_scales(self) -> None:
        """Sets the scales of the regularizers."""
        for regularizer in self.regularizers:
            tuned = [item for item in self._tuned if item.regularizer is regularizer]
            if len(tuned) == 1:
                regularizer.scale = tuned[0].scale
            else:
                names = {a.param: a.name for a in regularizer.entries if a.acting is not None}
                regularizer.scale = {names[param]: item.scale for item in tuned for param in item.params}

    # -- saving ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The strengths, the averages and the position in the held-out examples, if these have a length.

        It can be loaded with ``torch.load(weights_only=True)``.
        """
        tuned = {item.name: [item.log_scale, item.unit, *item.moments, item.reach] for item in self._tuned}
        return {"steps": self._steps, "batches": self._batches.count, "knobs": tuned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` saved."""
        names = [item.name for item in self._tuned]
        if set(state) != {"steps", "batches", "knobs"} or list(state["knobs"]) != names:
            raise ValueError(f"AutoStrength: state must be that of the strengths {', '.join(names)}, got {list(state)}")
        for name, numbers in state["knobs"].items():
            if len(numbers) not in (5, 6) or not all(map(math.isfinite, numbers)):  # 5 in records of version 0.1
                raise ValueError(f"AutoStrength: state must hold 6 finite numbers for {name}, got {numbers}")
        steps, batches = (checked_steps("AutoStrength", state[key]) for key in ("steps", "batches"))
        loaded = [
            (log_scale + math.log(unit / item.unit), (mean, square, count), sum(reach) * item.unit / unit)
            for item, (log_scale, unit, mean, square, count, *reach) in zip(
                self._tuned, state["knobs"].values(), strict=True
            )
        ]
        self._steps = steps
        self._batches.go_to(batches)
        for item, (log_scale, moments, reach) in zip(self._tuned, loaded, strict=True):
            item.log_scale, item.moments, item.reach = log_scale, moments, reach
        self._set_scales()

    @property
    def _is_counting(self) -> bool:
        return True

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hooks": (), "_updates": {}, "_stepped": set()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._optimizers:
            self._listen(self._optimizers, resumes=False)  # copied regularizers and optimizers have lost their hooks

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}: {strength:.3g}" for name, strength in self.strengths.items())
        return f"AutoStrength({shown})"


def _mean_log_scale(tuned: Sequence[TunedStrength], regularizer: Regularizer) -> float:
    own = [item.log_scale for item in tuned if item.regularizer is regularizer]
    return sum(own) / len(own)


def _numbers(slopes: list[Tensor]) -> list[float]:
    """The slopes as numbers; a device is waited for once."""
    numbers: list[float] = torch.stack([slope.to(slopes[0].device) for slope in slopes]).tolist() if slopes else []
    return numbers


def _check(regularizers: Sequence[Regularizer], per: Per) -> None:
    wrong = [kind_of(each) for each in regularizers if not isinstance(each, Regularizer)]
    if wrong or not regularizers:
        got = wrong[0] if wrong else "none"
        raise TypeError(
            f"AutoStrength: regularizer must be a Regularizer or several, got {got}: the order is regularizer, "
            "validation, criterion"
        )
    for each in regularizers:
        if each.mode == "loss":
            raise ValueError("AutoStrength: mode must be 'grad', 'decoupled' or 'prox', got 'loss'")
        if each.schedule is not None:
            raise ValueError("AutoStrength: the regularizer must have no schedule, because both would set its scale")
        if each.every > 1:
            raise ValueError(f"AutoStrength: the regularizer must act in each step, every=1, got every={each.every}")
        computed = [a.name for a in each.entries if a.acting is not None and a.computed is not None]
        if computed:
            raise ValueError(
                f"AutoStrength: the penalized weights must be parameters, {listed(computed)} are computed by "
                "parametrizations: exempt them with select, or remove the parametrizations"
            )
        if isinstance(each.model, Stacked):
            raise ValueError("AutoStrength: the model must not be a stack: use its members()")
        if each.model is not regularizers[0].model:
            raise ValueError("AutoStrength: the regularizers must be of one model, got several")
    if per not in get_args(Per):
        raise ValueError(f"AutoStrength: per must be one of {', '.join(get_args(Per))}, got {per!r}")


def _nothing(optimizer: Optimizer, evaluation: int) -> None:
    """The regularizers record everything before they act."""

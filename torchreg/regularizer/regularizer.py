"""A penalty on selected parameters of a model, in one of four modes."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Self, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from torchreg.ensemble.stacked import Stacked
from torchreg.functional.sharding import is_sharded
from torchreg.hooks import Carried, Group, StepHooks, check_steps, checked_steps
from torchreg.penalties import Penalty
from torchreg.penalties.constraints import Constraint
from torchreg.penalties.joint import by_whole, whole_of
from torchreg.regularizer.assignment import Assignment, as_rules, taken
from torchreg.regularizer.compatibility import check_decay, check_new, check_optimizers, minimized, warn_of_frozen
from torchreg.regularizer.copies import check_copy
from torchreg.regularizer.penalized import Penalized, Trained
from torchreg.regularizer.penalized_loss import PenalizedLoss
from torchreg.regularizer.rounding import RoundingCheck
from torchreg.regularizer.summary import table
from torchreg.regularizer.value import joint_value, penalty_value, warn_of_constants
from torchreg.schedules import Schedule, check_scale, check_schedule
from torchreg.selection.modules import check_model, listed
from torchreg.selection.parameters import ParamInfo, unwrapped
from torchreg.selection.selectors import Selector, as_selector, weights
from torchreg.steps.computed import add_gradients_through
from torchreg.steps.kernels import warn_of_no_kernels
from torchreg.steps.plan import Gradients, Plan
from torchreg.steps.steered import Steered
from torchreg.steps.updates import add_gradients, descend, take_proximal_steps

Mode = Literal["loss", "grad", "decoupled", "prox"]
Scale: TypeAlias = float | Tensor | Mapping[str, float | Tensor]


class Regularizer(Steered):
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
        self._every = every
        self.model = model
        if schedule is not None:
            check_schedule("Regularizer", schedule)
        self.mode: Mode = mode
        self.schedule = schedule
        self.compile = compile
        self._scale: Scale = 1.0
        self._own_scales: Mapping[Any, float | Tensor] = {}  # by parameter, if the scale is a dict
        # called with the regularizer and the optimizer in each step, before the regularizer acts
        self._listeners: list[Callable[[Regularizer, Optimizer], object]] = [RoundingCheck()]
        self._penalized = Penalized(model, as_rules(penalty, mode), as_selector(select), mode)
        if schedule is not None and any(
            isinstance(term, Constraint) for a in self._penalized.entries for term in a.terms
        ):
            raise ValueError(
                "Regularizer: a constraint has no strength that a schedule could change: make one Regularizer for the "
                "constraint, without a schedule, and one for the rest"
            )
        if compile:
            warn_of_no_kernels("Regularizer", (a.penalty for a in self._penalized.entries if a.penalty is not None))
        self._steps = 0
        self._optimizers: tuple[Optimizer, ...] = ()
        self._hooks: tuple[StepHooks | Carried, ...] = ()
        self._decays: dict[Optimizer, list[float | Tensor]] = {}
        self._plans: dict[Optimizer, Plan] = {}
        self._follow_schedule()
        self._is_used = False

    _is_used = True  # whether it was attached, asked for its value, looked at, or refused; else it warns when it dies

    @property
    def entries(self) -> Sequence[Assignment]:
        """Each parameter of the model once, with its penalty or the reason why it has none."""
        self._is_used = True
        return self._penalized.entries

    def _take(self, penalized: Penalized) -> None:
        self._penalized, self._own_scales, self._plans = penalized, {}, {}
        self.scale = self._scale

    @property
    def every(self) -> int:
        """The number of steps in one of which the penalty acts."""
        return self._every

    @property
    def scale(self) -> Scale:
        """The factor of every penalty."""
        return self._scale

    @scale.setter
    def scale(self, scale: Scale) -> None:
        if not isinstance(scale, Mapping):
            self._scale = self._checked_scale(scale)
            if self._own_scales:
                self._own_scales, self._plans = {}, {}
            return
        names = {a.name: a for a in self.entries if a.acting is not None}
        if scale.keys() != names.keys():
            raise ValueError(
                f"Regularizer: scale must name each penalized parameter, {listed(list(names))}, "
                f"got {listed(list(scale)) or 'none'}"
            )
        self._scale = {name: self._checked_scale(own) for name, own in scale.items()}
        self._own_scales = {key: self._scale[a.name] for a in names.values() for key in (a.key, *a.stored)}
        self._plans = {}

    def _scale_of(self, key: nn.Parameter | str) -> float | Tensor:
        """The scale of a parameter, or of a weight that its layer computes, by its name."""
        return self._own_scales[key] if self._own_scales else self._scale  # type: ignore[return-value]

    def _checked_scale(self, scale: float | Tensor) -> float | Tensor:
        """The scale; one for each member of a stack lies on the stack's device."""
        if not isinstance(self.model, Stacked):
            return check_scale("Regularizer", scale)
        scale = check_scale("Regularizer", scale, len(self.model))
        param = next(self.model.parameters(), None)
        return scale.to(param.device) if isinstance(scale, Tensor) and scale.ndim and param is not None else scale

    # -- mode "loss": the penalty as a number ---------------------------------------------------------------------

    def value(self) -> Tensor:
        """``scale * sum R(w)`` over the penalized parameters, differentiable. It may be called in every mode.

        If the parameters are sharded over processes, every process must call it; all get the same value. Within a
        forward pass that :func:`torch.func.functional_call` runs, it is made of the tensors given there, elsewhere of
        the model's own parameters. Transforms of ``torch.func`` take no derivatives by these, which is warned of.

        Returns:
            A 0-d tensor; for a :class:`~torchreg.Stacked` model a tensor of shape ``(members,)``.

        Raises:
            ValueError: penalized parameters were replaced after the regularizer was created, as ``fully_shard`` does.
        """
        self._is_used = True
        given = self._check_parameters()
        few = None if given else self._penalized.few
        if few is not None and self.compile and few.has_kernels:
            few = None
        if few is not None and type(self._scale) is float and few.is_current():
            return few.value(self._scale)
        pairs = self._trained(given)
        return self._scaled_total(pairs) if pairs else torch.zeros(())

    def terms(self) -> dict[str, Tensor]:
        """The value of each kind of penalty, such as ``{"L1": tensor, "L2": tensor}``; for logging."""
        self._is_used = True
        kinds: dict[str, list[Trained]] = {}
        for penalty, weight, key in self._trained(self._check_parameters()):
            for term in penalty.terms:
                kinds.setdefault(term.label, []).append((term, weight, key))
        return {kind: self._scaled_total(pairs) for kind, pairs in kinds.items()}

    def _trained(self, given: Mapping[Tensor, Tensor]) -> list[Trained]:
        if not given:
            warn_of_constants("Regularizer")
        return self._penalized.trained(given)

    def _scaled_total(self, pairs: Sequence[Trained]) -> Tensor:
        if self._penalized.has_joint:
            joint = by_whole((penalty, (weight, self._scale_of(key))) for penalty, weight, key in pairs)
            alone = [pair for pair in pairs if whole_of(pair[0]) is None]
            values = [joint_value(whole, parts) for whole, parts in joint.items()]
            values += [self._total_of_each(alone)] if alone else []
            return torch.stack([value.to(values[0]) for value in values]).sum()
        return self._total_of_each(pairs)

    def _total_of_each(self, pairs: Sequence[Trained]) -> Tensor:
        """The sum over weights, each of which has a penalty of its own."""
        scale = self._scale
        if not isinstance(scale, Mapping):
            penalties, weights, _ = zip(*pairs, strict=True)
            if not isinstance(scale, Tensor):
                return penalty_value(penalties, weights, scale, self.compile)
            total = penalty_value(penalties, weights, compile=self.compile)
            return scale.to(total.device) * total  # those of a stack that was moved lie where it was
        first, *others = (
            self._scale_of(key) * penalty_value([penalty], [weight], compile=self.compile)
            for penalty, weight, key in pairs
        )
        for other in others:
            first = first + other.to(first.device)
        return first

    def penalize(self, criterion: Callable[..., Tensor]) -> PenalizedLoss:
        """The criterion plus the penalty while the model is in training mode; in evaluation mode the criterion alone.

        Raises:
            ValueError: the mode is not "loss", so that the penalty would be applied twice.
        """
        was_used, self._is_used = self._is_used, True
        if self.mode != "loss":
            raise ValueError(
                f"Regularizer: penalize() is for mode 'loss', this one has mode {self.mode!r}, which already acts "
                "in the optimizer: use one or the other"
            )
        loss = PenalizedLoss(self, criterion)
        self._is_used = was_used  # by the call of the loss, and not before
        return loss

    # -- the other modes: the penalty in the optimizer's step -----------------------------------------------------

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
        for optimizer in optimizers or (None,):
            if not isinstance(optimizer, Optimizer):
                got = "nothing" if optimizer is None else type(optimizer).__name__
                raise TypeError(
                    f"Regularizer: attach() takes a torch.optim.Optimizer, or several, got {got}: write "
                    "attach(optimizer) or attach(first, second)"
                )
            if "_optimizer_step_pre_hooks" not in vars(optimizer):  # it only looks like one, as accelerate's does
                raise TypeError(
                    f"Regularizer: attach() takes the optimizer itself, got the wrapper {type(optimizer).__name__}: "
                    "attach before it is wrapped"
                )
        if self._hooks:
            raise ValueError(
                f"Regularizer: already attached to {type(self._optimizers[0]).__name__}: call remove() first, "
                "or make a second Regularizer"
            )
        if self.mode == "loss" and self.schedule is None:
            raise ValueError(
                "Regularizer: mode 'loss' has nothing to attach: add value() to the loss or use penalize(criterion), "
                "or choose mode 'grad', 'decoupled' or 'prox'"
            )
        if self.every > 1 and len(optimizers) > 1:
            raise ValueError(
                f"Regularizer: every={self.every} counts the steps of one optimizer, got {len(optimizers)}: make a "
                "Regularizer for each, with select"
            )
        if self._penalized.has_joint and len(optimizers) > 1:
            raise ValueError(
                f"Regularizer: what acts on several weights together acts in the steps of one optimizer, got "
                f"{len(optimizers)}: make a Regularizer for each, with select"
            )
        self._check_parameters()
        self.scale = self._scale  # again, for a model that was moved since
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
        self._hooks = self._optimizers = ()
        self._plans = {}

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

    def _advance(self) -> None:
        self._steps += 1
        self._follow_schedule()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    def _register(self, optimizers: tuple[Optimizer, ...], *, resumes: bool = True) -> None:
        objective = self._objective if self.mode == "grad" else None
        carried = [Carried(optimizers[-1], self, self._carried_name, resumes=resumes)] if optimizers else []
        self._optimizers = optimizers
        self._decays = {optimizer: _decays(optimizer) for optimizer in optimizers}
        act = self._on_gradients, self._after_step, objective
        self._hooks = (*carried, *(StepHooks(optimizer, *act, owner="Regularizer") for optimizer in optimizers))

    def _objective(self, optimizer: Optimizer) -> Tensor:
        """The difference between the loss of a closure and the function that the optimizer minimizes or maximizes."""
        return -self.value() if optimizer.param_groups[0].get("maximize") else self.value()

    def _on_gradients(self, optimizer: Optimizer, evaluation: int) -> None:
        is_compiled = torch.compiler.is_compiling()
        if not is_compiled:
            if not self._penalized.is_current():
                self._check_parameters()
            if self._penalized.has_ridge and _decays(optimizer) != self._decays[optimizer]:
                self._check_decays(optimizer)
        mode = self.mode
        if self._listeners and evaluation == 0 and mode != "prox":
            self._tell(optimizer)
        if mode == "grad":
            plan, gradients = self._planned(optimizer, is_compiled)
            add_gradients(plan, gradients, self._scale_of, self.compile)
            for a in self._penalized.computed:
                assert a.acting is not None
                assert a.computed is not None
                add_gradients_through(optimizer, a.acting, a.computed, self._scale_of(a.key))
        elif mode == "decoupled" and evaluation == 0 and self._is_due:
            plan, _ = self._planned(optimizer, is_compiled)
            descend(plan, self._scale_of, self.compile, self.every)

    def _after_step(self, optimizer: Optimizer) -> None:
        if self.mode == "prox":
            if self._listeners:
                self._tell(optimizer)
            if self._is_due:
                plan, _ = self._planned(optimizer, torch.compiler.is_compiling())
                take_proximal_steps(plan, self._scale_of, self.compile, self.every)
        if optimizer is self._optimizers[-1]:
            self._advance()

    @property
    def _is_due(self) -> bool:
        """Whether the penalty acts in this step."""
        return self.every == 1 or (self._steps + 1) % self.every == 0

    def _planned(self, optimizer: Optimizer, is_compiled: bool) -> tuple[Plan, Gradients]:
        """What a step of the optimizer changes, and the gradients of these parameters now.

        A plan is kept, unless a compiler or a CUDA graph records the step: what they record has memory of its own.
        """
        plan = None if is_compiled else self._plans.get(optimizer)
        if plan is not None and (gradients := plan.gradients()) is not None:
            return plan, gradients
        plan = Plan(optimizer, self._penalized.acting, self._scale_of, takes_gradients=self.mode == "grad")
        if not (is_compiled or plan.is_captured()):
            self._plans[optimizer] = plan
        return plan, [param.grad for param in plan.params]

    def _acting_in(self, optimizer: Optimizer) -> Iterator[tuple[Group, nn.Parameter, Penalty, float | Tensor]]:
        """The weights that the coming step changes: their group, their bound penalty, and its scale."""
        for _, group, param, penalty in self._planned(optimizer, torch.compiler.is_compiling())[0].changed:
            yield group, param, penalty, self._scale_of(param)

    def _tell(self, optimizer: Optimizer) -> None:
        for listener in self._listeners:
            listener(self, optimizer)

    def _check_parameters(self) -> Mapping[Tensor, Tensor]:
        """Looks at the model again if its modules or parameters have changed.

        Returns:
            The tensors that ``functional_call`` has put in place of parameters, if it is running.

        Raises:
            ValueError: the model no longer holds a penalized parameter.
        """
        if torch.compiler.is_compiling() or self._penalized.is_current():
            return {}
        if given := self._penalized.given():
            return given
        before = self.entries
        self._take(self._penalized.looked_again())
        if self._optimizers:
            check_new(self._optimizers, before, self.entries)
        return {}

    def _check_decays(self, optimizer: Optimizer) -> None:
        """Raises ``ValueError`` if weight decay beside an L2 came after :meth:`attach`: a new group, a schedule."""
        check_decay(optimizer, self.entries)
        self._decays[optimizer] = _decays(optimizer)

    def _follow_schedule(self) -> None:
        if self.schedule is not None:
            scale = self.schedule(self._steps)
            try:
                self.scale = scale
            except ValueError:
                raise ValueError(
                    f"Regularizer: schedule must return a finite scale >= 0, got {scale!r} at step {self._steps}"
                ) from None

    # -- steered by a controller ----------------------------------------------------------------------------------

    def _steered_in(self, owner: str) -> Optimizer:
        if self.mode != "prox":
            raise ValueError(f"{owner}: a Regularizer must have mode 'prox', which makes zeros, got {self.mode!r}")
        if len(self._optimizers) != 1:
            got = "none" if not self._optimizers else str(len(self._optimizers))
            raise ValueError(f"{owner}: a Regularizer must be attached to one optimizer, got {got}: attach it first")
        if self.schedule is not None:
            raise ValueError(f"{owner}: a Regularizer must have no schedule, which sets the same scale")
        if isinstance(self.model, Stacked):
            raise ValueError(f"{owner}: a stack of models has no common share of zeros: use each of its members()")
        if any(isinstance(term, Constraint) for a in self.entries for term in a.terms):
            raise ValueError(f"{owner}: a constraint has no strength to be steered: use Sparsest for an exact count")
        if any(is_sharded(p) for a in self.entries for p in a.stored):
            raise ValueError(f"{owner}: weights must not be sharded over processes: use a ProxSGD or a ProxAdam")
        return self._optimizers[0]

    def _steered_places(self) -> Sequence[ParamInfo]:
        params = {param for group in self._optimizers[0].param_groups for param in group["params"]}
        return [
            a.places[0] if a.computed is None else ParamInfo(a.name, param, a.places[0].module)
            for a in self._penalized.entries
            if a.acting is not None
            for param in a.stored
            if param.requires_grad and param in params
        ]

    def _steered_scales(self) -> list[float | Tensor]:
        return list(self._scale.values()) if isinstance(self._scale, Mapping) else [self._scale]

    def _steer(self, scales: Sequence[float | Tensor]) -> None:
        self.scale = dict(zip(self._scale, scales, strict=True)) if isinstance(self._scale, Mapping) else scales[0]

    def _end_penalty(self) -> bool:
        self._steer([0.0 * scale for scale in self._steered_scales()])
        return False

    # -- saving and copying ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The number of steps, the scale, and the references and weights that penalties have taken from the model.

        It can be loaded with ``torch.load(weights_only=True)``. While the regularizer is attached, the optimizer's
        ``state_dict`` contains it, so that it need not be saved.
        """
        scale = tree_map_only(Tensor, lambda own: own.detach().clone(), self.scale)
        return {"steps": self._steps, "scale": scale} | taken(self.entries)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` saved."""
        expected = self.state_dict()
        if set(state) != set(expected):
            keys = " and ".join(map(repr, expected))
            raise ValueError(f"Regularizer: state must have the keys {keys}, got {sorted(state)}")
        steps = checked_steps("Regularizer", state["steps"])
        tensors = {key: value for key, value in state.items() if key not in ("steps", "scale")}
        penalized = self._penalized.with_taken(tensors) if tensors else None
        self.scale, self._steps = state["scale"], steps
        if penalized is not None:
            self._take(penalized)

    def __getstate__(self) -> dict[str, Any]:
        self._is_used = True  # in the copy
        return self.__dict__ | {"_hooks": (), "_listeners": [], "_decays": {}, "_plans": {}}

    @property
    def _is_counting(self) -> bool:
        return self.schedule is not None or self.every > 1

    @property
    def _carried_name(self) -> str:
        """Tells it from other regularizers of the optimizer, also when a strength is another one."""
        labels = dict.fromkeys(term.label for a in self._penalized.entries for term in a.terms)
        names = [unwrapped(a.name) for a in self._penalized.entries if a.penalty is not None]
        mark = zlib.crc32("\n".join(names).encode())  # of the names, which may be thousands
        scheduled = "" if self.schedule is None else ", with a schedule"
        scheduled += "" if self.every == 1 else f", every {self.every} steps"
        return f"{'+'.join(labels)} on {len(names)} parameters ({mark:08x}), mode {self.mode!r}{scheduled}"

    @property
    def _title(self) -> str:
        """Its penalties and its mode."""
        penalties = dict.fromkeys(repr(a.penalty) for a in self._penalized.entries if a.penalty is not None)
        return f"{listed(list(penalties))} in mode {self.mode!r}"

    def __del__(self) -> None:
        if self._is_used:
            return
        if self.mode == "loss":
            done, advice = "asked for its value", "add value() to the loss, or use penalize(criterion) as the loss"
        else:
            done, advice = "attached", "call attach(optimizer)"
        warnings.warn(f"Regularizer: {self._title} was never {done} and had no effect: {advice}", stacklevel=2)

    def __copy__(self) -> Self:
        """The copy is detached: two regularizers on one optimizer would apply the penalty twice."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(
            self.__dict__, _optimizers=(), _hooks=(), _listeners=[], _decays={}, _plans={}, _is_used=True
        )
        return twin

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._register(self._optimizers, resumes=False)  # a copied optimizer has lost its hooks

    def __repr__(self) -> str:
        first, *rows = table(self.entries).splitlines()
        return "\n".join([f"Regularizer(mode={self.mode!r}, scale={self.scale!r}): {first}", *self._attachment, *rows])

    @property
    def _attachment(self) -> list[str]:
        """The line of its text that says what the regularizer is attached to; none if it need not be attached."""
        if not self._hooks:
            return [] if self.mode == "loss" and self.schedule is None else ["  not attached"]
        notes = [minimized(optimizer) if self.mode == "prox" else "" for optimizer in self._optimizers]
        each = [type(optimizer).__name__ + note for optimizer, note in zip(self._optimizers, notes, strict=True)]
        return [f"  attached to {' and '.join(each)}"]


def _decays(optimizer: Optimizer) -> list[float | Tensor]:
    decays = [group.get("weight_decay", 0) for group in optimizer.param_groups]
    return [d.item() if isinstance(d, Tensor) and d.device.type == "cpu" else d for d in decays]

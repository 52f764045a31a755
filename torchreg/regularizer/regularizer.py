"""A penalty on selected parameters of a model, in one of four modes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, Self, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from torchreg.ensemble.stacked import Stacked
from torchreg.functional.sharding import is_sharded
from torchreg.hooks import Carried, Group, StepHooks, check_steps
from torchreg.penalties import Penalty, Term
from torchreg.penalties.constraints import Constraint
from torchreg.regularizer.assignment import Assignment, as_rules, assign, references, with_references
from torchreg.regularizer.compatibility import check_decay, check_optimizers, minimized
from torchreg.regularizer.summary import table
from torchreg.regularizer.value import penalty_value
from torchreg.schedules import Schedule, check_scale
from torchreg.selection.modules import listed
from torchreg.selection.parameters import ParamInfo
from torchreg.selection.selectors import Selector, as_selector, weights
from torchreg.steps.updates import add_gradients, descend, stepped, take_proximal_steps

Mode = Literal["loss", "grad", "decoupled", "prox"]
Scale: TypeAlias = float | Tensor | Mapping[str, float | Tensor]


class Regularizer:
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

    Args:
        model: any module without lazy parameters.
        penalty: a penalty, or a dict of name patterns to penalties. The first pattern that matches is used.
        mode: ``"loss"``, ``"grad"``, ``"decoupled"`` or ``"prox"``.
        select: which parameters; by default :data:`~torchreg.weights`: no biases, no parameters of normalization.
        schedule: a function from the number of steps made to ``scale``; see :mod:`torchreg.schedules`.
        compile: whether :func:`torch.compile` makes a kernel of an elementwise penalty, which takes one pass over a
            large weight instead of several. It pays for networks whose steps take ten milliseconds or more. Compiling
            takes some seconds at the first step, once for all strengths, and needs a C++ compiler. Without a compiler
            there is a warning, and the usual step. The last bits may differ.

    Attributes:
        scale: multiplies every penalty. It is a number or a 0-d tensor; for a :class:`~torchreg.Stacked` model also a
            tensor with one scale for each member; or a dict with a scale for the name of each penalized parameter. A
            schedule overwrites it each step.
        entries: each parameter of the model with its penalty, or with the reason why it has none.

    Raises:
        ValueError: nothing is selected, a pattern matches no parameter, the mode is unknown, a parameter is lazy, or
            the penalty has no proximal operator in mode "prox".
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
        compile: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"Regularizer: model must be a torch.nn.Module, got {type(model).__name__}")
        if mode not in get_args(Mode):
            raise ValueError(f"Regularizer: mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        self.model = model
        if schedule is not None and not callable(schedule):
            raise TypeError(f"Regularizer: schedule must be a function of the step number, got {schedule!r}")
        self.mode: Mode = mode
        self.schedule = schedule
        self.compile = compile
        self._scale: Scale = 1.0
        # called with the regularizer and the optimizer in each step, before the regularizer acts
        self._listeners: list[Callable[[Regularizer, Optimizer], object]] = []
        self._take(assign(model, as_rules(penalty, mode), as_selector(select)))
        if schedule is not None and any(isinstance(term, Constraint) for a in self.entries for term in a.terms):
            raise ValueError(
                "Regularizer: a constraint has no strength that a schedule could change: make one Regularizer for the "
                "constraint, without a schedule, and one for the rest"
            )
        self._steps = 0
        self._optimizers: tuple[Optimizer, ...] = ()
        self._hooks: tuple[StepHooks | Carried, ...] = ()
        self._decays: dict[Optimizer, list[float | Tensor]] = {}
        self._follow_schedule()
        self._is_used = False

    _is_used = True  # whether it was attached, asked for its value or looked at

    @property
    def entries(self) -> Sequence[Assignment]:
        """Each parameter of the model once, with its penalty or the reason why it has none."""
        self._is_used = True
        return self._entries

    def _take(self, assignments: Sequence[Assignment]) -> None:
        self._entries = tuple(assignments)
        self._penalties = {a.param: a.acting for a in assignments if a.acting is not None}
        self._has_ridge = any(isinstance(term, Term) and term._ridge > 0 for a in assignments for term in a.terms)
        self._places = _places(self.model, [a for a in assignments if a.penalty is not None])
        self.scale = self._scale

    @property
    def scale(self) -> Scale:
        """The factor of every penalty."""
        return self._scale

    @scale.setter
    def scale(self, scale: Scale) -> None:
        members = len(self.model) if isinstance(self.model, Stacked) else None
        if isinstance(scale, Mapping):
            names = {a.name: a.param for a in self.entries if a.acting is not None}
            if scale.keys() != names.keys():
                raise ValueError(
                    f"Regularizer: scale must name each penalized parameter, {listed(list(names))}, "
                    f"got {listed(list(scale)) or 'none'}"
                )
            self._scale = {name: check_scale("Regularizer", own, members) for name, own in scale.items()}
            self._scales = {names[name]: own for name, own in self._scale.items()}
        else:
            self._scale = check_scale("Regularizer", scale, members)
            self._scales = dict.fromkeys(self._penalties, self._scale)

    # -- mode "loss": the penalty as a number ---------------------------------------------------------------------

    def value(self) -> Tensor:
        """``scale * sum R(w)`` over the penalized parameters, differentiable. It may be called in every mode.

        If the parameters are sharded over processes, every process must call it; all get the same value. It uses the
        model's own parameters, not those of ``functional_call``.

        Returns:
            A 0-d tensor; for a :class:`~torchreg.Stacked` model a tensor of shape ``(members,)``.

        Raises:
            ValueError: the model's parameters were replaced after the regularizer was created, as ``fully_shard`` does.
        """
        self._is_used = True
        self._check_parameters()
        params = [param for param in self._penalties if param.requires_grad]
        if not params:
            return torch.zeros(())
        return self._scaled_total([(self._penalties[param], param) for param in params])

    def terms(self) -> dict[str, Tensor]:
        """The value of each kind of penalty, such as ``{"L1": tensor, "L2": tensor}``; for logging."""
        self._is_used = True
        self._check_parameters()
        kinds: dict[str, list[tuple[Penalty, nn.Parameter]]] = {}
        for param, penalty in self._penalties.items():
            if param.requires_grad:
                for term in penalty.terms:
                    kinds.setdefault(term.label, []).append((term, param))
        return {kind: self._scaled_total(pairs) for kind, pairs in kinds.items()}

    def _scaled_total(self, pairs: Sequence[tuple[Penalty, nn.Parameter]]) -> Tensor:
        if not isinstance(self.scale, Mapping):
            penalties, params = zip(*pairs, strict=True)
            return self.scale * penalty_value(penalties, params, self.compile)
        first, *others = (
            self._scales[param] * penalty_value([penalty], [param], self.compile) for penalty, param in pairs
        )
        for other in others:
            first = first + other.to(first.device)
        return first

    def penalize(self, criterion: Callable[..., Tensor]) -> PenalizedLoss:
        """The criterion plus the penalty while the model is in training mode; in evaluation mode the criterion alone.

        Raises:
            ValueError: the mode is not "loss", so that the penalty would be applied twice.
        """
        if self.mode != "loss":
            raise ValueError(
                f"Regularizer: penalize() is for mode 'loss', this one has mode {self.mode!r}, which already acts "
                "in the optimizer: use one or the other"
            )
        return PenalizedLoss(self, criterion)

    # -- the other modes: the penalty in the optimizer's step -----------------------------------------------------

    def attach(self, *optimizers: Optimizer) -> Self:
        """Applies the penalty in every step of the optimizer from now on. In mode "loss" only the schedule follows it.

        If several optimizers train the model, pass all of them, in the order of their steps; the schedule counts the
        steps of the last one. As a context manager it detaches at the end: ``with regularizer.attach(optimizer): ...``

        Returns:
            The regularizer itself.

        Raises:
            ValueError: the regularizer is attached already; a penalized parameter is in none of the optimizers, or has
                an L2 penalty beside the optimizer's own weight decay; in mode "decoupled" or "prox" an optimizer is
                LBFGS or has no ``lr``; the optimizer's steps are not what the mode assumes, as copies show if it is not
                one of torch (guide "What torchreg can and cannot see"); in mode "loss" there is no schedule.
            TypeError: an argument is no ``torch.optim.Optimizer``.
        """
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
        self._check_parameters()
        if self.mode != "loss":
            check_optimizers(optimizers, self.entries, self.mode)
        for optimizer in optimizers:
            check_steps("Regularizer", optimizer, self.mode)
            check_decay(optimizer, self.entries)
        self._register(optimizers)
        return self

    def remove(self) -> None:
        """Detaches from the optimizer, whose further steps are as without a regularizer. It may be called twice."""
        for hooks in self._hooks:
            hooks.remove()
        self._hooks = self._optimizers = ()

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

    def _register(self, optimizers: tuple[Optimizer, ...]) -> None:
        objective = self._objective if self.mode == "grad" else None
        self._optimizers = optimizers
        self._decays = {optimizer: _decays(optimizer) for optimizer in optimizers}
        carried = [Carried(optimizers[-1], self)] if optimizers else []
        act = self._on_gradients, self._after_step, objective
        self._hooks = (*carried, *(StepHooks(optimizer, *act, owner="Regularizer") for optimizer in optimizers))

    def _objective(self, optimizer: Optimizer) -> Tensor:
        """The difference between the loss of a closure and the function that the optimizer minimizes or maximizes."""
        return -self.value() if optimizer.param_groups[0].get("maximize") else self.value()

    def _on_gradients(self, optimizer: Optimizer, evaluation: int) -> None:
        self._check_parameters()
        self._check_decays(optimizer)
        if evaluation == 0 and self.mode != "prox":
            self._tell(optimizer)
        if self.mode == "grad":
            add_gradients(optimizer, self._penalties, self._scales, self.compile)
        elif self.mode == "decoupled" and evaluation == 0:
            descend(optimizer, self._penalties, self._scales, self.compile)

    def _after_step(self, optimizer: Optimizer) -> None:
        if self.mode == "prox":
            self._tell(optimizer)
            take_proximal_steps(optimizer, self._penalties, self._scales, self.compile)
        if optimizer is self._optimizers[-1]:
            self._advance()

    def _acting_in(self, optimizer: Optimizer) -> Iterator[tuple[Group, nn.Parameter, Penalty, float | Tensor]]:
        """The weights that the coming step changes: their group, their bound penalty, and its scale."""
        for param, _, penalty, group in stepped(optimizer, self._penalties):
            yield group, param, penalty, self._scales[param]

    def _tell(self, optimizer: Optimizer) -> None:
        for listener in self._listeners:
            listener(self, optimizer)

    def _check_parameters(self) -> None:
        """Raises ``ValueError`` if the model no longer holds a penalized parameter."""
        if torch.compiler.is_compiling() or all(held.get(name) is what for held, name, what in self._places):
            return
        held = set(self.model.parameters())
        replaced = [a.name for a in self.entries if a.is_penalized and a.param not in held and not is_sharded(a.param)]
        if replaced:
            raise ValueError(
                f"Regularizer: the model must hold the parameters it had, {listed(replaced)} were replaced: make the "
                "Regularizer and the optimizer when the model has its final parameters, as after fully_shard(model)"
            )

    def _check_decays(self, optimizer: Optimizer) -> None:
        """Raises ``ValueError`` if weight decay beside an L2 came after :meth:`attach`: a new group, a schedule."""
        if torch.compiler.is_compiling() or not self._has_ridge:
            return
        if (decays := _decays(optimizer)) != self._decays[optimizer]:
            check_decay(optimizer, self.entries)
            self._decays[optimizer] = decays

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
        """The number of steps, the scale, and the references that L2SP or L1SP have taken from the model.

        It can be loaded with ``torch.load(weights_only=True)``.
        """
        taken = references(self.entries)
        scale = tree_map_only(Tensor, lambda own: own.detach().clone(), self.scale)
        return {"steps": self._steps, "scale": scale} | ({"references": taken} if taken else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` saved."""
        expected = self.state_dict()
        if set(state) != set(expected):
            keys = " and ".join(map(repr, expected))
            raise ValueError(f"Regularizer: state must have the keys {keys}, got {sorted(state)}")
        if isinstance(state["steps"], bool) or not isinstance(state["steps"], int) or state["steps"] < 0:
            raise ValueError(f"Regularizer: steps must be a whole number >= 0, got {state['steps']!r}")
        if "references" in state:
            self._take([with_references(a, state["references"]) for a in self.entries])
        self.scale, self._steps = state["scale"], state["steps"]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hooks": (), "_listeners": [], "_decays": {}, "_is_used": True}

    @property
    def _is_counting(self) -> bool:
        return self.schedule is not None

    def __del__(self) -> None:
        if self._is_used:
            return
        what = listed(list(dict.fromkeys(repr(a.penalty) for a in self._entries if a.penalty is not None)))
        if self.mode == "loss":
            done, advice = "asked for its value", "add value() to the loss, or use penalize(criterion) as the loss"
        else:
            done, advice = "attached", "call attach(optimizer)"
        warnings.warn(
            f"Regularizer: {what} in mode {self.mode!r} was never {done} and had no effect: {advice}", stacklevel=2
        )

    def __copy__(self) -> Self:
        """The copy is detached: two regularizers on one optimizer would apply the penalty twice."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__, _optimizers=(), _hooks=(), _listeners=[], _decays={}, _is_used=True)
        return twin

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._register(self._optimizers)  # a copied optimizer has lost its hooks

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
    return [group.get("weight_decay", 0) for group in optimizer.param_groups]


def _places(model: nn.Module, assignments: Sequence[Assignment]) -> list[tuple[Mapping[str, object], str, object]]:
    """The places in the model that lead to each parameter: a dict of modules or parameters, the name, and the value."""
    places: dict[tuple[int, str], tuple[Mapping[str, object], str, object]] = {}
    for assignment in assignments:
        module, *path = model, *assignment.name.split(".")
        for name in path[:-1]:
            child = module._modules[name]
            assert child is not None
            places[id(module), name] = module._modules, name, child
            module = child
        places[id(module), path[-1]] = module._parameters, path[-1], assignment.param
    return list(places.values())


class Penalizer(Protocol):
    """A regularizer of parameters or of activities, whose value can be added to a loss."""

    model: nn.Module

    def value(self) -> Tensor: ...


class PenalizedLoss(nn.Module):
    """A criterion plus a regularizer's value while the regularized model is in training mode.

    :meth:`Regularizer.penalize` and :meth:`ActivityRegularizer.penalize` return it. The model is not a submodule of the
    loss, so moving or saving the loss does not affect the model. There is a warning if the weights are trained on the
    loss while the model is in evaluation mode, where the penalty is left out.

    Args:
        regularizer: its value is added.
        criterion: any function that returns the mean loss.
    """

    def __init__(self, regularizer: Penalizer, criterion: Callable[..., Tensor]) -> None:
        super().__init__()
        self.regularizer = regularizer
        self.criterion = criterion
        self._trained: int | None = None  # the version of a weight in the last backward pass of a loss of evaluation
        self._has_warned = False

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = self.criterion(*args, **kwargs)
        if not self._has_warned and not torch.compiler.is_compiling():
            self._notice_training(loss)
        return loss + self.regularizer.value() if self.regularizer.model.training else loss

    def _notice_training(self, loss: Tensor) -> None:
        """Warns once if a weight has changed after a backward pass of a loss without the penalty."""
        model = self.regularizer.model
        weight = next((param for param in model.parameters() if param.requires_grad), None)
        if weight is None:
            return
        trained, self._trained = self._trained, None
        if trained is not None and weight._version != trained:
            self._has_warned = True
            warnings.warn(
                f"{type(self.regularizer).__name__}: {type(model).__name__} is trained in evaluation mode, in which "
                "the loss of penalize() has no penalty: call model.train() before the training steps",
                stacklevel=3,
            )
        elif not model.training and isinstance(loss, Tensor) and loss.requires_grad:
            loss.register_hook(lambda _: setattr(self, "_trained", weight._version))

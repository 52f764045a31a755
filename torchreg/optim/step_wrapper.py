"""A mixin that acts before and after the step of any optimizer class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreg.hooks import Group, check_steps, unhooked_step
from torchreg.hooks.checkpoint import KEY
from torchreg.optim.groups import param_groups
from torchreg.optim.options import Select
from torchreg.selection import ParamInfo, weights

Weights = Mapping[Tensor, Tensor]
Plan = Any


class StepWrapper(Optimizer):
    """Mixin that acts before and after the step of an optimizer class: ``class SGDW(DecoupledDecay, torch.optim.SGD)``.

    Subclasses define :meth:`_before_update`, called between the gradients and the base's update, and
    :meth:`_after_update`, called after that update. With a closure the gradients are those of its first evaluation.
    Hooks on the step are called once. The options of a subclass become options of each parameter group, beside the
    base's own.
    """

    _own_options: Mapping[str, Any]  # our options and their defaults, for groups without values of their own
    _of_all_groups: Sequence[str] = ("select", "layer_decay")  # arguments of this class that no group has of its own
    _places: Mapping[Tensor, ParamInfo] = {}  # of the parameters of a model
    _changes_weights: str = "decoupled"  # what it assumes of the base's steps; see torchreg.hooks.probe

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        base, own = base_optimizer(cls), inspect.signature(cls.__init__)
        kinds = {parameter.kind for parameter in own.parameters.values()}
        if base is not None and inspect.Parameter.VAR_KEYWORD in kinds:  # other arguments go to the base
            own = _signature(cls, base)
        else:
            own = own.replace(parameters=list(own.parameters.values())[1:])
        cls.__signature__ = own  # type: ignore[attr-defined]

    def __init__(self, *args: Any, select: Select = weights, layer_decay: float | None = None, **kwargs: Any) -> None:
        given = args[0] if args else kwargs.get("params")
        if isinstance(given, nn.Module):
            kwargs, args = self._with_groups(given, args, kwargs, select, layer_decay), ()
        elif select is not weights or layer_decay is not None:
            option = "layer_decay" if select is weights else "select"
            raise ValueError(
                f"{type(self).__name__}: {option} needs the names in a model, got parameters: pass the model instead"
            )
        super().__init__(*args, **kwargs)  # adds the groups, which need our options
        self.defaults.update(self._own_options)
        base = _base(self)
        if any(name not in group for group in self.param_groups for name in self._own_options):
            raise ValueError(
                f"{type(self).__name__}: {base.__name__} must make its groups by add_param_group(), it takes those of "
                "another optimizer: use the class made of that one, or a Regularizer"
            )
        check_steps(type(self).__name__, self, self._changes_weights, base)

    def _with_groups(
        self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], select: Select, layer_decay: Any
    ) -> dict[str, Any]:
        """The base's arguments, with groups made of the model."""
        base, own = inspect.signature(_base(self)), dict(self._own_options)
        arguments = base.bind_partial(*args, **kwargs).arguments
        for handed_on in [p.name for p in base.parameters.values() if p.kind is p.VAR_KEYWORD]:
            arguments |= arguments.pop(handed_on, {})
        all_defaults = {name: p.default for name, p in inspect.signature(type(self)).parameters.items()} | own
        decay, lr = (arguments.get(name, all_defaults.get(name, 0.0)) for name in ("weight_decay", "lr"))
        rates = lr if isinstance(lr, Mapping) or layer_decay is not None else None
        groups = param_groups(model, weight_decay=decay, select=select, lr=rates, layer_decay=layer_decay)
        self._places = groups.places
        for group, is_exempt in zip(groups, groups.is_exempt, strict=True):
            group.update(self._selection_options(not is_exempt))
        # What groups that are added later have by default must be a number.
        if isinstance(own.get("weight_decay"), Mapping):
            self._add_options(weight_decay=0.0)
        elif isinstance(decay, Mapping):
            arguments["weight_decay"] = 0.0
        if isinstance(lr, Mapping):
            arguments["lr"] = max(lr.values())
        return {**arguments, next(iter(base.parameters)): groups}

    def _selection_options(self, is_selected: bool) -> dict[str, Any]:
        """Further options of a group that was made of a model, besides its weight decay."""
        return {}

    def _add_options(self, **options: Any) -> None:
        self._own_options = {**getattr(self, "_own_options", {}), **options}

    def add_param_group(self, param_group: Group) -> None:
        """Adds a parameter group. If the group is invalid, the optimizer does not change."""
        if isinstance(param_group, dict) and "params" in param_group:  # else the base raises the error
            if isinstance(param_group["params"], Iterator):  # because it is read more than once
                param_group["params"] = list(param_group["params"])
            self._refuse_arguments_of_all(param_group)
            self._check_group({**self.defaults, **self._own_options, **param_group})
            for name, value in self._own_options.items():
                param_group.setdefault(name, value)
        super().add_param_group(param_group)

    def _refuse_arguments_of_all(self, group: Group) -> None:
        """Raises ``ValueError`` for an argument that would do nothing in a group."""
        for name in (name for each in type(self).__mro__ for name in each.__dict__.get("_of_all_groups", ())):
            if name in group:
                owner = type(self).__name__
                raise ValueError(
                    f"{owner}: {name} must be the same for all groups, got a group with its own: give it to {owner} "
                    "itself, or make an optimizer for each group"
                )

    def _check_group(self, group: Group) -> None:
        """Raises ``ValueError`` if one of our options is wrong."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a checkpoint, as torch's optimizers do."""
        try:
            super().load_state_dict(state_dict)
        except ValueError as error:
            theirs, ours = len(state_dict["param_groups"]), len(self.param_groups)
            if not self._places or theirs == ours:
                raise
            name = type(self).__name__
            raise ValueError(
                f"{name}: the checkpoint must have the {ours} parameter groups that were made of the model, got "
                f"{theirs}: load one of {name}(model), or make this optimizer of model.parameters()"
            ) from error

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step; returns the closure's loss, if there is a closure."""
        differentiable = bool(self.defaults.get("differentiable"))
        begun: tuple[Weights, Plan] | None = None

        def begin() -> tuple[Weights, Plan]:
            with torch.set_grad_enabled(differentiable):
                self._prepare()
                old = {p: p.clone() for group in self.param_groups for p in self._needed_later(group)}
                return old, self._before_update()

        def evaluate() -> Any:
            nonlocal begun
            assert closure is not None
            loss = closure()
            if begun is None:
                begun = begin()
            return loss

        if closure is None:
            begun = begin()
            loss = self._update()
        else:
            loss = self._update(evaluate)
        if begun is not None:  # an optimizer may not call its closure
            with torch.set_grad_enabled(differentiable):
                self._after_update(*begun)
        return loss

    def _prepare(self) -> None:
        """Called first in a step, once there are gradients."""

    def _needed_later(self, group: Group) -> Sequence[Tensor]:
        """The group's parameters whose weights from before the update :meth:`_after_update` needs."""
        return ()

    def _before_update(self) -> Plan:
        """Called between the gradients and the base's update; returns the ``plan`` for :meth:`_after_update`."""
        return None

    def _update(self, *closure: Callable[[], Any]) -> Any:
        """The base's own step."""
        return unhooked_step(_base(self))(self, *closure)

    def _after_update(self, old: Weights, plan: Plan) -> None:
        """Called after the base's update; ``old`` holds the weights from before it that are :meth:`_needed_later`."""

    # -- saving and copying ---------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_own_options": self._own_options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        before = self.__dict__.get("param_groups", ())
        super().__setstate__(state)
        for mine, group in zip(before, self.param_groups, strict=False):
            for key, value in mine.items():  # a checkpoint of the base does not hold our options
                if key != KEY:  # what an earlier checkpoint held for others
                    group.setdefault(key, value)


def base_optimizer(cls: type[Optimizer]) -> type[Optimizer] | None:
    """The optimizer class that a mixin was mixed into: the first class in the MRO that is no mixin."""
    line = cls.__mro__[cls.__mro__.index(StepWrapper) + 1 :] if StepWrapper in cls.__mro__ else ()
    return next((base for base in line if issubclass(base, Optimizer) and base is not Optimizer), None)


def _base(optimizer: StepWrapper) -> type[Optimizer]:
    base = base_optimizer(type(optimizer))
    if base is None:
        raise TypeError(
            f"{type(optimizer).__name__}: it must be mixed into an optimizer class, as in class SGDW(..., SGD)"
        )
    return base


def options_of(cls: type[Optimizer]) -> dict[str, inspect.Parameter]:
    """The arguments of the class's constructor, and of those above it to which it hands on keywords by ``**``."""
    found: dict[str, inspect.Parameter] = {}
    for own in cls.__mro__[: cls.__mro__.index(Optimizer)]:
        if "__init__" in vars(own):
            its = inspect.signature(own).parameters
            named = {name: p for name, p in its.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
            above = {name: p.replace(kind=p.KEYWORD_ONLY) for name, p in named.items()}
            found = above | found if found else dict(its)
            if len(named) == len(its):
                break
    return found


def is_regularized(group: Group, param: Tensor) -> bool:
    """Whether a group with the option ``biases`` has the parameter regularized; of a model, whether it is selected."""
    return bool(group.get("selected", group["biases"] or param.ndim >= 2))


def with_gradients(group: Group) -> list[Tensor]:
    """The group's parameters with a gradient, which the step changes."""
    return [param for param in group["params"] if param.grad is not None]


def _signature(cls: type[Optimizer], base: type[Optimizer]) -> inspect.Signature:
    """The base's arguments and those of the mixins: positional ones after ``params``, the others at the end."""
    mixins = [mixin for mixin in cls.__mro__ if issubclass(mixin, StepWrapper) and "__init__" in vars(mixin)]
    mixins.sort(key=lambda mixin: mixin is not StepWrapper)
    ours = [p for mixin in mixins for p in list(inspect.signature(vars(mixin)["__init__"]).parameters.values())[1:]]
    first, *theirs = options_of(base).values()
    positional = [p for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != first.name]
    keywords = [p for p in ours if p.kind is p.KEYWORD_ONLY]
    hidden = {p.name for p in (*positional, *keywords)} | {"decoupled_weight_decay"}
    merged = {p.name: p for p in (first, *positional, *(p for p in theirs if p.name not in hidden), *keywords)}
    decay = inspect.Parameter("weight_decay", inspect.Parameter.KEYWORD_ONLY, default=0.0, annotation=float)
    if any(p.name == "coupling" for p in keywords):
        merged.setdefault(decay.name, decay)
    return inspect.Signature(sorted(merged.values(), key=lambda p: p.kind))

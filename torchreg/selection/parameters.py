"""The parameters of a model, with their places in it."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from torchreg.selection.computed import ComputedWeight, computed_weights

# Parts of names that wrappers add: torch.compile, DataParallel, FSDP, checkpointing, and PEFT.
_WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"}
_MARKS = ("_no_weight_decay", "_optim")
_COPIES = {"modules_to_save", "original_module"}  # PEFT's copies; the first is followed by an adapter's name


@dataclass(frozen=True, eq=False)
class ParamInfo:
    """One parameter and its place in a model, as selectors and penalties see it.

    If a layer computes a weight from other tensors, as parametrizations and the masks of pruning do, this is the weight
    that the layer uses, under its name in the layer.

    Args:
        name: the full name in the model, such as ``"features.0.weight"``.
        param: the parameter.
        module: the module that owns the parameter.
        parent: the module that holds ``module``, if any.
        exemption: the reason if the model itself exempts the parameter from weight decay, else None.

    Example:
        >>> from torchreg import L2, Regularizer
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        >>> regularizer = Regularizer(model, L2(1.0), select=lambda info: info.name.startswith("1."))
        >>> [a.name for a in regularizer.entries if a.penalty]
        ['1.weight', '1.bias']
    """

    name: str
    param: nn.Parameter
    module: nn.Module
    parent: nn.Module | None = None
    exemption: str | None = None

    @property
    def _computed(self) -> ComputedWeight | None:
        """How the layer computes the weight, if it does."""
        return None


@final
class ComputedInfo(ParamInfo):
    """A weight that its layer computes. ``param`` is the weight, differentiable by what it is computed from.

    It is computed once while the parameters are selected, and each time it is read after :meth:`release`.
    """

    def __init__(
        self, name: str, weight: ComputedWeight, module: nn.Module, parent: nn.Module | None, exemption: str | None
    ) -> None:
        vars(self).update(name=name, weight=weight, module=module, parent=parent, exemption=exemption)
        vars(self).update(is_selecting=True, now=None)

    @property
    def param(self) -> nn.Parameter:
        own = vars(self)
        if own["is_selecting"] and own["now"] is None:
            own["now"] = self._computed()
        return cast(nn.Parameter, self._computed() if own["now"] is None else own["now"])

    def release(self) -> None:
        vars(self).update(is_selecting=False, now=None)

    @property
    def _computed(self) -> ComputedWeight:
        weight: ComputedWeight = vars(self)["weight"]
        return weight


def each_parameter(model: nn.Module, members: int | None = None) -> Iterator[list[ParamInfo]]:
    """Each parameter of the model once, with its places in the model: several places if it is tied.

    A weight that a layer computes counts as one parameter; what it is computed from is not listed, except for
    parameters of the parametrization itself.

    Args:
        model: any module.
        members: of a stack, the number of its members.
    """
    places: dict[object, list[ParamInfo]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    exempt = {name: reason for prefix, module in modules.items() for name, reason in _exemptions(prefix, module)}
    parts: dict[nn.Parameter, str] = {}  # parameters of parametrizations, with the weight that they act through
    for prefix, module in modules.items():
        parent = modules[prefix.rpartition(".")[0]] if prefix else None
        hidden = set(module._parameters) if isinstance(module, ParametrizationList) else set()
        for weight in computed_weights(module, members):
            name, stored = _joined(prefix, weight.own_name), weight.stored
            names = (name, *(_joined(prefix, original) for original in weight.originals))
            marks = (*(exempt.get(unwrapped(each)) for each in names), *map(_mark_of, stored))
            reason = next((mark for mark in marks if mark is not None), None)
            info = ComputedInfo(name, weight, module, parent, reason)
            places.setdefault((module, weight.own_name), []).append(info)
            hidden |= set(weight.originals)
            parts |= dict.fromkeys(stored, name)
        for own_name, param in module.named_parameters(recurse=False, remove_duplicate=False):
            if own_name not in hidden:
                name = _joined(prefix, own_name)
                exemption = exempt.get(unwrapped(name)) or _mark_of(param)
                if exemption is None and "parametrizations" in prefix.split(".") and param in parts:
                    exemption = f"acts through {parts[param]}"
                places.setdefault(param, []).append(ParamInfo(name, param, module, parent, exemption))
    yield from places.values()


def stored(place: ParamInfo) -> Iterator[tuple[str, nn.Parameter]]:
    """What an optimizer holds of the parameter, with full names: itself, or what its layer computes it from."""
    computed = place._computed
    if computed is None:
        yield place.name, place.param
    else:
        for original in computed.originals:
            yield place.name.removesuffix(computed.own_name) + original, computed.layer.get_parameter(original)


def unwrapped(name: str) -> str:
    """The name without the parts that wrappers add, as it is in the wrapped model."""
    kept: list[str] = []
    previous = ""
    for part in name.split("."):
        if part not in _WRAPPERS | _COPIES and previous != "modules_to_save":
            kept.append(part)
        previous = part
    return ".".join(kept)


def _exemptions(prefix: str, module: nn.Module) -> Iterator[tuple[str, str]]:
    """The full names of the parameters that ``module.no_weight_decay()`` names, each with a reason.

    timm's models have that method. It returns names below the module, or a mapping from them to reasons.
    """
    method = getattr(module, "no_weight_decay", None)
    names = method() if callable(method) else ()
    reasons = names if isinstance(names, Mapping) else dict.fromkeys(names, "no_weight_decay()")
    for name, reason in reasons.items():
        yield unwrapped(_joined(prefix, name)), reason


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy whose parameters keep the marks of their models' authors, which ``copy.deepcopy`` drops.

    Weights that hooks compute are computed anew; their graphs could not be copied.
    """
    memo = {} if memo is None else memo
    hooked = [weight for module in model.modules() for weight in computed_weights(module)]
    memo |= {id(w.layer.__dict__[w.own_name]): torch.empty(0) for w in hooked if w.own_name in vars(w.layer)}
    twin = deepcopy(model, memo)
    for weight in [weight for module in twin.modules() for weight in computed_weights(module)]:
        if weight.own_name in vars(weight.layer):
            with suppress(RuntimeError):  # of a stack, whose forward pass computes the weights of its members
                setattr(weight.layer, weight.own_name, weight().detach())
    for param, its in zip(model.parameters(), twin.parameters(), strict=True):
        vars(its).update({mark: vars(param)[mark] for mark in _MARKS if mark in vars(param)})
    return twin


def _mark_of(param: nn.Parameter) -> str | None:
    """The attribute with which some models mark parameters that must not decay: Mamba and Hyena, or S4."""
    if getattr(param, "_no_weight_decay", False):
        return "_no_weight_decay"
    options = getattr(param, "_optim", None)  # S4's options for the optimizer
    return "_optim" if isinstance(options, Mapping) and options.get("weight_decay") == 0 else None


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name

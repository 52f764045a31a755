"""The parameters of a model, with their places in it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, eq=False)
class ParamInfo:
    """One parameter and its place in a model, as selectors and penalties see it.

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


def each_parameter(model: nn.Module) -> Iterator[list[ParamInfo]]:
    """Each parameter of the model once, with its places in the model: several places if it is tied."""
    places: dict[nn.Parameter, list[ParamInfo]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    exemptions = {name: reason for prefix, module in modules.items() for name, reason in _exemptions(prefix, module)}
    for prefix, module in modules.items():
        parent = modules[prefix.rpartition(".")[0]] if prefix else None
        for own_name, param in module.named_parameters(recurse=False, remove_duplicate=False):
            name = _joined(prefix, own_name)
            exemption = exemptions.get(name) or _mark_of(param)
            places.setdefault(param, []).append(ParamInfo(name, param, module, parent, exemption))
    yield from places.values()


def _exemptions(prefix: str, module: nn.Module) -> Iterator[tuple[str, str]]:
    """The full names of the parameters that ``module.no_weight_decay()`` names, each with a reason.

    timm's models have that method. It returns names below the module, or a mapping from them to reasons.
    """
    method = getattr(module, "no_weight_decay", None)
    names = method() if callable(method) else ()
    reasons = names if isinstance(names, Mapping) else dict.fromkeys(names, "no_weight_decay()")
    for name, reason in reasons.items():
        yield _joined(prefix, name), reason


def _mark_of(param: nn.Parameter) -> str | None:
    """The attribute with which some models, such as Mamba and Hyena, mark parameters that must not decay."""
    return "_no_weight_decay" if getattr(param, "_no_weight_decay", False) else None


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name

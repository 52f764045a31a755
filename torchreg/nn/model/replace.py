"""torchreg's layers for torch's, in models that exist already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from torchreg.nn.dropout import (
    AlphaDropout,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    FeatureAlphaDropout,
    Seeded,
)
from torchreg.nn.model.seeding import seed_dropout
from torchreg.selection.modules import listed

_REPLACEMENTS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.Dropout: Dropout,
    nn.Dropout1d: Dropout1d,
    nn.Dropout2d: Dropout2d,
    nn.Dropout3d: Dropout3d,
    nn.AlphaDropout: AlphaDropout,
    nn.FeatureAlphaDropout: FeatureAlphaDropout,
}


class _Swap(NamedTuple):
    name: str  # of the place in the model
    parent: nn.Module
    key: str  # of the place in the parent
    old: nn.Module
    new: nn.Module


@dataclass(frozen=True, eq=False, repr=False)
class Replacement:
    """What :func:`replace_dropout` has changed, place by place."""

    _swaps: tuple[_Swap, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The places, as full names in the model."""
        return tuple(swap.name for swap in self._swaps)

    def undo(self) -> None:
        """Puts the very same old layers back where the new ones still stand, in the training mode those have now."""
        for swap in self._swaps:
            if swap.parent._modules.get(swap.key) is swap.new:
                swap.parent._modules[swap.key] = swap.old.train(swap.new.training)

    def __repr__(self) -> str:
        return table_of(self, {swap.name: f"{shown(swap.old)} -> {shown(swap.new)}" for swap in self._swaps})


def replace_dropout(
    model: nn.Module,
    kinds: Mapping[type[nn.Module], Callable[[Any], nn.Module]] | None = None,
    *,
    seed: int | None = None,
) -> Replacement:
    """Puts torchreg's layers in the place of torch's dropout layers, all over a model that exists.

    They keep the rate, ``inplace``, the training mode and the hooks; a layer that stands at several places still does.
    The ``state_dict`` stays as it is, unless generators (``seed``) or layers with parameters (``kinds``) come in.
    Only layers of exactly torch's types are replaced: a subclass, or a layer whose own ``forward`` was patched, may
    compute anything. Out of sight are calls of ``torch.nn.functional.dropout``, and the rates that layers such as
    ``nn.LSTM`` and ``nn.MultiheadAttention`` hold as a number.

    Args:
        model: any module; it is changed in place.
        kinds: which layers, of exactly which types, become what: ``{nn.Dropout: lambda old: GaussianDropout(old.p)}``.
            It comes before the usual choice. What is made takes over the mode and the hooks, and no more.
        seed: gives each new layer a generator of its own, as :func:`seed_dropout` does, on the parameters' device.

    Returns:
        What was changed; ``undo()`` takes it back.

    Raises:
        ValueError: a model with nothing to replace, or that is a dropout layer itself.
        TypeError: ``model`` is no module, or ``kinds`` makes none.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 2))
        >>> changes = replace_dropout(model)
        >>> changes
        Replacement: 1 place
          1  nn.Dropout(p=0.2, inplace=False) -> Dropout(p=0.2, inplace=False)
        >>> changes.undo()
    """
    check_model("replace_dropout", model)
    replacements = {**_REPLACEMENTS, **(kinds or {})}
    if _is_replaceable(model, replacements):
        raise ValueError(
            f"replace_dropout: model must hold its dropout in a module, got {model!r} itself, which cannot be replaced "
            "in place: make torchreg.nn's"
        )
    places = [
        (f"{name}.{key}" if name else key, parent, key, child)
        for name, parent in model.named_modules()
        for key, child in parent._modules.items()
        if child is not None and _is_replaceable(child, replacements)
    ]
    made: dict[nn.Module, nn.Module] = {}
    for *_, old in places:
        if old not in made:
            made[old] = _replacement_for(old, kinds or {})
    swaps = tuple(_Swap(*place, made[place[-1]]) for place in places if made[place[-1]] is not place[-1])
    if not swaps:
        raise ValueError(
            f"replace_dropout: model must have layers of torch's own dropout types, {type(model).__name__} has none to "
            f"replace{_others(model)}; calls of torch.nn.functional.dropout cannot be seen"
        )
    if seed is not None:
        device = next((param.device for param in model.parameters()), torch.device("cpu"))
        seed_dropout(nn.ModuleList(swap.new for swap in swaps), seed, device=device)
    for swap in swaps:
        swap.parent._modules[swap.key] = swap.new
    return Replacement(swaps)


def _is_replaceable(module: nn.Module, replacements: Mapping[type[nn.Module], Any]) -> bool:
    return type(module) in replacements and "forward" not in vars(module)


def _replacement_for(old: nn.Module, kinds: Mapping[type[nn.Module], Callable[[Any], nn.Module]]) -> nn.Module:
    """What takes the layer's place; the dicts of hooks are shared, so that the handles of the hooks stay good."""
    kind = type(old)
    if kind not in kinds:
        new = _REPLACEMENTS[kind](old.p)
        vars(new).update(vars(old))
        return new
    new = kinds[kind](old)
    if not isinstance(new, nn.Module):
        raise TypeError(f"replace_dropout: kinds must make modules, got {new!r} for {old!r}")
    if all(module is not old for module in new.modules()):  # inside the new one, the old one keeps them
        vars(new).update({key: value for key, value in vars(old).items() if "_hook" in key})
    return new.train(old.training)


def _others(model: nn.Module) -> str:
    """What drops in the model and cannot be swapped, as the end of a sentence."""
    layers = [
        f"{name or 'the model'} ({shown(module)})"
        for name, module in model.named_modules()
        if isinstance(module, _DropoutNd | Seeded)
    ]
    seen = layers + numbers_in(model)
    return f", only what cannot be swapped: {listed(seen)}" if seen else ""


def numbers_in(model: nn.Module) -> list[str]:
    """The modules that drop by a rate they hold as a number, as ``nn.LSTM`` does."""
    return [
        f"{name or 'the model'} ({type(module).__name__}, dropout={rate})"
        for name, module in model.named_modules()
        if isinstance(rate := vars(module).get("dropout"), int | float) and rate > 0
    ]


def check_model(owner: str, model: nn.Module) -> None:
    """``TypeError`` unless the model is one."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{owner}: model must be a torch.nn.Module, got {type(model).__name__}")


def shown(module: nn.Module) -> str:
    """The module in one line, with torch's own apart from ours."""
    kind = type(module)
    return f"{'nn.' * kind.__module__.startswith('torch.nn.')}{kind.__name__}({module.extra_repr()})"


def table_of(changes: object, rows: Mapping[str, str]) -> str:
    """What was changed, a line for each place."""
    width = max(map(len, rows))
    count = f"{len(rows)} place{'s' * (len(rows) > 1)}"
    return f"{type(changes).__name__}: {count}" + "".join(f"\n  {name:<{width}}  {row}" for name, row in rows.items())

"""Replacing dropout layers of torch, and some of other libraries, by torchreg's in an existing model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from torchreg.nn.attention import MultiheadAttention
from torchreg.nn.depth import StochasticDepth
from torchreg.nn.dropout import (
    AlphaDropout,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    FeatureAlphaDropout,
)
from torchreg.nn.model.calls import CallCheck, check_calls
from torchreg.nn.model.rates import LAYERS, numbers_in, shown
from torchreg.nn.model.seeding import seed_dropout
from torchreg.selection.modules import check_model, listed

_REPLACEMENTS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.Dropout: Dropout,
    nn.Dropout1d: Dropout1d,
    nn.Dropout2d: Dropout2d,
    nn.Dropout3d: Dropout3d,
    nn.AlphaDropout: AlphaDropout,
    nn.FeatureAlphaDropout: FeatureAlphaDropout,
}
_MADE: dict[str, Callable[[Any], nn.Module]] = {  # by module and name, so that no library is imported
    "torch.nn.modules.activation.MultiheadAttention": MultiheadAttention.of,
    "timm.layers.drop.DropPath": lambda old: StochasticDepth(
        nn.Identity(), old.drop_prob or 0.0, scale_by_keep=old.scale_by_keep
    ),
    "torchvision.ops.stochastic_depth.StochasticDepth": lambda old: StochasticDepth(nn.Identity(), old.p, old.mode),
}


class _Swap(NamedTuple):
    name: str  # of the place in the model
    parent: nn.Module
    key: str  # of the place in the parent
    old: nn.Module
    new: nn.Module


@dataclass(frozen=True, eq=False, repr=False)
class Replacement:
    """The layers that :func:`replace_dropout` has replaced.

    Attributes:
        names: the places of the layers.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 2))
        >>> changes = replace_dropout(model)
        >>> changes.names
        ('1',)
        >>> changes.undo()
    """

    _swaps: tuple[_Swap, ...]
    _checks: tuple[CallCheck, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The places, as full names in the model."""
        return tuple(swap.name for swap in self._swaps)

    def undo(self) -> None:
        """Puts the old layers back in place of the new ones that are still in the model; the training mode is kept."""
        for swap in self._swaps:
            if getattr(swap.parent, swap.key, None) is swap.new:
                swap.parent.register_module(swap.key, swap.old.train(swap.new.training))
        for check in self._checks:
            check.remove()

    def __repr__(self) -> str:
        return table_of(self, {swap.name: f"{shown(swap.old)} -> {shown(swap.new)}" for swap in self._swaps})


def replace_dropout(
    model: nn.Module,
    kinds: Mapping[type[nn.Module], Callable[[Any], nn.Module]] | None = None,
    *,
    seed: int | None = None,
) -> Replacement:
    """Replaces torch's dropout layers in an existing model by those of torchreg.

    The new layers have the same rate, ``inplace``, training mode and hooks. A layer at several places of the model is
    replaced by one layer at these places. The ``state_dict`` stays the same, except for generators (``seed``) and
    layers with parameters (``kinds``). Only layers of exactly torch's types are replaced: subclasses and layers with a
    patched ``forward`` may compute anything. Calls of ``torch.nn.functional.dropout`` are not replaced; neither are
    the rates that modules such as ``nn.LSTM`` hold as a number, which a warning names.

    An ``nn.MultiheadAttention`` with dropout becomes a :class:`MultiheadAttention` that holds the same parameters. A
    timm ``DropPath`` and a ``StochasticDepth`` of torchvision become a :class:`StochasticDepth`.

    Args:
        model: any module; it is changed in place.
        kinds: further replacements by exact type, such as ``{nn.Dropout: lambda old: GaussianDropout(old.p)}`` and
            ``{nn.MultiheadAttention: lambda old: MultiheadAttention.of(old, drop="keys")}``. They have precedence. The
            new layer gets the training mode and the hooks of the old one.
        seed: gives each new layer its own generator, as :func:`seed_dropout` does, on the parameters' device.

    Returns:
        The changes; ``undo()`` reverts them.

    Raises:
        ValueError: the model has nothing to replace, or is a dropout layer itself.
        TypeError: ``model`` is no module, ``kinds`` no dictionary, or one of its functions does not return a module.

    Warns:
        UserWarning: modules hold rates as numbers; or, in the first forward pass in training mode, a new layer is not
            called, because its module only reads its rate.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 2))
        >>> changes = replace_dropout(model)
        >>> changes
        Replacement: 1 place
          1  nn.Dropout(p=0.2, inplace=False) -> Dropout(p=0.2, inplace=False)
        >>> changes.undo()
    """
    check_model("replace_dropout", model)
    if kinds is not None and not isinstance(kinds, Mapping):
        raise TypeError(
            "replace_dropout: kinds must be a dictionary from types to functions that make the new layer from the old, "
            f"got {kinds!r}: pass for example {{nn.Dropout: lambda old: GaussianDropout(old.p)}}"
        )
    kinds = kinds or {}
    if _is_replaceable(model, kinds):
        raise ValueError(
            f"replace_dropout: model must contain dropout layers, got the layer {shown(model)} itself, which cannot be "
            "replaced in place: create torchreg.nn's layer"
        )
    places = [
        (f"{name}.{key}" if name else key, parent, key, child)
        for name, parent in model.named_modules()
        for key, child in _children(parent)
        if _is_replaceable(child, kinds)
    ]
    made: dict[nn.Module, nn.Module] = {}
    for *_, old in places:
        if old not in made:
            made[old] = _replacement_for(old, kinds)
    swaps = tuple(_Swap(*place, made[place[-1]]) for place in places if made[place[-1]] is not place[-1])
    if not swaps:
        raise ValueError(
            f"replace_dropout: model must have layers of torch's own dropout types, {type(model).__name__} has none to "
            f"replace{_others(model)}; calls of torch.nn.functional.dropout cannot be found"
        )
    if seed is not None:
        device = next((param.device for param in model.parameters()), torch.device("cpu"))
        seed_dropout(nn.ModuleList(swap.new for swap in swaps), seed, device=device)
    if numbers := [str(number) for number in numbers_in(model) if number.module not in made]:
        warnings.warn(
            f"replace_dropout: rates that are held as numbers stay as they are: {listed(numbers)}",
            stacklevel=2,
        )
    for swap in swaps:
        swap.parent.register_module(swap.key, swap.new)
    return Replacement(swaps, check_calls("replace_dropout", model, {swap.new for swap in swaps}))


def _children(parent: nn.Module) -> list[tuple[str, nn.Module]]:
    """Its children at each of their places; ``named_children()`` has each once."""
    return [(key, child) for key, child in parent.named_modules(remove_duplicate=False) if key and "." not in key]


def _is_replaceable(module: nn.Module, kinds: Mapping[type[nn.Module], Any]) -> bool:
    if "forward" in vars(module):
        return False
    is_idle_attention = type(module) is nn.MultiheadAttention and module.dropout == 0
    return type(module) in kinds or type(module) in _REPLACEMENTS or (_name(module) in _MADE and not is_idle_attention)


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _replacement_for(old: nn.Module, kinds: Mapping[type[nn.Module], Callable[[Any], nn.Module]]) -> nn.Module:
    """The new layer. It shares the dicts of hooks with the old one, so that the handles of the hooks stay valid."""
    kind = type(old)
    if kind not in kinds and kind in _REPLACEMENTS:
        new = _REPLACEMENTS[kind](old.p)
        vars(new).update(vars(old))
        return new
    new = (kinds.get(kind) or _MADE[_name(old)])(old)
    if not isinstance(new, nn.Module):
        raise TypeError(f"replace_dropout: kinds must make modules, got {new!r} for {old!r}")
    if all(module is not old for module in new.modules()):  # an old layer inside the new one keeps its hooks
        vars(new).update({key: value for key, value in vars(old).items() if "_hook" in key})
    return new.train(old.training)


def _others(model: nn.Module) -> str:
    """The dropout of the model that cannot be replaced, as the end of a sentence."""
    layers = [
        f"{name or 'the model'} ({shown(module)})"
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
    ]
    seen = layers + [str(number) for number in numbers_in(model)]
    return f", only others: {listed(seen)}" if seen else ""


def table_of(changes: object, rows: Mapping[str, str]) -> str:
    """The changes, with a line for each place."""
    width = max(map(len, rows))
    count = f"{len(rows)} place{'s' * (len(rows) > 1)}"
    return f"{type(changes).__name__}: {count}" + "".join(f"\n  {name:<{width}}  {row}" for name, row in rows.items())

"""Dropout in models that exist already: torchreg's layers for torch's, and new ones behind any module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.utils.hooks import RemovableHandle

from torchreg import functional as f
from torchreg.choices import Choice, chosen, listed
from torchreg.nn.dropout import (
    AlphaDropout,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    FeatureAlphaDropout,
    Seeded,
)
from torchreg.nn.seeding import seed_dropout

_TWINS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.Dropout: Dropout,
    nn.Dropout1d: Dropout1d,
    nn.Dropout2d: Dropout2d,
    nn.Dropout3d: Dropout3d,
    nn.AlphaDropout: AlphaDropout,
    nn.FeatureAlphaDropout: FeatureAlphaDropout,
}
_CHILD = "torchreg_dropout"  # what an inserted layer is called in its host


class _Swap(NamedTuple):
    name: str  # of the place in the model
    parent: nn.Module
    key: str  # of the place in the parent
    old: nn.Module
    new: nn.Module


@dataclass(frozen=True, eq=False, repr=False)
class Replacement:
    """What :func:`replace_dropout` has changed, place by place."""

    swaps: tuple[_Swap, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The places, as full names in the model."""
        return tuple(swap.name for swap in self.swaps)

    def undo(self) -> None:
        """Puts the very same old layers back where the new ones still stand, in the training mode those have now."""
        for swap in self.swaps:
            if swap.parent._modules.get(swap.key) is swap.new:
                swap.parent._modules[swap.key] = swap.old.train(swap.new.training)

    def __repr__(self) -> str:
        return _table(self, {swap.name: f"{_shown(swap.old)} -> {_shown(swap.new)}" for swap in self.swaps})


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
    _check_model("replace_dropout", model)
    twins = {**_TWINS, **(kinds or {})}
    if _is_swappable(model, twins):
        raise ValueError(
            f"replace_dropout: model must hold its dropout in a module, got {model!r} itself, which cannot be replaced "
            "in place: make torchreg.nn's"
        )
    places = [
        (f"{name}.{key}" if name else key, parent, key, child)
        for name, parent in model.named_modules()
        for key, child in parent._modules.items()
        if child is not None and _is_swappable(child, twins)
    ]
    made: dict[nn.Module, nn.Module] = {}
    for *_, old in places:
        if old not in made:
            made[old] = _successor(old, kinds or {})
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


def _is_swappable(module: nn.Module, twins: Mapping[type[nn.Module], Any]) -> bool:
    return type(module) in twins and "forward" not in vars(module)


def _successor(old: nn.Module, kinds: Mapping[type[nn.Module], Callable[[Any], nn.Module]]) -> nn.Module:
    """What takes the layer's place; the dicts of hooks are shared, so that the handles of the hooks stay good."""
    kind = type(old)
    if kind not in kinds:
        new = _TWINS[kind](old.p)
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
        f"{name or 'the model'} ({_shown(module)})"
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


class _Host(NamedTuple):
    name: str
    module: nn.Module
    layer: nn.Module
    hook: RemovableHandle | None


@dataclass(frozen=True, eq=False, repr=False)
class Insertion:
    """What :func:`insert_dropout` has put in, and behind which modules."""

    hosts: tuple[_Host, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The modules that dropout was put behind, as full names in the model."""
        return tuple(host.name for host in self.hosts)

    def undo(self) -> None:
        """Takes the layers out again, where they still stand."""
        for host in self.hosts:
            if host.module._modules.get(_CHILD) is host.layer:
                del host.module._modules[_CHILD]
                if host.hook is not None:
                    host.hook.remove()

    def __repr__(self) -> str:
        return _table(self, {host.name: f"{type(host.module).__name__}, {_shown(host.layer)}" for host in self.hosts})


def insert_dropout(model: nn.Module, layer: nn.Module | float = 0.5, *, after: Choice | Iterable[Choice]) -> Insertion:
    """Puts a copy of a dropout layer behind chosen modules of a model that exists, and leaves its ``state_dict``.

    Each copy becomes a child of its module, under the name ``torchreg_dropout``, so that ``train()``, ``eval()`` and
    :func:`mc_dropout` reach it. A ``Sequential`` runs it as its last layer, and is one longer; elsewhere a forward hook
    applies it to the output, or to the first tensor of an output that is a tuple, such as an LSTM's. The model can be
    copied and pickled. A module that itself loops over its ``children()`` would run the layer twice.

    Args:
        model: any module; it is changed in place.
        layer: a layer without parameters, or the rate of a :class:`Dropout`. A generator is copied with its state,
            which then is in the model's ``state_dict``.
        after: behind which modules: a pattern on full names, a module, a type, a predicate
            ``(name, module) -> bool``, or several of these.

    Returns:
        What was put in; ``undo()`` takes it out.

    Raises:
        ValueError: a choice that matches nothing, a container that has its own way with its children, a module that is
            never called or has a layer already; a layer with parameters, or with a generator for several places.
        TypeError: ``model`` is no module, or ``layer`` neither a module nor a number; in the forward pass an output
            that is neither a tensor nor a tuple that begins with one.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> put = insert_dropout(model, 0.2, after=nn.ReLU)
        >>> put
        Insertion: 1 place
          1  ReLU, Dropout(p=0.2, inplace=False)
        >>> put.undo()
    """
    _check_model("insert_dropout", model)
    layer = _checked_layer(layer)
    hosts = chosen("insert_dropout", model, after, "after")
    for name, host in hosts.items():
        _check_host(name or "the model", host)
    if len(hosts) > 1 and any(isinstance(part, Seeded) and part.generator is not None for part in layer.modules()):
        raise ValueError(
            f"insert_dropout: layer must have no generator for {len(hosts)} places, which would draw the same masks: "
            "call seed_dropout(model, seed) afterwards"
        )
    return Insertion(tuple(_put_behind(name, host, copy.deepcopy(layer)) for name, host in hosts.items()))


def _put_behind(name: str, host: nn.Module, layer: nn.Module) -> _Host:
    host.add_module(_CHILD, layer.train(host.training))
    return _Host(name, host, layer, None if _runs_in_order(host) else host.register_forward_hook(_drop_output))


def _drop_output(host: nn.Module, args: Any, output: Any) -> Any:
    """The forward hook: a function without a state, so that a model can be copied and pickled with it."""
    if isinstance(output, Tensor):
        return getattr(host, _CHILD)(output)
    if isinstance(output, tuple) and output:
        make = getattr(type(output), "_make", tuple)  # named tuples, packed sequences among them
        return make((_drop_output(host, args, output[0]), *output[1:]))
    raise TypeError(
        f"insert_dropout: the output of {type(host).__name__} must be a tensor, or a tuple that begins with one, got "
        f"{type(output).__name__}: choose other modules"
    )


def _runs_in_order(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _check_host(name: str, host: nn.Module) -> None:
    kind = type(host).__name__
    if _CHILD in host._modules:
        raise ValueError(f"insert_dropout: after must choose modules without inserted dropout, {name} has it already")
    if isinstance(host, nn.Sequential | nn.ModuleList | nn.ModuleDict) and not _runs_in_order(host):
        raise ValueError(
            f"insert_dropout: after must choose modules that are called as they are, {name} is a {kind}, a container "
            "with its own use for its children: choose some of these"
        )
    if isinstance(host, NonDynamicallyQuantizableLinear):
        raise ValueError(
            f"insert_dropout: after must choose modules that are called, {name} is not: its MultiheadAttention only "
            "reads its weights, choose that instead"
        )


def _checked_layer(layer: nn.Module | float) -> nn.Module:
    if not isinstance(layer, nn.Module):
        f.check_probability("insert_dropout", layer)
        return Dropout(layer)
    if any(True for _ in (*layer.parameters(), *layer.buffers())):
        raise ValueError(
            f"insert_dropout: layer must have no parameters or buffers, which would be new keys of the model's "
            f"state_dict, got {layer!r}"
        )
    return layer


def _check_model(owner: str, model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{owner}: model must be a torch.nn.Module, got {type(model).__name__}")


def _shown(module: nn.Module) -> str:
    """The module in one line, with torch's own apart from ours."""
    kind = type(module)
    return f"{'nn.' * kind.__module__.startswith('torch.nn.')}{kind.__name__}({module.extra_repr()})"


def _table(changes: Replacement | Insertion, rows: Mapping[str, str]) -> str:
    width = max(map(len, rows))
    count = f"{len(rows)} place{'s' * (len(rows) > 1)}"
    return f"{type(changes).__name__}: {count}" + "".join(f"\n  {name:<{width}}  {row}" for name, row in rows.items())

"""Dropout behind any module of models that exist already."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.utils.hooks import RemovableHandle

from torchreg import functional as f
from torchreg.nn.dropout import Dropout, Seeded
from torchreg.nn.model.replace import check_model, shown, table_of
from torchreg.selection.modules import ModuleFilter, select_modules

_CHILD = "torchreg_dropout"  # what an inserted layer is called in the module that holds it


class _Inserted(NamedTuple):
    name: str
    module: nn.Module
    layer: nn.Module
    hook: RemovableHandle | None


@dataclass(frozen=True, eq=False, repr=False)
class Insertion:
    """What :func:`insert_dropout` has put in, and behind which modules."""

    _inserted: tuple[_Inserted, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The modules that dropout was put behind, as full names in the model."""
        return tuple(place.name for place in self._inserted)

    def undo(self) -> None:
        """Takes the layers out again, where they still stand."""
        for place in self._inserted:
            if place.module._modules.get(_CHILD) is place.layer:
                del place.module._modules[_CHILD]
                if place.hook is not None:
                    place.hook.remove()

    def __repr__(self) -> str:
        return table_of(
            self, {place.name: f"{type(place.module).__name__}, {shown(place.layer)}" for place in self._inserted}
        )


def insert_dropout(
    model: nn.Module, layer: nn.Module | float = 0.5, *, after: ModuleFilter | Iterable[ModuleFilter]
) -> Insertion:
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
    check_model("insert_dropout", model)
    layer = _checked_layer(layer)
    targets = select_modules("insert_dropout", model, after, "after")
    for name, target in targets.items():
        _check_module(name or "the model", target)
    if len(targets) > 1 and any(isinstance(part, Seeded) and part.generator is not None for part in layer.modules()):
        raise ValueError(
            f"insert_dropout: layer must have no generator for {len(targets)} places, which would draw the same masks: "
            "call seed_dropout(model, seed) afterwards"
        )
    return Insertion(tuple(_put_behind(name, target, copy.deepcopy(layer)) for name, target in targets.items()))


def _put_behind(name: str, target: nn.Module, layer: nn.Module) -> _Inserted:
    target.add_module(_CHILD, layer.train(target.training))
    return _Inserted(
        name, target, layer, None if _runs_in_order(target) else target.register_forward_hook(_drop_output)
    )


def _drop_output(target: nn.Module, args: Any, output: Any) -> Any:
    """The forward hook: a function without a state, so that a model can be copied and pickled with it."""
    if isinstance(output, Tensor):
        return getattr(target, _CHILD)(output)
    if isinstance(output, tuple) and output:
        make = getattr(type(output), "_make", tuple)  # named tuples, packed sequences among them
        return make((_drop_output(target, args, output[0]), *output[1:]))
    raise TypeError(
        f"insert_dropout: the output of {type(target).__name__} must be a tensor, or a tuple that begins with one, got "
        f"{type(output).__name__}: choose other modules"
    )


def _runs_in_order(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _check_module(name: str, target: nn.Module) -> None:
    kind = type(target).__name__
    if _CHILD in target._modules:
        raise ValueError(f"insert_dropout: after must choose modules without inserted dropout, {name} has it already")
    if isinstance(target, nn.Sequential | nn.ModuleList | nn.ModuleDict) and not _runs_in_order(target):
        raise ValueError(
            f"insert_dropout: after must choose modules that are called as they are, {name} is a {kind}, a container "
            "with its own use for its children: choose some of these"
        )
    if isinstance(target, NonDynamicallyQuantizableLinear):
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

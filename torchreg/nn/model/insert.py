"""Inserting dropout after modules of an existing model."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from torchreg import functional as f
from torchreg.nn.dropout import Dropout
from torchreg.nn.model.rates import shown
from torchreg.nn.model.replace import table_of
from torchreg.nn.seeded import Seeded
from torchreg.nn.sequence import LockedDropout
from torchreg.selection.modules import ModuleFilter, check_model, select_modules

_CHILD = "torchreg_dropout"  # what an inserted layer is called in the module that holds it


class _Inserted(NamedTuple):
    name: str
    module: nn.Module
    layer: nn.Module
    hook: RemovableHandle | None


@dataclass(frozen=True, eq=False, repr=False)
class Insertion:
    """The layers that :func:`insert_dropout` has inserted.

    Attributes:
        names: the modules after which a layer was inserted.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> inserted = insert_dropout(model, 0.2, after=nn.ReLU)
        >>> inserted.names
        ('1',)
        >>> inserted.undo()
    """

    _inserted: tuple[_Inserted, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The modules after which a layer was inserted, as full names in the model."""
        return tuple(place.name for place in self._inserted)

    def undo(self) -> None:
        """Removes the inserted layers that are still in the model."""
        for place in self._inserted:
            if getattr(place.module, _CHILD, None) is place.layer:
                delattr(place.module, _CHILD)
                if place.hook is not None:
                    place.hook.remove()

    def __repr__(self) -> str:
        return table_of(
            self, {place.name: f"{type(place.module).__name__}, {shown(place.layer)}" for place in self._inserted}
        )


def insert_dropout(
    model: nn.Module, layer: nn.Module | float = 0.5, *, after: ModuleFilter | Iterable[ModuleFilter]
) -> Insertion:
    """Inserts a copy of a dropout layer after selected modules of an existing model; the ``state_dict`` stays the same.

    Each copy becomes a child of its module with the name ``torchreg_dropout``, so ``train()``, ``eval()`` and
    :func:`mc_dropout` also affect it. In a ``Sequential`` it is the last layer. After other modules a forward hook
    applies it to the output; of a tuple, such as an LSTM's output, to the first tensor. The model can be copied and
    pickled. A module that calls all its ``children()`` itself would apply the layer twice.

    Args:
        model: any module; it is changed in place.
        layer: a layer without parameters, or the rate of a :class:`Dropout`. A generator is copied with its state; the
            model's ``state_dict`` then contains it.
        after: the modules: a pattern on full names, a module, a type, a predicate ``(name, module) -> bool``, or
            several of these.

    Returns:
        The inserted layers; ``undo()`` removes them.

    Raises:
        ValueError: ``after`` matches no module, a container that is not called as a whole, a module that is never
            called, or one with an inserted layer; ``layer`` has parameters, or a generator for several modules.
        TypeError: ``model`` is no module, or ``layer`` neither a module nor a number; in the forward pass an output
            that is neither a tensor nor a tuple that begins with a tensor.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> inserted = insert_dropout(model, 0.2, after=nn.ReLU)
        >>> inserted
        Insertion: 1 place
          1  ReLU, Dropout(p=0.2, inplace=False)
        >>> model(torch.ones(3, 4)).shape
        torch.Size([3, 2])
        >>> inserted.undo()
    """
    check_model("insert_dropout", model)
    layer = _checked_layer(layer)
    try:
        targets = select_modules("insert_dropout", model, after, "after")
    except ValueError as error:
        if hint := _type_meant(model, after):
            raise ValueError(f"{error}: {hint}") from None
        raise
    only_read = {module.out_proj for module in model.modules() if isinstance(module, nn.MultiheadAttention)}
    for name, target in targets.items():
        _check_module(name or "the model", target, only_read)
    if len(targets) > 1 and any(isinstance(part, Seeded) and part.generator is not None for part in layer.modules()):
        raise ValueError(
            f"insert_dropout: layer must have no generator for {len(targets)} places, which would draw the same masks: "
            "call seed_dropout(model, seed) afterwards"
        )
    return Insertion(tuple(_insert_after(name, target, copy.deepcopy(layer)) for name, target in targets.items()))


def _type_meant(model: nn.Module, after: ModuleFilter | Iterable[ModuleFilter]) -> str:
    """What to pass instead of a type's name, or of a new layer of the type, if the model has modules of it."""
    kinds = {type(module).__name__: type(module) for module in model.modules()}
    for wanted in after if isinstance(after, Iterable) and not isinstance(after, str | nn.Module) else [after]:
        name = wanted.removeprefix("nn.") if isinstance(wanted, str) else type(wanted).__name__
        is_new = isinstance(wanted, nn.Module) and all(module is not wanted for module in model.modules())
        if name in kinds and (isinstance(wanted, str) or is_new):
            return f"pass the class {'nn.' * kinds[name].__module__.startswith('torch.nn.')}{name}"
    return ""


def _insert_after(name: str, target: nn.Module, layer: nn.Module) -> _Inserted:
    target.add_module(_CHILD, layer.train(target.training))
    return _Inserted(
        name, target, layer, None if _runs_in_order(target) else target.register_forward_hook(_drop_output)
    )


def _drop_output(target: nn.Module, args: Any, output: Any) -> Any:
    """The forward hook: a function without state, so that the model can be copied and pickled."""
    layer = getattr(target, _CHILD)
    takes_packed = isinstance(output, PackedSequence) and isinstance(layer, LockedDropout)
    if isinstance(output, Tensor | Proxy) or takes_packed:
        return layer(output)
    if isinstance(output, tuple) and output:
        make = getattr(type(output), "_make", tuple)  # for named tuples, such as packed sequences
        return make((_drop_output(target, args, output[0]), *output[1:]))
    raise TypeError(
        f"insert_dropout: the output of {type(target).__name__} must be a tensor, or a tuple that begins with one, got "
        f"{type(output).__name__}: select other modules"
    )


def _runs_in_order(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _check_module(name: str, target: nn.Module, only_read: Collection[nn.Module]) -> None:
    kind = type(target).__name__
    if hasattr(target, _CHILD):
        raise ValueError(f"insert_dropout: after must select modules without inserted dropout, {name} has it already")
    if isinstance(target, nn.Sequential | nn.ModuleList | nn.ModuleDict) and not _runs_in_order(target):
        raise ValueError(
            f"insert_dropout: after must select modules that are called, {name} is a {kind}, a container whose "
            "children are called instead: select some of these"
        )
    if target in only_read:
        raise ValueError(
            f"insert_dropout: after must select modules that are called, {name} is not: its MultiheadAttention only "
            "reads its weights, select that instead"
        )


def _checked_layer(layer: nn.Module | float) -> nn.Module:
    if not isinstance(layer, nn.Module):
        f.check_probability("insert_dropout", layer)
        return Dropout(layer)
    if any(True for _ in (*layer.parameters(), *layer.buffers())):
        raise ValueError(
            f"insert_dropout: layer must have no parameters or buffers, because they would be new keys of the model's "
            f"state_dict, got {layer!r}"
        )
    return layer

"""Generators for a model's dropout layers, also for several processes and for activation checkpointing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Generator, nn

from torchreg import functional as f
from torchreg.nn.model.calls import check_calls
from torchreg.nn.model.rates import is_idle, layers_in, numbers_in, shown
from torchreg.nn.seeded import Seeded
from torchreg.selection.modules import listed


def seed_dropout(
    model: nn.Module, seed: int, *, device: torch.device | str = "cpu", same_on_all_ranks: bool = False
) -> list[str]:
    """Gives each dropout layer of torchreg its own generator, so that its masks depend on the seed only.

    With ``torch.distributed`` each process draws different masks, as it has different examples. (Training scripts often
    set one global seed in all processes; torch's own layers then draw the same masks in each process.)

    Args:
        model: a model with layers of :mod:`torchreg.nn`; :func:`replace_dropout` makes them of torch's layers.
        seed: any whole number; its lowest 64 bits are used.
        device: the device of the model's inputs.
        same_on_all_ranks: whether all processes draw the same masks, for example for tensor parallelism.

    Returns:
        The names of the layers.

    Raises:
        ValueError: the model has no such layers.
        TypeError: ``seed`` is no whole number.

    Warns:
        UserWarning: other dropout of the model, such as that of ``nn.MultiheadAttention``, draws from torch's global
            generator; or, in the first forward pass in training mode, a layer is not called.

    Example:
        >>> from torchreg.nn import Dropout
        >>> model = nn.Sequential(nn.Linear(4, 4), Dropout(0.5))
        >>> seed_dropout(model, 7)
        ['1']
        >>> first = model(torch.ones(2, 4))
        >>> _ = seed_dropout(model, 7)
        >>> torch.equal(first, model(torch.ones(2, 4)))
        True
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed_dropout: seed must be a whole number, got {seed!r}")
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized() and not same_on_all_ranks
    rank = torch.distributed.get_rank() if is_distributed else 0
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Seeded)}
    if not layers:
        raise ValueError(
            f"seed_dropout: model must have layers of torchreg.nn, {type(model).__name__} has none: "
            "replace_dropout(model) makes them of torch's layers"
        )
    others = [f"{n} ({shown(m)})" for n, m in layers_in(model).items() if n not in layers and not is_idle(m)]
    if others := others + [str(number) for number in numbers_in(model)]:
        warnings.warn(
            f"seed_dropout: other masks do not depend on this seed: {listed(others)}: they draw from torch's global "
            "generator, which torch.manual_seed sets; replace_dropout replaces torch's layers",
            stacklevel=2,
        )
    check_calls("seed_dropout", model, set(layers.values()))
    stream = f.mixed(seed) << 32 | f.mixed(~seed)
    for number, layer in enumerate(layers.values()):
        layer.generator = Generator(device).manual_seed(f.mixed(stream + f.mixed(rank << 32 | number)))
    return list(layers)


def same_masks(module: nn.Module) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """Makes layers with generators draw the same masks again under activation checkpointing.

    Checkpointing computes a block a second time in the backward pass. It restores torch's global random state before,
    but not that of other generators. Without ``same_masks`` a layer with a generator raises an error there, because a
    second mask would give a wrong gradient. Layers without a generator need nothing.

    Args:
        module: the block, or any module that contains it.

    Returns:
        A function for the argument ``context_fn`` of ``torch.utils.checkpoint.checkpoint(..., use_reentrant=False)``.

    Example:
        >>> from torch.utils.checkpoint import checkpoint
        >>> from torchreg.nn import Dropout
        >>> block = nn.Sequential(nn.Linear(4, 4), Dropout(0.5, generator=torch.Generator().manual_seed(0)))
        >>> x = torch.ones(2, 4, requires_grad=True)
        >>> checkpoint(block, x, use_reentrant=False, context_fn=same_masks(block)).sum().backward()
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        layers = [layer for layer in module.modules() if isinstance(layer, Seeded)]
        generators = list({id(g): g for layer in layers if (g := layer.generator) is not None}.values())
        return nullcontext(), _Replay(generators, [generator.get_state() for generator in generators])

    return contexts


class _Replay(AbstractContextManager[None]):
    """``f.replaying``; it can be entered several times, once for each time that the backward pass needs the block."""

    def __init__(self, generators: list[Generator | f.Generators], states: list[torch.Tensor]) -> None:
        self.generators, self.states = generators, states
        self._open: list[AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        self._open.append(f.replaying(self.generators, self.states))
        self._open[-1].__enter__()

    def __exit__(self, *exc_info: Any) -> None:
        self._open.pop().__exit__(*exc_info)

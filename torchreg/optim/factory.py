"""Any optimizer class, with its weight decay decoupled."""

from __future__ import annotations

import copyreg
from abc import ABCMeta
from functools import cache

from torch.optim import Optimizer

from torchreg.optim.decoupled import DecoupledDecay
from torchreg.optim.step_wrapper import StepWrapper, base_optimizer, has_option


def decoupled(cls: type[Optimizer]) -> type[DecoupledDecay]:
    r"""The class of optimizers that step as ``cls`` does, with ``weight_decay`` decoupled from the gradient.

    It is a class like any other: it has ``cls``'s arguments and those of :class:`DecoupledDecay`, can be subclassed,
    and pickles, as do its optimizers. With ``weight_decay=0`` it makes ``cls``'s steps to the bit. The same ``cls``
    gives the same class.

    Args:
        cls: any class of ``torch.optim``, or of others derived from ``torch.optim.Optimizer``, that has an ``lr``.

    Raises:
        TypeError: ``cls`` is no optimizer class.
        ValueError: it has no ``lr``.

    Example:
        >>> import torch
        >>> AdadeltaW = decoupled(torch.optim.Adadelta)
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = AdadeltaW([w], lr=1.0, weight_decay=0.5, coupling="independent")
        >>> w.grad = torch.zeros(2)
        >>> optimizer.step()
        >>> w.data
        tensor([0.5000, 0.5000])
    """
    concrete = isinstance(cls, type) and issubclass(cls, Optimizer) and cls is not Optimizer
    if not concrete or (issubclass(cls, StepWrapper) and base_optimizer(cls) is None):
        raise TypeError(f"decoupled: cls must be a class of optimizers such as torch.optim.Adagrad, got {cls!r}")
    if issubclass(cls, DecoupledDecay):
        return cls
    if not has_option(cls, "lr") and not has_option(cls, "kwargs"):
        raise ValueError(f"decoupled: cls must have an lr, which couples the decay, got {cls.__name__} without one")
    return _made_from(cls)  # type: ignore[arg-type]  # mypy takes a class for what does not hash


@cache
def _made_from(cls: type[Optimizer]) -> type[DecoupledDecay]:
    kind = type("Decoupled", (ABCMeta if type(cls) is type else type(cls),), {})
    doc = f"""{cls.__name__} with decoupled weight decay: see :class:`DecoupledDecay` for ``coupling`` and what follows.

    The other arguments are those of :class:`{cls.__module__}.{cls.__qualname__}`.
    """
    name = cls.__name__ if cls.__name__.endswith("W") else f"{cls.__name__}W"
    made: type[DecoupledDecay] = kind(name, (DecoupledDecay, cls), {"__module__": __name__, "__doc__": doc})
    # A class is pickled as the name it has in its module. This one has none: it is pickled as the call that makes it.
    copyreg.pickle(kind, lambda it: (decoupled, (cls,)) if it is made else it.__qualname__)
    return made

"""Decoupled weight decay for any optimizer class."""

from __future__ import annotations

import copyreg
from abc import ABCMeta
from functools import cache

from torch.optim import Optimizer

from torchreg.optim.decoupled import DecoupledDecay
from torchreg.optim.step_wrapper import StepWrapper, base_optimizer, options_of


def decoupled(cls: type[Optimizer]) -> type[DecoupledDecay]:
    r"""An optimizer class that steps as ``cls`` does, with ``weight_decay`` decoupled from the gradient.

    .. math:: w_t = (1 - r_t\lambda c_t)\, w_{t-1} + \text{the update of } \texttt{cls} \text{ without decay}

    The class has the arguments of ``cls`` and those of :class:`DecoupledDecay`, which explains them. The class can be
    subclassed; the class and its optimizers can be pickled. With ``weight_decay=0`` the steps are those of ``cls``, to
    the bit. A second call with the same ``cls`` returns the same class.

    Args:
        cls: any class derived from ``torch.optim.Optimizer`` that has an ``lr``.

    Returns:
        A subclass of ``cls`` and :class:`DecoupledDecay`.

    Raises:
        TypeError: ``cls`` is no optimizer class.
        ValueError: ``cls`` has no ``lr``.

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
        got = repr(cls) if isinstance(cls, type | str) else f"an instance of {type(cls).__name__}"
        advice = f": write decoupled({type(cls).__name__})(params, ...)" if isinstance(cls, Optimizer) else ""
        raise TypeError(f"decoupled: cls must be a class of optimizers such as torch.optim.Adagrad, got {got}{advice}")
    if issubclass(cls, DecoupledDecay):
        return cls
    if not any(name == "lr" or option.kind is option.VAR_KEYWORD for name, option in options_of(cls).items()):
        raise ValueError(
            f"decoupled: cls must have an lr to couple the decay to, got {cls.__name__} without one: use a Regularizer"
        )
    return _made_from(cls)  # type: ignore[arg-type]  # mypy takes a class as not hashable


@cache
def _made_from(cls: type[Optimizer]) -> type[DecoupledDecay]:
    kind = type("Decoupled", (ABCMeta if type(cls) is type else type(cls),), {})
    doc = f"""{cls.__name__} with decoupled weight decay.

    The arguments from ``coupling`` on are those of :class:`~torchreg.optim.DecoupledDecay`, the others those of
    :class:`{cls.__module__}.{cls.__qualname__}`.
    """
    name = cls.__name__ if cls.__name__.endswith("W") else f"{cls.__name__}W"
    made: type[DecoupledDecay] = kind(name, (DecoupledDecay, cls), {"__module__": __name__, "__doc__": doc})
    # Classes are pickled by their name in a module. This class has none, so it is pickled as the call that makes it.
    copyreg.pickle(kind, lambda it: (decoupled, (cls,)) if it is made else it.__qualname__)
    return made

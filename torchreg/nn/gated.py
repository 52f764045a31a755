"""The base class of layers that learn what to drop; :class:`torchreg.Complexity` penalizes their complexity."""

from __future__ import annotations

from abc import abstractmethod
from operator import attrgetter
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from torchreg import functional as f
from torchreg.nn.parametrized import Layer, name_of, rewriting
from torchreg.nn.seeded import Seeded
from torchreg.selection.parameters import copied


class Gated(Seeded):
    """A linear layer or convolution with learned drop rates; the base class of layers that learn what to drop.

    A subclass defines ``forward``, :meth:`complexity_of`, :meth:`pruned` and the class attributes below. See
    :class:`ConcreteDropout`, :class:`HardConcrete` and :class:`VariationalDropout`.

    Args:
        layer: ``nn.Linear`` or ``nn.Conv1d`` to ``nn.Conv3d``; it becomes the submodule ``layer``.
        generator: source of the random numbers; torch's global generator if None.

    Attributes:
        rates: the name of the parameter with the learned rates.
        cost: the name of the complexity in logs: "KL" or "L0".
        depends_on: the names of the parameters that the complexity is a function of.

    Raises:
        TypeError: ``layer`` is of another type.
        ValueError: ``layer`` is lazy or parametrized; in the forward pass something that the complexity depends on was
            parametrized afterwards.

    Example:
        >>> from torchreg.nn import VariationalDropout
        >>> layer = VariationalDropout(nn.Linear(8, 4))
        >>> isinstance(layer, Gated), layer.cost, layer.complexity().ndim
        (True, 'KL', 0)
    """

    rates: ClassVar[str]
    cost: ClassVar[str]
    depends_on: ClassVar[tuple[str, ...]]

    def __init__(self, layer: Layer, generator: Generator | None) -> None:
        super().__init__()
        if not isinstance(layer, Layer):
            kind = type(layer).__name__
            raise TypeError(
                f"{type(self).__name__}: layer must be a torch.nn.Linear, Conv1d, Conv2d or Conv3d, got {kind}"
            )
        weight = dict(layer.named_parameters(recurse=False)).get("weight")
        if weight is None or isinstance(weight, nn.UninitializedParameter):
            raise ValueError(
                f"{type(self).__name__}: the layer's weight must be a parameter, got a lazy or parametrized one: "
                "run a batch through it first, or remove the parametrization"
            )
        self.layer = layer
        self.generator = generator

    def no_weight_decay(self) -> dict[str, str]:
        """Exempts the learned rates from penalties; selectors call this method."""
        return {name: "learned drop rate" for name, _ in self.named_parameters(recurse=False)}

    def complexity(self) -> Tensor:
        """The complexity: a 0-d tensor, differentiable in all parameters it depends on."""
        return self.complexity_of(*(attrgetter(name)(self) for name in self.depends_on))

    @abstractmethod
    def complexity_of(self, *tensors: Tensor) -> Tensor:
        """:meth:`complexity` as a function of the parameters it depends on."""

    def _complexity_gradient(self, index: int, *tensors: Tensor) -> Tensor:
        """The gradient of :meth:`complexity_of` by one of its tensors; differentiable if gradients are enabled."""
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            inputs = list(tensors)
            if not (again and inputs[index].requires_grad):
                inputs[index] = inputs[index].detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.complexity_of(*inputs), inputs[index], create_graph=again)
        return gradient

    @abstractmethod
    def pruned(self) -> Layer:
        """A copy of the inner layer with zeros for what is dropped; its outputs agree in evaluation mode."""

    def _check_parameters(self) -> None:
        """Refuses parametrized tensors in the complexity, which would not reach the parameters behind them."""
        for name in self.depends_on:
            path, _, own = name.rpartition(".")
            if own not in self.get_submodule(path)._parameters and (kind := rewriting(self.get_submodule(path), own)):
                raise ValueError(
                    f"{name_of(self)}: {name} must be a parameter, because the complexity depends on it, got one "
                    f"behind {kind}: remove that"
                )

    @property
    def _spatial(self) -> int:
        """The number of dimensions of the layer's kernel."""
        return 0 if isinstance(self.layer, nn.Linear) else len(self.layer.kernel_size)

    def _uniform(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Random numbers in the open interval (0, 1), at least in single precision."""
        self._check_generator(x)
        drawn = f.drawn(torch.rand, shape, x.device, self.generator)
        tiny = torch.finfo(drawn.dtype).eps
        return drawn * (1 - 2 * tiny) + tiny

    def _over_channels(self, x: Tensor) -> tuple[int, ...]:
        """The shape with one number for each example and channel; of a linear layer for each example and input."""
        if isinstance(self.layer, nn.Linear):
            leading = x.shape[:1] if x.ndim > 1 else ()
            return (*leading, *[1] * (x.ndim - len(leading) - 1), x.shape[-1])
        return (*x.shape[: -self._spatial], *[1] * self._spatial)


def pruned(model: nn.Module) -> nn.Module:
    """A copy of the model with ordinary layers instead of those that learn what to drop.

    The outputs in evaluation mode agree. Dropped weights are exactly zero, so :func:`torchreg.compress` can remove
    whole units.

    Args:
        model: any module; it is not changed.

    Example:
        >>> from torchreg.nn import VariationalDropout
        >>> model = nn.Sequential(VariationalDropout(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 2))
        >>> pruned(model)
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
          (1): ReLU()
          (2): Linear(in_features=3, out_features=2, bias=True)
        )
    """
    if isinstance(model, Gated):
        return model.pruned().train(model.training)
    twin = copied(model)
    made: dict[nn.Module, nn.Module] = {}
    for name, module in list(twin.named_modules(remove_duplicate=False)):  # each place of those at several places
        if isinstance(module, Gated):
            path, _, key = name.rpartition(".")
            new = made.setdefault(module, module.pruned().train(module.training))
            twin.get_submodule(path).register_module(key, new)
    return twin

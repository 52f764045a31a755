"""Layers that learn what to drop, in general. What their rates cost is for :class:`torchreg.Complexity` to add."""

from __future__ import annotations

import copy
from abc import abstractmethod
from operator import attrgetter
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn.parameter import is_lazy

from torchreg import functional as f
from torchreg.nn.dropout import Seeded

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


class Gated(Seeded):
    """A linear layer or convolution with rates of dropping that are learned with its weights.

    Args:
        layer: ``nn.Linear`` or ``nn.Conv1d`` to ``nn.Conv3d``; it becomes the submodule ``layer``.
        generator: source of the random numbers; torch's global one if None.

    Raises:
        TypeError: any other layer.
    """

    rates: ClassVar[str]  # the parameter that holds the learned rates
    cost: ClassVar[str]  # what the complexity is called: "KL" or "L0"
    depends_on: ClassVar[tuple[str, ...]]  # the parameters that the complexity is a function of

    def __init__(self, layer: Layer, generator: Generator | None) -> None:
        super().__init__()
        if not isinstance(layer, Layer):
            kind = type(layer).__name__
            raise TypeError(
                f"{type(self).__name__}: layer must be a torch.nn.Linear, Conv1d, Conv2d or Conv3d, got {kind}"
            )
        if "weight" not in layer._parameters or is_lazy(layer.weight):
            raise ValueError(
                f"{type(self).__name__}: layer must have its weight for a parameter, got a lazy or parametrized one: "
                "run a batch through it first, or remove the parametrization"
            )
        self.layer = layer
        self.generator = generator

    def no_weight_decay(self) -> dict[str, str]:
        """The learned rates are no weights: selectors read here that penalties exempt them."""
        return dict.fromkeys(self._parameters, "learned drop rate")

    def complexity(self) -> Tensor:
        """What the rates cost: 0-d, differentiable in all parameters it depends on."""
        return self.complexity_of(*(attrgetter(name)(self) for name in self.depends_on))

    @abstractmethod
    def complexity_of(self, *tensors: Tensor) -> Tensor:
        """:meth:`complexity` for other values of the parameters it depends on."""

    def _complexity_gradient(self, index: int, *tensors: Tensor) -> Tensor:
        """The derivative of :meth:`complexity_of` in one of its tensors, differentiable if gradients are enabled."""
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            inputs = list(tensors)
            if not (again and inputs[index].requires_grad):
                inputs[index] = inputs[index].detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.complexity_of(*inputs), inputs[index], create_graph=again)
        return gradient

    @abstractmethod
    def pruned(self) -> Layer:
        """A copy of the layer that computes in evaluation mode what this computes, with zeros for what is dropped."""

    def _uniform(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Numbers in (0, 1), never at the ends, at least in single precision."""
        self._check_generator(x)
        drawn = f.drawn(torch.rand, shape, x.device, self.generator)
        tiny = torch.finfo(drawn.dtype).eps
        return drawn * (1 - 2 * tiny) + tiny

    def _over_channels(self, x: Tensor) -> tuple[int, ...]:
        """The shape of one number for each example and channel: the inputs of a linear layer, or maps."""
        if isinstance(self.layer, nn.Linear):
            leading = x.shape[:1] if x.ndim > 1 else ()
            return (*leading, *[1] * (x.ndim - len(leading) - 1), x.shape[-1])
        spatial = self.layer.weight.ndim - 2
        return (*x.shape[:-spatial], *[1] * spatial)


def pruned(model: nn.Module) -> nn.Module:
    """A copy of the model with an ordinary layer for each that learned what to drop; the outputs in evaluation agree.

    What was dropped is exactly zero there, so :func:`torchreg.compress` can take out whole units.

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
    copied = copy.deepcopy(model)
    made: dict[nn.Module, nn.Module] = {}
    for parent in list(copied.modules()):
        for name, child in list(parent._modules.items()):  # each place of those that stand in several
            if isinstance(child, Gated):
                parent._modules[name] = made.setdefault(child, child.pruned().train(child.training))
    return copied

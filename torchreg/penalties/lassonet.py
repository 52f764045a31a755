"""LassoNet: the weights of a skip layer decide which features a network may use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Never, Self, final

import torch
from torch import Tensor

from torchreg import functional as f
from torchreg.penalties.base import Term
from torchreg.penalties.joint import Joint
from torchreg.selection.parameters import ParamInfo, unwrapped

_ULPS = 4  # the hierarchy counts as kept up to so many units of a bound's rounding


@final
@dataclass(frozen=True, repr=False, eq=False)
class LassoNet(Term, Joint):
    r"""A lasso on the features of a network: a feature may be used by the network if a linear layer beside it uses it.

    .. math:: R(\theta, W) = s \sum_j \|\theta_j\|_2 \quad \text{subject to} \quad
              \|W_j\|_\infty \le M \|\theta_j\|_2 \text{ for each feature } j

    The model is the sum of a linear skip layer and a network, both of the same features. :math:`\theta_j` are the
    weights of feature :math:`j` in the skip layer, one for each output, and :math:`W_j` those in the first layer of the
    network. Where :math:`\theta_j` becomes zero, all of :math:`W_j` does, and the model no longer depends on the
    feature. It acts in mode "prox" only: after each step both weights move to the proximal point together, which is
    exact; see :func:`torchreg.functional.hierarchical_threshold`.

    The path of the paper begins with a dense network and multiplies the strength by a little more than 1, as
    ``regularizer.scale *= 1.02``, after each training from where the last one ended. Both layers are in one optimizer
    with the same ``lr``. In half precision the hierarchy holds up to rounding.

    Args:
        strength: ``s``, finite and not negative. At 0 the hierarchy holds all the same.
        M: the hierarchy's bound, positive and finite. The smaller, the more linear is the model; the paper takes 10.
        skip: the name of the skip layer in the model, without the names of wrappers; its weight is
            ``(outputs, features)``.
        first: the name of the first layer of the network, whose weight is ``(units, features)``.

    Raises:
        TypeError: ``strength`` or ``M`` is no real number, ``skip`` or ``first`` no string.
        ValueError: ``strength`` or ``M`` is out of range. When the regularizer is created: the model has no such
            layers, their weights are no matrices with the same number of columns, or the mode is not "prox". In a step:
            one of the layers is frozen, or their steps differ.

    Example:
        >>> import torch
        >>> from torchreg import Regularizer
        >>> class Net(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.skip = torch.nn.Linear(3, 1, bias=False)
        ...         self.first, self.last = torch.nn.Linear(3, 8), torch.nn.Linear(8, 1)
        ...     def forward(self, x):
        ...         return self.skip(x) + self.last(self.first(x).relu())
        >>> model = Net()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> regularizer = Regularizer(model, LassoNet(0.1), mode="prox").attach(optimizer)
        >>> model(torch.ones(2, 3)).square().mean().backward()
        >>> optimizer.step()
        >>> bool((model.first.weight.abs().amax(0) <= 10 * model.skip.weight.abs().squeeze(0)).all())
        True

    References:
        Ismael Lemhadri, Feng Ruan, Louis Abraham, Robert Tibshirani, "LassoNet: A Neural Network with Feature
        Sparsity", Journal of Machine Learning Research, 2021.
    """

    M: float = 10.0
    skip: str = "skip"
    first: str = "first"

    together: ClassVar[bool] = True  # type: ignore[misc]
    _selects_itself: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("M", "positive and finite", lambda bound: 0 < bound < math.inf)
        for name in ("skip", "first"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"LassoNet: {name} must be the name of a layer, got {getattr(self, name)!r}")
        if self.skip == self.first:
            raise ValueError(f"LassoNet: skip and first must be two layers, got {self.skip!r} twice")

    def bind(self, place: ParamInfo) -> Self:
        bound = replace(self)._as_part_of(self)
        vars(bound)["_place"] = self._layer_of(place), place.name
        return bound

    def _exempts(self, place: ParamInfo) -> str | None:
        return None if self._layer_of(place) else f"neither {self.skip}.weight nor {self.first}.weight"

    def _layer_of(self, place: ParamInfo) -> str | None:
        """Whether it is the weight of the skip layer or of the first one."""
        layers = {f"{self.skip}.weight": "skip", f"{self.first}.weight": "first"}
        return layers.get(place.name) or layers.get(unwrapped(place.name))

    def _check_together(self, each: Sequence[Joint], weights: Sequence[Tensor], names: str) -> None:
        skip, first = (self._position(each, layer) for layer in ("skip", "first"))
        if skip is None or first is None or len(each) > 2:
            raise ValueError(
                f"LassoNet: the model must have one weight {self.skip}.weight and one {self.first}.weight, got {names}"
                ": name the two layers by skip= and first="
            )
        shapes = [tuple(weights[i].shape) for i in (skip, first)]
        if any(len(shape) != 2 for shape in shapes) or shapes[0][1] != shapes[1][1]:
            raise ValueError(
                f"LassoNet: skip and first must be linear layers of the same features, got weights of shape "
                f"{shapes[0]} and {shapes[1]}: name the two layers by skip= and first="
            )

    def _value_together(
        self, each: Sequence[Joint], weights: Sequence[Tensor], scales: Sequence[float | Tensor]
    ) -> Tensor:
        i, j = self._pair(each)
        norms = f.row_norms(f.wide(weights[i]).mT).squeeze(1)
        largest = f.magnitude(f.wide(weights[j])).amax(0) if len(weights[j]) else torch.zeros_like(norms)
        unit = torch.finfo(weights[j].dtype).eps
        outside = (largest > self.M * norms * (1 + _ULPS * unit)).any()
        total: Tensor = scales[i] * self.strength * norms.sum() + f.nan_of(largest).sum()
        return total.masked_fill(outside & ~total.isnan(), math.inf).to(f.real_dtype(weights[i]))

    def _prox_together_(
        self,
        each: Sequence[Joint],
        weights: Sequence[Tensor],
        steps: Sequence[float | Tensor],
        are_moved: Sequence[bool],
    ) -> None:
        i, j = self._pair(each)
        step, other = steps[i], steps[j]
        if not isinstance(step, Tensor) and not isinstance(other, Tensor) and step != other:
            raise ValueError(
                f"LassoNet: skip and first must have the same step lr * scale, got {step:g} and {other:g}: give their "
                "parameter groups one lr"
            )
        skip, first = f.hierarchical_threshold(weights[i], weights[j], step * self.strength, self.M)
        weights[i].copy_(skip)
        weights[j].copy_(first)

    def _position(self, each: Sequence[Joint], layer: str) -> int | None:
        return next((i for i, part in enumerate(each) if vars(part)["_place"][0] == layer), None)

    def _pair(self, each: Sequence[Joint]) -> tuple[int, int]:
        """The positions of the skip layer and of the first one."""
        skip, first = (self._position(each, layer) for layer in ("skip", "first"))
        if skip is None or first is None:
            trained = vars(each[0])["_place"][1]
            raise ValueError(
                f"LassoNet: skip and first must be trained together, got {trained} alone: call requires_grad_(True) on "
                "the other one, and give both to the optimizer"
            )
        return skip, first

    def value(self, w: Tensor) -> Never:
        raise self._unbound()

    def gradient(self, w: Tensor) -> Never:
        raise self._unbound()

    def prox(self, w: Tensor, step: float | Tensor) -> Never:
        raise self._unbound()

    def _unbound(self) -> TypeError:
        return TypeError("LassoNet: it is a function of two weights, not of one tensor: give it to a Regularizer")

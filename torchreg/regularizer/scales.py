"""What multiplies the penalties of a model: one scale, one for each member of a stack, or one for each parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn

from torchreg.ensemble.stacked import Stacked
from torchreg.regularizer.assignment import Assignment
from torchreg.schedules import check_scale
from torchreg.selection.modules import listed

Scale: TypeAlias = float | Tensor | Mapping[str, float | Tensor]


class Scales(NamedTuple):
    """The scale of each penalized parameter."""

    given: Scale  # by name, if it is a dict
    own: Mapping[Any, float | Tensor] = {}  # then also by parameter, and by the name of a weight that a layer computes

    @classmethod
    def of(cls, scale: Scale, model: nn.Module, assignments: Sequence[Assignment]) -> Scales:
        """The scales, checked.

        Args:
            scale: the scale of all parameters, or a dict of names.
            model: the model.
            assignments: of its parameters, which a dict must name.

        Raises:
            ValueError: a scale is negative or not finite, or the names are not those of the penalized parameters.
        """
        if not isinstance(scale, Mapping):
            return cls(_checked(scale, model))
        names = {a.name: a for a in assignments if a.acting is not None}
        if scale.keys() != names.keys():
            raise ValueError(
                f"Regularizer: scale must name each penalized parameter, {listed(list(names))}, "
                f"got {listed(list(scale)) or 'none'}"
            )
        given = {name: _checked(own, model) for name, own in scale.items()}
        return cls(given, {key: given[a.name] for a in names.values() for key in (a.key, *a.stored)})

    def of_key(self, key: nn.Parameter | str) -> float | Tensor:
        """The scale of a parameter, or of a weight that its layer computes, by its name."""
        return self.own[key] if self.own else self.given  # type: ignore[return-value]

    def each(self) -> list[float | Tensor]:
        """The different scales: one, or one for each parameter."""
        return list(self.given.values()) if isinstance(self.given, Mapping) else [self.given]

    def with_each(self, scales: Sequence[float | Tensor]) -> Scale:
        """The scale with other numbers in place of :meth:`each`."""
        return dict(zip(self.given, scales, strict=True)) if isinstance(self.given, Mapping) else scales[0]


def _checked(scale: float | Tensor, model: nn.Module) -> float | Tensor:
    """The scale; one for each member of a stack lies on the stack's device."""
    if not isinstance(model, Stacked):
        return check_scale("Regularizer", scale)
    scale = check_scale("Regularizer", scale, len(model))
    param = next(model.parameters(), None)
    return scale.to(param.device) if isinstance(scale, Tensor) and scale.ndim and param is not None else scale

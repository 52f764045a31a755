"""Training images that are altered at random each time they are used."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Augmentation:
    """Transforms of each image, then a mixing of the batch, which also mixes the targets.

    They draw from torch's global generator, whose state a checkpoint holds.
    """

    def __init__(self, transforms: Sequence[nn.Module], mix: nn.Module | None) -> None:
        self.transforms, self.mix = list(transforms), mix

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The batch, altered."""
        if self.transforms:
            x = torch.stack([self._one(image) for image in x])
        if self.mix is not None:
            x, y = self.mix(x, y)
        return x, y

    def _one(self, image: Tensor) -> Tensor:
        for transform in self.transforms:
            image = transform(image)
        return image

"""Images before and behind layers that drop."""

from __future__ import annotations

from functools import cache

import torch
from matplotlib.colors import to_rgb
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from pictures.cells import framed
from pictures.style import ORANGE, figure


@cache
def photo(side: int = 56) -> Tensor:
    """A photograph of a flower, ``(3, side, side)``, in [0, 1]."""
    whole = torch.tensor(load_sample_image("flower.jpg")).permute(2, 0, 1).float() / 255
    cut = whole[None, :, 40:400, 150:510]
    return nn.functional.interpolate(cut, size=(side, side), mode="area")[0]


@cache
def feature_maps() -> Tensor:
    """Eight maps ``(8, 40, 40)`` that a convolution could make of it: edges of all directions."""
    angles = torch.arange(8).view(8, 1, 1) * torch.pi / 4
    across, down = torch.meshgrid(*[torch.arange(-1.0, 2)] * 2, indexing="xy")
    kernels = angles.cos() * across + angles.sin() * down
    edges = nn.functional.conv2d(photo(42).mean(0)[None, None], kernels.unsqueeze(1)).relu()[0]
    return edges / edges.max()


def picture(
    image: Tensor,
    title: str,
    *,
    dropped: Tensor | None = None,
    white: float = 1.0,
    black: float = 0.0,
) -> None:
    """An image ``(C, H, W)`` or ``(H, W)`` in color or gray, with what was dropped in orange."""
    axes = figure(title, 1.72, 1.9)
    colors = image.expand(3, *image.shape[-2:]).movedim(0, -1)
    axes.imshow(_shown(colors, dropped, white, black).numpy(), interpolation="nearest")
    axes.set(xticks=(), yticks=(), title=title)
    framed(axes)


def montage(
    images: Tensor,
    title: str,
    *,
    height: float,
    dropped: Tensor | None = None,
    white: float = 1.0,
    black: float = 0.0,
) -> None:
    """Images ``(rows, columns, H, W)`` beside each other, with what was dropped in orange."""
    axes = figure(title, 3.4, height)
    where = None if dropped is None else dropped.expand_as(images)
    gray = _shown(images.unsqueeze(-1).expand(*images.shape, 3), where, white, black)
    tiles = torch.cat([gray, torch.ones_like(gray[..., :1])], -1)
    tiles = nn.functional.pad(tiles, (0, 0, 0, 2, 0, 2))  # what is between them is transparent
    canvas = tiles.transpose(1, 2).flatten(2, 3).flatten(0, 1)[:-2, :-2]
    axes.imshow(canvas.numpy(), interpolation="nearest")
    axes.set(title=title)
    axes.set_axis_off()


def _shown(colors: Tensor, dropped: Tensor | None, white: float, black: float) -> Tensor:
    shown = ((colors.detach() - black) / (white - black)).clamp(0, 1)
    if dropped is not None:
        shown[dropped] = torch.tensor(to_rgb(ORANGE))
    return shown


def drawn(layer: nn.Module, x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """A layer's output, and where it dropped: where ones become the least of what they become."""
    torch.manual_seed(seed)
    output = layer(x).detach()
    torch.manual_seed(seed)
    ones = layer(torch.ones_like(x))
    return output, ones == ones.min()


def masks(
    layer: nn.Module, image: Tensor | None = None, drops: bool = True, mean_of: int = 400
) -> None:
    """A gray image before a layer, two draws behind it, and the mean of many draws."""
    batch = (photo().mean(0) if image is None else image)[None, None]
    draws = [drawn(layer, batch, seed) for seed in range(2)]
    kept = torch.cat(
        [output[~dropped] if drops else output.flatten() for output, dropped in draws]
    )
    white = max(kept.quantile(0.99).item(), batch.max().item())
    tones = {"white": white, "black": batch.min().item()}
    picture(batch[0, 0], "input", **tones)
    for number, (output, dropped) in enumerate(draws, start=1):
        where = dropped[0, 0] if drops else None
        picture(output[0, 0], f"draw {number}", dropped=where, **tones)
    mean = torch.stack([layer(batch)[0, 0] for _ in range(mean_of)]).mean(0)
    picture(mean, f"mean of {mean_of} draws", **tones)

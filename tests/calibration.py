"""What every layer really drops, against its nominal rate: ``python -m tests.calibration > docs/calibration.md``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from torchreg.nn import (
    AlphaDropout,
    DropBlock1d,
    DropBlock2d,
    DropBlock3d,
    DropConnect,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    EmbeddingDropout,
    FeatureAlphaDropout,
    GaussianDropout,
    LayerDrop,
    LockedDropout,
    MultiheadAttention,
    StochasticDepth,
    WordDropout,
)

RATES = (0.05, 0.1, 0.3, 0.5, 0.9)
SIGMAS = 4.5  # one false alarm in 150,000, and the seeds are fixed


class Row(NamedTuple):
    """A layer at a rate: figures with the errors that chance allows them."""

    layer: str
    p: float
    rate: float | None  # of zeros; None where the layer makes none
    rate_bound: float
    mean: float  # of what becomes of ones
    mean_bound: float
    variance: float | None  # of what becomes of ones, to p / (1 - p)


def _words(p: float, generator: Generator) -> Tensor:
    tokens = WordDropout(p, unknown=0, generator=generator)(torch.ones(200_000, 1, dtype=torch.int64))
    return tokens.double()


def _types(p: float, generator: Generator) -> Tensor:
    layer = EmbeddingDropout(nn.Embedding.from_pretrained(torch.ones(500, 2)), p, generator=generator)
    return layer(torch.arange(500).unsqueeze(1).expand(500, 400)).detach().reshape(-1, 2)


def _weights(p: float, generator: Generator) -> Tensor:
    layer = nn.Linear(20, 20, bias=False)
    nn.init.ones_(layer.weight)
    layer = DropConnect(layer, p, generator=generator)
    return torch.cat([layer(row.expand(500, 20)).detach() for row in torch.eye(20)]).reshape(-1, 1)


def _attention(drop: Any, independent: bool = True) -> Callable[[float, Generator], Tensor]:
    """The weights of equal keys, times their number."""

    def draw(p: float, generator: Generator) -> Tensor:
        layer = MultiheadAttention(4, 4, p, bias=False, drop=drop, generator=generator)
        nn.init.zeros_(layer.in_proj_weight)
        x = torch.zeros(1000, 1, 4) if independent else torch.zeros(2, 50_000, 4)
        y: Tensor = layer(x, x, x, average_attn_weights=False)[1].detach() * len(x)
        return y.reshape(-1, 1) if independent else y.flatten(0, 1).flatten(1)

    return draw


def _layers(p: float, generator: Generator) -> Tensor:
    layers = LayerDrop([nn.Identity() for _ in range(100)], p, generator=generator)
    kept = [set(layers) for _ in range(500)]
    return torch.tensor([layer in each for each in kept for layer in layers.eval()]).double().reshape(-1, 1)


def _by(make: Callable[..., nn.Module], *shape: int) -> Callable[[float, Generator], Tensor]:
    """The layer on ones, as independent draws by what is drawn together."""

    def draw(p: float, generator: Generator) -> Tensor:
        y: Tensor = make(p, generator)(torch.ones(shape))
        return y.reshape(-1, 1) if make in (_dropout, _gaussian) else y.flatten(2).reshape(-1, math.prod(shape[2:]))

    return draw


def _dropout(p: float, generator: Generator) -> nn.Module:
    return Dropout(p, generator=generator)


def _gaussian(p: float, generator: Generator) -> nn.Module:
    return GaussianDropout(p, generator=generator)


# Each draw is a matrix of what becomes of ones: rows are independent of each other, the elements of one may not be.
LAYERS: dict[str, Callable[[float, Generator], Tensor]] = {
    "Dropout": _by(_dropout, 1000, 500),
    "Dropout1d": _by(lambda p, g: Dropout1d(p, generator=g), 1000, 200, 3),
    "Dropout2d": _by(lambda p, g: Dropout2d(p, generator=g), 1000, 200, 2, 2),
    "Dropout3d": _by(lambda p, g: Dropout3d(p, generator=g), 1000, 200, 1, 2, 2),
    "LockedDropout": lambda p, g: LockedDropout(p, generator=g)(torch.ones(3, 1000, 200)).flatten(1).t(),
    "EmbeddingDropout": _types,
    "WordDropout": _words,
    "DropConnect": _weights,
    "DropBlock1d, 7 of 30": _by(lambda p, g: DropBlock1d(p, 7, generator=g), 300, 64, 30),
    "DropBlock2d, 7 of 14x14": _by(lambda p, g: DropBlock2d(p, 7, generator=g), 300, 64, 14, 14),
    "DropBlock2d, 4 of 14x14": _by(lambda p, g: DropBlock2d(p, 4, generator=g), 300, 64, 14, 14),
    "DropBlock3d, 3 of 6x6x6": _by(lambda p, g: DropBlock3d(p, 3, generator=g), 300, 64, 6, 6, 6),
    "StochasticDepth": lambda p, g: StochasticDepth(nn.Identity(), p, generator=g)(torch.ones(200_000, 2)),
    "GaussianDropout": _by(_gaussian, 1000, 500),
    "LayerDrop": _layers,
    "MultiheadAttention, weights": _attention("weights"),
    "MultiheadAttention, keys": _attention("keys"),
    "MultiheadAttention, heads": _attention("heads", independent=False),
}
UNSCALED = ("WordDropout", "LayerDrop")  # they do not keep the mean
NORMAL = {"AlphaDropout": AlphaDropout, "FeatureAlphaDropout": FeatureAlphaDropout}  # of inputs with mean 0, variance 1


def rows() -> Iterator[Row]:
    """Every layer at every rate."""
    for number, (name, draw) in enumerate(LAYERS.items()):
        for p in RATES:
            yield _row(name, p, draw(p, Generator().manual_seed(number)).double())


def _row(name: str, p: float, y: Tensor) -> Row:
    dropped = (y == 0).double().mean(1)  # of each independent draw
    rate, bound = dropped.mean().item(), SIGMAS * dropped.std().item() / math.sqrt(len(y))
    mean, mean_bound = y.mean().item(), SIGMAS * y.mean(1).std().item() / math.sqrt(len(y))
    if name in UNSCALED:
        return Row(name, p, rate, bound, math.nan, math.nan, None)
    variance = (y - 1).square().mean().item() / (p / (1 - p))
    return Row(name, p, None if name == "GaussianDropout" else rate, bound, mean, mean_bound, variance)


_HEAD = f"""# Nominal and realized rates

What becomes of ones: the share of zeros, the mean, and the variance to the p / (1 - p) that it should be, with
{SIGMAS} standard errors. Written by `python -m tests.calibration`, checked by tests/unit/test_calibration.py.

| layer | p | dropped | mean | variance to p / (1 - p) |
|---|---|---|---|---|"""


def main() -> None:
    """Prints the table."""
    print(_HEAD)
    for row in rows():
        rate = "none" if row.rate is None else f"{row.rate:.4f} ± {row.rate_bound:.4f}"
        mean = "" if math.isnan(row.mean) else f"{row.mean:.4f} ± {row.mean_bound:.4f}"
        variance = "" if row.variance is None else f"{row.variance:.3f}"
        print(f"| {row.layer} | {row.p:g} | {rate} | {mean} | {variance} |")


if __name__ == "__main__":
    main()

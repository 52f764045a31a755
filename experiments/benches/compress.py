"""A ResNet-18 that a coupled group lasso has made smaller: how much faster it is, with the same outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from torchreg import CoupledGroupLasso, compress
from torchreg.diagnostics import CoupledUnits, coupled_units

from ..errors import UserError
from .timing import Clock, Table

_CLASSES, _BATCH = 10, 32


def tables(clock: Clock) -> Iterator[Table]:
    """Trains on random images until half of all channels are zero, and races the compressed model with the original."""
    torch.manual_seed(0)
    x = torch.randn(_BATCH, 3, 32, 32)
    model, steps = trained(resnet(), share=0.5)
    small = compress(model, x[:2])
    with torch.inference_mode():
        difference = float((small(x) - model(x)).abs().max() / model(x).abs().max())
        before, after = (channels(m) for m in (model, small))
        sizes = [sum(p.numel() for p in m.parameters()) for m in (model, small)]
        note = (
            f"{steps} steps; channels {before} -> {after}, parameters {sizes[0]:,} -> {sizes[1]:,}; "
            f"outputs differ by {difference:.0e} of the largest"
        )
        contenders = {"as trained": lambda: model(x), "compressed": lambda: small(x)}
        yield from clock.race("ResNet-18, 32 images of 3 x 32 x 32, forward", contenders, rounds=30, note=note)


def resnet() -> nn.Module:
    """torchvision's ResNet-18 with the first layers that are usual for images of 32 x 32."""
    try:
        from torchvision.models import resnet18
    except ImportError as error:
        raise UserError("bench compress needs torchvision: pip install torchvision") from error
    model: nn.Module = resnet18(num_classes=_CLASSES)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def trained(model: nn.Module, share: float, batch: int = 16) -> tuple[nn.Module, int]:
    """The model after training on random images with coupled group lassos, and the number of steps.

    The lasso of a stream of channels grows until that share of them is zero; then its zeros are fixed.
    """
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(8 * batch, 3, 32, 32, generator=draw)
    labels = torch.randint(_CLASSES, (8 * batch,), generator=draw)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    streams = [units.layers for units in coupled_units(model, images[:2]) if len(units.reasons) < units.size]
    lassos = [_on(model, layers, images[:2]) for layers in streams]
    steps = 0
    with ExitStack() as stack:
        for lasso in lassos:
            stack.enter_context(lasso.attach(optimizer))
        while lassos:
            some = torch.randperm(len(images), generator=draw)[:batch]
            optimizer.zero_grad()
            cross_entropy(model(images[some]), labels[some]).backward()
            optimizer.step()
            steps += 1
            for lasso in list(lassos):
                lasso.strength *= 1.01
                if zeros(lasso.norms()) >= share:
                    lasso.fix_support()
                    lassos.remove(lasso)
    return model.eval(), steps


def _on(model: nn.Module, layers: tuple[str, ...], example: Tensor) -> CoupledGroupLasso:
    """The lasso on the channels that these layers write."""

    def is_that(units: CoupledUnits) -> bool:
        return units.layers == layers

    return CoupledGroupLasso(model, example, 1e-3, select=is_that)


def zeros(norms: dict[str, Tensor]) -> float:
    """The share of units that are zero."""
    lengths = torch.cat(list(norms.values()))
    return float((lengths == 0).double().mean())


def channels(model: nn.Module) -> int:
    """The number of outputs of all convolutions."""
    return sum(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d))

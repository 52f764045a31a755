"""The networks that studies name; a study may also bring its own class."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

Layer = Callable[[], nn.Module]


def mlp(
    shape: Sequence[int],
    classes: int,
    hidden: Sequence[int] = (512, 512),
    dropout: Layer | None = None,
    input_dropout: Layer | None = None,
) -> nn.Sequential:
    """A fully connected ReLU network, with ``dropout()`` after each hidden layer and ``input_dropout()`` before all."""
    layers: list[nn.Module] = [nn.Flatten()]
    if input_dropout is not None:
        layers.append(input_dropout())
    width = 1
    for size in shape:
        width *= size
    for units in hidden:
        layers += [nn.Linear(width, units), nn.ReLU()]
        if dropout is not None:
            layers.append(dropout())
        width = units
    return nn.Sequential(*layers, nn.Linear(width, classes))


def cnn(
    shape: Sequence[int],
    classes: int,
    channels: Sequence[int] = (32, 64),
    hidden: int = 128,
    dropout: Layer | None = None,
    input_dropout: Layer | None = None,
) -> nn.Sequential:
    """3x3 convolutions, each followed by ReLU and 2x2 pooling, then one hidden layer with ``dropout()`` around it."""
    depth, height, width = shape
    layers: list[nn.Module] = [] if input_dropout is None else [input_dropout()]
    for filters in channels:
        layers += [nn.Conv2d(depth, filters, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        depth, height, width = filters, height // 2, width // 2
    drops: list[nn.Module] = [] if dropout is None else [dropout(), dropout()]
    head = [nn.Flatten(), *drops[:1], nn.Linear(depth * height * width, hidden), nn.ReLU(), *drops[1:]]
    return nn.Sequential(*layers, *head, nn.Linear(hidden, classes))


BUILT_IN: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "cnn": cnn}

"""The table ``model`` of a study."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator

from .sections import Component, Names


class Model(Component):
    """A built-in network with its dropout layers, one of torchvision or timm, or the user's own class."""

    _sources: ClassVar[tuple[str, ...]] = ("name", "class", "torch", "timm")
    usual: ClassVar[tuple[str, ...]] = ("hidden",)

    torch: str | None = None  # a classifier of torchvision.models, such as "resnet18"
    timm: str | None = None  # a model of timm, such as "resnet18"
    dropout: Component | None = None
    input_dropout: Component | None = None
    wrap: Component | None = None  # what each linear layer and convolution is wrapped in, such as DropConnect
    init: Component | None = None  # of torch.nn.init, for the weights; the biases are then 0
    scale: Annotated[float, Field(gt=0)] = 1.0  # multiplies the initial weights and biases, not those of normalization
    freeze: Names | None = None  # patterns of the names of parameters that are not trained, such as "linear1.*"

    @field_validator("dropout", "input_dropout", mode="before")
    @classmethod
    def _is_layer(cls, given: Any) -> Any:
        if isinstance(given, (int, float)) and not isinstance(given, bool):
            raise ValueError(f'must be a table, as {{ name = "Dropout", p = {given} }}')
        return given

"""The settings of a training: its length, its loss, what a step is, and what is measured."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .sections import Amount, Component, Section, Size


class EarlyStopping(Section):
    """Ends a run after so many epochs without a lower validation loss, with the weights of the best epoch."""

    patience: Size


_ONLY_OF: dict[str, tuple[str, ...]] = {"ema": ("decay",), "swa": ("start", "lr", "anneal_epochs", "anneal_strategy")}


class Average(Section):
    """The average of a run's weights over its steps or epochs, which the report shows as an arm of its own."""

    name: Literal["ema", "swa"]  # exponential, after each step; or stochastic weight averaging, after each epoch
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999  # of ema: what the average keeps in a step
    start: Amount = 0.75  # of swa: the epochs before the first one that is averaged, or their share
    lr: Annotated[float, Field(gt=0)] | None = None  # of swa: the learning rate from then on; None: the schedule's
    anneal_epochs: Annotated[int, Field(ge=0)] = 10  # of swa: until that learning rate is reached
    anneal_strategy: Literal["cos", "linear"] = "cos"  # of swa: how it is reached

    @model_validator(mode="after")
    def _of_its_kind(self) -> Average:
        fields = type(self).model_fields
        given = {key for key, field in fields.items() if getattr(self, key) != field.default}
        for name, keys in _ONLY_OF.items():
            for key in keys:
                if name != self.name and key in given:
                    raise ValueError(f"{key} is for {name}, not for {self.name}")
        if self.lr is None and {"anneal_epochs", "anneal_strategy"} & given:
            raise ValueError("anneal_epochs and anneal_strategy need the learning rate lr")
        return self

    def first(self, epochs: int) -> int:
        """The number of epochs before the first one that is averaged."""
        if self.name == "ema":
            return 0
        return self.start if isinstance(self.start, int) else round(self.start * epochs)


class Metric(Component):
    """A metric of torchmetrics: its name, or a table with the name and the constructor's arguments."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> Any:
        return {"anyOf": [{"type": "string"}, handler(core)]}


class Train(Section):
    """The length of the training, its batches, its loss, and what is measured."""

    epochs: Size
    batch_size: Size
    loss: Component | None = None  # of torch.nn, or your own; None: cross-entropy, or the mean squared error
    solve: Literal[True, False, "leave_one_out", "generalized_cv", "evidence"] = False  # the last linear layer in
    # closed form, in place of steps; by the name of a criterion its L2 has the strength that this chooses
    accumulate: Size = 1  # batches in a step, whose gradient is that of one batch with all their examples
    clip_norm: Annotated[float, Field(gt=0)] | None = None  # largest norm of the loss's gradient
    clip_value: Annotated[float, Field(gt=0)] | None = None  # largest element of the loss's gradient
    average: Average | None = None  # of the weights, beside them
    dtype: Literal["float32", "float64"] = "float32"  # of the model and the inputs
    amp: bool = False  # half precision where it is safe
    compile: bool = False  # on CUDA: whole steps as graphs, which one call starts
    early_stopping: EarlyStopping | None = None
    metrics: Annotated[tuple[Metric, ...], Field(strict=False)] = ()  # of torchmetrics, on validation and test
    evaluate_every: Size = 1  # epochs; the last one is always evaluated
    stack: Literal[True, False, "auto"] = "auto"  # whether runs that differ in seeds and strengths train as one model
    shard: Literal["fsdp2"] | None = None  # whether torchrun's processes share the weights; None: each has them all
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 5.0  # least time between two checkpoints

    @model_validator(mode="after")
    def _consistent(self) -> Train:
        if self.amp and self.dtype != "float32":
            raise ValueError(f"amp mixes half with single precision: remove it, or dtype = '{self.dtype}'")
        if self.average is not None and self.average.name == "swa":
            if self.early_stopping is not None:
                raise ValueError("average 'swa' needs all epochs: remove early_stopping, or take 'ema'")
            first = self.average.first(self.epochs)
            if not first < self.epochs:
                raise ValueError(f"average.start must be less than the {self.epochs} epochs, it is {first}")
        return self

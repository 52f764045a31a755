"""The table [published]: what a paper has published, and what a study of ours must show beside it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ..errors import UserError
from .sections import Name, Names, Section


def _one_line(given: Any) -> Any:
    return " ".join(given.split()) if isinstance(given, str) else given


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"must be distinct, got {name!r} twice: remove one")
    return names


Text = Annotated[str, Field(min_length=1, max_length=2000), BeforeValidator(_one_line)]
Distinct = Annotated[Names, AfterValidator(_distinct)]
Percent = Annotated[float, Field(ge=0, le=100)]
Share = Annotated[float, Field(gt=0, lt=1)]
Number = Annotated[float, Field(gt=0)]


class Lower(Section):
    """Two arms, of which one must have the lower test error."""

    arm: Name
    than: Name
    by: Percent = 0.0  # points

    @model_validator(mode="after")
    def _of_two(self) -> Lower:
        if self.arm == self.than:
            raise ValueError(f"arm and than must be two arms, got {self.arm!r} for both")
        return self


class Finals(Section):
    """The final test errors of arms: their size, their order, their differences, and what was compressed."""

    published: dict[str, Percent] = Field(default_factory=dict)  # the paper's test errors in percent, by arm
    arms: Distinct | None = None  # those that are shown; None: all
    order: Distinct | None = None  # arms, from the highest to the lowest test error
    at_most: dict[str, Percent] = Field(default_factory=dict)  # the largest test error in percent, by arm
    lower: Annotated[tuple[Lower, ...], Field(strict=False)] = ()
    compression: dict[str, Number] = Field(default_factory=dict)  # the least ratio of weights to nonzero ones, by arm
    bytes: dict[str, Number] = Field(default_factory=dict)  # the most bytes of the compressed model, by arm

    @property
    def named(self) -> set[str]:
        """All arms that it names."""
        pairs = {name for pair in self.lower for name in (pair.arm, pair.than)}
        return {
            *self.published,
            *(self.arms or ()),
            *(self.order or ()),
            *self.at_most,
            *self.compression,
            *self.bytes,
            *pairs,
        }


class Peak(Section):
    """Arms "X" without a penalty, whose test error has a peak; arms "X, RULE", whose strength ends it."""

    along: Name = "data.train_size"  # the key that the X differ in
    at: Number  # where the peak must be
    around: Share = 0.1  # how far from there it may be, as a share of it
    grid: Name  # the rule of the arms with a grid of strengths, of which validation chooses
    chosen: Distinct  # the rules that are held against the best strength of the grid on the test examples
    within: Percent = 1.0  # points of its test error


class Onset(Section):
    """When the test accuracy passes a level: the number of steps is inversely proportional to the decay."""

    level: Share  # of the test accuracy
    arms: Distinct  # whose steps times decay must be constant
    never: Distinct | None = None  # that must not pass the level
    shown: Distinct | None = None  # other arms
    within: Share = 0.2  # of the mean

    @property
    def named(self) -> tuple[str, ...]:
        """All arms that it names, in the order of its table."""
        return (*(self.never or ()), *self.arms, *(self.shown or ()))


class Slope(Section):
    """Arms "RULE, X" with a grid of decays each: the slope of log(best decay) on log(learning rate)."""

    along: Name = "optimizer.lr"  # the key that the X differ in
    expected: dict[str, float]  # the slope of each rule that has one
    within: Number = 0.15


class Tuned(Section):
    """Arms "X", a grid of strengths each, and "X, tuned", whose strength is found in one run."""

    suffix: Name = "tuned"
    errors: Number = 1.0  # standard errors by which loss and error may be higher than those of the grid's best
    cost: Number = 2.0  # the most time of a tuned run, in runs at one strength


MEASURES = ("finals", "peak", "onset", "slope", "tuned")


class Published(Section):
    """What a paper has published, and by which measures the study is held against it."""

    claim: Text  # what the study shows, in a few words
    authors: Text
    title: Text  # of the paper
    year: Annotated[int, Field(ge=1900, le=2100)]
    where: Text  # the table, figure or file that holds the figures
    figures: Text  # the published figures
    budget: Text  # how much was trained here, beside the paper
    teaches: Text  # what to learn from it
    uses: Distinct  # the parts of torchreg that it exercises
    notes: Annotated[tuple[Text, ...], Field(strict=False)] = ()  # what was tried, and what falls short and why
    finals: Finals | None = None
    peak: Peak | None = None
    onset: Onset | None = None
    slope: Slope | None = None
    tuned: Tuned | None = None

    @model_validator(mode="after")
    def _measured(self) -> Published:
        if not any(getattr(self, name) is not None for name in MEASURES):
            raise ValueError(f"a measure must be given: one of the tables {', '.join(MEASURES)}")
        return self

    def check_task(self, task: str) -> None:
        """Raises ``UserError`` if the study is a regression."""
        if task == "regression":
            raise UserError(
                "published: the measures are of shares of wrong classes, this study is a regression: give classes"
            )

    @property
    def arms(self) -> dict[str, set[str]]:
        """The arms that each measure names."""
        given = {"finals": self.finals, "onset": self.onset}
        return {name: set() if measure is None else set(measure.named) for name, measure in given.items()}

    @property
    def source(self) -> str:
        """The paper in one line."""
        return f'{self.authors}, "{self.title}", {self.year}'

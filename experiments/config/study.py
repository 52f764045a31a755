"""A study's TOML file as typed, frozen and strict settings; :mod:`experiments.training.build` defines the names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from ..errors import UserError, did_you_mean, place_of, validated
from .files import merged, read
from .model import Model
from .names import folder_name, slug, text_of
from .overrides import override
from .penalties import Penalty, Regularizer
from .published import Published
from .sections import (
    Amount,
    Component,
    Folder,
    Name,
    Names,
    Section,
    Seed,
    Size,
    Strength,
    Tree,
    amount_of,
    fault_in,
)
from .sweep import Sweep
from .tasks import Tasks
from .train import Train


def _true_or_two(value: Any) -> Any:
    if isinstance(value, bool) or value == "mean":
        return value
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2 and {*map(type, value)} <= {int, float}
    if not is_pair or value[1] <= 0:
        raise ValueError("must be true, false, 'mean', or a mean and a standard deviation > 0, such as [0.5, 0.5]")
    return tuple(map(float, value))


def _zero_or_amount(value: Any) -> Any:
    return value if value == 0 and isinstance(value, int) and not isinstance(value, bool) else amount_of(value)


Scale = Annotated[bool | Literal["mean"] | tuple[float, float], BeforeValidator(_true_or_two)]
HeldOut = Annotated[int | float, BeforeValidator(_zero_or_amount)]
DataName = Literal[
    "digits", "mnist", "fashion_mnist", "kmnist", "emnist", "qmnist", "cifar10",  # with a test of their own
    "diabetes", "breast_cancer", "wine",
    "csv", "npz", "images",
]  # fmt: skip
_WITH_TEST = ("digits", "mnist", "fashion_mnist", "kmnist", "emnist", "qmnist", "cifar10")
_FILES = ("csv", "npz", "images")
_KEYS_OF: dict[str, tuple[str, ...]] = {  # the keys that are not for every source
    "args": ("class",),
    "path": _FILES,
    "test_path": _FILES,
    "inputs": ("csv", "npz", "class"),
    "target": ("csv", "npz", "class"),
    "split": ("emnist",),
    "size": ("images",),
    "task": ("csv", "npz", "class"),
    "stream": ("images", "class"),
}


class Data(Section):
    """The examples: where they come from, how many are for what, and the label noise."""

    name: DataName | None = "digits"  # or else a class
    class_: str | None = Field(default=None, alias="class", pattern=r"^\w[\w.]*:\w[\w.]*$")  # of yours, or a function
    args: Tree = Field(default_factory=dict)  # of the class
    root: Folder | None = None  # the folder of MNIST and its like; else TORCHREG_DATA, else ./data
    path: Folder | None = None  # a file, or a folder of images
    test_path: Folder | None = None  # the same for the test; None: the test is a part of the examples
    inputs: Names | None = None  # the columns or arrays to predict from; None: all but the target
    target: str | None = None  # the column or the array to predict
    split: Literal["balanced", "byclass", "bymerge", "digits", "letters", "mnist"] = "balanced"  # of EMNIST
    size: Annotated[tuple[Size, Size], Field(strict=False)] | None = None  # height and width to resize images to
    task: Literal["classes", "regression"] | None = None  # None: what the target tells
    standardize: Scale = True  # by the training examples' mean and deviation, or [mean, deviation]; "mean": not divided
    stratified: bool = False  # each class has its share in every part
    train_size: Size | None = None  # None: all examples that validation leaves
    valid_size: HeldOut = 400  # 0.2 for data of your own and the small sets of scikit-learn; with 0 nothing is chosen
    test_size: Amount | None = None  # None: 0.2, where the data has no test of its own
    stream: Literal[True, False, "auto"] = "auto"  # whether inputs are read anew each time
    augment: Annotated[tuple[Component, ...], Field(strict=False)] = ()  # of torchvision.transforms.v2, image by image
    mix: Component | None = None  # MixUp or CutMix, batch by batch
    label_noise: Annotated[float, Field(ge=0, le=1)] = 0.0  # fraction of training labels made wrong
    tasks: Tasks | None = None  # parts of the classes, one after another; other classes are left out
    seed: Seed = 0  # of the split and the noise: the same for all arms and seeds

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        given = dict(given)
        if given.get("class", given.get("class_")) is not None:
            given.setdefault("name", None)
        if given.get("name", "digits") not in _WITH_TEST:
            given.setdefault("valid_size", 0.2)
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Data:
        if (self.name is None) == (self.class_ is None):
            raise ValueError("exactly one of the keys name and class must be given")
        source = self.name or "class"
        for key, sources in _KEYS_OF.items():
            default = type(self).model_fields[key].get_default(call_default_factory=True)
            if getattr(self, key) != default and source not in sources:
                raise ValueError(f"{key} is for {' and '.join(sources)}, not for {source}")
        for key in {"csv": ("path", "target"), "npz": ("path",), "images": ("path",)}.get(source, ()):
            if getattr(self, key) is None:
                raise ValueError(f"{key} must be given for {source}")
        if self.test_size is not None and (source in _WITH_TEST or self.test_path is not None):
            raise ValueError("test_size is for data without a test of its own")
        if self.tasks is not None and self.valid_size == 0:
            raise ValueError("valid_size must be at least 1 with tasks")
        if self.tasks is not None and self.label_noise:
            raise ValueError("label_noise would move examples to other tasks: remove it, or tasks")
        return self

    @property
    def is_own(self) -> bool:
        """Whether the examples are the user's, and may change."""
        return self.name is None or self.name in _FILES

    @property
    def turns(self) -> int:
        """The number of parts of the training, each of which sees other examples."""
        return len(self.tasks.classes) if self.tasks is not None and self.tasks.in_turn else 1

    @property
    def source(self) -> str:
        """What the data is called in messages and reports."""
        return self.path or self.class_ or self.name or ""


class Optimizer(Component):
    """An optimizer of ``torch.optim`` or ``torchreg.optim``."""

    usual: ClassVar[tuple[str, ...]] = ("momentum", "betas")

    lr: Annotated[float, Field(ge=0)]
    weight_decay: Strength = 0.0  # of the weights; biases are exempt
    penalty: Penalty | None = None  # of ProxSGD and ProxAdam


class Sparsity(Section):
    """A share of zeros as the target instead of a strength; of a proximal optimizer, or of a regularizer."""

    target: Annotated[float, Field(gt=0, lt=1)]
    fix_at: Annotated[float, Field(gt=0, le=1)] = 0.7  # share of the steps after which the zeros are fixed
    groups: str | int | None = None  # what is counted, such as "output" for units; None: single weights
    schedule: Literal["cubic", "linear", "constant"] = "cubic"  # how the goal rises to the target
    span: Annotated[tuple[float, float], Field(strict=False)] = (0.0, 0.6)  # where: shares of the steps before fix_at
    regularizer: Annotated[int, Field(ge=0)] | None = None  # its place, from 0; None: the optimizer, or the only one

    @model_validator(mode="after")
    def _consistent(self) -> Sparsity:
        if not 0 <= self.span[0] < self.span[1] <= 1:
            raise ValueError(f"span must be two increasing shares in [0, 1], got {list(self.span)}")
        return self


class Scheduler(Component):
    """A learning-rate schedule of ``torch.optim.lr_scheduler``."""

    interval: Literal["epoch", "step"] = "epoch"
    after: Annotated[int, Field(ge=0)] = 0  # intervals at the optimizer's own learning rate before it begins


class AutoStrength(Section):
    """Tunes the strengths of the run's regularizers during training, by the validation images."""

    lr: Annotated[float, Field(gt=0)] = 0.05  # of the log-strength, for each step of the optimizer
    every: Size = 4  # steps
    per: Literal["regularizer", "parameter"] = "regularizer"
    spread: Annotated[float, Field(gt=1)] = 10.0  # of the strengths of a regularizer's parameters, around their mean
    bounds: Annotated[tuple[float, float], Field(strict=False)] = (1e-8, 1e4)
    batch_size: Size = 128  # validation images a step


class Settings(Section):
    """The settings of a study, which an arm can override."""

    data: Data
    model: Model
    optimizer: Optimizer
    scheduler: Scheduler | None = None
    train: Train
    regularizers: Annotated[tuple[Regularizer, ...], Field(strict=False)] = ()
    auto_strength: AutoStrength | None = None
    sparsity: Sparsity | None = None
    dropout_schedule: Component | None = None  # of the dropout layers' rates, by steps

    @model_validator(mode="after")
    def _chooses_by_what_is_held_out(self) -> Settings:
        if self.data.valid_size == 0:
            for key, given in (
                ("auto_strength", self.auto_strength),
                ("train.early_stopping", self.train.early_stopping),
            ):
                if given is not None:
                    raise ValueError(f"{key} needs validation examples: set data.valid_size to 1 or more")
        return self


class Run(Settings):
    """Everything that determines the result of one training run on a given machine."""

    arm: str
    strength: float | None = None  # where the arm runs over several
    values: Tree = Field(default_factory=dict)  # of the swept keys, where the arm is searched
    seed: int
    is_average: bool = False  # the same training, of which the averaged weights are reported

    @property
    def epochs_of_turn(self) -> int:
        """The epochs of each task, if they are trained on one after another; else all epochs."""
        return self.train.epochs // self.data.turns

    @property
    def average(self) -> Run | None:
        """The run that reports the averaged weights, as an arm of its own, if they are averaged."""
        if self.train.average is None or self.is_average:
            return None
        arm = f"{self.arm} ({self.train.average.name.upper()})"
        return self.model_copy(update={"arm": arm, "is_average": True})

    @property
    def point(self) -> Tree:
        """The varied keys of the arm, with the values of this run."""
        return self.values if self.strength is None else {"strength": self.strength}

    @property
    def place(self) -> str:
        """The part of :attr:`folder` that all seeds share."""
        if self.values:
            point = ",".join(f"{slug(key)}={slug(text_of(value))}" for key, value in self.values.items())
            return f"{folder_name(slug(self.arm))}/{folder_name(point)}"
        return folder_name(slug(self.arm) + ("" if self.strength is None else f"@{self.strength:g}"))

    @property
    def folder(self) -> str:
        """The folder of the run's record, below the study's runs."""
        return f"{self.place}/seed{self.seed}"

    def at(self, values: Tree) -> Run:
        """The same run with other values of the swept keys."""
        tree = self.model_dump(mode="json", by_alias=True, include=set(Settings.model_fields))
        return Run(**dict(_settings_at(tree, values, self.arm)), arm=self.arm, values=values, seed=self.seed)


class Study(Section):
    """A study, resolved: its runs, arm by arm, strength by strength, seed by seed.

    Of an arm that is searched these are the runs at one point; those at others are ``run.at(values)``.
    """

    name: str
    runs: tuple[Run, ...]
    sweep: Sweep | None = None
    published: Published | None = Field(None, exclude=True)  # changes no run, and so is in no record

    @property
    def probes(self) -> list[Run]:
        """The runs that are checked before the study begins: the first seed of every setting."""
        first = {run.place: run for run in reversed(self.runs)}
        points = self.sweep.probes if self.sweep else []
        return [probe for run in reversed(first.values()) for probe in (map(run.at, points) if run.values else [run])]


class _Arm(Section):
    model_config = ConfigDict(extra="allow")  # the overrides

    name: Name
    strengths: Annotated[tuple[Strength, ...], Field(strict=False, min_length=1)] | None = None


class _Head(Section):
    name: Name
    seeds: Annotated[tuple[Seed, ...], Field(strict=False, min_length=1)] = (0,)
    arms: Annotated[tuple[_Arm, ...], Field(strict=False, min_length=1)]
    sweep: Sweep | None = None
    published: Published | None = None  # of a study that repeats a paper's


_TOP = "at the top of the file, above the first table"
# Where keys belong that are written in another table.
_PLACES = {
    **{key: f"it belongs in published, as published.{key}" for key in Published.model_fields},
    **{key: f"it belongs in sweep, as sweep.{key}" for key in Sweep.model_fields},
    **dict.fromkeys([*_Head.model_fields, "extends"], f"it is of the whole study: write it {_TOP}"),
    "device": "it is an option of the command, as in --device cuda",
    "seed": f"a run's seed is one of seeds = [...], which is written {_TOP}",
    "strengths": "it belongs in an arm: write it in [[arms]], below its name",
}
_AT = "write regularizers.0.strength or optimizer.weight_decay"
_SEARCHED = {**_PLACES, "strength": _AT, "strengths": _AT}  # the same of keys that are searched


def load(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Reads a study's file and those that it extends, with ``key=value`` overrides of the keys.

    Raises:
        UserError: the file or an override is not what it should be; a line for each fault.
    """
    return resolve(tree_of(path, overrides))


def tree_of(path: Path, overrides: Sequence[str] = ()) -> Tree:
    """The tables of a study's file: laid on those of the files that it extends, then overridden."""
    tree = read(path)
    for text in overrides:
        override(tree, text)
    if "extends" in tree:
        raise UserError("--set extends: belongs in the file, whose keys --set changes afterwards: write it there")
    return tree


def resolve(tree: Tree) -> Study:
    """The study that a parsed TOML tree describes."""
    if (fault := fault_in(tree)) is not None:
        raise UserError(": ".join(filter(None, fault)))
    own = {key: value for key, value in tree.items() if key in _Head.model_fields}
    try:
        head = validated(_Head, own, places=_PLACES)
    except UserError as error:
        raise UserError(_with_names(str(error), own.get("arms"))) from None
    base = {key: value for key, value in tree.items() if key not in _Head.model_fields}
    # So that errors are reported once, not for each arm.
    validated(Settings, base, also=list(_Head.model_fields), places=_PLACES)
    _check_distinct("seeds", [str(seed) for seed in head.seeds])
    _check_distinct("arms", [folder_name(slug(arm.name)).casefold() for arm in head.arms])
    names = [arm.name for arm in head.arms]
    searched = (head.sweep.arms or names) if head.sweep else []
    for name in searched:
        if name not in names:
            raise UserError(f"sweep.arms: unknown name {name!r}, {did_you_mean(name, names)}")
    point = head.sweep.probes[0] if head.sweep else {}
    each = (_runs(base, arm, head.seeds, point if arm.name in searched else {}) for arm in head.arms)
    runs = [run for ours in each for run in ours]
    averages = {run.average.arm: None for run in runs if run.average}
    _check_distinct("arms", [folder_name(slug(name)).casefold() for name in (*names, *averages)])
    for measure, arms in (head.published.arms if head.published else {}).items():
        for name in sorted(arms - {*names, *averages}):
            raise UserError(f"published.{measure}: unknown arm {name!r}, {did_you_mean(name, [*names, *averages])}")
    return Study(name=head.name, runs=tuple(runs), sweep=head.sweep, published=head.published)


def _check_distinct(key: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{key}: must be distinct, got {name!r} twice: rename or remove one")


def _runs(base: Tree, arm: _Arm, seeds: Sequence[int], values: Tree) -> Iterator[Run]:
    key = f"arms[{arm.name}]"
    if values and arm.strengths:
        raise UserError(f"{key}.strengths: must be left out of an arm that is searched; sweep.arms names those")
    settings = _settings_at(merged(base, arm.model_extra or {}), values, arm.name)
    if settings.data.valid_size == 0 and (values or len(arm.strengths or ()) > 1):
        raise UserError(f"{key}: strengths are chosen by validation examples: set data.valid_size to 1 or more")
    _check_distinct(f"{key}.strengths", [f"{strength:g}" for strength in arm.strengths or ()])
    for strength in arm.strengths or (None,):
        at = settings if strength is None else _at_strength(settings, strength, key)
        for i, regularizer in enumerate(at.regularizers):
            is_given = regularizer.strength is not None or regularizer.is_constraint
            if not is_given and not isinstance(at.train.solve, str):  # else it is chosen
                near = get_close_matches("strength", regularizer.options, n=1, cutoff=0.8)  # not an option "length"
                if near:
                    raise UserError(f"{key}.regularizers.{i}.{near[0]}: unknown key, did you mean 'strength'?")
                raise UserError(f"{key}.regularizers.{i}.strength: is missing; or give the arm strengths")
        if at.optimizer.penalty is not None and at.optimizer.penalty.strength is None:
            raise UserError(f"{key}.optimizer.penalty.strength: is missing; or give the arm strengths")
        for seed in seeds:
            yield Run(**dict(at), arm=arm.name, strength=strength, values=values, seed=seed)


def _settings_at(tree: Tree, values: Tree, arm: str) -> Settings:
    """The settings of an arm's tree, with the given values of the swept keys."""
    for key, value in values.items():
        table = key.partition(".")[0]
        if table not in Settings.model_fields:
            hint = _SEARCHED.get(table) or place_of(table, Settings) or did_you_mean(table, Settings.model_fields)
            raise UserError(f"sweep.space: {key} is no key of a run, {hint}")
        try:
            _put(tree, key, value)
        except UserError as error:
            fault = f"sweep.space: {key} does not fit arms[{arm}]: {error}"
            raise UserError(f"{fault}; add it, or name the arms to search in sweep.arms") from None
    return validated(Settings, tree, f"arms[{arm}].", also=list(_Arm.model_fields), places=_PLACES)


def _with_names(lines: str, arms: Any) -> str:
    """The lines of an error with the names of arms in the place of their numbers, but of names that are at fault."""

    def named(place: re.Match[str]) -> str:
        name = arms[int(place[1])].get("name")
        at_fault = not isinstance(name, str) or f"{place[0]}name" in lines
        return place[0] if at_fault else f"arms[{name}]."

    return re.sub(r"^arms\.(\d+)\.", named, lines, flags=re.MULTILINE)


def _put(tree: Tree, key: str, value: Any) -> None:
    """Sets ``a.b.0.c`` in a tree of tables and lists."""
    path, node = key.split("."), tree
    for depth, part in enumerate(path, start=1):
        last: Any = depth == len(path)
        at: Any = int(part) if isinstance(node, list) and part.isdecimal() else part
        there = at in range(len(node)) if isinstance(node, list) else last or node.get(at) is not None
        if not there or not (last or isinstance(node[at], (dict, list))):
            raise UserError(f"it has no {'.'.join(path[:depth])}")
        if last:
            node[at] = value
        else:
            node = node[at]


def _at_strength(settings: Settings, strength: float, key: str) -> Settings:
    """The settings with the strength for their only penalty, or for the weight decay if they have no penalty."""
    inner, regularizers = settings.optimizer.penalty, settings.regularizers
    given = [own for own in (inner, *regularizers) if own is not None and not getattr(own, "is_constraint", False)]
    if len(given) == 1 and given[0].strength is None:
        update = {"strength": strength}
        if inner is not None:
            optimizer = settings.optimizer.model_copy(update={"penalty": inner.model_copy(update=update)})
            return settings.model_copy(update={"optimizer": optimizer})
        filled = tuple(own if own.is_constraint else own.model_copy(update=update) for own in regularizers)
        return settings.model_copy(update={"regularizers": filled})
    if not given and not settings.optimizer.weight_decay:
        optimizer = settings.optimizer.model_copy(update={"weight_decay": strength})
        return settings.model_copy(update={"optimizer": optimizer})
    raise UserError(
        f"{key}.strengths: must be the only strengths, those of one penalty or else of optimizer.weight_decay; "
        f"got {len(regularizers)} regularizers and others set: remove their strength or the weight_decay"
    )

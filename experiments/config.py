"""A study's TOML file, made typed, frozen and strict. What the names in it stand for is :mod:`experiments.build`'s."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from experiments.errors import UserError, did_you_mean

Tree = dict[str, Any]
T = TypeVar("T", bound="Section")
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_by_name=True)


class Component(Section):
    """Something to construct: a ``name`` or a ``class = "package.module:Class"``, and its constructor's arguments."""

    model_config = ConfigDict(extra="allow")

    name: str | None = None
    class_: str | None = Field(None, alias="class", pattern=r"^[\w.]+:[\w.]+$")
    args: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_of_both(self) -> Component:
        if (self.name is None) == (self.class_ is None):
            raise ValueError("exactly one of the keys name and class must be given")
        return self

    @property
    def options(self) -> dict[str, Any]:
        return {**(self.model_extra or {}), **self.args}


class Data(Section):
    name: Literal["digits", "mnist", "fashion_mnist"] = "digits"
    root: str | None = None  # where MNIST lies or goes; else TORCHREG_DATA, else ./data
    train_size: Positive | None = None  # None: all images that validation leaves
    valid_size: Positive = 400
    label_noise: Annotated[float, Field(ge=0, le=1)] = 0.0  # fraction of training labels made wrong
    seed: int = 0  # of the split and the noise: the same for all arms and seeds


class Model(Component):
    dropout: Component | None = None
    input_dropout: Component | None = None


class Optimizer(Component):
    lr: Annotated[float, Field(ge=0)]
    weight_decay: Annotated[float, Field(ge=0)] = 0.0  # on weights only: intercepts are exempt


class Scheduler(Component):
    interval: Literal["epoch", "step"] = "epoch"


class EarlyStopping(Section):
    patience: Positive


class Train(Section):
    epochs: Positive
    batch_size: Positive
    amp: bool = False
    early_stopping: EarlyStopping | None = None
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 5.0  # least time between two checkpoints


class Regularizer(Section):
    penalty: str
    strength: Annotated[float, Field(ge=0)]
    mode: Literal["loss", "grad", "decoupled", "prox"] = "loss"
    select: str = "weights"  # "weights", "everything", or a pattern of names
    schedule: Component | None = None


class Settings(Section):
    """What a study's file says at its top, and what an arm may say otherwise."""

    data: Data
    model: Model
    optimizer: Optimizer
    scheduler: Scheduler | None = None
    train: Train
    regularizers: Annotated[tuple[Regularizer, ...], Field(strict=False)] = ()


class Run(Settings):
    """Everything that decides the outcome of one training run, on a given machine."""

    arm: str
    strength: float | None = None  # where the arm runs over several
    seed: int

    @property
    def folder(self) -> str:
        at = "" if self.strength is None else f"@{self.strength:g}"
        return f"{_slug(self.arm)}{at}/seed{self.seed}"


class Study(Section):
    """A study, resolved: its runs, arm by arm, strength by strength, seed by seed."""

    name: str
    runs: tuple[Run, ...]


class _Arm(Section):
    model_config = ConfigDict(extra="allow")  # the overrides

    name: Annotated[str, Field(min_length=1)]
    strengths: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(strict=False)] | None = None


class _Head(Section):
    name: Annotated[str, Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)] = (0,)
    arms: Annotated[tuple[_Arm, ...], Field(strict=False, min_length=1)]


def load(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Reads a study's file, with ``key=value`` overrides of its keys.

    Raises:
        UserError: the file or an override is not what it should be; a line for each fault.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a TOML file: {error}") from None
    for override in overrides:
        _set(tree, override)
    return resolve(tree)


def resolve(tree: Tree) -> Study:
    """The study that a parsed TOML tree describes."""
    head = _validated(_Head, {key: value for key, value in tree.items() if key in _Head.model_fields})
    base = {key: value for key, value in tree.items() if key not in _Head.model_fields}
    _validated(Settings, base)  # so that its faults are told once, not once an arm
    runs = tuple(run for arm in head.arms for run in _runs(base, arm, head.seeds))
    folders = [run.folder for run in runs]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise UserError(f"arms, seeds: each run must be told apart by them, two would lie in {twice!r}: rename one")
    return Study(name=head.name, runs=runs)


def _runs(base: Tree, arm: _Arm, seeds: Sequence[int]) -> Iterator[Run]:
    tree = _merged(base, arm.model_extra or {})
    for strength in [None] if arm.strengths is None else arm.strengths:
        if strength is not None:
            _put_strength(tree, arm.name, strength)
        settings = _validated(Settings, tree, f"arms[{arm.name}].")
        for seed in seeds:
            yield Run(**dict(settings), arm=arm.name, strength=strength, seed=seed)


def _put_strength(tree: Tree, arm: str, strength: float) -> None:
    regularizers = tree.get("regularizers", [])
    if len(regularizers) > 1:
        raise UserError(f"arms[{arm}].strengths: needs an arm with one regularizer or none, got {len(regularizers)}")
    if regularizers:
        regularizers[0]["strength"] = strength
    else:
        tree["optimizer"]["weight_decay"] = strength


def _merged(base: Tree, over: Mapping[str, Any]) -> Tree:
    """``base`` with ``over`` laid on it, table by table; a table that changes its name or class starts afresh."""
    out: Tree = deepcopy(base)
    for key, value in over.items():
        before: Any = out.get(key)
        same = isinstance(before, dict) and isinstance(value, dict) and not _renamed(before, value)
        out[key] = _merged(before, value) if same else deepcopy(value)
    return out


def _renamed(before: Tree, value: Tree) -> bool:
    return any(word in value and value[word] != before.get(word) for word in ("name", "class"))


def _set(tree: Tree, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set: must be key=value, got {override!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word, such as a path
    *parents, last = key.strip().split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise UserError(f"--set {key}: {parent} must be a table, got {node!r}")
    node[last] = value


def _validated(cls: type[T], tree: Tree, prefix: str = "") -> T:
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(prefix + line for line in faults(error, cls))) from None


def faults(error: ValidationError, cls: type[Section] | None = None) -> list[str]:
    """A line for each fault: the key, what was expected, what was got."""
    return [_line(fault, cls) for fault in error.errors()]


def _line(fault: Mapping[str, Any], cls: type[Section] | None) -> str:
    where = ".".join(map(str, fault["loc"]))
    *above, key = fault["loc"] or ("",)
    if fault["type"] == "extra_forbidden" and cls is not None:
        return f"{where}: unknown key, {did_you_mean(str(key), _keys(cls, above))}"
    if fault["type"] == "missing":
        return f"{where}: is missing"
    message = fault["msg"]
    for pydantic, ours in _WORDING.items():
        message = re.sub(pydantic, ours, message)
    return f"{where}: {message}, got {fault['input']!r}"


_WORDING = {
    "^(Input|String|Tuple) should": "must",
    "^(Value error|Assertion failed), ": "",
    "dictionary or instance of .*": "table",
    "tuple": "list",
    " after validation, not .*": "",
}


def _keys(cls: type[Section], path: Sequence[int | str]) -> list[str]:
    """The keys of the section that a path of keys leads to."""
    for part in path:
        if isinstance(part, str):
            cls = _section_in(cls.model_fields[part].annotation) or cls
    return [field.alias or name for name, field in cls.model_fields.items()]


def _section_in(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((section for inner in get_args(annotation) if (section := _section_in(inner))), None)


def _slug(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name)

"""The one place where a name in a configuration becomes an object. Its faults name the key they come from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn
from torch.optim import lr_scheduler

import torchreg
from experiments import config, models
from experiments.data import Images
from experiments.errors import UserError, did_you_mean
from torchreg import penalties

Table = Mapping[str, Callable[..., Any]]


def _classes(module: ModuleType, base: type) -> dict[str, Callable[..., Any]]:
    """The concrete public classes of a module that derive from ``base``."""
    named = {name: getattr(module, name) for name in getattr(module, "__all__", dir(module))}
    return {
        name: cls
        for name, cls in named.items()
        if inspect.isclass(cls) and issubclass(cls, base) and cls is not base and not inspect.isabstract(cls)
    }


PENALTIES = _classes(penalties, penalties.Term)
DROPOUTS = _classes(torchreg.nn, nn.Module)
SCHEDULES: Table = {"linear": torchreg.linear, "cosine": torchreg.cosine}
OPTIMIZERS = {**_classes(torch.optim, torch.optim.Optimizer), **_classes(torchreg.optim, torch.optim.Optimizer)}
SCHEDULERS = _classes(lr_scheduler, lr_scheduler.LRScheduler)
for _unfit in ("LBFGS", "SparseAdam", "DecoupledDecay"):  # a closure, sparse gradients, a mixin
    OPTIMIZERS.pop(_unfit, None)


def model(settings: config.Model, images: Images) -> nn.Module:
    """The network, with freshly initialized weights."""
    if settings.class_ is not None:
        for key in ("dropout", "input_dropout"):
            if getattr(settings, key) is not None:
                raise UserError(f"model.{key}: is for the models {', '.join(models.BUILT_IN)}, got a class of your own")
        built = _construct("model", settings, {})
        if not isinstance(built, nn.Module):
            raise UserError(f"model.class: must be a torch.nn.Module, got {settings.class_!r}")
        return built
    layers = {key: _layer(f"model.{key}", getattr(settings, key)) for key in ("dropout", "input_dropout")}
    module: nn.Module = _construct(
        "model", settings, models.BUILT_IN, shape=images.shape, classes=images.classes, **layers
    )
    return module


def optimizer(settings: config.Optimizer, net: nn.Module) -> torch.optim.Optimizer:
    """The optimizer; its ``weight_decay`` is on weights, never on intercepts, and 0 unless the study says otherwise."""
    if settings.weight_decay > 0:
        places = list(torchreg.selectors.each_parameter(net))
        chosen = [any(map(torchreg.weights, infos)) for infos in places]
        groups: Any = [
            {"params": [p[0].param for p, yes in zip(places, chosen, strict=True) if yes]},
            {"params": [p[0].param for p, yes in zip(places, chosen, strict=True) if not yes], "weight_decay": 0.0},
        ]
    else:
        groups = net.parameters()
    built: torch.optim.Optimizer = _construct(
        "optimizer", settings, OPTIMIZERS, groups, lr=settings.lr, weight_decay=settings.weight_decay
    )
    if settings.weight_decay > 0 and "weight_decay" not in built.defaults:
        name = type(built).__name__
        raise UserError(f"optimizer.weight_decay: {name} has none: remove the key, or use a regularizer")
    return built


def scheduler(
    settings: config.Scheduler | None, opt: torch.optim.Optimizer
) -> tuple[lr_scheduler.LRScheduler | None, bool]:
    """The learning-rate schedule, if the study names one, and whether it moves each step rather than each epoch."""
    if settings is None:
        return None, False
    return _construct("scheduler", settings, SCHEDULERS, opt), settings.interval == "step"


def regularizers(run: config.Run, net: nn.Module, opt: torch.optim.Optimizer) -> list[torchreg.Regularizer]:
    """The regularizers, attached where their mode acts in the optimizer's step."""
    return [
        _regularizer(f"regularizers.{i}", settings, run.optimizer.weight_decay, net, opt)
        for i, settings in enumerate(run.regularizers)
    ]


def _regularizer(
    key: str, settings: config.Regularizer, decay: float, net: nn.Module, opt: torch.optim.Optimizer
) -> torchreg.Regularizer:
    penalty = _found(f"{key}.penalty", settings.penalty, PENALTIES)(settings.strength)
    if decay > 0 and penalty.is_ridge and settings.strength > 0:
        raise UserError(
            f"{key}, optimizer.weight_decay: must not both be set, weights would decay twice, "
            f"got {penalty} and weight_decay = {decay:g}: drop one"
        )
    schedule = None
    if settings.schedule is not None:
        schedule = _construct(f"{key}.schedule", settings.schedule, SCHEDULES)
    selections = {"weights": torchreg.weights, "everything": torchreg.everything}
    select = selections.get(settings.select) or torchreg.named(settings.select)
    try:
        regularizer = torchreg.Regularizer(net, penalty, mode=settings.mode, select=select, schedule=schedule)
        return regularizer if settings.mode == "loss" and schedule is None else regularizer.attach(opt)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None


def _layer(key: str, settings: config.Component | None) -> models.Layer | None:
    if settings is None:
        return None
    _construct(key, settings, DROPOUTS)  # its faults are this key's, not the model's
    return partial(_construct, key, settings, DROPOUTS)


def _construct(key: str, settings: config.Component, table: Table, *args: Any, **given: Any) -> Any:
    """``name(*args, **given, **options)``, with each option checked against the constructor's signature."""
    if settings.class_ is not None:
        make = _imported(f"{key}.class", settings.class_)
    else:
        make = _found(f"{key}.name", settings.name or "", table)
    parameters = inspect.signature(make).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    own = [name for name in list(parameters)[len(args) :] if name not in given]
    for option in settings.options:
        if option not in own and not open_ended:
            raise UserError(f"{key}.{option}: unknown key, {did_you_mean(option, own)}")
    accepted = {name: value for name, value in given.items() if name in parameters or open_ended}
    try:
        return make(*args, **accepted, **settings.options)
    except ValidationError as error:
        raise UserError("\n".join(f"{key}.{line}" for line in config.faults(error))) from None
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"{key}: {error}") from None


def _found(key: str, name: str, table: Table) -> Callable[..., Any]:
    if name not in table:
        raise UserError(f"{key}: unknown name {name!r}, {did_you_mean(name, table)}")
    return table[name]


def _imported(key: str, path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    try:
        made: Callable[..., Any] = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{key}: {path!r} cannot be imported: {error}") from None
    return made

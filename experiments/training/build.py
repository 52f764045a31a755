"""Builds the objects that a configuration names. Errors name the key."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

import torchreg
from torchreg import penalties
from torchreg.nn.seeded import Seeded
from torchreg.regularizer.compatibility import check_decay

from .. import config
from ..errors import UserError, oneline
from . import data, losses, models, networks, ranks
from .activity import Activity
from .averaging import Average
from .data import Augmentation, Examples, Stream
from .data.vision import torchvision_module
from .imports import component, constructed, found_in, imported, required

if TYPE_CHECKING:
    import optuna

Table = Mapping[str, Callable[..., Any]]


def _classes(module: ModuleType, base: type) -> dict[str, Callable[..., Any]]:
    """The concrete public classes of a module that derive from ``base``."""
    named = {name: getattr(module, name) for name in getattr(module, "__all__", dir(module))}
    return {
        name: cls
        for name, cls in named.items()
        if inspect.isclass(cls) and issubclass(cls, base) and cls is not base and not inspect.isabstract(cls)
    }


def _without(table: Table, *names: str) -> Table:
    return {name: make for name, make in table.items() if name not in names}


PENALTIES = _classes(penalties, penalties.Term)
CONSTRAINTS = _classes(penalties, penalties.Constraint)
INITS: Table = {name: make for name, make in vars(nn.init).items() if name.endswith("_") and name[0] != "_"}
_LAYERS = _classes(torchreg.nn, nn.Module)
_WRAPPERS = ("ConcreteDropout", "DropConnect", "HardConcrete", "VariationalDropout")
WRAPPERS: Table = {name: _LAYERS[name] for name in _WRAPPERS if name in _LAYERS}
DROPOUTS = _without(
    _LAYERS, *_WRAPPERS, "EmbeddingDropout", "LayerDrop", "MultiheadAttention", "StochasticDepth", "WordDropout"
)
SCHEDULES: Table = {
    "linear": torchreg.linear,
    "cosine": torchreg.cosine,
    "early": torchreg.early,
    "late": torchreg.late,
    "curriculum": torchreg.curriculum,
}
OPTIMIZERS = {
    **_without(_classes(torch.optim, torch.optim.Optimizer), "LBFGS", "SparseAdam"),  # a closure, sparse gradients
    **_without(_classes(torchreg.optim, torch.optim.Optimizer), "ConstrainedNorm", "DecoupledDecay", "Proximal"),
}
_FUSED = {"Adam", "AdamW", "SGD", "SGDW", "ProxSGD", "ProxAdam"}
_FUSED_ON_CPU = {"Adagrad", "AdagradW"}  # torch's older versions have no such kernel for CUDA
_IMPLEMENTATIONS = {"capturable", "differentiable", "foreach", "fused"}
SCHEDULERS = _without(  # what a file cannot express: functions, other schedulers, a loss to wait for
    _classes(lr_scheduler, lr_scheduler.LRScheduler),
    *("LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler", "ReduceLROnPlateau"),
)


def examples(run: config.Run, device: torch.device) -> Examples:
    """The data of a run, judged by its loss."""
    dtype = getattr(torch, run.train.dtype)
    found = data.load(run.data, device, dtype)
    loss = losses.named_by(run.train.loss)
    return found if loss is None else losses.with_loss(found, loss.to(device, dtype))


def network(run: config.Run, examples: Examples) -> nn.Module:
    """The network of a run, with the weights of single precision also in double precision."""
    net = model(run.model, examples)
    return net.double() if examples.dtype == torch.float64 else net


def model(settings: config.Model, examples: Examples) -> nn.Module:
    """The network, with freshly initialized weights, of which some may be frozen."""
    made = _network(settings, examples)
    if settings.init is not None:
        networks.draw(made, partial(component, "model.init", Tensor, settings.init, INITS))
    if settings.scale != 1:
        networks.scale(made, settings.scale)
    if settings.freeze is not None:
        networks.freeze(made, settings.freeze)
    return made


def _network(settings: config.Model, examples: Examples) -> nn.Module:
    """The network as its constructor makes it.

    A class of the user's gets the shape of an input and the number of outputs if its constructor needs such arguments.
    """
    if settings.name is None:
        for key in ("dropout", "input_dropout", "wrap"):
            if getattr(settings, key) is not None:
                what = settings.torch or settings.timm or "a class of your own"
                raise UserError(f"model.{key}: is for the models {', '.join(models.BUILT_IN)}, got {what}")
    if settings.torch is not None:
        return networks.of_torchvision(settings, examples)
    if settings.timm is not None:
        return networks.of_timm(settings, examples)
    if settings.class_ is not None:
        needed = required(imported("model.class", settings.class_, nn.Module))
        told = {"shape": examples.shape, "outputs": examples.task.outputs}
        told = {name: value for name, value in told.items() if name in needed and name not in settings.options}
        own: nn.Module = component("model", nn.Module, settings, {}, **told)
        return own
    layers: dict[str, Any] = {
        key: _layer(f"model.{key}", getattr(settings, key)) for key in ("dropout", "input_dropout")
    }
    if settings.wrap is not None:
        layers["wrap"] = partial(component, "model.wrap", nn.Module, settings.wrap, WRAPPERS)
    given = {"shape": examples.shape, "outputs": examples.task.outputs, **layers}
    module: nn.Module = component("model", nn.Module, settings, models.BUILT_IN, **given)
    return module


def is_linear(penalty: str | None) -> bool:
    """Whether the penalty of that name is its strength times the penalty of strength 1."""
    return bool(getattr(PENALTIES.get(penalty or ""), "is_linear", False))


def is_constraint(regularizer: torchreg.Regularizer) -> bool:
    """Whether it projects the weights, so that it has neither a strength nor a value."""
    return any(isinstance(term, torchreg.Constraint) for entry in regularizer.entries for term in entry.terms)


def is_of_activities(row: Sequence[config.Regularizer | None]) -> bool:
    """Whether the settings of a regularizer, in each run of a stack, are those of a penalty on activities."""
    return any(settings is not None and settings.activity is not None for settings in row)


def is_elementwise(penalty: str | None) -> bool:
    """Whether the penalty of that name is such a factor of a function of single weights, which costs little."""
    return is_linear(penalty) and bool(getattr(PENALTIES.get(penalty or ""), "is_uniform", False))


def seeded(net: nn.Module, seed: int, device: torch.device) -> nn.Module:
    """The network, whose layers of torchreg have generators of their own: in a stack a run drops what it drops alone.

    :func:`torchreg.nn.seed_dropout` would add hooks to a user's network, which a stack would copy.
    """
    draw = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, Seeded):
            own = int(torch.randint(1 << 32, (), generator=draw, device="cpu"))
            module.generator = torch.Generator(device).manual_seed(own)
    return net


def augmentation(settings: config.Data, examples: Examples) -> Augmentation | None:
    """What alters the training images at random, if the study has it."""
    if not settings.augment and settings.mix is None:
        return None
    key = "data.augment" if settings.augment else "data.mix"
    if examples.noun != "images":
        raise UserError(f"{key}: is for images, got inputs of shape {examples.shape}: remove the key")
    v2 = torchvision_module("transforms.v2", key)
    mixers: Table = {"MixUp": v2.MixUp, "CutMix": v2.CutMix}
    table = _without(_classes(v2, v2.Transform), *mixers)
    transforms = [component(f"data.augment.{i}", nn.Module, one, table) for i, one in enumerate(settings.augment)]
    mix = None
    if settings.mix is not None:
        given = {"num_classes": examples.task.classes} if isinstance(examples.task, data.Classes) else {}
        mix = component("data.mix", nn.Module, settings.mix, mixers, **given)
    made = Augmentation(transforms, mix)
    try:
        x, _ = made(examples.train.x[:2].clone(), examples.train.y[:2].clone())
    except Exception as error:  # whatever a transform raises on images of this kind
        raise UserError(f"{key}: cannot alter images of shape {examples.shape}: {oneline(error)}") from error
    if x.shape[1:] != examples.shape:
        raise UserError(f"{key}: must keep the shape {examples.shape} of the images, gives {tuple(x.shape[1:])}")
    return made


def dropout_schedule(
    settings: config.Component | None, net: nn.Module, opt: torch.optim.Optimizer
) -> torchreg.DropoutSchedule | None:
    """The schedule of the dropout rates, if the study has one."""
    if settings is None:
        return None
    key = "dropout_schedule"
    schedule = component(key, Callable, settings, SCHEDULES)
    try:
        return torchreg.DropoutSchedule(net, schedule).attach(opt)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None


def optimizer(settings: config.Optimizer, net: nn.Module, like: nn.Module | None = None) -> torch.optim.Optimizer:
    """The optimizer; its ``weight_decay`` acts on weights, never on biases, and is 0 unless the study sets it.

    ``like`` is a member of the network, if that is a stack.
    """
    if settings.weight_decay > 0:
        weights = set(torchreg.diagnostics.weights_of(like or net))
        named = list(net.named_parameters())
        groups: Any = [
            {"params": [param for name, param in named if name in weights]},
            {"params": [param for name, param in named if name not in weights], "weight_decay": 0.0},
        ]
    else:
        groups = net.parameters()
    given: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    is_on_cpu = all(param.device.type == "cpu" for param in net.parameters())
    fused = _FUSED | _FUSED_ON_CPU if is_on_cpu else _FUSED
    if settings.name in fused and not settings.options.keys() & _IMPLEMENTATIONS and not ranks.is_sharded(net):
        given["fused"] = True  # one call for all weights
    if settings.penalty is not None:
        key, penalty = "optimizer.penalty", settings.penalty
        given["penalty"] = component(key, torchreg.Penalty, penalty, PENALTIES, penalty.strength)
        if not isinstance(given["penalty"], torchreg.ProximalPenalty):
            raise UserError(f"{key}.name: must be one with a proximal operator, got {penalty.name!r}")
    elif settings.name in ("ProxSGD", "ProxAdam"):
        raise UserError(f"optimizer.penalty: {settings.name} needs one, such as {{ name = 'L1', strength = 1e-4 }}")
    built: torch.optim.Optimizer = component("optimizer", torch.optim.Optimizer, settings, OPTIMIZERS, groups, **given)
    name = type(built).__name__
    if settings.weight_decay > 0 and "weight_decay" not in built.defaults:
        raise UserError(f"optimizer.weight_decay: {name} has none: remove the key, or use a regularizer")
    if settings.penalty is not None and not isinstance(built, torchreg.optim.Proximal):
        raise UserError(f"optimizer.penalty: {name} takes none: use ProxSGD or ProxAdam, or a regularizer")
    return built


def controller(
    settings: config.Sparsity | None,
    opt: torch.optim.Optimizer,
    steps: int,
    regularizers: Sequence[torchreg.Regularizer | None] = (),
) -> torchreg.optim.TargetSparsity | None:
    """The controller of a proximal optimizer's or a regularizer's share of zeros, if the study has one.

    The regularizers are as :func:`in_places` gives them.
    """
    if settings is None:
        return None
    options = settings.model_dump(exclude={"regularizer"})
    try:
        return torchreg.optim.TargetSparsity(_steered(settings, opt, regularizers), steps=steps, **options)
    except ValueError as error:
        raise UserError(f"sparsity: {error}") from None


def _steered(
    settings: config.Sparsity, opt: torch.optim.Optimizer, regularizers: Sequence[torchreg.Regularizer | None]
) -> torchreg.optim.Proximal | torchreg.Regularizer:
    place = settings.regularizer
    if place is None and isinstance(opt, torchreg.optim.Proximal):
        return opt
    made = [own for own in regularizers if own is not None and own.mode == "prox" and not is_constraint(own)]
    if place is None and len(made) != 1:
        raise UserError(
            f"sparsity: needs the optimizer ProxSGD or ProxAdam, or one regularizer in mode 'prox', got "
            f"{type(opt).__name__} and {len(made)} of them: name one by sparsity.regularizer"
        )
    if place is None:
        return made[0]
    found = regularizers[place] if place < len(regularizers) else None
    if found is None:
        raise UserError(f"sparsity.regularizer: must be the place of a penalty on parameters, got {place}")
    return found


def scheduler(
    settings: config.Scheduler | None, opt: torch.optim.Optimizer
) -> tuple[lr_scheduler.LRScheduler | None, bool]:
    """The learning-rate schedule, if the study has one, and whether it advances each step instead of each epoch."""
    if settings is None:
        return None, False
    made = component("scheduler", lr_scheduler.LRScheduler, settings, SCHEDULERS, opt)
    if settings.after:
        if isinstance(made, lr_scheduler.CyclicLR | lr_scheduler.OneCycleLR):
            name = type(made).__name__
            raise UserError(f"scheduler.after: must be 0 for {name}, which has its own rates, got {settings.after}")
        constant = lr_scheduler.ConstantLR(opt, factor=1.0, total_iters=settings.after)
        made = lr_scheduler.SequentialLR(opt, [constant, made], milestones=[settings.after])
    return made, settings.interval == "step"


def average(settings: config.Train, net: nn.Module, opt: torch.optim.Optimizer, examples: Examples) -> Average | None:
    """The average of the weights, if the study has one."""
    if settings.average is None:
        return None
    return Average(settings.average, net, opt, settings.epochs, examples.train, settings.batch_size)


def regularizers(
    side_by_side: Sequence[Sequence[config.Regularizer | None]], net: nn.Module, opt: torch.optim.Optimizer
) -> list[torchreg.Regularizer]:
    """The regularizers, attached to the optimizer if their mode acts in its step.

    Each row has the settings in each run of a stack, or in the only run; None where it has strength 0.
    """
    for run in zip(*side_by_side, strict=True):
        decayed: set[str | Sequence[str]] = set()
        for i, settings in enumerate(run):
            if settings is None or settings.penalty != "L2":
                continue
            if settings.select in decayed:
                raise UserError(f"regularizers.{i}: must not decay twice, got two L2 on {settings.select!r}: drop one")
            decayed.add(settings.select)
    rows = ((i, row) for i, row in enumerate(side_by_side) if not is_of_activities(row))
    return [_regularizer(f"regularizers.{i}", row, net, opt) for i, row in rows]


def in_places(
    side_by_side: Sequence[Sequence[config.Regularizer | None]], made: Sequence[torchreg.Regularizer]
) -> list[torchreg.Regularizer | None]:
    """The regularizers in their places in the study; None for a penalty on activities."""
    own = iter(made)
    return [None if is_of_activities(row) else next(own) for row in side_by_side]


def activities(run: config.Run, net: nn.Module) -> list[Activity]:
    """The penalties on outputs of the network's modules."""
    made = []
    for i, settings in enumerate(run.regularizers):
        if settings.activity is not None:
            key = f"regularizers.{i}"
            make = found_in(f"{key}.activity", settings.activity, PENALTIES)
            penalty = constructed(key, make, settings.activity, settings.options, settings.strength, table=settings)
            try:
                made.append(Activity(torchreg.ActivityRegularizer(net, penalty, settings.modules or ())))
            except ValueError as error:
                raise UserError(f"{key}.modules: {error}") from None
    return made


def sampler(settings: config.Sweep, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler of a search, for the point with that seed. See :mod:`experiments.running.search`."""
    import optuna  # slow to import, and only a search needs it

    named = settings.sampler or config.Component.model_validate({"name": settings.sampler_name})
    if settings.is_grid:  # its points are given to Optuna, and nothing is left to draw
        named = named.model_copy(update={"name": "RandomSampler"})
    if named.name == "QMCSampler":  # its seed is that of one sequence, whose points the storage counts
        seed = settings.seed
    base = optuna.samplers.BaseSampler
    made: optuna.samplers.BaseSampler = component(
        "sweep.sampler", base, named, _classes(optuna.samplers, base), seed=seed
    )
    return made


def pruner(settings: config.Sweep) -> optuna.pruners.BasePruner:
    """The pruner of a search, if the study names one; else one that prunes nothing."""
    import optuna

    base = optuna.pruners.BasePruner
    if settings.pruner is None:
        return optuna.pruners.NopPruner()
    made: optuna.pruners.BasePruner = component("sweep.pruner", base, settings.pruner, _classes(optuna.pruners, base))
    return made


def auto_strength(
    settings: config.AutoStrength | None,
    tuned: list[torchreg.Regularizer],
    opt: torch.optim.Optimizer,
    examples: Examples,
) -> torchreg.tuning.AutoStrength | None:
    """The object that tunes the regularizers' strengths, if the study has one."""
    if settings is None:
        return None
    tuned = [own for own in tuned if not is_constraint(own)]
    if not tuned:
        raise UserError("auto_strength: needs a regularizer to tune, got none: add one, or remove the key")
    try:
        task, valid = examples.task, examples.valid
        if isinstance(valid.x, Stream):
            raise UserError("auto_strength: needs validation examples in memory, got a stream: set data.stream = false")
        targets = task.targets(valid.y, torch.empty(0, dtype=examples.dtype))
        held_out, loss = (valid.x, targets), task.loss
        return torchreg.tuning.AutoStrength(tuned, held_out, loss, **settings.model_dump()).attach(opt)
    except ValueError as error:
        raise UserError(f"auto_strength: {error}") from None


def _regularizer(
    key: str, each: Sequence[config.Regularizer | None], net: nn.Module, opt: torch.optim.Optimizer
) -> torchreg.Regularizer:
    settings = next(own for own in each if own is not None)
    name = settings.penalty or ""
    make = found_in(f"{key}.penalty", name, {**PENALTIES, **CONSTRAINTS})
    # Without a strength of its own it gets one as its scale, from what the last layer is solved with.
    strengths = [0.0 if own is None else 1.0 if own.strength is None else own.strength for own in each]
    scale = None
    if len(set(strengths)) > 1:
        scale = torch.tensor(strengths, dtype=torch.float64, device=next(net.parameters()).device)
    factor = () if settings.is_constraint else (strengths[0] if scale is None else 1.0,)
    options = {"weights": torch.zeros_like} if settings.anchor == "tasks" else {}  # no task is remembered yet
    penalty = constructed(key, make, name, {**settings.options, **options}, *factor, table=settings)
    schedule = None
    if settings.schedule is not None:
        schedule = component(f"{key}.schedule", Callable, settings.schedule, SCHEDULES)
        if scale is not None:
            schedule = partial(_times, scale, schedule)
    selections = {"weights": torchreg.weights, "everything": torchreg.everything}
    patterns = [settings.select] if isinstance(settings.select, str) else settings.select
    select = selections.get(patterns[0]) if len(patterns) == 1 else None
    select = select or torchreg.named(*patterns)
    try:
        regularizer = torchreg.Regularizer(net, penalty, mode=settings.mode, select=select, schedule=schedule)
        if scale is not None and schedule is None:
            regularizer.scale = scale
        if settings.mode != "loss" or schedule is not None:
            return regularizer.attach(opt)
        check_decay(opt, regularizer.entries)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None
    return regularizer


def _times(scale: Tensor, schedule: Callable[[int], float], step: int) -> Tensor:
    return scale * schedule(step)


def _layer(key: str, settings: config.Component | None) -> models.Layer | None:
    if settings is None:
        return None
    make = partial(component, key, nn.Module, settings, DROPOUTS)
    make()  # its faults are this key's, not the model's
    return make

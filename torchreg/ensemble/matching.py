"""Checks that models differ in their values only."""

from __future__ import annotations

from collections.abc import Sequence
from types import BuiltinFunctionType, FunctionType

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torchreg.nn.seeded import Seeded


def check_equal(models: Sequence[nn.Module]) -> None:
    """Raises ``ValueError`` or ``TypeError`` unless the models differ in their values only."""
    if not models:
        raise ValueError("Stacked: models must be at least one module, got none")
    for number, model in enumerate(models):
        if not isinstance(model, nn.Module):
            raise TypeError(f"Stacked: models must be torch.nn.Modules, got {type(model).__name__}")
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if is_lazy(value):
                raise ValueError(f"Stacked: {name} has no shape yet: run one batch through each lazy model first")
        ours, theirs = _description(models[0]), _description(model)
        for name in (*ours, *theirs):
            if ours.get(name) != theirs.get(name):
                raise ValueError(
                    f"Stacked: models must differ in values only, {name or 'the model'} is {ours.get(name, 'missing')} "
                    f"in the first and {theirs.get(name, 'missing')} in number {number + 1}"
                )


def _description(model: nn.Module) -> dict[str, str]:
    """Everything that the members of a stack must have in common, by name."""
    described = {}
    for name, module in model.named_modules():
        mode = "in training" if module.training else "in evaluation"
        seeded = ", with a generator" if isinstance(module, Seeded) and module.generator is not None else ""
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        hooked = f", with {hooks} forward hooks" if hooks else ""
        described[name] = f"{type(module).__name__}({module.extra_repr()}) {mode}{seeded}{hooked}{_settings(module)}"
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        frozen = "" if value.requires_grad or not isinstance(value, nn.Parameter) else ", frozen"
        described[name] = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)} on {value.device}{frozen}"
    return described


def _settings(module: nn.Module) -> str:
    """The numbers, strings and functions among a module's attributes, which may also affect its outputs."""
    plain = (bool, int, float, str, tuple, list, torch.dtype)
    own = {
        name: value.__qualname__ if isinstance(value, FunctionType | BuiltinFunctionType) else value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and name != "training"
        and isinstance(value, (*plain, FunctionType, BuiltinFunctionType))
    }
    return f", {own}" if own else ""

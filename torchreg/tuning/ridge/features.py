"""The last linear layer of a model, and what comes into it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from torchreg.functional.sharding import is_sharded


@torch.no_grad()
def head_and_features(model: nn.Module, inputs: Tensor, batch_size: int) -> tuple[str, nn.Linear, Tensor]:
    """The linear layer whose output is the model's, its name, and its inputs for all examples, in evaluation mode.

    Raises:
        ValueError: the model does not end in a linear layer, or its features are not one row for each example.
    """
    names: dict[nn.Module, str] = {
        module: name for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    last: list[tuple[nn.Module, Tensor, Any]] = []
    called: Counter[nn.Module] = Counter()

    def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        last[:] = [(module, args[0] if args else kwargs["input"], output)]
        called[module] += 1

    parts: list[Tensor] = []
    heads: set[nn.Module] = set()
    hooks = [module.register_forward_hook(remember, with_kwargs=True) for module in names]
    try:
        with _evaluation(model):
            for part in inputs.split(batch_size):
                last.clear()
                called.clear()
                output = model(part)
                if not last or last[0][2] is not output:
                    raise ValueError(
                        "ridge_path: the model's output must be that of an nn.Linear, got one that "
                        f"{_of(last, names)}: give the model without what comes after its last linear layer"
                    )
                heads.add(last[0][0])
                if called[last[0][0]] > 1:
                    raise ValueError(
                        f"ridge_path: the last linear layer, {names[last[0][0]]!r}, must be called once, got "
                        f"{called[last[0][0]]} calls: its features would change with it"
                    )
                parts.append(last[0][1].detach())
                _check_rows(parts[-1], len(part))
    finally:
        for hook in hooks:
            hook.remove()
    if len(heads) > 1:
        raise ValueError("ridge_path: all examples must go through the same last linear layer, got several layers")
    head = heads.pop()
    assert isinstance(head, nn.Linear)
    _check_head(model, names[head] or "the model", head)
    return names[head], head, torch.cat(parts)


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _of(last: list[tuple[nn.Module, Tensor, Any]], names: dict[nn.Module, str]) -> str:
    if not last:
        return "no nn.Linear made"
    module = last[0][0]
    return f"was changed after the last one, {names[module]!r}"


def _check_rows(features: Tensor, count: int) -> None:
    if features.ndim != 2 or len(features) != count or not features.shape[1]:
        raise ValueError(
            f"ridge_path: features must have the shape (examples, features), got {tuple(features.shape)} for {count} "
            "examples: positions of a sequence are no examples"
        )
    if features.is_complex():
        raise ValueError("ridge_path: features must be real, got complex ones")
    if not features.isfinite().all():
        raise ValueError("ridge_path: features must be finite, got NaN or infinite ones: check the inputs")


def _check_head(model: nn.Module, name: str, head: nn.Linear) -> None:
    if parametrize.is_parametrized(head) or not isinstance(head.weight, nn.Parameter):
        raise ValueError(f"ridge_path: the weight of {name} must be a plain parameter, got one that is computed")
    if is_sharded(head.weight):
        raise ValueError(f"ridge_path: the weight of {name} must be whole, got a sharded one: use the plain model")
    holders = {module for module in model.modules() if head.weight in set(module.parameters(recurse=False))}
    if len(holders) > 1:
        raise ValueError(
            f"ridge_path: the weight of {name} must be its own, got one that another module shares: its features would "
            "change with it"
        )

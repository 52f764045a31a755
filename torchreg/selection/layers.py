"""The layers of a model in order, and its hidden matrices."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from torch import nn

from torchreg.selection.naming import is_embedding
from torchreg.selection.parameters import ParamInfo, each_parameter, stored, unwrapped
from torchreg.selection.selectors import weights

_CONTAINERS = (nn.Sequential, nn.ModuleList)
_OUTPUTS = ("get_output_embeddings", "get_classifier")  # methods of the models of transformers and of timm


def layer_numbers(model: nn.Module) -> dict[str, int]:
    """The number of the layer of each parameter, by its name, from 0 at the input.

    A model with a method ``group_matcher``, as timm's models have it, says itself what its layers are. In other models
    they are the modules in an ``nn.Sequential`` or ``nn.ModuleList``, such as the blocks of a transformer, and what
    comes before and after these. What needs no weight decay, such as a normalization, belongs to the layer before it.
    """
    prefix, inner = without_wrappers(model)
    if callable(matcher := getattr(inner, "group_matcher", None)):
        timms: Any = import_module("timm.models")
        stated = timms.group_parameters(inner, matcher(coarse=False), reverse=True)
        return {_joined(prefix, name): int(number) for name, number in stated.items()}
    selected = [place for places in each_parameter(model) for place in places if weights(place)]
    decaying = {name for place in selected for name, _ in stored(place)}
    numbers: dict[str, int] = {}
    number, has_weights = 0, False
    for layer in _layers(prefix, inner, is_root=True):
        if has_weights and decaying.intersection(layer):
            number, has_weights = number + 1, False
        has_weights |= not decaying.isdisjoint(layer)
        numbers |= dict.fromkeys(layer, number)
    return numbers


def hidden_matrices(model: nn.Module) -> dict[str, str | None]:
    """Why each parameter, by its first name, is no hidden matrix, in a few words; None if it is one.

    Hidden matrices are the weights with two dimensions of all layers but embeddings and the output layer. That is the
    layer that the model's own method names (``get_output_embeddings`` or ``get_classifier``), else the last one.
    """
    reasons = {places[0].name: _reason(places) for places in each_parameter(model)}
    prefix, inner = without_wrappers(model)
    stated = [method() for name in _OUTPUTS if callable(method := getattr(inner, name, None))]
    outputs = {
        each for given in stated for each in (given if isinstance(given, tuple) else (given,)) if each is not None
    }
    if outputs:
        last = [_joined(prefix, name) for name, module in inner.named_modules() if module in outputs]
    else:
        last = [place.name for places in each_parameter(model) for place in places[:1] if weights(place)][-1:]
    for name, reason in reasons.items():
        if reason is None and any(name == end or name.startswith(f"{end}.") for end in last):
            reasons[name] = "output layer"
    return reasons


def _reason(places: list[ParamInfo]) -> str | None:
    reasons = [weights.reason(place) for place in places]
    if None not in reasons:
        return reasons[0]
    if any(map(is_embedding, places)):
        return "embedding"
    computed = places[0]._computed
    if computed is not None and computed.kept() is None:
        return f"stored by {computed.how}"
    return None if places[0].param.ndim == 2 else f"{places[0].param.ndim}-D"


def _layers(prefix: str, module: nn.Module, is_root: bool = False) -> Iterator[list[str]]:
    """The names of the parameters of each layer, in the order in which the model registers them."""
    is_one = not is_root and not isinstance(module, _CONTAINERS) and not any(map(_holds_blocks, module.modules()))
    names = [name for name, _ in module.named_parameters(prefix, recurse=is_one, remove_duplicate=False)]
    if names:
        yield names
    if not is_one:
        for name, child in module.named_children():
            yield from _layers(_joined(prefix, name), child)


def _holds_blocks(module: nn.Module) -> bool:
    """Whether it is a list of blocks: modules of one class that have parts of their own."""
    if not isinstance(module, _CONTAINERS):
        return False
    children = [child for child in module.children() if next(child.parameters(), None) is not None]
    is_block = [not isinstance(child, _CONTAINERS) and next(child.children(), None) is not None for child in children]
    return len(set(map(type, children))) == 1 and all(is_block)


def without_wrappers(model: nn.Module) -> tuple[str, nn.Module]:
    """The name and the module within what wrappers such as torch.compile and DistributedDataParallel add."""
    prefix = ""
    while len(children := dict(model.named_children())) == 1 and not unwrapped(*children):
        ((name, model),) = children.items()
        prefix = _joined(prefix, name)
    return prefix, model


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name

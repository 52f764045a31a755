"""Copies of an optimizer with a few small parameters, which can be stepped without effect on the optimizer."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreg.hooks.step import Group, StepHooks

LR = 1e-3  # of the copies: their weights are about 1 and hardly move


class Way(NamedTuple):
    """What a copy is stepped with."""

    closure: bool = False
    whole: bool = False  # one for each parameter, and the state as it is now: a constructor may have made it
    graph: bool = False  # gradients that have one, as those of ``backward(create_graph=True)``
    sparse: bool = False


WAYS = (
    Way(),
    Way(closure=True),
    Way(whole=True),
    Way(closure=True, whole=True),
    Way(graph=True),
    Way(whole=True, graph=True),
    Way(sparse=True),
)


class Copy:
    """A copy of an optimizer, with a few small parameters instead of its own and without state of theirs."""

    def __init__(
        self, optimizer: Optimizer, cls: type[Optimizer], way: Way, lr: float = LR, factor_d: float = 1.0
    ) -> None:
        optimizers = _optimizers(optimizer)
        twins = _twins(optimizers, way.whole)
        memo: dict[int, Any] = {id(old): new for old, new in twins.items()}
        for each in optimizers:
            memo[id(each)] = object.__new__(cls if each is optimizer else type(each))
        for each in optimizers:
            _copy_state(each.state, memo, way.whole)
        for each in optimizers:
            Optimizer.__setstate__(memo[id(each)], _copied_attributes(each, memo))
        self.optimizer: Optimizer = memo[id(optimizer)]
        copied = [memo[id(each)] for each in optimizers]
        if not way.whole:
            for each in copied:
                _make_fresh(each)
        for group in {id(group): group for each in copied for group in each.param_groups}.values():
            if "lr" in group:
                group["lr"] = torch.full_like(group["lr"], lr) if isinstance(group["lr"], Tensor) else lr
            if factor_d != 1:
                group["d"] = factor_d * group["d"]
            if isinstance(group.get("weight_decay"), (int, float)):
                group["weight_decay"] = 0.0
            if group.get("differentiable"):
                group["differentiable"] = self.optimizer.defaults["differentiable"] = False
        unique = dict.fromkeys(twins.values())
        self.params = [
            twin for twin in unique if isinstance(twin, nn.Parameter) and twin.requires_grad and twin.numel()
        ]
        self.made = self.evaluations = 0
        self.moves: list[float] = []  # how far each step has moved the weights
        self._way = way
        self._switch("train")

    def make_steps(self, until: int) -> None:
        """Makes steps until so many are made."""
        for number in range(self.made, until):
            torch.default_generator.manual_seed(number)  # torch.manual_seed does much more for a GPU that is not used
            if any(p.is_cuda for p in self.params):
                torch.cuda.manual_seed_all(number)
            random.seed(number)
            old = [p.detach().clone() for p in self.params]
            if self._way.closure:
                self.optimizer.step(self._set_gradients)  # type: ignore[arg-type]  # torch says float, and accepts this
            else:
                self._set_gradients()
                self.optimizer.step()
            self.made += 1
            sizes = [float((p.detach() - q).abs().max()) for p, q in zip(self.params, old, strict=True)]
            if not math.isfinite(sum(sizes)):
                raise ArithmeticError("the weights are no longer finite")
            self.moves.append(max(sizes))

    def shift(self, mode: str, in_step: int) -> None:
        """Halves the weights in one step, when the mode would change them."""
        self._shifts: list[Tensor] = []

        def act(optimizer: Optimizer, evaluation: int = 0) -> None:
            if self.made == in_step - 1 and evaluation == 0:
                self._shifts = [-0.5 * p.detach() for p in self.params]
                for param, shift in zip(self.params, self._shifts, strict=True):
                    param.data.add_(shift)

        if mode == "prox":
            StepHooks(self.optimizer, _nothing, act)
        else:
            StepHooks(self.optimizer, act, _nothing)

    def shares_of_shift(self, plain: Copy) -> tuple[float, float]:
        """The share of the shift that is in the weights that are trained, and in those that the model is used with."""
        shares = []
        for name in ("train", "eval"):
            self._switch(name)
            plain._switch(name)
            pairs = zip(self.params, plain.params, self._shifts, strict=True)
            found = [((p - q) * by.conj()).detach().sum().real / by.abs().square().sum() for p, q, by in pairs]
            shares.append(float(min(found)))
        self._switch("train")
        plain._switch("train")
        return shares[0], shares[1]

    def _switch(self, name: str) -> None:
        method = getattr(self.optimizer, name, None)
        if callable(method):
            method()

    def _set_gradients(self) -> Tensor:
        self.evaluations += 1
        for param in self.params:
            gradient = _pattern(param, 3 + self.made)
            if self._way.graph:
                gradient = gradient + (param - param.detach())  # the same value, and 1 is its derivative
            param.grad = gradient.to_sparse(1) if self._way.sparse and param.ndim else gradient
        return torch.ones((), requires_grad=True, device=self.params[0].device)


def _optimizers(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizer and those in its attributes, each once."""
    found: dict[int, Optimizer] = {id(optimizer): optimizer}
    waiting = [optimizer]
    while waiting:
        for value in vars(waiting.pop()).values():
            held = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
            new = {id(each): each for each in held if isinstance(each, Optimizer) and id(each) not in found}
            found.update(new)
            waiting.extend(new.values())
    return list(found.values())


def _twins(optimizers: list[Optimizer], whole: bool) -> dict[Tensor, Tensor]:
    """A small tensor for each parameter and each other tensor that an optimizer holds.

    Unless the whole is wanted, parameters that have as many dimensions and the same options share one.
    """
    twins: dict[Tensor, Tensor] = {}
    kinds: dict[Any, Tensor] = {}
    for each in optimizers:
        for group in each.param_groups:
            options = _options(group)
            for p in group["params"]:
                kind = id(p) if whole else options, p.ndim, p.requires_grad, p.is_complex(), p.numel() == 0, p.device
                if p not in twins:
                    twins[p] = kinds[kind] if kind in kinds else kinds.setdefault(kind, _small(p))
    held = [value for each in optimizers for value in vars(each).values() if value is not each.state]
    twins.update({tensor: _few(tensor).clone() for tensor in _tensors(held) if tensor not in twins})
    return twins


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a value: a tensor, a module, or lists and dicts of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
        yield from value.buffers()
    elif isinstance(value, list | tuple | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)


def _make_fresh(copied: Optimizer) -> None:
    """Takes back the counts and estimates of training in the groups, and leaves one of several equal groups."""
    defaults, groups = getattr(copied, "defaults", {}), copied.param_groups
    for group in groups:
        numbers = {name: value for name, value in group.items() if type(value) in (int, float)}
        group.update({name: defaults[name] for name in numbers if name in defaults})
        for name in [name for name, value in numbers.items() if type(value) is int and name not in defaults]:
            del group[name]  # a count of steps
        group["params"] = list(dict.fromkeys(group["params"]))
    groups[:] = {(_options(group), *map(id, group["params"])): group for group in reversed(groups)}.values()


def _options(group: Group) -> str:
    """What distinguishes the group from others, apart from numbers that all copies have in common."""
    common = ("params", "param_names", "lr", "initial_lr", "max_lr", "weight_decay")
    return repr([(name, value) for name, value in group.items() if name not in common])


def _copy_state(state: Any, memo: dict[int, Any], of_parameters: bool) -> None:
    """Puts into ``memo`` a state with what belongs to no parameter and, if asked, small versions of the rest."""
    copied: defaultdict[Any, Any] = defaultdict(dict)
    memo[id(state)] = copied
    for key, value in state.items():
        if not isinstance(key, Tensor):
            copied[key] = deepcopy(value, memo)
        elif of_parameters and isinstance(value, dict):
            small = {name: _few(it).clone() if isinstance(it, Tensor) else it for name, it in value.items()}
            copied.setdefault(memo[id(key)], {name: deepcopy(it, memo) for name, it in small.items()})


def _copied_attributes(optimizer: Optimizer, memo: dict[int, Any]) -> dict[str, Any]:
    """Copies of the attributes, without hooks and without functions in place of methods.

    A learning rate scheduler puts such a function there. It holds the optimizer itself, which must not be stepped.
    """
    own = {}
    for name, value in vars(optimizer).items():
        if not name.startswith("_optimizer_") and not callable(getattr(type(optimizer), name, None)):
            own[name] = _copied(value, memo)
    return own


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    before = {*memo, id(memo)}  # deepcopy keeps a list under the latter
    try:
        return deepcopy(value, memo)
    except Exception:  # of any kind: it is, or holds, an open file, a lock or a generator
        for unfinished in memo.keys() - before:
            del memo[unfinished]
        if type(value) is dict:
            return {key: _copied(each, memo) for key, each in value.items()}
        if type(value) in (list, tuple):
            return type(value)(_copied(each, memo) for each in value)
        return MagicMock()  # accepts all that is done with it


def _small(param: Tensor) -> Tensor:
    """A parameter with as many dimensions, in single precision, because lr would round away in half precision."""
    dtype = torch.complex64 if param.is_complex() else torch.float32
    device = "cpu" if param.is_meta else param.device
    twin = torch.empty([min(size, 4) for size in param.shape], dtype=dtype, device=device)
    small = nn.Parameter(_pattern(twin, 1) + 1.5, requires_grad=param.requires_grad)
    vars(small).update({name: it for name, it in vars(param).items() if not isinstance(it, Tensor)})
    return small


def _few(tensor: Tensor) -> Tensor:
    """The first elements along each dimension."""
    few = tensor.detach()[tuple(slice(4) for _ in tensor.shape)]
    few = torch.zeros_like(few, device="cpu") if few.is_meta else few
    return few.float() if few.is_floating_point() else few


def _pattern(like: Tensor, number: int) -> Tensor:
    """A tensor with values in [-1, 1], never exactly 0. Such matrices, and such tensors together, have full rank."""
    k = torch.arange(like.numel(), dtype=torch.float64, device=like.device)
    values = (0.7 * k.square() + (0.9 + 0.4 * k) * number + 0.3).cos()
    return values.to(like.dtype).view(like.shape)


def _nothing(*_: Any) -> None:
    pass

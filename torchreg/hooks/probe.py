"""Whether an optimizer's steps are what a mode assumes of them: asked of a copy with a few small parameters.

A mode that changes weights or gradients in an optimizer's step assumes that ``step`` makes the update, that the
optimizer keeps what others write into the weights, and that ``group["lr"]`` is the size of the step. The optimizers of
torch are known to be so. Of any other, a copy makes some steps with and without such a change.
"""

from __future__ import annotations

import io
import logging
import math
import random
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from numbers import Real
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchreg.hooks.step import Group, StepHooks

_LR = 1e-3  # of the copies: their weights are about 1 and hardly move
_HALF, _STEPS = 12, 24  # how many steps are made
_SHIFTED, _SOON = 3, 6  # the step in which a change is made, and the steps after which it is first looked for
_KEPT, _LEFT, _SEEN, _FADED = 0.9, 0.1, 1e-3, 0.45  # shares of a change
_LEAST = 2e-5  # of lr: the smallest first step at gradients of about 1; Adadelta makes 3e-3, D-Adaptation 1e-6


def check_steps(owner: str, optimizer: Optimizer, mode: str, cls: type[Optimizer] | None = None) -> None:
    """Raises ``ValueError`` if the optimizer's steps are not what the mode assumes of them.

    Args:
        owner: the name with which the message begins.
        optimizer: the optimizer, which is not changed.
        mode: "grad", "decoupled" or "prox"; in another mode only the steps themselves must exist.
        cls: the class whose step is meant, if it is not that of the optimizer.
    """
    kind = cls or type(optimizer)
    found = _declared(optimizer, kind, mode)
    if found is None and mode in ("grad", "decoupled", "prox") and not _is_known(kind):
        found = _observed(owner, optimizer, kind, mode)
    if found is not None:
        fault, advice = found
        if cls is not None:  # a class of optimizers with decoupled decay or proximal steps is made of it
            advice = f"use {kind.__name__} itself, and for the penalty a Regularizer in mode 'grad' or 'loss'"
        raise ValueError(f"{owner}: {fault}: {advice}")


def _is_known(cls: type[Optimizer]) -> bool:
    """Whether every ``step`` in the class is of torch or torchreg."""
    return all(base.__module__.split(".")[0] in ("torch", "torchreg") for base in cls.__mro__ if "step" in vars(base))


_OTHER_MODE = "use mode 'grad' or 'loss'"


def _declared(optimizer: Optimizer, cls: type[Optimizer], mode: str) -> tuple[str, str] | None:
    """The fault that the optimizer's methods and groups tell, with advice."""
    if callable(getattr(cls, "first_step", None)) and callable(getattr(cls, "second_step", None)):
        inner = [f"attach to its optimizer.{name}" for name, value in vars(optimizer).items() if _is_other(value, cls)]
        return (
            f"{cls.__name__} updates the weights in first_step() and second_step(), which call no hooks",
            " or ".join(inner) or "use mode 'loss' without a schedule",
        )
    if mode not in ("decoupled", "prox"):
        return None
    for group in optimizer.param_groups:
        lr = group.get("lr")
        if not isinstance(lr, Real) and not (isinstance(lr, Tensor) and lr.numel() == 1):
            have = "has none" if "lr" not in group else f"has lr={lr!r}"
            return f"mode {mode!r} needs the optimizer's lr, {cls.__name__} {have}", _OTHER_MODE
    return None


def _is_other(value: object, cls: type[Optimizer]) -> bool:
    return isinstance(value, Optimizer) and not isinstance(value, cls)


def _observed(owner: str, optimizer: Optimizer, cls: type[Optimizer], mode: str) -> tuple[str, str] | None:
    """The fault that copies of the optimizer show, with advice; None if they show none, or cannot be made or stepped."""
    errors: list[Exception] = []
    for way in _WAYS:
        try:
            with _apart(optimizer):
                found = _fault(optimizer, cls, mode, way)
            if found is None and way.graph and mode in ("grad", "decoupled"):
                what = f"mode {mode!r} acts between the gradients and their derivatives, which {cls.__name__} takes"
                return what, "use mode 'loss'"
            return found
        except Exception as error:  # of any kind: a step may need real parameters, a real closure or processes
            errors.append(error)
    if mode == "grad":
        return None
    name = cls.__name__
    if callable(getattr(cls, "train", None)) and callable(getattr(cls, "eval", None)):
        return f"{name} keeps two versions of the weights, as its train() and eval() tell", _OTHER_MODE
    what = " ".join(f"{type(errors[0]).__name__} {errors[0]}".split())
    warnings.warn(
        f"{owner}: whether mode {mode!r} suits {name} could not be tried, because a copy of it with small parameters "
        f"makes no steps ({what}): {_OTHER_MODE}, or make sure that group['lr'] is the size of its steps and that it "
        "keeps what is written into the weights",
        stacklevel=4,
    )
    return None


class _Way(NamedTuple):
    """What a copy is stepped with."""

    closure: bool = False
    whole: bool = False  # one for each parameter, and the state as it is now: a constructor may have made it
    graph: bool = False  # gradients that have one, as those of ``backward(create_graph=True)``
    sparse: bool = False


_WAYS = (
    _Way(),
    _Way(closure=True),
    _Way(whole=True),
    _Way(closure=True, whole=True),
    _Way(graph=True),
    _Way(whole=True, graph=True),
    _Way(sparse=True),
)


def _fault(optimizer: Optimizer, cls: type[Optimizer], mode: str, way: _Way) -> tuple[str, str] | None:
    name, plain = cls.__name__, _Copy(optimizer, cls, way)
    if not plain.params:
        return None
    plain.make_steps(_STEPS)
    late = plain.moves[_HALF:]  # some optimizers only prepare their state in the first steps
    if any(late) and not all(late):
        return f"only some calls of {name}.step() update the weights", "use mode 'loss'"
    if mode == "grad":
        return None
    if (seen := _wrong_size(optimizer, cls, way, plain)) is not None:
        return f"mode {mode!r} takes group['lr'] for the size of the steps of {name}, but {seen}", _OTHER_MODE
    if not _keeps_changes(optimizer, cls, mode, way):
        return (
            f"mode {mode!r} changes the weights, and {name} does not keep such a change, because it computes them from "
            "other tensors",
            _OTHER_MODE,
        )
    if mode == "decoupled" and not way.closure and _evaluations(optimizer, cls, way) > 1:  # as in SAM
        return _fault(optimizer, cls, mode, way._replace(closure=True))
    return None


def _keeps_changes(optimizer: Optimizer, cls: type[Optimizer], mode: str, way: _Way) -> bool:
    """Whether a change of the weights in an early step, and one in a later step, are in the weights at the end.

    Mode "prox" needs nearly all of them, because zeros must stay. A decay may become smaller, as long as it does not fade:
    Lookahead halves all changes alike, and the weights of an evaluation may be an average, in which it grows.
    """
    plain, early, late = (_Copy(optimizer, cls, way) for _ in range(3))
    early.shift(mode, in_step=_SHIFTED)
    late.shift(mode, in_step=_HALF if mode == "prox" else _STEPS)
    for each in (plain, early):
        each.make_steps(_SOON)
    soon, soon_used = early.shares_of_shift(plain)
    for each in (plain, early, late):
        each.make_steps(_STEPS)
    kept, used = early.shares_of_shift(plain)
    if mode == "prox":
        return min(kept, used, *late.shares_of_shift(plain)) >= _KEPT
    least = max(_LEFT, _FADED * soon)
    return kept >= least and late.shares_of_shift(plain)[0] >= least and used >= max(_SEEN, _FADED * soon_used)


def _evaluations(optimizer: Optimizer, cls: type[Optimizer], way: _Way) -> int:
    """How often a step calls a closure; 0 if it does not accept one."""
    copied = _Copy(optimizer, cls, way._replace(closure=True))
    try:
        copied.make_steps(1)
    except Exception:  # of any kind
        return 0
    return copied.evaluations


def _wrong_size(optimizer: Optimizer, cls: type[Optimizer], way: _Way, plain: _Copy) -> str | None:
    """What shows that the groups' lr is not the size of the steps."""
    if max(plain.moves[:_HALF]) < _LEAST * _LR:
        return f"they are less than {_LEAST:.0e} of it"
    other = _Copy(optimizer, cls, way, lr=2 * _LR)
    other.make_steps(_HALF)
    if all(abs(a - b) < 1e-6 * a for a, b in zip(plain.moves, other.moves, strict=False)):
        return "they do not depend on it"
    if any(isinstance(group.get("d"), (Real, Tensor)) for group in optimizer.param_groups):
        other = _Copy(optimizer, cls, way, factor_d=2.0)
        other.make_steps(1)
        if abs(other.moves[0] - 2 * plain.moves[0]) < 0.01 * plain.moves[0]:
            return "it multiplies lr by an estimate d"
    return None


class _Copy:
    """A copy of an optimizer, with a few small parameters instead of its own and without state of theirs."""

    def __init__(
        self, optimizer: Optimizer, cls: type[Optimizer], way: _Way, lr: float = _LR, factor_d: float = 1.0
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
        groups = [memo[id(each)].param_groups for each in optimizers]
        for group in {id(g): g for copied in groups for g in (copied if way.whole else _unlike(copied))}.values():
            if "lr" in group:
                group["lr"] = torch.full_like(group["lr"], lr) if isinstance(group["lr"], Tensor) else lr
            if factor_d != 1:
                group["d"] = factor_d * group["d"]
            if isinstance(group.get("weight_decay"), (int, float)):
                group["weight_decay"] = 0.0
            if group.get("differentiable"):
                group["differentiable"] = self.optimizer.defaults["differentiable"] = False
        unique = dict.fromkeys(twins.values())
        self.params = [twin for twin in unique if isinstance(twin, nn.Parameter) and twin.requires_grad and twin.numel()]
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

    def shares_of_shift(self, plain: _Copy) -> tuple[float, float]:
        """The share of the shift that is in the weights: those that are trained, and those that the model is used with."""
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
        return torch.ones((), requires_grad=True)


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
    """A small tensor for each parameter and each other tensor of a model that an optimizer holds.

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
    for module in (value for each in optimizers for value in vars(each).values() if isinstance(value, nn.Module)):
        others = [t for t in (*module.parameters(), *module.buffers()) if t not in twins]
        twins.update({t: _few(t).clone() for t in others})
    return twins


def _unlike(groups: list[Group]) -> list[Group]:
    """The copied groups, of which those with the same options and parameters are removed except one."""
    for group in groups:
        group["params"] = list(dict.fromkeys(group["params"]))
    groups[:] = {(_options(group), *map(id, group["params"])): group for group in reversed(groups)}.values()
    return groups


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
    """Copies of the attributes, without hooks and without functions in place of methods, as of a learning rate scheduler.

    Such functions may hold the optimizer itself, which must not be stepped.
    """
    own = {}
    for name, value in vars(optimizer).items():
        if not name.startswith("_optimizer_") and not callable(getattr(type(optimizer), name, None)):
            try:
                own[name] = deepcopy(value, memo)
            except Exception:  # of any kind: an open file, a lock, a generator
                own[name] = MagicMock()  # accepts all that is done with it
    return own


def _small(param: Tensor) -> Tensor:
    """A parameter with as many dimensions, in single precision, because lr would round away in half precision."""
    dtype = torch.complex64 if param.is_complex() else torch.float32
    twin = torch.empty([min(size, 4) for size in param.shape], dtype=dtype, device=param.device)
    small = nn.Parameter(_pattern(twin, 1) + 1.5, requires_grad=param.requires_grad)
    vars(small).update({name: it for name, it in vars(param).items() if not isinstance(it, Tensor)})
    return small


def _few(tensor: Tensor) -> Tensor:
    """The first elements along each dimension."""
    few = tensor.detach()[tuple(slice(4) for _ in tensor.shape)]
    return few.float() if few.is_floating_point() else few


def _pattern(like: Tensor, number: int) -> Tensor:
    """A tensor with values in [-1, 1], never exactly 0; matrices of them have full rank, and so have several numbers."""
    k = torch.arange(like.numel(), dtype=torch.float64)
    values = (0.7 * k.square() + (0.9 + 0.4 * k) * number + 0.3).cos()
    return values.to(like.device, like.dtype).view(like.shape)


def _nothing(*_: Any) -> None:
    pass


@contextmanager
def _apart(optimizer: Optimizer) -> Iterator[None]:
    """Without effect on random numbers, and without what the copies warn of, print or log."""
    devices = {p.device for group in optimizer.param_groups for p in group["params"] if p.device.type == "cuda"}
    state, disabled = random.getstate(), logging.root.manager.disable
    with (
        torch.random.fork_rng(devices=list(devices)),
        warnings.catch_warnings(),
        torch.enable_grad(),
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)
            random.setstate(state)

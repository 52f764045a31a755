"""Whether an optimizer's steps are what a mode assumes of them: asked of a copy with a few small parameters.

A mode that changes weights or gradients in an optimizer's step assumes that ``step`` makes the update, that the
optimizer keeps what others write into the weights, and that ``group["lr"]`` is the size of the step. The optimizers of
torch are known to be so. Of any other, a copy makes some steps with and without such a change.
"""

from __future__ import annotations

import random
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchreg.hooks.step import Group, StepHooks

_LR = 1e-3  # of the copies: their weights are about 1 and hardly move
_SHIFTED, _HALF, _STEPS = 4, 12, 24  # the step in which a change is made, and the steps after which it is looked for
_KEPT, _DECAYED = 0.9, 0.75  # shares of a change
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
        found = _observed(optimizer, kind, mode)
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


def _observed(optimizer: Optimizer, cls: type[Optimizer], mode: str) -> tuple[str, str] | None:
    """The fault that a copy of the optimizer shows, with advice; None if it shows none or cannot be copied."""
    try:
        with _apart(optimizer):
            return _fault(optimizer, cls, mode)
    except Exception:  # of any kind: the optimizer does what only its own parameters, closure or processes allow
        two = callable(getattr(cls, "train", None)) and callable(getattr(cls, "eval", None))
        if two and mode in ("decoupled", "prox"):
            return f"{cls.__name__} keeps two versions of the weights, as its train() and eval() tell", _OTHER_MODE
        return None


def _fault(optimizer: Optimizer, cls: type[Optimizer], mode: str) -> tuple[str, str] | None:
    name, plain, shifted = cls.__name__, _Copy(optimizer, cls), _Copy(optimizer, cls)
    shifted.shift(mode, in_step=_SHIFTED)
    kept = []
    for until in (_HALF, _STEPS):
        plain.make_steps(until)
        shifted.make_steps(until)
        kept.append(shifted.share_of_shift(plain))
    late = plain.moves[_HALF:]  # some optimizers only prepare their state in the first steps
    if any(late) and not all(late):
        return f"only some calls of {name}.step() update the weights", "use mode 'loss'"
    if mode == "grad":
        return None
    if (seen := _wrong_size(optimizer, cls, plain)) is not None:
        return f"mode {mode!r} takes group['lr'] for the size of the steps of {name}, but {seen}", _OTHER_MODE
    if kept[1] < _KEPT if mode == "prox" else kept[1] < max(1 - _KEPT, _DECAYED * kept[0]):
        return (
            f"mode {mode!r} changes the weights, and {name} does not keep such a change, because it computes them from "
            "other tensors",
            _OTHER_MODE,
        )
    return None


def _wrong_size(optimizer: Optimizer, cls: type[Optimizer], plain: _Copy) -> str | None:
    """What shows that the groups' lr is not the size of the steps."""
    other = _Copy(optimizer, cls, lr=2 * _LR)
    other.make_steps(_HALF)
    if max(plain.moves[:_HALF]) < _LEAST * _LR:
        return f"they are less than {_LEAST:.0e} of it"
    if all(abs(a - b) < 1e-6 * a for a, b in zip(plain.moves, other.moves, strict=False)):
        return "they do not depend on it"
    if any(isinstance(group.get("d"), (Real, Tensor)) for group in optimizer.param_groups):
        other = _Copy(optimizer, cls, factor_d=2.0)
        other.make_steps(1)
        if abs(other.moves[0] - 2 * plain.moves[0]) < 0.01 * plain.moves[0]:
            return "it multiplies lr by an estimate d"
    return None


class _Copy:
    """A copy of an optimizer, with small parameters instead of its own and without state of theirs."""

    def __init__(self, optimizer: Optimizer, cls: type[Optimizer], lr: float = _LR, factor_d: float = 1.0) -> None:
        memo: dict[int, Any] = {}
        small = {p: _small(p) for group in optimizer.param_groups for p in group["params"]}
        memo.update({id(param): twin for param, twin in small.items()})
        self.optimizer = _copied(optimizer, cls, memo)
        for group in _groups(memo.values()):
            _keep_few(group)
            group["lr"] = torch.full_like(group["lr"], lr) if isinstance(group["lr"], Tensor) else lr
            if factor_d != 1:
                group["d"] = factor_d * group["d"]
            if isinstance(group.get("weight_decay"), (int, float)):
                group["weight_decay"] = 0.0
        self.params = [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]
        self.made = 0
        self.moves: list[float] = []  # how far each step has moved the weights
        self._with_closure = False
        self._switch("train")

    def make_steps(self, until: int) -> None:
        """Makes steps until so many are made."""
        for number in range(self.made, until):
            torch.manual_seed(number)
            random.seed(number)
            old = [p.detach().clone() for p in self.params]
            self._set_gradients()
            self._step()
            self.made += 1
            self.moves.append(max(_size(p.detach() - q) for p, q in zip(self.params, old, strict=True)))

    @torch.no_grad()
    def shift(self, mode: str, in_step: int) -> None:
        """Changes the weights in one step, when the mode would do it."""
        self._shifts = [0.5 * _pattern(p, 2) for p in self.params]

        def act(optimizer: Optimizer, evaluation: int = 0) -> None:
            if self.made == in_step - 1 and evaluation == 0:
                for param, shift in zip(self.params, self._shifts, strict=True):
                    param.data.add_(shift)

        if mode == "prox":
            StepHooks(self.optimizer, _nothing, act)
        else:
            StepHooks(self.optimizer, act, _nothing)

    def share_of_shift(self, plain: _Copy) -> float:
        """The share of the shift that the weights still have, in the version of them that the model is used with."""
        for each in (self, plain):
            each._switch("eval")
        with torch.no_grad():
            pairs = zip(self.params, plain.params, self._shifts, strict=True)
            shares = [float(((p - q) * shift.conj()).sum().real / shift.abs().square().sum()) for p, q, shift in pairs]
        for each in (self, plain):
            each._switch("train")
        return min(shares)

    def _switch(self, name: str) -> None:
        method = getattr(self.optimizer, name, None)
        if callable(method):
            method()

    def _set_gradients(self) -> Tensor:
        for param in self.params:
            param.grad = _pattern(param, 3 + self.made)
        return torch.ones((), requires_grad=True)

    def _step(self) -> None:
        if not self._with_closure:
            try:
                self.optimizer.step()
                return
            except (TypeError, RuntimeError, AssertionError, ValueError):
                if self.made:
                    raise
                self._with_closure = True
        self.optimizer.step(self._set_gradients)  # type: ignore[arg-type]  # torch says float, and accepts a tensor


def _copied(optimizer: Optimizer, cls: type[Optimizer], memo: dict[int, Any]) -> Optimizer:
    """A copy of the optimizer, and of optimizers in it, with what ``memo`` holds in place of their parameters."""
    twin: Optimizer = object.__new__(cls)
    memo[id(optimizer)] = twin
    memo[id(optimizer.state)] = defaultdict(dict)
    for value in vars(optimizer).values():
        for inner in value if isinstance(value, list | tuple) else (value,):
            if isinstance(inner, Optimizer) and id(inner) not in memo:
                _copied(inner, type(inner), memo)
    own = {name: value for name, value in vars(optimizer).items() if not name.startswith("_optimizer_")}
    Optimizer.__setstate__(twin, {name: deepcopy(value, memo) for name, value in own.items()})
    return twin


def _groups(copies: Iterable[Any]) -> list[Group]:
    """The groups of the copied optimizers, each once."""
    optimizers = [each for each in copies if isinstance(each, Optimizer)]
    return list({id(group): group for optimizer in optimizers for group in optimizer.param_groups}.values())


def _keep_few(group: Group) -> None:
    """Leaves one parameter of each number of dimensions in the group, so that a step is cheap."""
    group["params"] = list({(p.ndim, p.requires_grad): p for p in reversed(group["params"])}.values())


def _small(param: Tensor) -> Tensor:
    """A parameter with as many dimensions, in single precision, because lr would round away in half precision."""
    dtype = torch.complex64 if param.is_complex() else torch.float32
    twin = param.new_empty([min(size, 4) for size in param.shape], dtype=dtype, requires_grad=False)
    return torch.nn.Parameter(_pattern(twin, 1) + 1.5, requires_grad=param.requires_grad)


def _pattern(like: Tensor, number: int) -> Tensor:
    """A tensor with values in [-1, 1]; never exactly 0."""
    values = (torch.arange(like.numel(), dtype=torch.float64) * 1.7 + number * 0.9 + 0.3).cos()
    return values.to(like.device, like.dtype).view(like.shape)


def _nothing(*_: Any) -> None:
    pass


def _size(change: Tensor) -> float:
    return float(change.abs().max()) if change.numel() else 0.0


@contextmanager
def _apart(optimizer: Optimizer) -> Iterator[None]:
    """Without effect on random numbers, and without the warnings of the copies."""
    devices = {p.device for group in optimizer.param_groups for p in group["params"] if p.device.type == "cuda"}
    state = random.getstate()
    with torch.random.fork_rng(devices=list(devices)), warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            random.setstate(state)

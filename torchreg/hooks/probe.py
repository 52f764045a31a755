"""Whether an optimizer's steps are what a mode assumes of them: asked of a copy with a few small parameters.

A mode that changes weights or gradients in an optimizer's step assumes that ``step`` makes the update, that the
optimizer keeps what others write into the weights, and that ``group["lr"]`` is the size of the step. The optimizers of
torch are known to be so. Of any other, a copy makes some steps with and without such a change.
"""

from __future__ import annotations

import io
import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from numbers import Real

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchreg.hooks.copies import LR, WAYS, Copy, Way

_HALF, _STEPS = 12, 24  # how many steps are made
_SHIFTED, _SOON = 3, 6  # the step in which a change is made, and the steps after which it is first looked for
_KEPT, _LEFT, _SEEN, _FADED = 0.9, 0.1, 1e-3, 0.45  # shares of a change
_ROUNDED = 1e-6  # smaller steps of weights of about 1 may round away, one by one
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
    """The fault that copies of the optimizer show, with advice; None if they show none or cannot be stepped."""
    errors: list[Exception] = []
    for way in WAYS:
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


def _fault(optimizer: Optimizer, cls: type[Optimizer], mode: str, way: Way) -> tuple[str, str] | None:
    name, plain = cls.__name__, Copy(optimizer, cls, way)
    if not plain.params:
        return None
    plain.make_steps(_STEPS)
    if way.closure and not plain.evaluations:
        raise ArithmeticError("its step() does not call the closure")
    late = plain.moves[_HALF:]  # some optimizers only prepare their state in the first steps
    if max(late) > _ROUNDED and not all(late):
        return f"only some calls of {name}.step() update the weights", "use mode 'loss'"
    if not any(plain.moves):
        larger = Copy(optimizer, cls, way, lr=1.0)  # of another size, because tiny steps round away
        larger.make_steps(_STEPS)
        if way.whole and not any(larger.moves):
            raise ArithmeticError("the first elements of its state let no weight move")
        if not any(larger.moves):
            return f"{_STEPS} calls of {name}.step() do not move weights by their .grad", "use mode 'loss'"
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


def _keeps_changes(optimizer: Optimizer, cls: type[Optimizer], mode: str, way: Way) -> bool:
    """Whether a change of the weights in an early step, and one in a later step, are in the weights at the end.

    Mode "prox" needs nearly all of them, because zeros must stay. A decay may become smaller, as long as it does not
    fade: Lookahead halves all changes alike, and the weights of an evaluation may be an average, in which it grows.
    """
    plain, early, late = (Copy(optimizer, cls, way) for _ in range(3))
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


def _evaluations(optimizer: Optimizer, cls: type[Optimizer], way: Way) -> int:
    """How often a step calls a closure; 0 if it does not accept one."""
    copied = Copy(optimizer, cls, way._replace(closure=True))
    try:
        copied.make_steps(1)
    except Exception:  # of any kind
        return 0
    return copied.evaluations


def _wrong_size(optimizer: Optimizer, cls: type[Optimizer], way: Way, plain: Copy) -> str | None:
    """What shows that the groups' lr is not the size of the steps."""
    if max(plain.moves[:_HALF]) < _LEAST * LR:
        return f"they are less than {_LEAST:.0e} of it"
    other = Copy(optimizer, cls, way, lr=2 * LR)
    other.make_steps(_HALF)
    if all(abs(a - b) < 1e-6 * a for a, b in zip(plain.moves, other.moves, strict=False)):
        return "they do not depend on it"
    if any(isinstance(group.get("d"), (Real, Tensor)) for group in optimizer.param_groups):
        other = Copy(optimizer, cls, way, factor_d=2.0)
        other.make_steps(1)
        if abs(other.moves[0] - 2 * plain.moves[0]) < 0.01 * plain.moves[0]:
            return "it multiplies lr by an estimate d"
    return None


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

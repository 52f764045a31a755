"""What the callbacks of all trainers have in common: they attach once, and say what is logged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn, get_args
from weakref import WeakKeyDictionary, WeakValueDictionary

from torch import nn
from torch.optim import Optimizer

from torchreg.integrations.logged import logged, penalized
from torchreg.penalties import Penalty
from torchreg.penalties.given import in_words
from torchreg.regularizer import Regularizer
from torchreg.schedules import Schedule
from torchreg.selection import ParamInfo, Selector, weights

StepMode = Literal["grad", "decoupled", "prox"]

_OWNER = "RegularizerCallback"

# What callbacks have attached, by their names: the log could not tell two of one name apart.
_attached: WeakKeyDictionary[Optimizer, WeakValueDictionary[str, Any]] = WeakKeyDictionary()


class Attachment:
    """Attaches what the user gave to the optimizers of a trainer, once, and anew if the trainer makes others.

    The state travels in the optimizer's, so that a trainer restores it with that, before or after the attachment.
    The attributes are those that scikit-learn's ``clone`` expects: the arguments as they were given; what training
    finds out ends with an underscore.
    """

    _trainer = ""  # what it is for

    def __init__(
        self,
        penalty: Any,
        *,
        mode: StepMode | None = None,
        select: Selector | Callable[[ParamInfo], bool] = weights,
        schedule: Schedule | None = None,
        every: int = 1,
        compile: bool = False,
        name: str = "regularizer",
        sparsity: bool = True,
    ) -> None:
        self.penalty = penalty
        self.mode = mode
        self.select = select
        self.schedule = schedule
        self.every = every
        self.compile = compile
        self.name = name
        self.sparsity = sparsity
        self.attached_: Any = None
        self.is_mine_ = False  # else it was attached before, and is only logged
        self.optimizers_: tuple[Optimizer, ...] = ()
        self._check()

    @property
    def regularizer(self) -> Any:
        """What is attached now, such as a :class:`~torchreg.Regularizer`; None before training."""
        return self.attached_

    def remove(self) -> None:
        """Detaches from the optimizer, whose further steps are as without a regularizer. It may be called twice."""
        if self.is_mine_:
            self.attached_.remove()
        self.attached_, self.is_mine_, self.optimizers_ = None, False, ()

    def _check(self) -> None:
        if isinstance(self.penalty, type):
            raise TypeError(f"{_OWNER}: penalty must be a penalty such as L1(0.1), got {in_words(self.penalty)}")
        mode: object = self.mode
        if isinstance(self.penalty, Penalty | Mapping):
            if mode not in get_args(StepMode):
                advice = ": a callback cannot add to the loss, and 'grad' has the same result as 'loss'"
                raise ValueError(
                    f"{_OWNER}: mode must be 'grad', 'decoupled' or 'prox', got {mode!r}"
                    + (advice if mode == "loss" else "")
                )
            return
        kind = type(self.penalty).__name__
        given = {"mode": None, "select": weights, "schedule": None, "every": 1, "compile": False}
        if superfluous := [option for option, default in given.items() if getattr(self, option) is not default]:
            raise ValueError(
                f"{_OWNER}: {' and '.join(superfluous)} must be given where the regularizer is made, got it beside "
                f"a {kind}: write RegularizerCallback(penalty, ...), or give the options to Regularizer"
            )
        if not (_can_be_attached(self.penalty) or callable(self.penalty)):
            raise TypeError(
                f"{_OWNER}: penalty must be a penalty such as L1(0.1), an object with attach(optimizer), or a function "
                f"that makes one for a model, got a {kind}"
            )
        _refuse_mode_loss(self.penalty)

    def _attach(self, model: nn.Module, optimizers: Sequence[Any]) -> None:
        """Attaches to the trainer's optimizers, unless that is done already."""
        found = tuple(map(_unwrapped, optimizers))
        if not found:
            raise ValueError(
                f"{_OWNER}: the trainer must have an optimizer, got none: its steps are where a penalty acts"
            )
        if _is_attached(self.attached_) and list(map(id, found)) == list(map(id, self.optimizers_)):
            return
        self.remove()
        self._check()  # again, because scikit-learn sets parameters
        thing = self._made_for(model)
        for optimizer in found:
            others = _attached.setdefault(optimizer, WeakValueDictionary())
            if others.get(self.name) not in (None, thing) and _is_attached(others[self.name]):
                raise ValueError(
                    f"{_OWNER}: each one of a training must have a name of its own, got {self.name!r} twice: pass "
                    "name='another', or call remove() of a callback that the optimizer was trained with before"
                )
        if not _is_attached(thing):
            thing.attach(*_those_that_train(thing, found))
            self.is_mine_ = True
        self.attached_, self.optimizers_ = thing, found
        for optimizer in found:
            _attached[optimizer][self.name] = thing

    def _made_for(self, model: nn.Module) -> Any:
        if isinstance(self.penalty, Penalty | Mapping):
            assert self.mode is not None
            return Regularizer(
                model,
                self.penalty,
                mode=self.mode,
                select=self.select,
                schedule=self.schedule,
                every=self.every,
                compile=self.compile,
            )
        if _can_be_attached(self.penalty):
            return self.penalty
        thing = self.penalty(model)
        if not _can_be_attached(thing):
            raise TypeError(
                f"{_OWNER}: the function must return an object with attach(optimizer), such as a Regularizer, got "
                f"a {type(thing).__name__}"
            )
        _refuse_mode_loss(thing)
        return thing

    def _logged(self) -> dict[str, float]:
        return logged(self.attached_, self.name, self.sparsity)

    def __getattr__(self, name: str) -> NoReturn:
        # Trainers look for their hooks in what they are given.
        raise AttributeError(
            f"this {_OWNER} is for {self._trainer} and has no {name!r}: import that of your trainer from "
            "torchreg.integrations"
        )


def _can_be_attached(thing: Any) -> bool:
    return not isinstance(thing, type) and hasattr(thing, "attach") and hasattr(thing, "remove")


def _is_attached(thing: Any) -> bool:
    return bool(getattr(thing, "_hooks", ()))


def _refuse_mode_loss(thing: Any) -> None:
    if isinstance(thing, Regularizer) and thing.mode == "loss":
        thing._is_used = True  # it was refused
        raise ValueError(
            f"{_OWNER}: the regularizer must have mode 'grad', 'decoupled' or 'prox', got 'loss': a callback cannot "
            "add to the loss, and 'grad' has the same result as 'loss'"
        )


def _unwrapped(optimizer: Any) -> Any:
    """The optimizer inside that of accelerate, whose own ``step`` is never hooked."""
    inner = getattr(optimizer, "optimizer", None)
    return inner if isinstance(inner, Optimizer) and "_optimizer_step_pre_hooks" not in vars(optimizer) else optimizer


def _those_that_train(thing: Any, optimizers: tuple[Any, ...]) -> tuple[Any, ...]:
    """The optimizers that hold a penalized parameter; for a schedule the last one."""
    if len(optimizers) == 1:
        return optimizers
    entries = penalized(thing)
    if not entries:
        return optimizers[-1:]
    stored = {id(param) for a in entries for param in a.stored}
    holds = [any(id(p) in stored for group in o.param_groups for p in group["params"]) for o in optimizers]
    return tuple(o for o, held in zip(optimizers, holds, strict=True) if held) or optimizers

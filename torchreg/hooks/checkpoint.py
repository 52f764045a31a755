"""State that travels in the ``state_dict`` of an optimizer, so that every trainer saves and restores it.

It is an entry of the first parameter group. A top-level entry would be lost when the state is loaded before the owner
is attached, and in ``torch.distributed.checkpoint``, which keeps the groups only. Without torchreg the entry stays in
the group and has no effect.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

KEY = "torchreg"  # of the entry: a list of {"of": the owner's class, "state": its state}


class Owner(Protocol):
    """An object whose state travels in an optimizer's."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...

    @property
    def _is_counting(self) -> bool:
        """Whether the state changes during training, so that a checkpoint without it is worth a warning."""
        ...


class Carried:
    """Lets the owner's state travel in the optimizer's, until :meth:`remove`.

    If the optimizer has loaded such a state before, the owner gets it now. Several owners of one class get theirs in
    the order in which they were attached.

    An optimizer that does not call torch's hooks cannot carry it. There is a warning if the state changes in training.

    Raises:
        ValueError: the loaded state does not fit the owner.
    """

    def __init__(self, optimizer: Optimizer, owner: Owner) -> None:
        self.owner = owner
        self._restore(optimizer)
        self._handles: tuple[RemovableHandle, ...] = ()
        with suppress(AttributeError):  # of an optimizer whose constructor does not call torch's
            self._handles = (
                optimizer.register_state_dict_post_hook(self._save),
                optimizer.register_load_state_dict_post_hook(self._load),
            )
        if owner._is_counting and not self._is_called(optimizer):
            warnings.warn(
                f"{type(owner).__name__}: the checkpoints of {type(optimizer).__name__} do not hold its state, because "
                "its state_dict() does not call torch's hooks: save state_dict() and call load_state_dict() yourself",
                stacklevel=5,
            )

    def _is_called(self, optimizer: Optimizer) -> bool:
        """Whether the optimizer's ``state_dict`` calls the hook; if it cannot be asked now, yes."""
        if not self._handles or type(optimizer).state_dict is Optimizer.state_dict:
            return bool(self._handles)
        try:
            groups = optimizer.state_dict()["param_groups"]
            return KEY in groups[0]
        except (KeyError, TypeError, IndexError):
            return False
        except Exception:  # of any kind: the state of a sharded optimizer is not there yet
            return True

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _save(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        group = state_dict["param_groups"][0]
        group[KEY] = [*group.get(KEY, ()), {"of": type(self.owner).__name__, "state": self.owner.state_dict()}]

    def _load(self, optimizer: Optimizer) -> None:
        if not self._restore(optimizer) and self.owner._is_counting and optimizer.state:
            warnings.warn(
                f"{type(self.owner).__name__}: the loaded checkpoint of {type(optimizer).__name__} does not hold its "
                "state, so it goes on from where it is: call its load_state_dict() if you saved the state yourself",
                stacklevel=4,
            )

    def _restore(self, optimizer: Optimizer) -> bool:
        """Gives the owner the first entry of its class; whether there was one."""
        owner, group = self.owner, optimizer.param_groups[0]
        entries = list(group.get(KEY, ()))
        own = next((entry for entry in entries if entry["of"] == type(owner).__name__), None)
        if own is None:
            return False
        try:
            owner.load_state_dict(own["state"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{type(owner).__name__}: its state in the checkpoint of {type(optimizer).__name__} must be that of an "
                f"equal one, got another ({error}): attach what was attached when it was saved, or delete {KEY!r} "
                "from the checkpoint's first parameter group"
            ) from error
        group[KEY] = [entry for entry in entries if entry is not own]  # the others are for owners attached later
        if not group[KEY]:
            del group[KEY]
        return True

"""State that travels in the ``state_dict`` of an optimizer, so that every trainer saves and restores it.

It is an entry of the first parameter group. A top-level entry would be lost when the state is loaded before the owner
is attached, and in ``torch.distributed.checkpoint``, which keeps the groups only. Without torchreg the entry stays in
the group and has no effect.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any, Protocol

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from torchreg.hooks.step import Group

KEY = "torchreg"  # of the entries, one for each owner: its class, its name among those of its class, its state
Entry = Mapping[str, Any]


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

    If the optimizer has loaded such a state before, the owner gets it now. An owner gets an entry of its class with its
    name: owners with equal names must be attached in the order of the saved run.
    An optimizer that does not call torch's hooks cannot carry a state: there is a warning if it changes in training.

    Args:
        optimizer: the optimizer.
        owner: the object.
        name: tells the owner from others of its class.
        resumes: whether a state that the optimizer has loaded before is for this owner. It is not for a copy.

    Raises:
        ValueError: the loaded state does not fit the owner.
    """

    def __init__(self, optimizer: Optimizer, owner: Owner, name: str = "", *, resumes: bool = True) -> None:
        self._optimizer, self._owner, self._name = optimizer, owner, name
        self._found: Entry | None = None  # in the state that is being loaded
        if resumes:
            if (entry := self._take(optimizer.param_groups)) is not None:
                self._owner.load_state_dict(entry["state"])
            elif any(entry["of"] == type(owner).__name__ for entry in optimizer.param_groups[0].get(KEY, ())):
                self._warn_of_absence(optimizer)
        try:
            self._handles: tuple[RemovableHandle, ...] = (
                optimizer.register_state_dict_post_hook(self._save),
                optimizer.register_load_state_dict_pre_hook(self._before_load),
                optimizer.register_load_state_dict_post_hook(self._after_load),
            )
        except AttributeError:  # its constructor does not call torch's
            self._handles = ()
        if owner._is_counting and not self._is_called():
            warnings.warn(
                f"{type(owner).__name__}: the checkpoints of {type(optimizer).__name__} do not hold its state, because "
                "its state_dict() does not call torch's hooks: save state_dict() and call load_state_dict() yourself",
                stacklevel=5,
            )

    def _is_called(self) -> bool:
        """Whether the optimizer's ``state_dict`` calls the hook; if it cannot be asked now, yes."""
        if not self._handles or type(self._optimizer).state_dict is Optimizer.state_dict:
            return bool(self._handles)
        try:
            return KEY in self._optimizer.state_dict()["param_groups"][0]
        except (KeyError, TypeError, IndexError):
            return False
        except Exception:  # of any kind: the state of a sharded optimizer is not there yet
            return True

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        for group in self._optimizer.param_groups:
            if group.get(KEY) == []:
                del group[KEY]

    def _save(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        # The group itself gets the key too: torch.distributed.checkpoint looks there for what to load. Its entries are
        # those that no owner has taken yet. They come last, so that the order is that in which all are attached.
        waiting = optimizer.param_groups[0].setdefault(KEY, [])
        group = state_dict["param_groups"][0]
        entries = list(group.get(KEY, ()))
        own = {"of": type(self._owner).__name__, "name": self._name, "state": self._owner.state_dict()}
        entries.insert(len(entries) - len(waiting), own)
        group[KEY] = entries

    def _before_load(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any] | None:
        """Takes the owner's entry out of the state, and refuses one that does not fit before anything is changed."""
        groups = [dict(group) for group in state_dict["param_groups"]]
        self._found = self._take(groups)
        return {**state_dict, "param_groups": groups}

    def _after_load(self, optimizer: Optimizer) -> None:
        found, self._found = self._found, None
        if found is not None:
            self._owner.load_state_dict(deepcopy(found["state"]))
        else:
            self._warn_of_absence(optimizer)

    def _warn_of_absence(self, optimizer: Optimizer) -> None:
        if self._owner._is_counting:
            which = f", which is that of {self._name}" if self._name else ""
            warnings.warn(
                f"{type(self._owner).__name__}: the loaded checkpoint of {type(optimizer).__name__} does not hold its "
                f"state, so it goes on from where it is: call its load_state_dict() if you saved the state{which}",
                stacklevel=6,
            )

    def _take(self, groups: Iterable[Group]) -> Entry | None:
        """Removes the owner's entry from the groups and returns it, if there is one and it fits."""
        kind = type(self._owner).__name__
        try:
            own = [(entry, group) for group in groups for entry in group.get(KEY, ()) if entry["of"] == kind]
            if not own:
                return None
            entry, group = next((pair for pair in own if pair[0]["name"] == self._name), (None, {}))
            if entry is None:
                return None
            self._try(entry["state"])
        except Exception as error:  # of any kind: the checkpoint may hold anything
            reason = str(error).split("\n")[0]
            raise ValueError(
                f"{kind}: its state in the checkpoint of {type(self._optimizer).__name__} must be that of an equal "
                f"one, got another ({reason}): attach what was attached when it was saved, or delete {KEY!r} from "
                "the checkpoint's first parameter group"
            ) from error
        group[KEY] = [other for other in group[KEY] if other is not entry]  # for other owners, perhaps attached later
        if not group[KEY]:
            del group[KEY]
        taken: Entry = entry
        return taken

    def _try(self, state: Mapping[str, Any]) -> None:
        """Loads a state and goes back to the present one: raises an error if it does not fit."""
        present = self._owner.state_dict()
        try:
            self._owner.load_state_dict(state)
        finally:
            self._owner.load_state_dict(present)


def checked_steps(owner: str, steps: object) -> int:
    """The number of steps in an owner's state."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"{owner}: steps must be a whole number >= 0, got {steps!r}")
    return steps

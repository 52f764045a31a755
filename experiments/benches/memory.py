"""The memory that a regularizer needs beside that of the step."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .overhead import MODES
from .steps import Step, mlp, step
from .timing import Clock, Row, Table


def tables(clock: Clock) -> list[Table]:
    """The maximal memory of the regularizer in each mode, relative to the largest parameter."""
    largest = max(p.numel() * p.element_size() for p in mlp().parameters())
    rows = []
    for mode in MODES:
        work = step(mlp, mode)
        work()
        share = _peak_of_act(work) / largest
        rows.append(Row(f"mode {mode!r}", share, share, share, 0.0))
    title = "memory that L1 + L2 take beyond the step's own, 784-1024-1024-2048-10, to the largest parameter's"
    return [Table(title, tuple(rows))]


def _peak_of_act(work: Step) -> int:
    regularizer = work.regularizer
    assert regularizer is not None
    with Allocations() as seen:
        if regularizer.mode == "loss":
            torch.autograd.grad(regularizer.value(), work.weights)
        elif regularizer.mode == "prox":
            regularizer._after_step(work.optimizer)
        else:
            regularizer._on_gradients(work.optimizer, 0)
    return int(seen.peak)


class Allocations(TorchDispatchMode):
    """Counts the bytes of the tensors that are created within it, while they exist."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            self._remember(value, counts=False)
        result = func(*args, **(kwargs or {}))
        self._remember(result, counts=True)
        return result

    def _remember(self, value: Any, counts: bool) -> None:
        if isinstance(value, list | tuple):
            for part in value:
                self._remember(part, counts)
        elif isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            key = storage._cdata
            if key not in self._known:
                self._known.add(key)
                size = storage.nbytes() if counts else 0
                self.alive += size
                self.peak = max(self.peak, self.alive)
                weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size

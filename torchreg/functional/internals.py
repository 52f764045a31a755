"""What torch knows of a computation and has no public way to ask: all private functions of torch that are called.

Each has a fallback for a torch that lacks it. They were tried with torch 2.11, 2.14 and 2.15.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_functorch = getattr(torch._C, "_functorch", None)
_transforms_run: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
_peek: Callable[[], Any] = getattr(_functorch, "peek_interpreter_stack", lambda: None)
_graph_task: Callable[[], int] = getattr(torch._C, "_current_graph_task_id", lambda: -1)

# Whether it is one of a batch of gradients, of autograd.grad(..., is_grads_batched=True).
is_batched: Callable[[Tensor], bool] = getattr(_functorch, "is_legacy_batchedtensor", lambda x: True)


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is at work. Torch's own kernels are right in any case."""
    return bool(_transforms_run())


def is_differentiated() -> bool:
    """Whether the innermost of them takes derivatives, by its own arguments."""
    top = _peek() if is_transformed() else None
    return top is not None and top.key().name in ("Grad", "Jvp")


def is_in_backward() -> bool:
    """Whether a backward pass is running, as when activation checkpointing computes a forward pass again."""
    return _graph_task() != -1

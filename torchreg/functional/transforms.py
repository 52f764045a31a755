"""What ``torch.func`` does with a computation; torch has no public way to ask."""

import torch


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is at work."""
    return bool(torch._C._are_functorch_transforms_active())


def is_differentiated() -> bool:
    """Whether the innermost of them takes derivatives, by its own arguments."""
    peek = getattr(torch._C._functorch, "peek_interpreter_stack", None)
    top = peek() if peek is not None and is_transformed() else None
    return top is not None and top.key().name in ("Grad", "Jvp")

"""Kernels that ``torch.compile`` makes of a penalty's formulas, for large weights: one pass over memory.

Without them each call of torch takes a pass. In large networks, whose steps are bound by memory, the passes are the
cost.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import Parameter

from torchreg.functional.chunks import CHUNK
from torchreg.penalties import Penalty, ProximalPenalty, Term
from torchreg.selection.modules import listed

Form = Literal["value", "gradient", "add_gradient", "descend", "prox"]
Kernel = Callable[..., Any]

_PROBE = 1 << 20  # elements of the first call; the compiler decides by them whether to use threads


def kernel_for(penalty: Penalty, form: Form, number: float | Tensor, *tensors: Tensor) -> Kernel | None:
    """A kernel for that form of the penalty, called as ``kernel(*tensors)``.

    The number is the scale of a gradient or the step of a proximal operator. The result is None if torch's own calls
    are as fast, if the penalty is not a sum over single weights, or if nothing can be compiled (with a warning).
    """
    return kernel_on(tensors[0].device, penalty, form, number) if penalty.is_uniform and fits(*tensors) else None


def fits(*tensors: Tensor) -> bool:
    """Whether kernels support the tensors and pay for them: for few elements a call costs more than it saves."""
    w = tensors[0]
    is_plain = type(w) in (Tensor, Parameter) and w.dtype in (torch.float32, torch.float64)
    if not is_plain or w.numel() < CHUNK or torch.compiler.is_compiling():
        return False
    return all(t.is_contiguous() and t.dtype == w.dtype and t.device == w.device for t in tensors)


def kernel_on(device: torch.device, penalty: Penalty, form: Form, number: float | Tensor) -> Kernel | None:
    """:func:`kernel_for` for any tensors on the device that :func:`fits` accepts."""
    unit, strength = at_unit_strength(penalty)
    kernel = _kernel(unit, form, device.type)
    if kernel is None:
        return None
    scaled = strength * number
    if isinstance(scaled, Tensor):
        times = scaled.to(device, torch.float64)
    else:
        times = torch.full((), scaled, dtype=torch.float64, device=device)  # made without waiting for the device

    def act(*tensors: Tensor) -> Any:
        return kernel(times, *(t.detach().view(-1) for t in tensors))

    return act


@cache
def _kernel(penalty: Penalty, form: Form, device: str) -> Kernel | None:
    assert form in get_args(Form)

    def value(number: Tensor, w: Tensor) -> Tensor:
        return (penalty.value(w.double()) * number).to(w.dtype)  # a kernel adds one by one, which loses digits

    def gradient(number: Tensor, w: Tensor) -> Tensor:
        return penalty._gradient_times(w, number.to(w.dtype))

    def add_gradient(number: Tensor, grad: Tensor, w: Tensor) -> None:
        grad.add_(penalty._gradient_times(w, number.to(w.dtype)))

    def descend(number: Tensor, w: Tensor) -> None:
        w.sub_(penalty._gradient_times(w, number.to(w.dtype)))

    def prox(number: Tensor, w: Tensor) -> None:
        assert isinstance(penalty, ProximalPenalty)
        w.copy_(penalty.prox(w, number.to(w.dtype)))

    kernels: dict[Form, tuple[Kernel, int]] = {
        "value": (value, 1),
        "gradient": (gradient, 1),
        "add_gradient": (add_gradient, 2),
        "descend": (descend, 1),
        "prox": (prox, 1),
    }
    kernel, count = kernels[form]
    return compiled("Regularizer", kernel, torch.ones((), dtype=torch.float64, device=device), count, repr(penalty))


def compiled(owner: str, kernel: Kernel, numbers: Tensor, count: int, what: str) -> Kernel | None:
    """The compiled kernel for flat tensors of any size; None, with a warning, if nothing can be compiled.

    Args:
        owner: the name with which the warning begins.
        kernel: takes ``numbers`` and ``count`` tensors of one size.
        numbers: an example of the later numbers, of the same shape and on the same device.
        count: the number of tensors.
        what: tells the formula from all others of this function, also by its numbers.
    """
    # A code object with a name of its own. Of one code torch.compile keeps only eight versions. Where the numbers of
    # one name vary it makes them symbols, and torch (2.14) may then take a kernel for other numbers from its cache on
    # the disk. Sizes are marked as dynamic, because dynamic=True makes symbols of numbers too.
    kernel.__code__ = kernel.__code__.replace(co_name=f"{kernel.__name__}_{zlib.crc32(what.encode()):08x}")
    made: Kernel = torch.compile(kernel)
    tensors = [torch.ones(_PROBE, device=numbers.device) for _ in range(count)]
    for tensor in tensors:
        torch._dynamo.mark_dynamic(tensor, 0)
    try:
        with torch.no_grad():
            made(numbers, *tensors)
    except Exception as error:  # whatever a compiler raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warnings.warn(
            f"{owner}: compile=True needs a C++ compiler, stepping without: {reason}", RuntimeWarning, stacklevel=2
        )
        return None
    return made


def warn_of_no_kernels(owner: str, penalties: Iterable[Penalty]) -> None:
    """Warns of the penalties of which no kernel can be made."""
    if others := dict.fromkeys(repr(penalty) for penalty in penalties if not penalty.is_uniform):
        warnings.warn(
            f"{owner}: compile=True makes kernels of penalties that are a sum over single weights, and the usual steps "
            f"for {listed(list(others))}",
            RuntimeWarning,
            stacklevel=3,
        )


def at_unit_strength(penalty: Penalty) -> tuple[Penalty, float]:
    """A penalty and a number with this penalty as their product, so that all strengths share a kernel."""
    strengths = [term.strength for term in penalty.terms if isinstance(term, Term) and term.is_linear]
    if len(strengths) < len(penalty.terms) or strengths[0] == 0:
        return penalty, 1.0
    unit = replace(penalty, strength=1.0) if isinstance(penalty, Term) else penalty * (1 / strengths[0])
    return unit, strengths[0]

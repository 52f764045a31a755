"""What a penalty does to a large weight in one pass over it: kernels that ``torch.compile`` makes of its formulas.

Torch's own calls make a pass each. Where a step is bound by memory, as a large network's is, passes are what it costs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import Parameter

from torchreg.functional.chunks import CHUNK
from torchreg.penalties import Penalty, ProximalPenalty, Term

Form = Literal["value", "gradient", "add_gradient", "descend", "prox"]
Kernel = Callable[..., Any]

_PROBE = 1 << 20  # elements of the first call, by which the compiler judges whether threads pay


def kernel_for(penalty: Penalty, form: Form, number: float | Tensor, *tensors: Tensor) -> Kernel | None:
    """What does ``penalty``'s form of that name to such tensors in one pass, called as ``kernel(*tensors)``.

    The number is the scale of a gradient or the step of a proximal operator. None where torch's own calls are as fast,
    where the penalty looks at more than one weight at a time, and where nothing can be compiled, which a warning says.
    """
    return kernel_on(tensors[0].device, penalty, form, number) if penalty.is_uniform and fits(*tensors) else None


def fits(*tensors: Tensor) -> bool:
    """Whether tensors are such as kernels are for: of fewer elements the call costs more than it saves."""
    w = tensors[0]
    is_plain = type(w) in (Tensor, Parameter) and w.dtype in (torch.float32, torch.float64)
    if not is_plain or w.numel() < CHUNK or torch.compiler.is_compiling():
        return False
    return all(t.is_contiguous() and t.dtype == w.dtype and t.device == w.device for t in tensors)


def kernel_on(device: torch.device, penalty: Penalty, form: Form, number: float | Tensor) -> Kernel | None:
    """:func:`kernel_for` of any tensors on the device that fit."""
    unit, strength = at_unit_strength(penalty)
    kernel = _kernel(unit, form, device.type)
    if kernel is None:
        return None
    scaled = strength * number
    if isinstance(scaled, Tensor):
        times = scaled.to(device, torch.float64)
    else:
        times = torch.full((), scaled, dtype=torch.float64, device=device)  # which no device is waited for

    def act(*tensors: Tensor) -> Any:
        return kernel(times, *(t.detach().view(-1) for t in tensors))

    return act


@cache
def _kernel(penalty: Penalty, form: Form, device: str) -> Kernel | None:
    assert form in get_args(Form)

    def value(number: Tensor, w: Tensor) -> Tensor:
        return (penalty.value(w.double()) * number).to(w.dtype)  # a kernel adds up one by one, which costs digits

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
    return compiled("Regularizer", kernel, torch.ones((), dtype=torch.float64, device=device), count)


def compiled(owner: str, kernel: Kernel, numbers: Tensor, count: int) -> Kernel | None:
    """The kernel for flat tensors of any size; None, with a warning, where nothing can be compiled.

    Args:
        owner: who says so.
        kernel: takes ``numbers`` and ``count`` tensors of one size.
        numbers: of the shape and the device of all that will come; tried at once.
        count: how many tensors there are.
    """
    kernel.__code__ = kernel.__code__.replace()  # of its own: torch.compile keeps only eight versions of one code
    made: Kernel = torch.compile(kernel, dynamic=True)
    try:
        with torch.no_grad():
            made(numbers, *(torch.ones(_PROBE, device=numbers.device) for _ in range(count)))
    except Exception as error:  # whatever a compiler raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warnings.warn(
            f"{owner}: compile=True needs a C++ compiler, stepping without: {reason}", RuntimeWarning, stacklevel=2
        )
        return None
    return made


def at_unit_strength(penalty: Penalty) -> tuple[Penalty, float]:
    """A penalty and a number whose product is this one, so that many strengths share a kernel."""
    strengths = [term.strength for term in penalty.terms if isinstance(term, Term) and term.is_linear]
    if len(strengths) < len(penalty.terms) or strengths[0] == 0:
        return penalty, 1.0
    unit = replace(penalty, strength=1.0) if isinstance(penalty, Term) else penalty * (1 / strengths[0])
    return unit, strengths[0]

"""The sum of the penalties of many parameters, in one autograd node."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchreg import functional as f
from torchreg.functional.chunks import CHUNK, bundles, chunks_of, keep_freed_memory
from torchreg.functional.sharding import Layout, as_plain, layout_of_sum, reduced, sharded_like
from torchreg.penalties import Penalty
from torchreg.penalties.joint import Joint
from torchreg.steps.kernels import kernel_for
from torchreg.steps.plan import PLAIN

_FEW = 1 << 19  # values in all
_CHUNK = 1 << 19  # larger than in a step, because the gradient of a value takes as much memory anyway


def penalty_value(
    penalties: Sequence[Penalty], params: Sequence[Tensor], scale: float = 1.0, compile: bool = False
) -> Tensor:
    """``scale * sum_j R_j(w_j)``, 0-d on the first parameter's device.

    It can be differentiated as often as the penalties.

    Args:
        penalties: one for each parameter.
        params: the parameters.
        scale: multiplies the sum.
        compile: whether to use the kernels of :mod:`torchreg.steps.kernels`.
    """
    if torch.is_autocast_enabled(params[0].device.type):
        with torch.autocast(params[0].device.type, enabled=False):  # it would cost matrix penalties half their digits
            return penalty_value(penalties, params, scale, compile)
    if torch.compiler.is_compiling() or f.is_transformed():
        return _scaled(_sum(penalties, params), scale)  # a compiler or transform traces the formulas themselves
    if (few := FewValues.of(penalties, params)) is not None and not (compile and few.has_kernels):
        return few.value(scale)
    return _scaled(PenaltySum.apply(penalties, compile, *params), scale)


def joint_value(whole: Joint, parts: Sequence[tuple[Joint, tuple[Tensor, float | Tensor]]]) -> Tensor:
    """The value of a penalty on several weights, given its parts with their weights and scales."""
    each = [part for part, _ in parts]
    weights, scales = zip(*(row for _, row in parts), strict=True)
    return whole._value_together(each, [as_plain(w.detach(), local=False) for w in weights], scales)


def _scaled(value: Tensor, scale: float) -> Tensor:
    return value if scale == 1 else scale * value


class FewValues:
    """L1, L2 or their sum on few values, where the calls cost more than the passes over the values.

    It is computed by torch's own differentiable calls, which cost a tenth of a node in Python.

    Attributes:
        has_kernels: whether a weight is so large that a compiled kernel is faster.
    """

    def __init__(self, params: Sequence[Tensor], lasso: float, ridge: float) -> None:
        self._params, self._lasso, self._ridge = params, lasso, ridge
        self._device, self._state = params[0].device.type, self._present()
        # Tensors whose rows have one shape are joined as they are. To make each flat first would cost as much again.
        rows: dict[object, list[Tensor]] = {}
        for w in params:
            rows.setdefault(w.shape[1:] if w.ndim else w, []).append(w)
        self._alike = list(rows.values())
        self.has_kernels = any(w.numel() >= CHUNK for w in params)

    @classmethod
    def of(cls, penalties: Sequence[Penalty], params: Sequence[Tensor]) -> FewValues | None:
        """None if there are many values, or several penalties, or kinds of tensors, or another penalty."""
        if sum([w.numel() for w in params]) > _FEW or any(p is not penalties[0] for p in penalties):
            return None
        kinds = {(type(w), w.dtype, w.get_device()) for w in params}
        parts = penalties[0]._lasso_and_ridge
        if parts is None or len(kinds) > 1 or type(params[0]) not in PLAIN:
            return None
        return cls(params, *parts) if params[0].dtype in (torch.float32, torch.float64) else None

    def is_current(self) -> bool:
        """Whether the weights are as they were, and nothing traces, transforms or casts the calls."""
        if torch.compiler.is_compiling() or f.is_transformed() or torch.is_autocast_enabled(self._device):
            return False
        return self._present() == self._state

    def _present(self) -> list[object]:
        return [(w.requires_grad, w.shape, w.dtype, w.get_device()) for w in self._params]

    def value(self, scale: float) -> Tensor:
        """``scale * (lasso * |w|_1 + ridge/2 * |w|_2**2)``.

        It is the product of w and ``lasso * sign(w) + ridge/2 * w``, whose sign is a constant.
        """
        lasso, half_ridge = scale * self._lasso, scale * self._ridge / 2
        parts = [torch.cat(some) if len(some) > 1 else some[0] for some in self._alike]
        w = torch.cat([part.reshape(-1) for part in parts]) if len(parts) > 1 else parts[0]
        if not self._lasso:
            return (w * w).sum() * half_ridge
        if not self._ridge:
            return w.abs().sum() * lasso
        return (w * w.detach().sign().mul_(lasso).add(w, alpha=half_ridge)).sum()


class PenaltySum(torch.autograd.Function):
    """The sum as one node. Autograd would make several nodes for each parameter, and more passes over the weights."""

    @staticmethod
    def forward(ctx: Any, penalties: Sequence[Penalty], compile: bool, *params: Tensor) -> Tensor:
        keep_freed_memory()
        ctx.penalties, ctx.compile = penalties, compile
        ctx.save_for_backward(*params)
        return _sum(penalties, params, compile)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad if torch.is_grad_enabled() else _read(grad)
        readable = isinstance(scale, float)
        penalties, params, needed = ctx.penalties, ctx.saved_tensors, ctx.needs_input_grad[2:]
        gradients: list[Tensor | None] = [None] * len(params)
        for bundle in _bundles(penalties, params):
            if not any(needed[i] for i in bundle):
                continue
            weights = [params[i] for i in bundle]
            factor = scale.to(weights[0].device) if isinstance(scale, Tensor) else scale
            found = _gradients(penalties[bundle[0]], weights, factor, ctx.compile and readable)
            for i, gradient in zip(bundle, found, strict=True):
                gradients[i] = gradient if needed[i] else None
        return None, None, *gradients


def _read(grad: Tensor) -> float | Tensor:
    """The number, with which a gradient takes fewer passes than with a tensor; reading it is free on the CPU."""
    if grad.device.type != "cpu" or grad.ndim:
        return grad
    try:
        return float(grad.item())
    except RuntimeError:  # one of a batch of gradients, under vmap
        return grad


def warn_of_constants(owner: str) -> None:
    """Warns if ``torch.func`` differentiates a value by other tensors than the model's own, which it is made of."""
    if f.is_differentiated():
        warnings.warn(
            f"{owner}: value() is made of the model's own parameters, by which torch.func takes no derivative here: "
            "call it in the forward pass of functional_call, or penalize its tensors, penalty.value(params[name])",
            RuntimeWarning,
            stacklevel=3,
        )


def _sum(penalties: Sequence[Penalty], params: Sequence[Tensor], compile: bool = False) -> Tensor:
    sums: dict[Layout, Tensor] = {}  # one reduction over the processes for all weights with the same layout
    for bundle in _bundles(penalties, params):
        penalty, weights = penalties[bundle[0]], [params[i] for i in bundle]
        value, layout = _value(penalty, weights, compile), layout_of_sum(weights[0], penalty.is_separable)
        value = value.to(torch.promote_types(value.dtype, torch.float32))  # many small values outgrow half precision
        sums[layout] = sums[layout] + value.to(sums[layout].device) if layout in sums else value
    first, *others = (reduced(value, layout) for layout, value in sums.items())
    for value in others:
        first = first + value.to(first.device)
    return first


def _bundles(penalties: Sequence[Penalty], params: Sequence[Tensor]) -> list[list[int]]:
    """Which weights are processed in one call. Under autograd, which needs the formulas, each weight is alone."""
    if torch.is_grad_enabled():
        return [[i] for i in range(len(params))]
    return bundles([id(p) if p.is_uniform else object() for p in penalties], params)


def _value(penalty: Penalty, weights: Sequence[Tensor], compile: bool) -> Tensor:
    if len(weights) > 1:
        return penalty.value(torch.cat([w.reshape(-1) for w in weights]))
    w = as_plain(weights[0], penalty.is_separable)
    if not penalty.is_uniform or torch.is_grad_enabled() or w.dtype not in (torch.float32, torch.float64):
        return penalty.value(w)  # in one sum: for the derivatives of the formula, and for the range of half precision
    kernel = kernel_for(penalty, "value", 1.0, w) if compile else None
    if kernel is not None:
        value: Tensor = kernel(w)
        return value
    first, *others = (penalty.value(some) for (some,) in chunks_of(w, size=_CHUNK))
    return torch.stack([first, *others]).sum() if others else first


def _gradients(penalty: Penalty, weights: Sequence[Tensor], scale: float | Tensor, compile: bool) -> Sequence[Tensor]:
    """``scale * dR(w)``; of half-precision weights in single precision, because a loss scale may be out of range."""
    if len(weights) > 1:
        flat = torch.cat([w.reshape(-1) for w in weights])
        found = penalty._gradient_times(f.wide(flat), scale).to(flat.dtype).split([w.numel() for w in weights])
        return [gradient.view(w.shape) for gradient, w in zip(found, weights, strict=True)]
    (w,) = weights
    local = penalty.is_separable
    own = as_plain(w, local)
    if isinstance(scale, Tensor) or not penalty.is_uniform:
        return [sharded_like(penalty._gradient_times(f.wide(own), scale).to(own.dtype), w, local)]
    kernel = kernel_for(penalty, "gradient", scale, own) if compile else None
    if kernel is not None:
        return [sharded_like(kernel(own).view(own.shape), w, local)]
    result = torch.empty_like(own)
    for part, some in chunks_of(result, own, size=_CHUNK):
        _write_gradient_(part, penalty, some, scale)
    return [sharded_like(result, w, local)]


def _write_gradient_(out: Tensor, penalty: Penalty, w: Tensor, scale: float) -> None:
    """``out = scale * dR(w)``, if possible without further memory."""
    parts = penalty._lasso_and_ridge
    if parts is None or w.dtype not in (torch.float32, torch.float64):
        out.copy_(penalty._gradient_times(f.wide(w), scale))
        return
    lasso, ridge = parts
    if not lasso:
        torch.mul(w, ridge * scale, out=out)
        return
    torch.sign(w, out=out).mul_(lasso * scale)
    if ridge:
        out.add_(w, alpha=ridge * scale)

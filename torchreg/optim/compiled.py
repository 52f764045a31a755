"""A mixin with which Adam's step, its decay and a proximal step are one compiled kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torchreg.functional.sharding import is_sharded
from torchreg.hooks import Group
from torchreg.optim.decoupled import Amounts, DecoupledDecay, decay_after
from torchreg.optim.kernels import AdamForm, AdamKernel, adam_kernel, adam_numbers
from torchreg.optim.step_wrapper import with_gradients
from torchreg.penalties import ProximalPenalty

_FROM = 1 << 12  # weights of a parameter: for fewer a kernel's call costs more than it saves


class CompiledAdam(DecoupledDecay):
    """Mixin that makes the step of Adam or AdamW with ``compile=True`` by one kernel for each large parameter.

    It is for what needs a pass over the weights after Adam's step: a decay by L1, a cautious one, a proximal step.
    Other parameters take the usual step.

    Args:
        compile: whether :func:`torch.compile` makes the kernel.

    Raises:
        ValueError: ``compile`` is set with ``differentiable``.
    """

    compile: bool = False
    _unit: ProximalPenalty | None = None  # the penalty of those that have one, at unit strength
    _whole: Mapping[Tensor, tuple[AdamForm, AdamKernel]]
    _amounts: Amounts

    def __init__(self, *args: Any, compile: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.compile = compile
        if compile and self.defaults["differentiable"]:
            raise ValueError(f"{type(self).__name__}: compile=True needs differentiable=False, got True")

    def _is_penalized(self, param: Tensor) -> bool:
        return False

    def _reach(self, group: Group) -> float | Tensor:
        """The learning rate times the strength of the penalty."""
        return 0.0

    def _largest_before(self, param: Tensor) -> Tensor | None:
        """The largest second moment of the parameter before this step; None if none is 0."""
        return None

    def _find_whole(self) -> Mapping[Tensor, tuple[AdamForm, AdamKernel]]:
        # A scaler of a fused optimizer expects the optimizer's own kernel to unscale gradients or to skip the step.
        has_scaler = getattr(self, "found_inf", None) is not None
        if not self.compile or has_scaler or torch.compiler.is_compiling():
            return {}
        found = {}
        for group in self.param_groups:
            kernels = {is_penalized: self._kernel(group, is_penalized) for is_penalized in (False, True)}
            for param in with_gradients(group):
                kernel = kernels[self._is_penalized(param)]
                if kernel is not None and _fits(param):
                    found[param] = kernel
        return found

    def _kernel(self, group: Group, is_penalized: bool) -> tuple[AdamForm, AdamKernel] | None:
        """What the kernel does to such parameters of the group; None if torch's own step is as good."""
        penalty, decay = self._unit if is_penalized else None, decay_after(group)
        if penalty is None and decay is None:
            return None
        cautious, has_start = decay and group["cautious"], decay and group["towards"] == "start"
        form = AdamForm(decay, bool(cautious), bool(has_start), group["amsgrad"], penalty)
        kernel = adam_kernel(form)
        return None if kernel is None else (form, kernel)

    def _before_update(self) -> Amounts:
        self._amounts = super()._before_update()
        return self._amounts

    def _update(self, *closure: Callable[[], Any]) -> Any:
        if not self.compile:
            return super()._update(*closure)
        loss = None
        if closure:
            with torch.enable_grad():
                loss = closure[0]()
        everything = [group["params"] for group in self.param_groups]
        shares = [[p for p in params if p in self._whole] for params in everything]
        try:
            for group, params in zip(self.param_groups, everything, strict=True):
                group["params"] = [p for p in params if p not in self._whole]
            super()._update()
        finally:
            for group, params in zip(self.param_groups, everything, strict=True):
                group["params"] = params
        for group, share, amount in zip(self.param_groups, shares, self._amounts, strict=True):
            if share:
                self._step_in_one_pass_({**group, "params": share}, amount)
        return loss

    @torch.no_grad()
    def _step_in_one_pass_(self, group: Group, amount: float | Tensor) -> None:
        params, grads, first, second, largest, steps = ([] for _ in range(6))  # type: ignore[var-annotated]
        self._init_group(group, params, grads, first, second, largest, steps)  # type: ignore[attr-defined]
        torch._foreach_add_(steps, 1)
        before = list(map(self._largest_before, params))
        numbers = adam_numbers(steps, group, amount, self._reach(group), before, params[0].device)
        for i, param in enumerate(params):
            form, kernel = self._whole[param]
            tensors = [param, grads[i], first[i], second[i], *largest[i : i + 1]]
            if form.has_start:
                tensors.append(self._start(param))
            if all(tensor.is_contiguous() for tensor in tensors):  # so that one kernel serves all shapes
                tensors = [tensor.view(-1) for tensor in tensors]
            kernel(numbers[i], *tensors)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "compile": self.compile}


def _fits(param: Tensor) -> bool:
    return param.numel() >= _FROM and param.dtype in (torch.float32, torch.float64) and not is_sharded(param)

"""A mixin with which Adam's step, its decay and a proximal step are one compiled kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
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
    _of_all_groups = ("compile",)
    _unit: ProximalPenalty | None = None  # the penalty of those that have one, at unit strength
    _kernels: Mapping[Tensor, tuple[AdamForm, AdamKernel]] = MappingProxyType({})  # of those that take one in this step
    _amounts: Amounts

    def __init__(self, *args: Any, compile: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.compile = compile
        if compile and self.defaults["differentiable"]:
            raise ValueError(f"{type(self).__name__}: compile=True needs differentiable=False, got True")

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step; returns what the closure returned, if there is one."""
        return self._untraced_step(closure) if self.compile else super().step(closure)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # it brings kernels of its own
    def _untraced_step(self, closure: Callable[[], Any] | None) -> Any:
        return super().step(closure)

    def _is_penalized(self, param: Tensor) -> bool:
        return False

    def _reach(self, group: Group) -> float | Tensor:
        """The learning rate times the strength of the penalty."""
        return 0.0

    def _largest_before(self, param: Tensor) -> Tensor | None:
        """The largest second moment of the parameter before this step; None if none is 0."""
        return None

    def _prepare(self) -> None:
        super()._prepare()
        if not self.compile:
            return
        self._kernels = found = {}
        if getattr(self, "found_inf", None) is not None:  # a scaler expects the base's kernel to unscale, or to skip
            return
        for group in self.param_groups:
            for is_penalized in (False, True):
                params = [p for p in with_gradients(group) if self._fits(p) and self._is_penalized(p) is is_penalized]
                form = self._form(group, is_penalized) if params else None
                for param in params if form is not None else ():
                    kernel = adam_kernel(form, param.device.type)
                    if kernel is not None:
                        found[param] = form, kernel

    def _fits(self, param: Tensor) -> bool:
        """Whether a kernel takes the parameter, and pays."""
        if param.numel() < _FROM or param.dtype not in (torch.float32, torch.float64) or is_sharded(param):
            return False
        # The moments have the strides that the parameter had in another process.
        return all(t.is_contiguous() for t in (param, *self.state.get(param, {}).values()) if isinstance(t, Tensor))

    def _form(self, group: Group, is_penalized: bool) -> AdamForm | None:
        """What the kernel does to such parameters of the group; None if torch's own step is as good."""
        penalty, decay = self._unit if is_penalized else None, decay_after(group)
        if penalty is None and decay is None:
            return None
        cautious, has_start = decay and group["cautious"], decay and group["towards"] == "start"
        return AdamForm(decay, bool(cautious), bool(has_start), group["amsgrad"], penalty)

    def _to_decay(self, group: Group) -> list[Tensor]:
        return [param for param in super()._to_decay(group) if param not in self._kernels]

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
        try:
            for group, params in zip(self.param_groups, everything, strict=True):
                group["params"] = [p for p in params if p not in self._kernels]
            super()._update()
        finally:
            for group, params in zip(self.param_groups, everything, strict=True):
                group["params"] = params
        for group, amount in zip(self.param_groups, self._amounts, strict=True):
            params = [p for p in group["params"] if p in self._kernels]
            for device in dict.fromkeys(p.device for p in params):
                own = [p for p in params if p.device == device]
                self._step_in_one_pass_({**group, "params": own}, amount, device)
        return loss

    @torch.no_grad()
    def _step_in_one_pass_(self, group: Group, amount: float | Tensor, device: torch.device) -> None:
        params, grads, first, second, largest, steps = ([] for _ in range(6))  # type: ignore[var-annotated]
        self._init_group(group, params, grads, first, second, largest, steps)  # type: ignore[attr-defined]
        torch._foreach_add_(steps, 1)
        before = list(map(self._largest_before, params))
        numbers = adam_numbers(steps, group, amount, self._reach(group), before, device)
        for i, param in enumerate(params):
            form, kernel = self._kernels[param]
            tensors = [param, grads[i].contiguous(), first[i], second[i], *largest[i : i + 1]]
            if form.has_start:
                tensors.append(self._start(param))
            kernel(numbers[i], *(tensor.detach().view(-1) for tensor in tensors))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "compile": self.compile}

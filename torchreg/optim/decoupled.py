"""Weight decay decoupled from the gradient, inside the optimizer's own step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchreg.hooks import Group, step_size, unhooked_step

Coupling = Literal["lr", "schedule", "independent"]


class DecoupledDecay(Optimizer):
    r"""Mixin that decouples an optimizer's ``weight_decay``: ``class SGDW(DecoupledDecay, torch.optim.SGD)``.

    Each step first multiplies the weights that have a gradient by a factor, then makes the base optimizer's step
    without any decay of its own. Gradients and moments never see the decay.

    =============  =======================================  =====================================
    coupling       factor                                   whose rule
    =============  =======================================  =====================================
    "lr"           :math:`1 - \eta_t \lambda`               ``torch.optim.AdamW``
    "schedule"     :math:`1 - (\eta_t / \eta_0) \lambda`    Loshchilov and Hutter
    "independent"  :math:`1 - \lambda`                      a constant, whatever the learning rate
    =============  =======================================  =====================================

    Here :math:`\eta_t` is the group's ``lr`` now, :math:`\eta_0` its ``initial_lr`` where a scheduler has set one and
    else the ``lr`` it was added with, and :math:`\lambda` its ``weight_decay``. Any group may have its own of each.

    Raises:
        ValueError: an unknown coupling, coupling "schedule" with ``lr=0``, or "independent" with a decay above 1.

    References:
        Ilya Loshchilov, Frank Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """

    def __init__(self, *args: Any, coupling: Coupling = "lr", **kwargs: Any) -> None:
        self._coupling = coupling  # the base class adds its groups before it returns
        super().__init__(*args, **kwargs)
        self.defaults["coupling"] = coupling

    def add_param_group(self, param_group: Group) -> None:
        # Checked before it is added: a group that is refused must not stay behind.
        group = {"lr": self.defaults["lr"], "coupling": self._coupling, **param_group}
        coupling, lr, owner = group["coupling"], group["lr"], type(self).__name__
        decay = group.get("weight_decay", self.defaults["weight_decay"])
        if coupling not in get_args(Coupling):
            raise ValueError(f"{owner}: coupling must be one of {', '.join(get_args(Coupling))}, got {coupling!r}")
        if coupling == "schedule" and lr == 0:
            raise ValueError(f"{owner}: coupling 'schedule' divides by the initial lr, which must be > 0, got 0")
        if coupling == "independent" and not decay <= 1:
            raise ValueError(
                f"{owner}: weight_decay must be at most 1 with coupling 'independent', where each step multiplies the "
                f"weights by 1 - weight_decay, got {decay!r}"
            )
        _remember_lr(group)
        super().add_param_group(group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._coupling = self.defaults.get("coupling", "lr")
        for group in self.param_groups:  # a checkpoint of the base class does not know of couplings
            group.setdefault("coupling", self._coupling)
            _remember_lr(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step; returns what the closure returned, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        base = _base_of(type(self))
        if issubclass(base, torch.optim.AdamW) and all(g["coupling"] == "lr" for g in self.param_groups):
            unhooked_step(base)(self)  # its own kernel has the same rule
            return loss
        for group in self.param_groups:
            self._decay(group)
        with self._without_decay():
            unhooked_step(base)(self)
        return loss

    def _decay(self, group: Group) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params or group["weight_decay"] == 0:
            return
        factor = 1 - self._rate(group) * group["weight_decay"]
        if isinstance(factor, Tensor):  # it may lie on another device than the parameters, which foreach refuses
            for param in params:
                param.mul_(factor)
        else:
            torch._foreach_mul_(params, factor)

    def _rate(self, group: Group) -> float | Tensor:
        if group["coupling"] == "lr":
            return step_size(self, group)
        if group["coupling"] == "schedule":
            initial_lr: float | Tensor = group["initial_lr"] if "initial_lr" in group else group["decay_lr"]
            return step_size(self, group) / initial_lr
        return step_size(self, {"lr": 1.0})

    @contextmanager
    def _without_decay(self) -> Iterator[None]:
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            group["weight_decay"] = 0
        try:
            yield
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay


def _remember_lr(group: Group) -> None:
    # Not as "initial_lr": a scheduler made later, after lr was changed by hand, must not find ours there.
    if group["coupling"] == "schedule":
        lr = group["lr"]
        group.setdefault("decay_lr", lr.clone() if isinstance(lr, Tensor) else lr)


def _base_of(cls: type[Optimizer]) -> type[Optimizer]:
    """The optimizer class that the mixin was mixed into."""
    base: type[Optimizer] = cls.__mro__[cls.__mro__.index(DecoupledDecay) + 1]
    return base


class SGDW(DecoupledDecay, torch.optim.SGD):
    r"""SGD with momentum and decoupled weight decay.

    .. math:: w \leftarrow (1 - \eta\lambda) w, \qquad w \leftarrow w - \eta\, m_t

    with :math:`m_t` the momentum of the plain gradients, as in :class:`torch.optim.SGD`.

    Args:
        params: parameters, named parameters or groups, as in ``torch.optim``.
        lr: learning rate.
        momentum, dampening, nesterov, maximize, foreach, differentiable, fused: as in :class:`torch.optim.SGD`.
        weight_decay: :math:`\lambda`, the decay per step in units of the coupling.
        coupling: how the learning rate scales the decay; see :class:`DecoupledDecay`.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = SGDW([w], lr=0.1, weight_decay=0.5)
        >>> w.grad = torch.zeros(2)
        >>> optimizer.step()
        >>> w.data
        tensor([0.9500, 0.9500])
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        coupling: Coupling = "lr",
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            coupling=coupling,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )


class AdamW(DecoupledDecay, torch.optim.AdamW):
    r"""AdamW whose decay need not follow the learning rate; with coupling "lr" it is ``torch.optim.AdamW`` to the bit.

    Args:
        params: parameters, named parameters or groups, as in ``torch.optim``.
        lr: learning rate.
        betas, eps, amsgrad, maximize, foreach, capturable, differentiable, fused: as in :class:`torch.optim.AdamW`.
        weight_decay: :math:`\lambda`, the decay per step in units of the coupling.
        coupling: how the learning rate scales the decay; see :class:`DecoupledDecay`.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = AdamW([w], lr=1e-3, weight_decay=0.5, coupling="independent")
        >>> w.grad = torch.zeros(2)
        >>> optimizer.step()
        >>> w.data
        tensor([0.5000, 0.5000])
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        coupling: Coupling = "lr",
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            coupling=coupling,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )

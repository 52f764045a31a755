"""The decoupled optimizers that torch lacks, by name. Each is its torch base with :class:`DecoupledDecay` mixed in.

What they accept is put together from both when the classes are made; type checkers read it here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from torchreg.optim.decoupled import Coupling, Decay, DecoupledDecay, Target
from torchreg.schedules import Schedule


class DecayOptions(TypedDict, total=False):
    """What every decoupled optimizer accepts, by keyword; see :class:`DecoupledDecay`."""

    coupling: Coupling
    decay: Decay
    towards: Target
    cautious: bool
    decay_schedule: Schedule | None


class SGDW(DecoupledDecay, torch.optim.SGD):
    r"""SGD with momentum and decoupled weight decay.

    .. math:: w \leftarrow (1 - \eta\lambda) w, \qquad w \leftarrow w - \eta\, m_t

    with :math:`m_t` the momentum of the plain gradients.

    Args:
        params: parameters, named parameters or groups, as in ``torch.optim``.
        weight_decay: :math:`\lambda`, the decay per step in units of the coupling.
        coupling, decay, towards, cautious, decay_schedule: see :class:`DecoupledDecay`.
        lr, momentum, dampening, nesterov, maximize, foreach, differentiable, fused: as in :class:`torch.optim.SGD`.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = SGDW([w], lr=0.1, weight_decay=0.5)
        >>> w.grad = torch.zeros(2)
        >>> optimizer.step()
        >>> w.data
        tensor([0.9500, 0.9500])
    """

    if TYPE_CHECKING:

        def __init__(
            self,
            params: ParamsT,
            lr: float | Tensor = 1e-3,
            momentum: float = 0,
            dampening: float = 0,
            weight_decay: float | Tensor = 0,
            nesterov: bool = False,
            *,
            maximize: bool = False,
            foreach: bool | None = None,
            differentiable: bool = False,
            fused: bool | None = None,
            **options: Unpack[DecayOptions],
        ) -> None: ...


class AdamW(DecoupledDecay, torch.optim.AdamW):
    r"""AdamW whose decay need not follow the learning rate; with coupling "lr" it is ``torch.optim.AdamW`` to the bit.

    .. math:: w \leftarrow (1 - r_t\lambda) w, \qquad w \leftarrow w - \eta\, \hat m_t / (\sqrt{\hat v_t} + \epsilon)

    Args:
        params: parameters, named parameters or groups, as in ``torch.optim``.
        weight_decay: :math:`\lambda`, the decay per step in units of the coupling.
        coupling, decay, towards, cautious, decay_schedule: see :class:`DecoupledDecay`.
        lr, betas, eps, amsgrad, maximize, foreach, capturable, differentiable, fused: as in :class:`torch.optim.AdamW`.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = AdamW([w], weight_decay=0.5, coupling="independent")
        >>> w.grad = torch.zeros(2)
        >>> optimizer.step()
        >>> w.data
        tensor([0.5000, 0.5000])
    """

    if TYPE_CHECKING:

        def __init__(
            self,
            params: ParamsT,
            lr: float | Tensor = 1e-3,
            betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
            eps: float = 1e-8,
            weight_decay: float = 1e-2,
            amsgrad: bool = False,
            *,
            maximize: bool = False,
            foreach: bool | None = None,
            capturable: bool = False,
            differentiable: bool = False,
            fused: bool | None = None,
            **options: Unpack[DecayOptions],
        ) -> None: ...


class RMSpropW(DecoupledDecay, torch.optim.RMSprop):
    r"""RMSprop with decoupled weight decay.

    .. math:: w \leftarrow (1 - \eta\lambda) w, \qquad w \leftarrow w - \eta\, g_t / (\sqrt{v_t} + \epsilon)

    Args:
        params: parameters, named parameters or groups, as in ``torch.optim``.
        weight_decay: :math:`\lambda`, the decay per step in units of the coupling.
        coupling, decay, towards, cautious, decay_schedule: see :class:`DecoupledDecay`.
        lr, alpha, eps, momentum, centered, capturable, foreach, maximize, differentiable: as in
            :class:`torch.optim.RMSprop`.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = RMSpropW([w], lr=0.1, weight_decay=0.5)
        >>> w.grad = torch.zeros(2)
        >>> optimizer.step()
        >>> w.data
        tensor([0.9500, 0.9500])
    """

    if TYPE_CHECKING:

        def __init__(
            self,
            params: ParamsT,
            lr: float | Tensor = 1e-2,
            alpha: float = 0.99,
            eps: float = 1e-8,
            weight_decay: float = 0,
            momentum: float = 0,
            centered: bool = False,
            capturable: bool = False,
            foreach: bool | None = None,
            maximize: bool = False,
            differentiable: bool = False,
            **options: Unpack[DecayOptions],
        ) -> None: ...


class AdagradW(DecoupledDecay, torch.optim.Adagrad):
    r"""Adagrad with decoupled weight decay.

    .. math:: w \leftarrow (1 - \eta\lambda) w, \qquad
              w \leftarrow w - \eta_t\, g_t \Big/ \Big(\sqrt{\textstyle\sum_{i \le t} g_i^2} + \epsilon\Big)

    The decay follows ``lr`` itself, :math:`\eta`, not what ``lr_decay`` makes of it, :math:`\eta_t`.

    Args:
        params: parameters, named parameters or groups, as in ``torch.optim``.
        weight_decay: :math:`\lambda`, the decay per step in units of the coupling.
        coupling, decay, towards, cautious, decay_schedule: see :class:`DecoupledDecay`.
        lr, lr_decay, initial_accumulator_value, eps, foreach, maximize, differentiable, fused: as in
            :class:`torch.optim.Adagrad`.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = AdagradW([w], lr=0.1, weight_decay=0.5)
        >>> w.grad = torch.zeros(2)
        >>> optimizer.step()
        >>> w.data
        tensor([0.9500, 0.9500])
    """

    if TYPE_CHECKING:

        def __init__(
            self,
            params: ParamsT,
            lr: float | Tensor = 1e-2,
            lr_decay: float = 0,
            weight_decay: float = 0,
            initial_accumulator_value: float = 0,
            eps: float = 1e-10,
            foreach: bool | None = None,
            *,
            maximize: bool = False,
            differentiable: bool = False,
            fused: bool | None = None,
            **options: Unpack[DecayOptions],
        ) -> None: ...


class NAdamW(DecoupledDecay, torch.optim.NAdam):
    r"""NAdam with decoupled weight decay; with coupling "lr" torch's own ``decoupled_weight_decay=True`` to the bit.

    .. math:: w \leftarrow (1 - \eta\lambda) w, \qquad w \leftarrow \text{NAdam's step from } w

    Args:
        params: parameters, named parameters or groups, as in ``torch.optim``.
        weight_decay: :math:`\lambda`, the decay per step in units of the coupling.
        coupling, decay, towards, cautious, decay_schedule: see :class:`DecoupledDecay`.
        lr, betas, eps, momentum_decay, foreach, maximize, capturable, differentiable: as in :class:`torch.optim.NAdam`.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = NAdamW([w], lr=0.1, weight_decay=0.5)
        >>> w.grad = torch.zeros(2)
        >>> optimizer.step()
        >>> w.data
        tensor([0.9500, 0.9500])
    """

    if TYPE_CHECKING:

        def __init__(
            self,
            params: ParamsT,
            lr: float | Tensor = 2e-3,
            betas: tuple[float, float] = (0.9, 0.999),
            eps: float = 1e-8,
            weight_decay: float = 0,
            momentum_decay: float = 4e-3,
            *,
            foreach: bool | None = None,
            maximize: bool = False,
            capturable: bool = False,
            differentiable: bool = False,
            **options: Unpack[DecayOptions],
        ) -> None: ...


class RAdamW(DecoupledDecay, torch.optim.RAdam):
    r"""RAdam with decoupled weight decay; with coupling "lr" torch's own ``decoupled_weight_decay=True`` to the bit.

    .. math:: w \leftarrow (1 - \eta\lambda) w, \qquad w \leftarrow \text{RAdam's step from } w

    Args:
        params: parameters, named parameters or groups, as in ``torch.optim``.
        weight_decay: :math:`\lambda`, the decay per step in units of the coupling.
        coupling, decay, towards, cautious, decay_schedule: see :class:`DecoupledDecay`.
        lr, betas, eps, foreach, maximize, capturable, differentiable: as in :class:`torch.optim.RAdam`.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = RAdamW([w], lr=0.1, weight_decay=0.5)
        >>> w.grad = torch.zeros(2)
        >>> optimizer.step()
        >>> w.data
        tensor([0.9500, 0.9500])
    """

    if TYPE_CHECKING:

        def __init__(
            self,
            params: ParamsT,
            lr: float | Tensor = 1e-3,
            betas: tuple[float, float] = (0.9, 0.999),
            eps: float = 1e-8,
            weight_decay: float = 0,
            *,
            foreach: bool | None = None,
            maximize: bool = False,
            capturable: bool = False,
            differentiable: bool = False,
            **options: Unpack[DecayOptions],
        ) -> None: ...


class AdamaxW(DecoupledDecay, torch.optim.Adamax):
    r"""Adamax with decoupled weight decay.

    .. math:: w \leftarrow (1 - \eta\lambda) w, \qquad w \leftarrow w - \eta\, \hat m_t / u_t

    with :math:`u_t` the exponentially weighted largest gradient.

    Args:
        params: parameters, named parameters or groups, as in ``torch.optim``.
        weight_decay: :math:`\lambda`, the decay per step in units of the coupling.
        coupling, decay, towards, cautious, decay_schedule: see :class:`DecoupledDecay`.
        lr, betas, eps, foreach, maximize, differentiable, capturable: as in :class:`torch.optim.Adamax`.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = AdamaxW([w], lr=0.1, weight_decay=0.5)
        >>> w.grad = torch.zeros(2)
        >>> optimizer.step()
        >>> w.data
        tensor([0.9500, 0.9500])
    """

    if TYPE_CHECKING:

        def __init__(
            self,
            params: ParamsT,
            lr: float | Tensor = 2e-3,
            betas: tuple[float, float] = (0.9, 0.999),
            eps: float = 1e-8,
            weight_decay: float = 0,
            foreach: bool | None = None,
            *,
            maximize: bool = False,
            differentiable: bool = False,
            capturable: bool = False,
            **options: Unpack[DecayOptions],
        ) -> None: ...
